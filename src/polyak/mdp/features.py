"""Features of observations for linear methods: one-hot (so that tables are the special case), tiles, Fourier, radial,
polynomial. Sutton & Barto (2018), §9.3-9.5.

A feature map is a plain description, like a network's blueprint. `on(space, obs)` gives the features that are on, as
places and values: one for a table, one per tiling for tile coding, all of them for the dense bases. So that a value is
a sum over a few weights, and a step changes only these:

    v(s) = Σ_k x_k(s) w[k]        w[k] ← w[k] + α_k δ x_k(s)
"""

import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from polyak.core import hyper, require
from polyak.errors import PolyakError
from polyak.nets import observed
from polyak.spaces import Box, Discrete, MultiBinary, MultiDiscrete, Space, describe, leaves

MOST = 100_000_000  # weights per action; a larger table would not fit into memory


class Active(NamedTuple):
    """The features of one observation that are not 0."""

    place: Array  # int32 [..., k], which of the features
    value: Array  # float32 [..., k], their values


@hyper
class OneHot:
    """One feature per observation: a table. Discrete spaces, also several together (Blackjack's Tuple of three)."""

    def size(self, space: Space) -> int:
        """How many features there are for observations of `space`."""
        n = math.prod(_sizes(space))
        require(
            n <= MOST, f"a table of {describe(space)} has {n:,} rows, more than fit; use tiles, or an agent like DQN"
        )
        return n

    def on(self, space: Space, obs: Any) -> Active:
        """The one feature of each observation: its number in mixed radix."""
        place: Any = 0
        for digit, n in zip(_digits(space, obs), _sizes(space), strict=True):
            place = place * n + digit.astype(jnp.int32)
        return Active(place[..., None], jnp.ones((*place.shape, 1)))

    def rates(self, space: Space) -> NDArray[np.float32] | None:
        return None


@hyper
class Tiles:
    """Tile coding (§9.5.4): `tilings` grids of `tiles` cells per dimension, each shifted against the others.

    Tiling i is shifted by i · (1, 3, 5, ...) / tilings of a tile, the displacement that the book recommends, and that
    its own software uses. Each observation turns on one tile in each. Box spaces; bounds of its own where the space has
    none.
    """

    tilings: int = 8
    tiles: int = 8  # per dimension
    low: tuple[float, ...] | None = None  # of each dimension; none: the space's
    high: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        require(self.tilings >= 1 and self.tiles >= 1, f"tiles:{self.tilings},{self.tiles}: both must be at least 1")

    def size(self, space: Space) -> int:
        n = self.tilings * (self.tiles + 1) ** _dimensions(space)
        require(n <= MOST, f"tiles:{self.tilings},{self.tiles} of {describe(space)} are {n:,}; use fewer, or a network")
        _bounds(self, space)
        return n

    def on(self, space: Space, obs: Any) -> Active:
        x = _unit(self, space, obs)
        fine = jnp.floor(x * self.tiles * self.tilings).astype(jnp.int32)[..., None, :]  # in steps of the displacement
        tiling = jnp.arange(self.tilings)
        shift = tiling[:, None] * (1 + 2 * jnp.arange(x.shape[-1]))[None] % self.tilings
        cell = (fine + shift.reshape((1,) * (fine.ndim - 2) + shift.shape)) // self.tilings
        place: Any = jnp.broadcast_to(tiling, cell.shape[:-1])
        for d in range(x.shape[-1]):
            place = place * (self.tiles + 1) + cell[..., d]
        return Active(place, jnp.ones(place.shape))

    def rates(self, space: Space) -> NDArray[np.float32] | None:
        return None


@hyper
class Fourier:
    """The Fourier basis (§9.5.2; Konidaris, Osentoski & Thomas 2011): cos(π c·x), c ∈ {0 … order}^d, x in [0, 1]^d.

    The step size of feature c is α / ‖c‖, as its authors advise.
    """

    order: int = 3
    low: tuple[float, ...] | None = None  # of each dimension; none: the space's
    high: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        require(self.order >= 1, f"fourier:{self.order}: the order must be at least 1")

    def size(self, space: Space) -> int:
        _bounds(self, space)
        return len(_exponents(self, space))

    def on(self, space: Space, obs: Any) -> Active:
        c = jnp.asarray(_exponents(self, space), jnp.float32)
        return _dense(jnp.cos(jnp.pi * (_unit(self, space, obs) @ c.T)))

    def rates(self, space: Space) -> NDArray[np.float32] | None:
        norm = np.linalg.norm(_exponents(self, space), axis=1)
        return (1.0 / np.where(norm > 0, norm, 1.0)).astype(np.float32)


@hyper
class Polynomial:
    """Polynomials (§9.5.1): Π_j x_j^{c_j}, c ∈ {0 … order}^d, with x scaled to [0, 1]^d."""

    order: int = 2
    low: tuple[float, ...] | None = None  # of each dimension; none: the space's
    high: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        require(self.order >= 1, f"polynomial:{self.order}: the order must be at least 1")

    def size(self, space: Space) -> int:
        _bounds(self, space)
        return len(_exponents(self, space))

    def on(self, space: Space, obs: Any) -> Active:
        x, c = _unit(self, space, obs)[..., None], _exponents(self, space)
        powers = x ** jnp.arange(self.order + 1).reshape((1,) * (x.ndim - 1) + (-1,))
        value: Any = 1.0
        for d in range(c.shape[1]):
            value = value * powers[..., d, :][..., c[:, d]]
        return _dense(value)

    def rates(self, space: Space) -> NDArray[np.float32] | None:
        return None


@hyper
class Radial:
    """Radial bases (§9.5.5): exp(−‖x − c‖² / 2σ²) around a grid of `centres` per dimension, x scaled to [0, 1]^d."""

    centres: int = 5  # per dimension
    width: float = 1.0  # σ, in distances between neighbouring centres
    low: tuple[float, ...] | None = None  # of each dimension; none: the space's
    high: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        require(self.centres >= 2, f"radial:{self.centres}: there must be at least 2 centres")
        require(self.width > 0, f"radial:{self.centres},{self.width:g}: the width must be positive")

    def size(self, space: Space) -> int:
        n = self.centres ** _dimensions(space)
        require(n <= MOST // 100, f"radial:{self.centres} of {describe(space)} are {n:,} features; use tiles")
        _bounds(self, space)
        return n

    def on(self, space: Space, obs: Any) -> Active:
        axis = np.linspace(0.0, 1.0, self.centres)
        c = jnp.asarray(list(itertools.product(axis, repeat=_dimensions(space))), jnp.float32)
        x = _unit(self, space, obs)[..., None, :]
        distance = ((x - c.reshape((1,) * (x.ndim - 2) + c.shape)) ** 2).sum(-1)
        sigma = self.width / (self.centres - 1)
        return _dense(jnp.exp(-distance / (2 * sigma**2)))

    def rates(self, space: Space) -> NDArray[np.float32] | None:
        return None


Features = OneHot | Tiles | Fourier | Polynomial | Radial
FEATURES: dict[str, type[Any]] = {c.__name__: c for c in (OneHot, Tiles, Fourier, Polynomial, Radial)}


@hyper
class Weights:
    """A linear function of features: observations ↦ one number per column, [..., columns]. A table if one-hot."""

    W: Any  # [features, columns]
    features: Any
    space: Space  # of the observations

    @staticmethod
    def init(features: Any, space: Space, columns: int, value: float | Array = 0.0) -> "Weights":
        """All values equal: `value` spread over the features that are on.

        Errors:
            PolyakError: the features don't fit the space; the sentence says which would.
        """
        chosen = OneHot() if features is None else features
        require(type(chosen) in FEATURES.values(), f"features is {chosen!r}; there are {', '.join(FEATURES)}")
        n = chosen.size(space)
        # A dense basis has a constant among its features only by chance, so it starts at 0.
        on = chosen.tilings if isinstance(chosen, Tiles) else 1 if isinstance(chosen, OneHot) else jnp.inf
        return Weights(jnp.full((n, columns), 1.0) * (jnp.asarray(value, jnp.float32) / on), chosen, space)

    @property
    def tabular(self) -> bool:
        """Whether each observation has a weight of its own."""
        return isinstance(self.features, OneHot)

    def on(self, obs: Any) -> Active:
        return self.features.on(self.space, obs)

    def __call__(self, obs: Any) -> Array:
        return self.of(self.on(obs))

    def of(self, x: Active) -> Array:
        """The values [..., columns] from the features that are on."""
        rows = self.W[x.place]
        return rows[..., 0, :] if self.tabular else (rows * x.value[..., None]).sum(-2)

    def moved(self, x: Active, column: Array, step: Array) -> "Weights":
        """The weights after w[k] ← w[k] + step · α_k · x_k for one observation's features, in one column."""
        return Weights(self.W.at[x.place, column].add(step * self.rate(x) * x.value), self.features, self.space)

    def rate(self, x: Active) -> Array:
        """α_k of one observation's features, relative to the step size."""
        rates = self.features.rates(self.space)
        return jnp.ones(x.value.shape) if rates is None else jnp.asarray(rates)[x.place]

    def added(self, direction: Array) -> "Weights":
        """The weights after w ← w + α_k · direction, [features, columns] with a direction for every weight."""
        rates = self.features.rates(self.space)
        step = direction if rates is None else direction * jnp.asarray(rates)[:, None]
        return Weights(self.W + step, self.features, self.space)


def _sizes(space: Space) -> list[int]:
    """How many values each digit of a discrete observation has; other spaces are refused."""
    sizes: list[int] = []
    for _, inner in observed(space):
        match inner:
            case Discrete():
                sizes.append(inner.n)
            case MultiDiscrete():
                sizes += inner.nvec
            case MultiBinary():
                sizes += [2] * inner.n
            case _:
                raise PolyakError(
                    f"a table takes discrete observations, not {describe(space)}; give features: tiles:8,8, fourier:3, "
                    "polynomial:2 or radial:5"
                )
    return sizes


def _seen(space: Space, obs: Any) -> list[tuple[Any, Array]]:
    """The parts of an observation that features are made of, with their spaces: all but a mask of actions."""
    parts = zip(leaves(space), jax.tree.leaves(obs), strict=True)
    return [(inner, x) for (path, inner), x in parts if path.split("/")[-1] != "action_mask"]


def _digits(space: Space, obs: Any) -> list[Array]:
    """The observation's digits, each [...]."""
    digits: list[Array] = []
    for inner, x in _seen(space, obs):
        digits += [x] if isinstance(inner, Discrete) else [x[..., i] for i in range(x.shape[-1])]
    return digits


def _box(space: Space) -> Box:
    """The one Box that the observations are, beside a mask of actions."""
    seen = [inner for _, inner in observed(space)]
    if len(seen) == 1 and isinstance(seen[0], Box) and not seen[0].image:
        return seen[0]
    raise PolyakError(f"these features take one Box of numbers, not {describe(space)}; leave them out for a table")


def _dimensions(space: Space) -> int:
    return math.prod(_box(space).shape)


def _bounds(features: Any, space: Space) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(low, high) of each dimension; refused where they are not finite or not as many as dimensions."""
    own, d = _box(space).bounds, _dimensions(space)
    given = [own[i] if bound is None else bound for i, bound in enumerate((features.low, features.high))]
    low, high = (np.broadcast_to(np.asarray(bound, np.float32), _box(space).shape).ravel() for bound in own)
    if features.low is not None or features.high is not None:
        require(all(np.size(g) == d for g in given if g is not None), f"low and high must have {d} numbers each")
        low, high = (np.asarray(g, np.float32).ravel() for g in given)
    open_ended = np.flatnonzero(~np.isfinite(low) | ~np.isfinite(high) | (high - low > 1e30))
    if open_ended.size:
        raise PolyakError(
            f"{type(features).__name__} needs bounds, and dimension {open_ended[0]} of {describe(space)} has none: "
            "give low and high, such as Tiles(8, 8, low=(...), high=(...))"
        )
    require(bool((high > low).all()), f"{type(features).__name__}: every high must exceed its low")
    return low, high


def _unit(features: Any, space: Space, obs: Any) -> Array:
    """The observation scaled to [0, 1]^d, clipped to the bounds; [..., d]."""
    shape = _box(space).shape
    x = jnp.asarray(_seen(space, obs)[0][1], jnp.float32)
    x = x.reshape((*x.shape[: x.ndim - len(shape)], -1))
    low, high = _bounds(features, space)
    lead = (1,) * (x.ndim - 1)
    return jnp.clip((x - low.reshape((*lead, -1))) / (high - low).reshape((*lead, -1)), 0.0, 1.0)


def _exponents(features: Any, space: Space) -> NDArray[np.int64]:
    """All c ∈ {0 … order}^d, [features, d]."""
    d = _dimensions(space)
    n = (features.order + 1) ** d
    require(
        n <= MOST // 100, f"order {features.order} in {d} dimensions gives {n:,} features; use a smaller one or tiles"
    )
    return np.array(list(itertools.product(range(features.order + 1), repeat=d)))


def _dense(value: Array) -> Active:
    """All features are on."""
    return Active(jnp.broadcast_to(jnp.arange(value.shape[-1]), value.shape), value)
