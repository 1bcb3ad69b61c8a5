"""Batch renormalisation against NumPy: its two modes, what it lets gradients see, and networks made of it."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from polyak import nets, renorm
from polyak.renorm import Renorm, Running
from polyak.spaces import Box, Dict, Discrete

B, N = 7, 3
RNG = np.random.default_rng(0)
X = RNG.normal(size=(B, N)) * [1.0, 4.0, 0.5] + [0.0, 3.0, -1.0]
LAYER = Renorm(jnp.array([1.5, 0.5, -2.0]), jnp.array([0.1, -0.2, 0.3]))
GAMMA, BETA = (np.asarray(v, np.float64) for v in (LAYER.scale, LAYER.shift))
NEAR = Running(jnp.array([0.2, 2.0, -0.8]), jnp.array([0.8, 3.0, 0.7]))  # within the limits of r and d
FAR = Running(jnp.array([0.2, 30.0, -0.8]), jnp.array([9.0, 3.0, 0.05]))  # r too small, d too small, both too large

trained = jax.jit(lambda layer, x, running, warm: layer.train(x, running, warm))


def moments(x: Any) -> tuple[Any, Any]:
    return x.mean(0), np.sqrt(((x - x.mean(0)) ** 2).mean(0) + 1e-3)


def corrections(x: Any, running: Running) -> tuple[Any, Any]:
    """r and d of Algorithm 1."""
    (mean, std), mu, sigma = moments(x), *(np.asarray(v, np.float64) for v in running)
    return np.clip(std / sigma, 1 / 3, 3), np.clip((mean - mu) / sigma, -5, 5)


@pytest.mark.parametrize("running", [NEAR, FAR], ids=["near", "far"])
@pytest.mark.parametrize("warm", [False, True])
def test_training_is_the_algorithm_of_the_paper(running: Running, warm: bool) -> None:
    mean, std = moments(X)
    r, d = corrections(X, running) if warm else (1.0, 0.0)
    y, after = trained(LAYER, jnp.float32(X), running, jnp.bool_(warm))
    assert_allclose(y, GAMMA * ((X - mean) / std * r + d) + BETA, rtol=1e-5, atol=1e-5)
    assert_allclose(after.mean, 0.99 * np.asarray(running.mean) + 0.01 * mean, rtol=1e-5, atol=1e-6)
    assert_allclose(after.std, 0.99 * np.asarray(running.std) + 0.01 * std, rtol=1e-5)


def test_the_limits_are_met_where_they_should_be() -> None:
    r, d = corrections(X, FAR)
    assert r[0] == 1 / 3 and d[1] == -5 and r[2] == 3
    assert all(1 / 3 < v < 3 for v in corrections(X, NEAR)[0]) and all(abs(v) < 5 for v in corrections(X, NEAR)[1])


def test_during_the_warm_up_it_is_batch_normalisation() -> None:
    y, _ = trained(Renorm.init(N), jnp.float32(X), FAR, jnp.bool_(False))
    assert_allclose(y.mean(0), np.zeros(N), atol=1e-5)
    assert_allclose(y.var(0), X.var(0) / (X.var(0) + 1e-3), rtol=1e-4)


def test_evaluation_takes_the_running_moments_whatever_else_is_in_the_batch() -> None:
    y = LAYER(jnp.float32(X), FAR)
    assert_allclose(y, GAMMA * (X - np.asarray(FAR.mean)) / np.asarray(FAR.std) + BETA, rtol=1e-5, atol=1e-5)
    alone = jnp.stack([LAYER(jnp.float32(x), FAR) for x in X])
    assert_allclose(alone, y, rtol=1e-6)
    assert_allclose(LAYER(jnp.float32(X)[:, None], FAR)[:, 0], y, rtol=1e-6)


def test_within_the_limits_training_computes_what_evaluation_computes() -> None:
    y, _ = trained(LAYER, jnp.float32(X), NEAR, jnp.bool_(True))
    assert_allclose(y, LAYER(jnp.float32(X), NEAR), rtol=1e-5, atol=1e-5)
    far, _ = trained(LAYER, jnp.float32(X), FAR, jnp.bool_(True))
    assert not np.allclose(far, LAYER(jnp.float32(X), FAR), atol=0.1)


def test_running_moments_approach_those_of_the_batches() -> None:
    start = Running.start(N)
    assert_array_equal(start.mean, np.zeros(N))
    assert_array_equal(start.std, np.ones(N))
    x = jnp.float32(X)
    after = jax.lax.fori_loop(0, 2000, lambda _, s: LAYER.train(x, s, jnp.bool_(True))[1], start)
    for got, want in zip(after, moments(X), strict=True):
        assert_allclose(got, want, rtol=1e-4)


def test_the_gradient_passes_the_moments_of_the_batch_and_neither_r_nor_d_nor_running_moments() -> None:
    """By hand: r and d are numbers; μ_B and σ_B depend on x."""
    w, x = jnp.float32(RNG.normal(size=(B, N))), jnp.float32(X)
    r, d = (jnp.float32(v) for v in corrections(X, FAR))

    def ours(layer: Renorm, x: Any, running: Running) -> Any:
        return (w * layer.train(x, running, jnp.bool_(True))[0]).sum()

    def by_hand(layer: Renorm, x: Any) -> Any:
        mean = x.sum(0) / B
        std = jnp.sqrt(((x - mean[None]) ** 2).sum(0) / B + 1e-3)
        x = (x - mean[None]) / std[None] * r[None] + d[None]
        return (w * (layer.scale[None] * x + layer.shift[None])).sum()

    g_layer, g_x, g_running = jax.jit(jax.grad(ours, (0, 1, 2)))(LAYER, x, FAR)
    h_layer, h_x = jax.jit(jax.grad(by_hand, (0, 1)))(LAYER, x)
    assert_allclose(g_x, h_x, rtol=1e-3, atol=1e-4)
    assert abs(np.asarray(g_x)).max() > 0.1
    for a, b in zip(jax.tree.leaves(g_layer), jax.tree.leaves(h_layer), strict=True):
        assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    assert not any(np.any(g) for g in g_running)
    # In the warm-up, shifting a whole batch changes nothing: the gradient along it vanishes.
    plain = jax.grad(lambda x: (w * LAYER.train(x, FAR, jnp.bool_(False))[0]).sum())(x)
    assert_allclose(plain.sum(0), np.zeros(N), atol=1e-4)
    # And none enters by the moments that are given back.
    given = jax.grad(lambda x: sum(v.sum() for v in LAYER.train(x, FAR, jnp.bool_(True))[1]))(x)
    assert not np.any(given)


# ------------------------------------------------------------------------------------------------------------ networks


def dense(layer: Any, x: Any) -> Any:
    return x @ np.asarray(layer.W, np.float64) + np.asarray(layer.b, np.float64)


def test_a_network_renormalises_its_input_and_what_each_layer_gives() -> None:
    net, running = renorm.build((5, 4), nets.MLP((9,), "relu", "uniform"), jax.random.key(0), Box(-1.0, 1.0, (N,)))
    assert [m.mean.shape for m in running] == [(3,), (5,), (4,)]
    running = (NEAR, *(Running(m.mean + 0.3, m.std * 2) for m in running[1:]))
    x, after = X, []
    for i, layer in enumerate((None, *net.layers)):
        x = x if layer is None else np.maximum(dense(layer, x), 0)
        mean, std = moments(x)
        after.append((mean, std))
        r, d = corrections(x, running[i])
        x = (x - mean) / std * r + d
    y, seen = jax.jit(net.train)(running, jnp.bool_(True), jnp.float32(X))
    assert_allclose(y, x, rtol=1e-4, atol=1e-4)
    for got, old, new in zip(seen, running, after, strict=True):
        for g, o, n in zip(got, old, new, strict=True):
            assert_allclose(g, 0.99 * np.asarray(o) + 0.01 * n, rtol=1e-4, atol=1e-5)
    x = (X - np.asarray(running[0].mean)) / np.asarray(running[0].std)
    for layer, m in zip(net.layers, running[1:], strict=True):
        x = (np.maximum(dense(layer, x), 0) - np.asarray(m.mean)) / np.asarray(m.std)
    assert_allclose(net(running, jnp.float32(X)), x, rtol=1e-4, atol=1e-4)


SPACES = {
    "vector": Box(-1.0, 1.0, (N,)),
    "image": Box(0, 255, (12, 12, 2), np.uint8),
    "nested": Dict({"a": Discrete(3), "b": Box(0, 255, (12, 12, 1), np.uint8)}),
}
PLAN = nets.MLP((6,), "silu", "uniform", nets.CNN(((4, 4, 2),), 8))


@pytest.mark.parametrize("n_actions", [0, 2])
@pytest.mark.parametrize("name", SPACES)
def test_networks_take_every_observation(name: str, n_actions: int) -> None:
    space = SPACES[name]
    obs, action = nets.sample_obs(space, (B,)), (jnp.ones((B, n_actions)),) * (n_actions > 0)
    net, running = renorm.build(None, PLAN, jax.random.key(0), space, n_actions)
    y, after = net.train(running, jnp.bool_(True), obs, *action)
    bare = name == "image" and not n_actions  # the CNN's features, and no dense layers
    assert y.shape == (B, 8 if bare else 6) and len(net.layers) == (0 if bare else 1)
    assert net(running, obs, *action).shape == y.shape
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, running)
    assert net.activation == "silu"


def test_a_custom_network_is_the_front() -> None:
    front = eqx.nn.MLP(N, 6, 8, 1, key=jax.random.key(7))
    net, running = renorm.build(front, PLAN, jax.random.key(0), SPACES["vector"])
    x = jnp.float32(X)
    assert_allclose(net(running, x), jax.vmap(front)(x), rtol=1e-5)  # running moments start at 0 and 1
    critic, running = renorm.build_critic(front, PLAN, jax.random.key(0), SPACES["vector"], 2)
    assert critic(running, x, jnp.ones((B, 2))).shape == (B,)
    assert [m.mean.shape for m in running] == [(8,), (6,)]


def test_parameters_and_statistics_are_trees_apart() -> None:
    critic, running = renorm.build_critic((5,), PLAN, jax.random.key(0), SPACES["vector"], 2)
    assert len(jax.tree.leaves(critic)) == 2 * 2 + 2 + 2  # two renorms, a layer, a head
    assert len(jax.tree.leaves(running)) == 2 * 2
    values, after = critic.train(running, jnp.bool_(False), jnp.float32(X), jnp.ones((B, 2)))
    again, _ = dataclasses.replace(critic).train(after, jnp.bool_(False), jnp.float32(X), jnp.ones((B, 2)))
    assert_array_equal(values, again)  # in the warm-up, the running moments play no part
