"""Spaces of observations and actions: what an agent sees and what it may do.

They are ours, and not Gymnasium's, because the compiled crank runs where Gymnasium is not installed; they are
frozen and hashable, so that jitted functions may take them as static arguments. `envs/host.py` translates.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Discrete:
    """The integers 0 … n−1."""

    n: int

    @property
    def shape(self) -> tuple[int, ...]:
        return ()

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.int32)


@dataclass(frozen=True)
class MultiDiscrete:
    """A vector of integers, the i-th in 0 … nvec[i]−1."""

    nvec: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.nvec),)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.int32)


@dataclass(frozen=True)
class MultiBinary:
    """A vector of n bits."""

    n: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n,)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.int32)


@dataclass(frozen=True, init=False)
class Box:
    """Arrays of `shape` with bounds per element, which may be infinite.

    `low` and `high` are kept flat, as tuples, which makes the space hashable; `bounds` gives arrays of `shape`.
    An image is a uint8 box of three axes, channels last.
    """

    low: tuple[float, ...] | float
    high: tuple[float, ...] | float
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __init__(self, low: Any, high: Any, shape: Sequence[int] | None = None, dtype: Any = np.float32) -> None:
        low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
        shape = tuple(int(n) for n in (np.broadcast_shapes(low.shape, high.shape) if shape is None else shape))

        def packed(bound: Any) -> tuple[float, ...] | float:
            """One number where all bounds are equal: an image has 28,224 of them."""
            flat = np.broadcast_to(bound, shape).ravel()
            return float(flat[0]) if flat.size and (flat == flat[0]).all() else tuple(flat.tolist())

        object.__setattr__(self, "low", packed(low))
        object.__setattr__(self, "high", packed(high))
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "dtype", np.dtype(dtype))

    @property
    def bounds(self) -> tuple[Any, Any]:
        """(low, high), float64 arrays of `shape`."""
        low, high = np.asarray(self.low), np.asarray(self.high)
        if low.ndim:
            low = low.reshape(self.shape)
        if high.ndim:
            high = high.reshape(self.shape)
        return np.broadcast_to(low, self.shape), np.broadcast_to(high, self.shape)

    @property
    def bounded(self) -> bool:
        """Whether every element has two finite bounds."""
        return bool(np.isfinite(self.low).all() and np.isfinite(self.high).all())

    @property
    def image(self) -> bool:
        """Whether this is a picture: uint8 with three axes (height, width, channels)."""
        return self.dtype == np.uint8 and len(self.shape) == 3


@dataclass(frozen=True, init=False)
class Dict:
    """Named spaces; an observation is a dict of arrays. The key `action_mask` marks the allowed discrete actions."""

    items: tuple[tuple[str, "Space"], ...]

    def __init__(self, items: Mapping[str, "Space"]) -> None:
        object.__setattr__(self, "items", tuple(sorted(items.items())))

    def __getitem__(self, name: str) -> "Space":
        return dict(self.items)[name]

    def __contains__(self, name: object) -> bool:
        return any(name == key for key, _ in self.items)


@dataclass(frozen=True, init=False)
class Tuple:
    """Spaces in order; an observation is a tuple of arrays."""

    items: tuple["Space", ...]

    def __init__(self, items: Sequence["Space"]) -> None:
        object.__setattr__(self, "items", tuple(items))


Space = Discrete | MultiDiscrete | MultiBinary | Box | Dict | Tuple


def leaves(space: Space, path: str = "") -> Iterator[tuple[str, Discrete | MultiDiscrete | MultiBinary | Box]]:
    """The simple spaces inside `space` with their paths ("position", "camera/left", "0"), "" for a simple one."""
    match space:
        case Dict():
            for name, inner in space.items:
                yield from leaves(inner, f"{path}/{name}" if path else name)
        case Tuple():
            for i, inner in enumerate(space.items):
                yield from leaves(inner, f"{path}/{i}" if path else str(i))
        case _:
            yield path, space


def describe(space: Space) -> str:
    """A short text for messages: `Box(4,)`, `Discrete(2)`, `Dict(camera: Box(84, 84, 3), speed: Box(1,))`."""
    match space:
        case Discrete():
            return f"Discrete({space.n})"
        case MultiDiscrete():
            return f"MultiDiscrete({list(space.nvec)})"
        case MultiBinary():
            return f"MultiBinary({space.n})"
        case Box():
            return f"Box({', '.join(map(str, space.shape))}{',' if len(space.shape) == 1 else ''})"
        case Dict():
            return "Dict(" + ", ".join(f"{name}: {describe(inner)}" for name, inner in space.items) + ")"
        case Tuple():
            return "Tuple(" + ", ".join(describe(inner) for inner in space.items) + ")"


def agent_action_space(space: Space) -> Space:
    """The space in which an agent acts: every Box with finite bounds becomes [-1, 1] of the same shape, inside Dict
    and Tuple too; the world's side maps it affinely to the true bounds. Everything else stays as it is."""
    match space:
        case Box() if space.bounded:
            return Box(-1.0, 1.0, space.shape)
        case Dict():
            return Dict({name: agent_action_space(inner) for name, inner in space.items})
        case Tuple():
            return Tuple([agent_action_space(inner) for inner in space.items])
        case _:
            return space
