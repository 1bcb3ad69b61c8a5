"""Networks against jax's own convolution, NumPy and the definitions; which ones agents take, and which they refuse."""

import dataclasses
import itertools
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from polyak import DQN, PPO, SAC, nets
from polyak.core import Rollout, Spec, Transition
from polyak.errors import PolyakError
from polyak.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

# -------------------------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 5), (5, 1), (3, 3), (64, 64), (4, 64), (64, 2), (33, 31), (120, 100), (3136, 48)], ids=str
)
@pytest.mark.parametrize("gain", [1.0, math.sqrt(2), 0.01])
def test_orthogonal_weights_have_orthonormal_rows_or_columns(shape: tuple[int, int], gain: float) -> None:
    a = (
        np.asarray(jax.jit(lambda key: nets.orthogonal(key, shape, gain))(jax.random.key(sum(shape))), np.float64)
        / gain
    )
    assert a.shape == shape
    gram = a.T @ a if shape[0] >= shape[1] else a @ a.T
    assert_allclose(gram, np.eye(min(shape)), atol=1e-5)


def test_orthogonal_weights_are_drawn_without_a_preferred_direction() -> None:
    """In Haar's measure every element has mean 0 and variance 1/n; within 5 standard errors over 400 draws."""
    a = np.asarray(jax.vmap(lambda key: nets.orthogonal(key, (6, 3)))(jax.random.split(jax.random.key(0), 400)))
    assert np.abs(a.mean(0)).max() < 5 * math.sqrt(1 / 6 / 400)
    assert_allclose((a**2).mean(0), np.full((6, 3), 1 / 6), atol=5 * math.sqrt(2 * (1 / 6) ** 2 / 400))


def test_uniform_weights_keep_their_bounds() -> None:
    layer = nets.Dense.init(jax.random.key(0), 25, 400, "uniform")
    for x in (layer.W, layer.b):
        assert np.abs(x).max() <= 0.2
        assert abs(float(np.mean(x))) < 5 * 0.2 / math.sqrt(3 * x.size)
        assert_allclose(np.var(x), 0.2**2 / 3, rtol=0.25)
    assert not np.any(nets.Dense.init(jax.random.key(0), 25, 4).b)


# --------------------------------------------------------------------------------------------------------- convolutions

# kernel, stride, height, width: strides that divide all, the kernel only, the image only, or nothing.
CONVS = [
    (4, 2, 8, 12),
    (8, 4, 20, 24),
    (2, 2, 4, 4),
    (4, 2, 9, 11),
    (3, 2, 8, 10),
    (3, 1, 5, 7),
    (5, 3, 13, 14),
    (1, 1, 3, 3),
]
CONVS += [(1, 2, 4, 6), (6, 3, 12, 13), (4, 4, 4, 4), (5, 5, 10, 15), (2, 3, 9, 9)]


def reference(x: Any, W: Any, b: Any, k: int, s: int) -> Any:
    """jax's convolution without padding, of [B, h, w, c] with W [k·k·c, m] in the order (row, column, channel)."""
    kernel = W.reshape(k, k, x.shape[-1], -1)
    numbers = ("NHWC", "HWIO", "NHWC")
    out = jax.lax.conv_general_dilated(x, kernel, (s, s), "VALID", dimension_numbers=numbers, precision="highest")
    return out + b[None, None, None]


@pytest.mark.parametrize(("k", "s", "h", "w"), CONVS)
def test_convolutions_and_their_gradients(k: int, s: int, h: int, w: int) -> None:
    rng, (c, m) = np.random.default_rng(k * s), (3, 5)
    shapes = ((2, h, w, c), (k * k * c, m), (m,))
    x, W, b = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    weight = jnp.asarray(rng.normal(size=(2, (h - k) // s + 1, (w - k) // s + 1, m)), jnp.float32)

    def ours(x: Any, W: Any, b: Any) -> Any:
        y = nets.Conv(W, b, k, s)(x)
        return (weight * jnp.tanh(0.1 * y)).sum(), y

    def theirs(x: Any, W: Any, b: Any) -> Any:
        y = reference(x, W, b, k, s)
        return (weight * jnp.tanh(0.1 * y)).sum(), y

    got, y = jax.jit(jax.grad(ours, argnums=(0, 1, 2), has_aux=True))(x, W, b)
    want, y_want = jax.jit(jax.grad(theirs, argnums=(0, 1, 2), has_aux=True))(x, W, b)
    assert_allclose(y, y_want, rtol=1e-4, atol=1e-4)  # sums of up to 192 products
    for a, e in zip(got, want, strict=True):
        assert_allclose(a, e, rtol=1e-4, atol=1e-4)


def test_the_network_of_2015_has_its_sizes() -> None:
    net = jax.eval_shape(
        lambda key: nets.CNN().build(key, Box(0, 255, (84, 84, 4), np.uint8), "orthogonal"), jax.random.key(0)
    )
    sizes = [(*conv.W.shape, conv.kernel, conv.stride) for conv in net.convs]
    assert sizes == [(256, 32, 8, 4), (512, 64, 4, 2), (576, 64, 3, 1)]
    assert net.dense.W.shape == (3136, 512)
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(net)) == 1_684_128


def test_images_are_scaled_to_one_and_rectified() -> None:
    """uint8 / 255 through convolution, ReLU, convolution, ReLU, dense, ReLU: against float64 loops."""
    space = Box(0, 255, (9, 8, 2), np.uint8)
    net = nets.CNN(((3, 4, 2), (4, 2, 1)), 5).build(jax.random.key(0), space, "uniform")
    image = np.random.default_rng(0).integers(0, 256, (2, 9, 8, 2)).astype(np.uint8)
    x = image / 255.0
    for conv in net.convs:
        k, s, W = conv.kernel, conv.stride, np.asarray(conv.W, np.float64)
        rows, cols = (x.shape[1] - k) // s + 1, (x.shape[2] - k) // s + 1
        out = np.zeros((2, rows, cols, W.shape[1]))
        for i, j in itertools.product(range(rows), range(cols)):
            out[:, i, j] = x[:, i * s : i * s + k, j * s : j * s + k].reshape(2, -1) @ W + np.asarray(conv.b)
        x = np.maximum(out, 0)
    want = np.maximum(x.reshape(2, -1) @ np.asarray(net.dense.W) + np.asarray(net.dense.b), 0)
    assert want.max() > 0
    assert_allclose(net(jnp.asarray(image)), want, rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------------------------------------------------ encodings


def test_an_observation_of_every_kind_is_encoded_by_its_definition() -> None:
    space = Dict(
        {
            "d": Discrete(4),
            "m": MultiDiscrete((2, 3)),
            "b": MultiBinary(3),
            "x": Box(-1, 1, (2, 2)),
            "inner": Tuple([Box(-1, 1, ()), Discrete(2)]),
            "u": Box(0, 255, (2,), np.uint8),
            "action_mask": MultiBinary(5),
        }
    )
    obs = {
        "d": jnp.array([2, 0]),
        "m": jnp.array([[1, 0], [0, 2]]),
        "b": jnp.array([[1, 0, 1], [0, 0, 1]]),
        "x": jnp.arange(8.0).reshape(2, 2, 2),
        "inner": (jnp.array([0.5, -0.5]), jnp.array([1, 0])),
        "u": jnp.array([[7, 250], [0, 1]], jnp.uint8),
        "action_mask": jnp.ones((2, 5), jnp.int32),
    }
    features = np.concatenate(nets.encoded(space, obs), axis=-1)
    # In the order of the sorted names: b, d, inner, m, u, x; the mask is no feature.
    want = [
        [1, 0, 1, *(0, 0, 1, 0), 0.5, *(0, 1), *(0, 1, 1, 0, 0), 7, 250, 0, 1, 2, 3],
        [0, 0, 1, *(1, 0, 0, 0), -0.5, *(1, 0), *(1, 0, 0, 0, 1), 0, 1, 4, 5, 6, 7],
    ]
    assert_array_equal(features, want)
    assert nets.width(space, nets.CNN()) == len(want[0])


NESTED = Dict({"camera": Box(0, 255, (36, 40, 1), np.uint8), "speed": Box(-1, 1, (3,)), "gear": Discrete(5)})


@pytest.mark.parametrize(
    "space",
    [
        Discrete(4),
        MultiDiscrete((2, 3)),
        MultiBinary(3),
        Box(-1, 1, (3, 2)),
        Box(-1, 1, ()),
        NESTED,
        Tuple([Discrete(2), NESTED]),
    ],
    ids=lambda s: type(s).__name__,
)
def test_networks_take_any_leading_axes(space: Any) -> None:
    """Features of [T, N, ...] are those of each observation alone."""
    net = nets.MLP((7,), init="uniform").build(jax.random.key(0), space)
    rng = np.random.default_rng(0)

    def value(inner: Any) -> Any:
        high = 2 if inner.dtype.kind in "iu" and not isinstance(inner, Box) else 255
        x = (
            rng.integers(0, high, (3, 2, *inner.shape))
            if inner.dtype.kind in "iu"
            else rng.normal(size=(3, 2, *inner.shape))
        )
        return jnp.asarray(x.astype(inner.dtype))

    def obs_of(space: Any) -> Any:
        match space:
            case Dict():
                return {name: obs_of(inner) for name, inner in space.items}
            case Tuple():
                return tuple(obs_of(inner) for inner in space.items)
            case _:
                return value(space)

    obs = obs_of(space)
    run = jax.jit(lambda net, obs: net(obs))
    together = run(net, obs)
    assert together.shape == (3, 2, 7) and together.dtype == np.float32
    for t, n in itertools.product(range(3), range(2)):
        alone = run(net, jax.tree.map(lambda x, t=t, n=n: x[t, n], obs))
        assert_allclose(alone, together[t, n], rtol=1e-4, atol=1e-5)  # another order of summation


def test_dense_layers_are_matrix_products() -> None:
    net = nets.MLP((5, 4), "relu").build(jax.random.key(0), Box(-1, 1, (3,)))
    x = np.random.default_rng(0).normal(size=(6, 3))
    want = x
    for layer in net.body.layers:
        want = np.maximum(want @ np.asarray(layer.W, np.float64) + np.asarray(layer.b), 0)
    assert_allclose(net(jnp.asarray(x, jnp.float32)), want, rtol=1e-4, atol=1e-6)
    critic = nets.MLP((5,), "tanh").critic(jax.random.key(1), Box(-1, 1, (3,)), 2)
    a = np.random.default_rng(1).normal(size=(6, 2))
    layer, head = critic.body.layers[0], critic.head
    hidden = np.tanh(np.concatenate([x, a], axis=-1) @ np.asarray(layer.W) + np.asarray(layer.b))
    want = (hidden @ np.asarray(head.W) + np.asarray(head.b))[:, 0]
    assert_allclose(critic(jnp.asarray(x, jnp.float32), jnp.asarray(a, jnp.float32)), want, rtol=1e-4, atol=1e-5)


def test_the_seed_decides_the_weights_and_every_layer_has_its_own() -> None:
    plan = nets.MLP((8, 8, 8))
    one, again, other = (plan.build(jax.random.key(k), Box(-1, 1, (8,))) for k in (0, 0, 1))
    assert all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(again)))
    weights = [layer.W for net in (one, other) for layer in net.body.layers]
    assert all(not np.allclose(a, b) for a, b in itertools.combinations(weights, 2))


# --------------------------------------------------------------------------------------------------- networks of others

VECTOR = Box(-1, 1, (3,))
IMAGE = Box(0, 255, (36, 40, 4), np.uint8)


def module(key: Any) -> Any:
    """An Equinox network: its activation function is structure, its arrays are parameters."""
    return eqx.nn.MLP(3, 6, 8, 1, activation=jax.nn.tanh, key=key)


NETWORKS = {
    "sizes": (9,),
    "no layers": (),
    "a blueprint": nets.MLP((9,), "silu", "uniform"),
    "a module": module(jax.random.key(7)),
    "a function": module,
    "our own layer": nets.Dense.init(jax.random.key(8), 3, 6),
}
AGENTS = {
    "PPO": (PPO(rollout_length=4, batch_size=8, epochs=1), Discrete(3)),
    "PPO-shared": (PPO(rollout_length=4, batch_size=8, epochs=1, shared=True), Discrete(3)),
    "DQN": (DQN(rollout_length=4, batch_size=5, learning_starts=0, buffer_size=40), Discrete(3)),
    "SAC": (SAC(rollout_length=4, batch_size=5, learning_starts=0, buffer_size=40), Box(-1, 1, (2,))),
}


def learner(state: Any) -> Any:
    """The parameters that an agent's state holds."""
    names = ("params", "Q", "actor", "critics")
    return [getattr(state, name) for name in names if name in state._fields]


def turn(name: str, network: Any, space: Any) -> tuple[Any, Any, Any]:
    """(parameters before, parameters after, metrics) of one act and update with a network."""
    agent, action = AGENTS[name]
    agent = dataclasses.replace(agent, network=network)
    spec, rng = Spec(space, action, 2, 1000), np.random.default_rng(0)
    k_init, k_act, k_update = jax.random.split(jax.random.key(0), 3)
    state = jax.jit(lambda key: agent.init(key, spec))(k_init)
    shape = (2, 4, 2, *space.shape)
    both = rng.integers(0, 256, shape) if space.image else rng.normal(size=shape)
    obs, successor = (jnp.asarray(x.astype(space.dtype)) for x in both)
    act = jax.jit(lambda s, obs, key: agent.act(s, obs, key, (), explore=True)[0])
    a = act(state, obs[0], k_act)
    assert a.shape == (2, *action.shape)
    actions, flags = jnp.stack([a] * 4), jnp.zeros((4, 2), bool)
    steps = Transition(obs, actions, jnp.asarray(rng.normal(size=(4, 2)), jnp.float32), successor, flags, flags)
    after, metrics = jax.jit(agent.update)(state, Rollout(steps, ()), k_update)
    return learner(state), learner(after), metrics


ALL = [("PPO-shared", "sizes"), ("DQN", "our own layer")]
ALL += [(a, n) for a, n in itertools.product(("PPO", "DQN", "SAC"), NETWORKS) if n != "our own layer"]


@pytest.mark.parametrize(("name", "network"), ALL)
def test_agents_learn_with_any_network(name: str, network: str) -> None:
    """Every parameter moves (CT15), and all stays finite."""
    before, after, metrics = turn(name, NETWORKS[network], VECTOR)
    moved = jax.tree.map(lambda a, b: bool(np.any(np.asarray(a) != np.asarray(b))), before, after)
    still = [jax.tree_util.keystr(path) for path, m in jax.tree_util.tree_leaves_with_path(moved) if not m]
    assert not still
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(after))
    assert all(np.isfinite(x) for x in metrics.values())


@pytest.mark.parametrize("name", ["PPO", "DQN"])
def test_images_take_a_convolutional_network_by_default(name: str) -> None:
    before, after, _ = turn(name, nets.CNN(((4, 4, 2), (4, 3, 1)), 8), Box(0, 255, (10, 12, 2), np.uint8))
    assert any(
        isinstance(x, nets.Convolutions)
        for x in jax.tree.leaves(before, is_leaf=lambda x: isinstance(x, nets.Convolutions))
    )
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(after))
    agent, action = AGENTS[name]
    state = jax.eval_shape(lambda key: agent.init(key, Spec(IMAGE, action, 2, 1000)), jax.random.key(0))
    found = jax.tree.leaves(learner(state), is_leaf=lambda x: isinstance(x, nets.Convolutions))
    fronts = [x for x in found if isinstance(x, nets.Convolutions)]
    assert fronts and all([c.kernel for c in front.convs] == [8, 4, 3] for front in fronts)


def test_a_module_starts_equal_in_every_seed_and_a_function_anew() -> None:
    def weights(network: Any, seed: int) -> Any:
        return jax.tree.leaves(nets.build(network, nets.MLP(), jax.random.key(seed), VECTOR))

    fixed = module(jax.random.key(7))
    assert all(map(np.array_equal, weights(fixed, 0), weights(fixed, 1)))
    assert not any(map(np.array_equal, weights(module, 0)[:1], weights(module, 1)[:1]))


def test_the_module_of_another_library_is_computed_as_it_computes() -> None:
    theirs = module(jax.random.key(7))
    net = nets.build(theirs, nets.MLP(), jax.random.key(0), VECTOR)
    obs = jax.random.normal(jax.random.key(1), (4, 2, 3))
    want = jax.vmap(jax.vmap(theirs))(obs)
    assert_allclose(net(obs), want, rtol=1e-5, atol=1e-6)
    assert_allclose(jax.tree.unflatten(*reversed(jax.tree.flatten(net)))(obs), net(obs), rtol=1e-6)
    assert net(obs[0, 0]).shape == (6,)


def test_the_twin_critics_differ() -> None:
    for network in ((9,), NETWORKS["a module"]):
        agent = SAC(network=network)
        spec = Spec(VECTOR, Box(-1, 1, (2,)), 1, 100)
        state = agent.init(jax.random.key(0), spec)
        obs, action = jnp.ones((1, 3)), jnp.ones((1, 2))
        one, other = (critic(obs, action) for critic in state.critics)
        assert abs(float(one[0] - other[0])) > 1e-6


def pair(key: Any) -> Any:
    return lambda obs: (obs, obs)


def total(key: Any) -> Any:
    return lambda obs: jnp.sum(obs)


REFUSED = {
    "a word": ("big", "give sizes such as"),
    "an object": (object(), "give sizes such as"),
    "sizes that are no whole numbers": ((64.0,), "give sizes such as"),
    "a negative size": ((-1,), "positive whole numbers"),
    "a size of zero": ((0,), "positive whole numbers"),
    "the wrong width": (nets.Dense(jnp.ones((5, 2)), jnp.zeros(2)), "can't take observations of Box(3,)"),
    "one number": (total, "must map one observation"),
    "two results": (pair, "the network"),
    "a function of observations": (jnp.tanh, "network"),
    "a function of nothing": (lambda: None, "network"),
}


@pytest.mark.parametrize("name", ["PPO", "DQN", "SAC"])
@pytest.mark.parametrize("case", REFUSED)
def test_networks_that_do_not_fit_are_refused_with_a_sentence(name: str, case: str) -> None:
    network, sentence = REFUSED[case]
    agent, action = AGENTS[name]
    with pytest.raises(PolyakError) as error:
        dataclasses.replace(agent, network=network).init(jax.random.key(0), Spec(VECTOR, action, 2, 1000))
    assert sentence in str(error.value)


def test_blueprints_refuse_what_they_do_not_know() -> None:
    with pytest.raises(PolyakError, match="no activation 'rely'; did you mean 'relu'"):
        nets.MLP(activation="rely")
    with pytest.raises(PolyakError, match="orthogonl"):
        nets.MLP(init="orthogonl")
    for sizes in ((0,), (-4,), (True,)):
        with pytest.raises(PolyakError, match="positive whole numbers"):
            nets.MLP(sizes)
    with pytest.raises(PolyakError, match="too small for the CNN"):
        nets.MLP().build(jax.random.key(0), Box(0, 255, (16, 20, 3), np.uint8))


# ----------------------------------------------------------------------------------------------------------- additivity


def test_the_loss_of_a_batch_is_the_mean_of_its_parts() -> None:
    """CT14, on the gradient that a squared DQN takes: singletons averaged, and any order of the batch."""
    agent = DQN(loss="squared", network=(9,), learning_starts=0)
    state = agent.init(jax.random.key(0), Spec(VECTOR, Discrete(2), 1, 100))
    rng, B = np.random.default_rng(0), 7
    obs, successor = (jnp.asarray(x, jnp.float32) for x in rng.normal(size=(2, B, 3)))
    flags = jnp.asarray(rng.random((2, B)) < 0.4)
    batch = Transition(obs, jnp.asarray(rng.integers(0, 2, B), jnp.int32), jnp.arange(7.0), successor, *flags)
    learn = jax.jit(lambda batch, key: agent.learn(state, batch, key)[1])
    whole = learn(batch, jax.random.key(1))
    shuffled = learn(jax.tree.map(lambda x: x[jnp.array([3, 1, 6, 0, 2, 5, 4])], batch), jax.random.key(2))
    parts = [learn(jax.tree.map(lambda x, i=i: x[i : i + 1], batch), jax.random.key(3 + i)) for i in range(B)]
    for name in ("train/loss", "train/q_mean"):
        assert_allclose(whole[name], np.mean([p[name] for p in parts]), rtol=1e-5)
        assert_allclose(whole[name], shuffled[name], rtol=1e-5)
