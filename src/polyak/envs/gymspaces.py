"""Between Gymnasium's spaces and ours: dtypes, offsets, bounds and the rescaling of actions.

A space is walked once into its leaves (the simple spaces inside a Dict or Tuple, in the order of
`polyak.spaces.leaves`). One `ObsLeaf` or `ActionLeaf` then serves all N environments of a vector, with scratch
arrays allocated once, because the per-step cost of a cheap environment is the cost of these few calls.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from polyak import spaces
from polyak.errors import PolyakError

Array = np.ndarray[Any, np.dtype[Any]]
Path = tuple[str | int, ...]

# How far, relative to max(1, |bound|), a float may lie outside a bound without a word, since integrators overshoot by
# rounding (1e-7).
TOLERANCE = 1e-4
# Beyond that, up to this many widths of the space, it passes with a warning: the spaces of well-known environments are
# narrower than what they show. Further away it is a fault.
SLACK = 10.0
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_SUPPORTED = "Discrete, Box, MultiDiscrete, MultiBinary, and Dict or Tuple of these"


def gym_leaves(space: Any, name: str, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The simple Gymnasium spaces inside `space` with their paths, in the order of `polyak.spaces.leaves`.

    Errors:
        PolyakError: for a space that polyak does not take (Text, Graph, Sequence, OneOf, …).
    """
    kind = type(space).__name__
    if kind == "Dict":
        for key, inner in sorted(space.spaces.items()):
            yield from gym_leaves(inner, name, (*path, key))
    elif kind == "Tuple":
        for i, inner in enumerate(space.spaces):
            yield from gym_leaves(inner, name, (*path, i))
    elif kind in ("Discrete", "Box", "MultiDiscrete", "MultiBinary"):
        yield path, space
    else:
        where = f" (at {'/'.join(map(str, path))})" if path else ""
        raise PolyakError(f"{name} has a {kind} space{where}, which polyak does not take; it takes {_SUPPORTED}")


def obs_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """What the agent sees of a Box of `dtype`: floats as float32, bytes as they are, other integers as int32."""
    if dtype == np.uint8:
        return dtype
    return np.dtype(np.int32 if dtype.kind in "iu" and dtype.itemsize <= 4 and dtype != np.uint32 else np.float32)


def our_space(space: Any, name: str, *, action: bool = False) -> spaces.Space:
    """Our space for a Gymnasium one, as an agent sees it: a bounded Box of actions is Box(−1, 1), offsets are gone.

    Errors:
        PolyakError: for a space that polyak does not take; `name` says whose it is.
    """
    list(gym_leaves(space, name))  # refuses what is not supported, with its path
    kind = type(space).__name__
    if kind == "Dict":
        return spaces.Dict({str(k): our_space(v, name, action=action) for k, v in space.spaces.items()})
    if kind == "Tuple":
        return spaces.Tuple([our_space(v, name, action=action) for v in space.spaces])
    if kind == "Discrete":
        return spaces.Discrete(int(space.n))
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(tuple(int(n) for n in np.ravel(space.nvec)))
    if kind == "MultiBinary":
        return spaces.MultiBinary(int(np.prod(space.shape)))
    if action and np.isfinite(space.low).all() and np.isfinite(space.high).all():
        return spaces.Box(-1.0, 1.0, space.shape)
    return spaces.Box(space.low, space.high, space.shape, np.float32 if action else obs_dtype(space.dtype))


def nested(space: spaces.Space, parts: Iterator[Any]) -> Any:
    """The parts, one per leaf of `space` and in its order, put back into nested dicts and tuples."""
    match space:
        case spaces.Dict():
            return {key: nested(inner, parts) for key, inner in space.items}
        case spaces.Tuple():
            return tuple([nested(inner, parts) for inner in space.items])
        case _:
            return next(parts)


def flat(space: spaces.Space, value: Any) -> list[Any]:
    """The parts of a nested value, one per leaf of `space` and in its order: the inverse of `nested`."""
    match space:
        case spaces.Dict():
            return [x for key, inner in space.items for x in flat(inner, value[key])]
        case spaces.Tuple():
            return [x for inner, item in zip(space.items, value, strict=True) for x in flat(inner, item)]
        case _:
            return [value]


def structured(space: Any, parts: Iterator[Any]) -> Any:
    """The parts put back into dicts and tuples as the Gymnasium `space` is nested."""
    kind = type(space).__name__
    if kind == "Dict":
        return {key: structured(inner, parts) for key, inner in sorted(space.spaces.items())}
    if kind == "Tuple":
        return tuple([structured(inner, parts) for inner in space.spaces])
    return next(parts)


def part(value: Any, path: Path) -> Any:
    """The value at `path` inside nested dicts and tuples.

    Errors:
        LookupError, TypeError: the structure is not the space's.
    """
    for key in path:
        value = value[key]
    return value


def _short(value: Any) -> str:
    text = repr(value).replace("\n", " ")
    return text if len(text) <= 60 else text[:57] + "..."


def first_fault(leaves: "list[ObsLeaf]", name: str, notices: list[str]) -> tuple[int, str] | None:
    """(environment, clause) of the first observation that can't be taken; a notice of what is, though it is outside."""
    for leaf in leaves:
        if not leaf.sound():
            found = leaf.unsound()
            if not leaf.tolerated():
                return found
            notices.append(f"{name}: {found[1]}; such observations are taken as they are")
    return None


class ObsLeaf:
    """One array of the observation, for all N environments.

    Attributes:
        raw: [N, ...] in the environment's own dtype and offsets, overwritten at every step.
        bytes: a view of each row of `raw`, for the digest.
    """

    def __init__(self, path: Path, space: Any, n: int) -> None:
        kind = type(space).__name__
        self.path, self.kind = path, kind
        self.name = "/".join(map(str, path)) or "observation"
        self.shape: tuple[int, ...] = () if kind == "Discrete" else tuple(space.shape)
        self.dtype: np.dtype[Any] = np.dtype(np.int64 if kind in ("Discrete", "MultiDiscrete") else space.dtype)
        self.raw: Array = np.zeros((n, *self.shape), self.dtype)
        self.rows: list[Array] = [self.raw[i, ...] for i in range(n)]
        flat = self.raw.reshape(n, -1)
        self.bytes = [memoryview(flat[i]).cast("B") for i in range(n)]
        self.start: Any = getattr(space, "start", 0) if kind in ("Discrete", "MultiDiscrete") else 0
        self.out_dtype = obs_dtype(self.dtype) if kind == "Box" else np.dtype(np.int32)
        self._limits(space)
        self._wide = False
        self._above: Array = np.zeros(self.raw.shape, np.bool_)
        self._below: Array = np.zeros(self.raw.shape, np.bool_)

    def _limits(self, space: Any) -> None:
        """`low` and `high` in the raw dtype, widened by the tolerance; finite, so that NaN and Inf fail both tests."""
        if self.kind == "Box":
            low, high = np.asarray(space.low, np.float64), np.asarray(space.high, np.float64)
        elif self.kind == "MultiBinary":
            low, high = np.zeros(self.shape), np.ones(self.shape)
        else:
            size = space.n if self.kind == "Discrete" else space.nvec
            low, high = np.asarray(self.start, np.float64), np.asarray(self.start + size - 1, np.float64)
        if self.dtype.kind == "f":
            top = min(_FLOAT32_MAX, float(np.finfo(self.dtype).max))
            low = np.clip(low - TOLERANCE * np.maximum(1, np.abs(low)), -top, top)
            high = np.clip(high + TOLERANCE * np.maximum(1, np.abs(high)), -top, top)
            low, high = np.nan_to_num(low, neginf=-top, posinf=top), np.nan_to_num(high, neginf=-top, posinf=top)
        self.free = self.dtype.kind == "u" and bool(np.all(low <= 0) and np.all(high >= np.iinfo(self.dtype).max))
        if self.dtype.kind in "iu":
            info = np.iinfo(self.dtype)
            low, high = np.clip(low, info.min, info.max), np.clip(high, info.min, info.max)
        self.low, self.high = self._compact(low), self._compact(high)

    def _compact(self, bound: Any) -> Any:
        """A bound in the raw dtype; one number where all are equal, which halves the cost of the comparison."""
        if self.dtype.kind == "i" and self.dtype.itemsize == 8:
            # 2^63 − 1 is not a float64: clip before the cast, or it wraps to the smallest integer.
            bound = np.clip(bound, -(2.0**62), 2.0**62)
        bound = np.asarray(bound).astype(self.dtype)
        return bound.ravel()[0] if bound.size and (bound == bound.ravel()[0]).all() else bound

    def put(self, i: int, value: Any) -> str:
        """Copies environment i's value into `raw`; what is wrong with its type, shape or dtype, or ""."""
        if type(value) is np.ndarray and value.dtype == self.dtype and value.shape == self.shape:
            self.rows[i][...] = value
            return ""
        return self._put_slowly(i, value)

    def _put_slowly(self, i: int, value: Any) -> str:
        scalar = isinstance(value, (int, np.generic)) and not isinstance(value, bool)
        if not (isinstance(value, np.ndarray) or (scalar and self.shape == ())):
            return f"{self.name} is {type(value).__name__} ({_short(value)}), not an array of shape {self.shape}"
        array = np.asarray(value)
        if array.shape != self.shape:
            return f"{self.name} has shape {array.shape}, but its space says {self.shape}"
        whole = self.kind != "Box" and array.dtype.kind in "iub"
        if not whole and not np.can_cast(array.dtype, self.dtype, "safe"):
            return f"{self.name} has dtype {array.dtype}, but its space says {self.dtype}"
        self.rows[i][...] = array
        return ""

    def put_batch(self, batch: Any, who: list[int]) -> str:
        """Copies rows `who` of a batch [N, ...] into `raw`; what is wrong with its shape or dtype, or ""."""
        array = np.asarray(batch)
        if array.shape != self.raw.shape:
            return f"{self.name} has shape {array.shape}, but {self.raw.shape} was expected"
        whole = self.kind != "Box" and array.dtype.kind in "iub"
        if not whole and not np.can_cast(array.dtype, self.dtype, "safe"):
            return f"{self.name} has dtype {array.dtype}, but its space says {self.dtype}"
        self.raw[who] = array[who]
        return ""

    def sound(self) -> bool:
        """Whether every number of all N rows is finite and inside its bounds."""
        if self.free:
            return True
        np.greater_equal(self.raw, self.low, out=self._above)
        np.less_equal(self.raw, self.high, out=self._below)
        return np.count_nonzero(self._above) + np.count_nonzero(self._below) == 2 * self.raw.size

    def unsound(self) -> tuple[int, str]:
        """The first environment whose row fails `sound`, and one clause that names the element, value and bounds."""
        wrong = ~(self._above & self._below)
        at: list[int] = np.argwhere(wrong)[0].tolist()
        value = self.raw[tuple(at)]
        where = f"{self.name}{at[1:]}" if len(at) > 1 else self.name
        if not np.isfinite(value):
            return at[0], f"{where} is {value}"
        if self.dtype.kind == "f" and abs(value) > _FLOAT32_MAX:
            return at[0], f"{where} is {value}, too large for float32"
        low, high = (np.broadcast_to(b, self.raw.shape)[tuple(at)] for b in (self.low, self.high))
        return at[0], f"{where} is {value}, outside its space's bounds [{low:.6g}, {high:.6g}]"

    def tolerated(self) -> bool:
        """Whether all that fails `sound` is a float not far outside; its bounds are then widened, so that it passes.

        LunarLander turns on beyond its space's 2π. What is no number, or off by many widths, is another matter.
        """
        if self.dtype.kind != "f" or self._wide:
            return False
        low, high = np.asarray(self.low, np.float64), np.asarray(self.high, np.float64)
        reach = SLACK * (high - low)
        wide = [self._compact(np.clip(x, -_FLOAT32_MAX, _FLOAT32_MAX)) for x in (low - reach, high + reach)]
        if not ((self.raw >= wide[0]) & (self.raw <= wide[1])).all():
            return False
        (self.low, self.high), self._wide = wide, True
        return True

    def out(self) -> Array:
        """A fresh [N, ...] array as the agent sees it: offsets removed, dtype of `out_dtype`, vectors flat."""
        if self.kind == "Box":
            return self.raw.astype(self.out_dtype)
        array = (self.raw - self.start).astype(np.int32)
        return array.reshape(len(array), -1) if array.ndim > 2 else array


class ActionLeaf:
    """One array of the action, for all N environments: from the agent's view to what the environment takes."""

    def __init__(self, path: Path, space: Any) -> None:
        kind = type(space).__name__
        self.path, self.kind = path, kind
        self.name = "/".join(map(str, path)) or "action"
        self.shape: tuple[int, ...] = () if kind == "Discrete" else tuple(space.shape)
        self.agent_shape = self.shape if kind == "Box" or not self.shape else (int(np.prod(self.shape)),)
        self.dtype = np.dtype(np.int64) if kind == "Discrete" else np.dtype(space.dtype)
        if kind == "Box":
            self.low, self.high = np.asarray(space.low, np.float64), np.asarray(space.high, np.float64)
            self.bounded = bool(np.isfinite(self.low).all() and np.isfinite(self.high).all())
            self.unit = self.bounded and bool((self.low == -1).all() and (self.high == 1).all())
            # In the dtype that is sent, for the common case that needs no arithmetic.
            self._low, self._high = np.asarray(space.low), np.asarray(space.high)
            if self.bounded:
                self._half, self._centre = (self.high - self.low) / 2, (self.high + self.low) / 2
        else:
            size = {"Discrete": "n", "MultiDiscrete": "nvec"}.get(kind)
            start: Any = np.asarray(getattr(space, "start", 0) if size else 0, np.int64)
            self._start = start if start.any() else None
            sizes: Any = np.asarray(getattr(space, size) if size else 2).reshape(-1).astype(np.uint64)
            self._size: Any = sizes[0] if (sizes == sizes[0]).all() else sizes

    def sent(self, action: Any, n: int) -> Array:
        """The agent's actions [N, ...] as the environments take them, [N, ...] in their dtype and bounds, fresh.

        Errors:
            ValueError: wrong count or shape, not finite, or out of range; the text says which.
        """
        array = np.asarray(action)
        if array.shape != (n, *self.agent_shape):
            raise ValueError(f"{self.name} has shape {array.shape}; expected {(n, *self.agent_shape)}")
        return self._box(array) if self.kind == "Box" else self._whole(array, n)

    def _whole(self, array: Array, n: int) -> Array:
        if array.dtype.kind not in "iub":
            raise ValueError(f"{self.name} has dtype {array.dtype}; a {self.kind} takes integers")
        array = array.astype(np.int64)
        # Seen without its sign, a negative number is larger than any size: one comparison serves both ends.
        below = array.view(np.uint64) < self._size
        if np.count_nonzero(below) != array.size:
            wrong = np.argwhere(~below)[0]
            value = array[tuple(wrong)]
            raise ValueError(f"{self.name} of environment {wrong[0]} is {value}, out of 0 … {self._top()}")
        if array.ndim > 1:
            array = array.reshape(n, *self.shape)
        if self._start is not None:
            array += self._start
        return array if self.dtype == np.int64 else array.astype(self.dtype)

    def _top(self) -> str:
        return str((np.asarray(self._size, np.int64) - 1).tolist())

    def _box(self, array: Array) -> Array:
        flat = array.ravel()
        if array.dtype.kind != "f":
            raise ValueError(f"{self.name} has dtype {array.dtype}; a Box takes floats")
        # The sum of squares is finite where all are (else, or where it overflows, look closely): a fifth of the cost.
        if not math.isfinite(flat.dot(flat)) and not np.isfinite(flat).all():
            at = tuple(int(k) for k in np.argwhere(~np.isfinite(array))[0])
            raise ValueError(f"{self.name}{list(at[1:])} of environment {at[0]} is {array[at]}")
        if self.unit and self.dtype == array.dtype:
            return np.minimum(np.maximum(array, self._low), self._high)
        if not self.bounded:
            return np.minimum(np.maximum(array, self.low), self.high).astype(self.dtype)
        wide = array.astype(np.float64)
        wide *= self._half
        wide += self._centre
        # Clipping to the bounds here is clipping to [−1, 1] before: the map is monotone, and meets them at ±1.
        np.maximum(wide, self.low, out=wide)
        np.minimum(wide, self.high, out=wide)
        if self.dtype.kind in "iu":
            np.rint(wide, out=wide)
        return wide.astype(self.dtype)


def random_actions(space: spaces.Space, n: int, rng: np.random.Generator, mask: Array | None = None) -> Any:
    """Actions [n, ...] drawn uniformly in the agent's view (standard normal where a Box has no bounds).

    Args:
        mask: bool [n, k], the allowed choices of a Discrete (k of them) or of a MultiDiscrete (one block per element).
    """
    match space:
        case spaces.Dict():
            return {key: random_actions(inner, n, rng) for key, inner in space.items}
        case spaces.Tuple():
            return tuple([random_actions(inner, n, rng) for inner in space.items])
        case spaces.Box() if space.bounded:
            low, high = space.bounds
            return rng.uniform(low, high, (n, *space.shape)).astype(np.float32)
        case spaces.Box():
            return rng.standard_normal((n, *space.shape), np.float32)
        case spaces.MultiBinary():
            return rng.integers(0, 2, (n, space.n), np.int32)
        case spaces.Discrete() | spaces.MultiDiscrete():
            sizes = (space.n,) if isinstance(space, spaces.Discrete) else space.nvec
            return _choices(sizes, n, rng, mask).reshape(n, *space.shape)


def _choices(sizes: tuple[int, ...], n: int, rng: np.random.Generator, mask: Array | None) -> Array:
    """Integers [n, len(sizes)]; the largest of uniform scores among those allowed."""
    if mask is None:
        return rng.integers(0, np.asarray(sizes), (n, len(sizes)), np.int32)
    allowed = np.split(np.asarray(mask, np.bool_).reshape(n, -1), np.cumsum(sizes)[:-1], axis=1)
    scores = [np.where(block, rng.random(block.shape), -1.0) for block in allowed]
    return np.stack([score.argmax(1) for score in scores], 1).astype(np.int32)
