"""Features of observations against numpy: one-hot numbers, tiles, Fourier, polynomial and radial bases.

After Sutton & Barto (2018), §9.5, and Konidaris, Osentoski & Thomas (2011); written without a look at the code.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from polyak.agents.q_learning import QLearning
from polyak.core import Spec
from polyak.errors import PolyakError
from polyak.mdp.features import Fourier, OneHot, Polynomial, Radial, Tiles
from polyak.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

UNIT = Box(0.0, 1.0, (1,))
PLANE = Box([-1.0, 10.0], [3.0, 12.0])


on = jax.jit(
    lambda features, space, obs: features.on(space, obs),
    static_argnums=(0, 1),
    compiler_options={"xla_backend_optimization_level": 0},
)


def dense(features, space, obs):
    """Φ [..., n]: the value of every feature, those that are off included."""
    place, value = (np.asarray(x) for x in on(features, space, obs))
    n = features.size(space)
    assert place.shape == value.shape and np.issubdtype(place.dtype, np.integer)
    assert place.min() >= 0 and place.max() < n
    return (np.eye(n)[place] * value[..., None]).sum(-2)


def points(space, n, seed=0):
    """n observations within a box, [n, d] float32."""
    low, high = space.bounds
    return np.float32(np.random.default_rng(seed).uniform(low, high, (n, *space.shape)))


def scaled(space, x):
    """In [0, 1]^d, float64."""
    low, high = space.bounds
    return (np.float64(x) - low) / (high - low)


def matched(Phi, expected):
    """The order in which the columns of one matrix stand in the other; every feature once, whatever its number."""
    distance = np.abs(Phi[:, :, None] - expected[:, None, :]).max(0)
    order = distance.argmin(0)
    assert_array_equal(np.sort(order), np.arange(Phi.shape[1]))
    assert_allclose(Phi[:, order], expected, atol=1e-5)
    return order


# ------------------------------------------------------------------------------------------------ one-hot


DISCRETE = {
    "discrete": (Discrete(7), 7, [np.arange(7)]),
    "multidiscrete": (MultiDiscrete((2, 3, 4)), 24, None),
    "bits": (MultiBinary(4), 16, None),
    "tuple": (Tuple([Discrete(3), Discrete(5), Discrete(2)]), 30, None),
    "nested": (Tuple([Discrete(2), MultiDiscrete((2, 3))]), 12, None),
}


def every(space):
    """All observations of a finite space, stacked."""
    match space:
        case Discrete():
            return np.arange(space.n, dtype=np.int32)
        case MultiDiscrete():
            return np.array(list(itertools.product(*map(range, space.nvec))), np.int32)
        case MultiBinary():
            return np.array(list(itertools.product(range(2), repeat=space.n)), np.int32)
        case _:
            parts = [every(inner) for inner in space.items]
            index = np.array(list(itertools.product(*(range(len(p)) for p in parts)))).T
            return tuple(p[i] for p, i in zip(parts, index, strict=True))


@pytest.mark.parametrize("name", DISCRETE)
def test_one_hot_is_a_bijection(name):
    space, n, _ = DISCRETE[name]
    Phi = dense(OneHot(), space, every(space))
    assert OneHot().size(space) == n
    assert Phi.shape == (n, n)
    assert_array_equal(np.sort(Phi.argmax(1)), np.arange(n))
    assert_array_equal(Phi.sum(0), 1)
    assert_array_equal(Phi.sum(1), 1)
    assert OneHot().rates(space) is None


def test_one_hot_of_a_discrete_space_is_the_number_itself():
    """A table's row is the state's own number, which planners share."""
    assert_array_equal(dense(OneHot(), Discrete(5), np.arange(5)), np.eye(5))


def test_one_hot_ignores_the_mask():
    space = Dict({"state": Discrete(4), "action_mask": MultiBinary(3)})
    obs = {"state": np.arange(4), "action_mask": np.random.default_rng(0).integers(0, 2, (4, 3))}
    assert OneHot().size(space) == 4
    assert_array_equal(dense(OneHot(), space, obs), np.eye(4))


# ------------------------------------------------------------------------------------------------ tiles


def cells(space, x, tilings, tiles):
    """§9.5.4: the cell of x in each tiling, [n, tilings, d]: tiling i is shifted by i · (1, 3, 5, …) / tilings."""
    shift = np.arange(tilings)[:, None] * (1 + 2 * np.arange(space.shape[0])) / tilings
    return np.floor(scaled(space, x)[:, None] * tiles + shift)


def aside(space, x, tilings, tiles, margin=1e-3):
    """Those of the points that lie on no edge of a tile, where rounding decides."""
    shift = np.arange(tilings)[:, None] * (1 + 2 * np.arange(space.shape[0])) / tilings
    u = scaled(space, x)[:, None] * tiles + shift
    return x[(np.abs(u - np.round(u)) > margin).all((1, 2))]


TILED = [(UNIT, 4, 3), (UNIT, 8, 8), (PLANE, 4, 3), (PLANE, 8, 4), (PLANE, 1, 5), (Box(0.0, 1.0, (3,)), 2, 2)]


@pytest.mark.parametrize(("space", "tilings", "tiles"), TILED)
def test_tiles(space, tilings, tiles):
    """One tile on in each tiling; two points share as many tiles as there are tilings with both in one cell."""
    features, x = Tiles(tilings=tilings, tiles=tiles), aside(space, points(space, 400), tilings, tiles)
    Phi = dense(features, space, x)
    assert set(np.unique(Phi)) == {0.0, 1.0}
    assert_array_equal(Phi.sum(1), tilings)
    cell = cells(space, x, tilings, tiles)
    together = (cell[:, None] == cell[None]).all(-1).sum(-1)
    assert_array_equal(Phi @ Phi.T, together)
    assert features.rates(space) is None or np.shape(features.rates(space)) == (features.size(space),)


@pytest.mark.parametrize(("space", "tilings", "tiles"), TILED[:4])
def test_tilings_have_tiles_of_their_own(space, tilings, tiles):
    """As many tiles as can be seen are numbered apart, and the size holds them all without much waste."""
    features, d = Tiles(tilings=tilings, tiles=tiles), space.shape[0]
    x = aside(space, points(space, 20_000), tilings, tiles)
    place = np.asarray(on(features, space, x).place)
    cell = cells(space, x, tilings, tiles)
    ours = np.sort(place, -1)
    assert (np.diff(ours, axis=-1) > 0).all() if tilings > 1 else True
    seen = {(i, *row) for i in range(tilings) for row in np.unique(cell[:, i], axis=0)}
    assert len(np.unique(place)) == len(seen)
    assert len(seen) <= features.size(space) <= tilings * (tiles + 1) ** d


def test_neighbours_share_tiles():
    """Generalisation: half a tile away about half of the tiles are shared, a whole tile away none."""
    features, tilings = Tiles(tilings=8, tiles=8), 8
    x = 0.5 + (0.5 + np.arange(9)) / 64  # eighths of a tile, off the edges
    Phi = dense(features, UNIT, np.float32(x)[:, None])
    assert_array_equal(Phi @ Phi[0], tilings - np.arange(9))


def test_tilings_are_displaced_asymmetrically():
    """Figure 9.11 and p. 219: (1, 3) in the plane; by (1, 1) the diagonal would be a direction of its own."""
    box, n, tiles = Box(0.0, 1.0, (2,)), 4, 2
    x = aside(box, points(box, 500), n, tiles)
    x = x[(np.abs((4 * n * x) % 1 - 0.5) < 0.49).all(1)]
    Phi = dense(Tiles(n, tiles), box, x)
    even = np.floor(x[:, None] * tiles + np.arange(n)[:, None] / n)
    together = (even[:, None] == even[None]).all(-1).sum(-1)
    assert (Phi @ Phi.T != together).any()


@pytest.mark.parametrize(
    "features", [Tiles(4, 3), Fourier(2), Polynomial(2), Radial(3)], ids=lambda f: type(f).__name__
)
def test_observations_are_clipped_to_the_bounds(features):
    low, high = PLANE.bounds
    outside = np.float32([low - 5, high + 5, [low[0] - 1, high[1] + 1], [1e30, -1e30]])
    inside = np.clip(outside, low, high).astype(np.float32)
    assert_allclose(dense(features, PLANE, outside), dense(features, PLANE, inside), atol=1e-6)


# ------------------------------------------------------------------------------------------------ bases


def exponents(order, d):
    return np.array(list(itertools.product(range(order + 1), repeat=d)))


@pytest.mark.parametrize(("space", "order"), [(UNIT, 3), (PLANE, 2), (Box(-2.0, 2.0, (3,)), 1)])
def test_fourier(space, order):
    """cos(π c·x) for all c in {0 … order}^d, and step sizes 1/‖c‖, 1 for the constant."""
    x, c = points(space, 50), exponents(order, space.shape[0])
    features = Fourier(order=order)
    assert features.size(space) == len(c)
    order_of = matched(dense(features, space, x), np.cos(np.pi * scaled(space, x) @ c.T))
    norm = np.linalg.norm(c, axis=1)
    assert_allclose(np.asarray(features.rates(space))[order_of], 1 / np.where(norm == 0, 1, norm), rtol=1e-6)


@pytest.mark.parametrize(("space", "order"), [(UNIT, 4), (PLANE, 2), (Box(-2.0, 2.0, (3,)), 1)])
def test_polynomial(space, order):
    x, c = points(space, 50), exponents(order, space.shape[0])
    features = Polynomial(order=order)
    assert features.size(space) == len(c)
    expected = (scaled(space, x)[:, None] ** c).prod(-1)
    matched(dense(features, space, x), expected)
    assert features.rates(space) is None
    ends = np.stack(space.bounds).astype(np.float32)  # 0⁰ = 1, also at the edge
    matched(np.concatenate([dense(features, space, x), dense(features, space, ends)]),
            np.concatenate([expected, [(c.sum(1) == 0) * 1.0, np.ones(len(c))]]))  # fmt: skip


@pytest.mark.parametrize(("space", "centres", "width"), [(UNIT, 5, 1.0), (PLANE, 3, 0.7), (PLANE, 4, 2.0)])
def test_radial(space, centres, width):
    """exp(−‖x − c‖² / 2σ²) around an even grid from edge to edge, σ in units of its spacing."""
    x, d = points(space, 50), space.shape[0]
    features = Radial(centres=centres, width=width)
    assert features.size(space) == centres**d
    grid = np.array(list(itertools.product(np.linspace(0, 1, centres), repeat=d)))
    sigma = width / (centres - 1)
    distance = ((scaled(space, x)[:, None] - grid) ** 2).sum(-1)
    matched(dense(features, space, x), np.exp(-distance / (2 * sigma**2)))
    assert features.rates(space) is None


BASES = [Tiles(4, 3), Fourier(2), Polynomial(2), Radial(3)]


@pytest.mark.parametrize("features", [OneHot(), *BASES], ids=lambda f: type(f).__name__)
def test_any_leading_axes(features):
    space = MultiDiscrete((4, 5)) if isinstance(features, OneHot) else PLANE
    x = points(PLANE, 24) if space is PLANE else np.random.default_rng(0).integers(0, 4, (24, 2))
    flat, whole, alone = (on(features, space, y) for y in (x, x.reshape(2, 3, 4, 2), x[5]))
    for a, b, c in zip(flat, whole, alone, strict=True):
        assert_array_equal(np.asarray(a).reshape(2, 3, 4, -1), np.asarray(b))
        assert_array_equal(np.asarray(a)[5], np.asarray(c))
    mapped = jax.jit(jax.vmap(lambda y: features.on(space, y)))(x)
    assert_array_equal(np.asarray(mapped.place), np.asarray(flat.place))
    assert_allclose(np.asarray(mapped.value), np.asarray(flat.value), atol=1e-6)


@pytest.mark.parametrize("features", BASES, ids=lambda f: type(f).__name__)
def test_boxes_of_any_shape(features):
    """A box [2, 1] is a plane too, and a scalar box a line."""
    x = points(PLANE, 6)
    bounds = [b[:, None] for b in PLANE.bounds]
    assert_array_equal(dense(features, Box(*bounds), x[..., None]), dense(features, PLANE, x))
    assert_array_equal(dense(features, Box(0.0, 1.0, ()), np.float32([0.2, 0.9])),
                       dense(features, UNIT, np.float32([[0.2], [0.9]])))  # fmt: skip


@pytest.mark.parametrize("kind", [Tiles, Fourier, Polynomial, Radial])
def test_bounds_of_ones_own(kind):
    """Where the space has infinite bounds, and where they are much too wide."""
    low, high = (tuple(map(float, b)) for b in PLANE.bounds)
    x, own = points(PLANE, 6), kind(low=low, high=high)
    for space in (Box(-np.inf, np.inf, (2,)), Box(-1e6, 1e6, (2,))):
        assert_allclose(dense(own, space, x), dense(kind(), PLANE, x), atol=1e-6)


# ------------------------------------------------------------------------------------------------ what is refused


def refused(act):
    with pytest.raises(PolyakError) as caught:
        act()
    sentence = str(caught.value)
    assert sentence and "\n" not in sentence
    return sentence


INFINITE = Box([-np.inf, 0.0], [1.0, 1.0])


@pytest.mark.parametrize("kind", [Tiles, Fourier, Polynomial, Radial])
def test_infinite_bounds_are_refused(kind):
    sentence = refused(lambda: kind().size(INFINITE))
    assert kind.__name__ in sentence and "low" in sentence


@pytest.mark.parametrize("kind", [Tiles, Fourier, Polynomial, Radial])
def test_bounds_that_can_not_be_are_refused(kind):
    refused(lambda: kind(low=(0.0,), high=(1.0,)).size(PLANE))  # one for two
    refused(lambda: kind(low=(0.0, 1.0), high=(1.0, 1.0)).size(PLANE))  # nothing between
    refused(lambda: kind(low=(2.0, 0.0), high=(1.0, 1.0)).size(PLANE))  # the wrong way round


@pytest.mark.parametrize("kind", [Tiles, Fourier, Polynomial, Radial])
def test_bases_of_no_box_are_refused(kind):
    for space in (Discrete(4), Tuple([Discrete(2), Discrete(2)]), MultiBinary(3)):
        assert "Box" in refused(lambda space=space: kind().size(space))


def test_a_table_of_a_box_is_refused():
    for space in (UNIT, Tuple([Discrete(2), UNIT]), Dict({"x": UNIT, "n": Discrete(2)})):
        assert "Box" in refused(lambda space=space: OneHot().size(space))


BAD = {
    "no tilings": lambda: Tiles(tilings=0),
    "no tiles": lambda: Tiles(tiles=0),
    "half a tile": lambda: Tiles(tiles=1.5),
    "negative order": lambda: Fourier(order=-1),
    "polynomial of minus one": lambda: Polynomial(order=-1),
    "order nought": lambda: Fourier(order=0),
    "no centres": lambda: Radial(centres=0),
    "one centre, and so no spacing": lambda: Radial(centres=1),
    "no width": lambda: Radial(width=0.0),
    "negative width": lambda: Radial(width=-1.0),
    "unknown field of tiles": lambda: Tiles(tile=3),
    "unknown field of fourier": lambda: Fourier(degree=3),
    "unknown field of radial": lambda: Radial(centers=3),
}


@pytest.mark.parametrize("name", BAD)
def test_fields_that_can_not_be_are_refused(name):
    refused(lambda: BAD[name]().size(PLANE))


def test_too_many_features_are_refused():
    """9¹² weights of 4 bytes fit in no memory; a sentence says so before jax tries."""
    refused(lambda: Fourier(order=8).on(Box(0.0, 1.0, (12,)), jnp.zeros((1, 12))))


def test_features_are_plain_values():
    """They are structure of an agent: equal and hashable by value."""
    for kind in (OneHot, Tiles, Fourier, Polynomial, Radial):
        assert kind() == kind()
        assert hash(kind()) == hash(kind())
    assert Tiles(tilings=4) != Tiles(tilings=5)
    assert hash(Tiles(low=(0.0,), high=(1.0,))) == hash(Tiles(low=(0.0,), high=(1.0,)))


def test_bounds_may_be_lists():
    """As they come from a configuration; the features of an agent are static arguments of jitted functions."""
    features = Tiles(low=[0.0], high=[1.0])
    start = jax.jit(lambda key: QLearning(features=features).init(key, Spec(UNIT, Discrete(2), 1, 10)))
    assert start(jax.random.key(0)).Q.W.shape == (features.size(UNIT), 2)
