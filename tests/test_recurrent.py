"""Networks with a memory: cells against their equations, acting against unrolling, episodes' ends, sequences."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from polyak import A2C, DQN, PPO, SAC
from polyak.core import Rollout, Spec, Transition
from polyak.errors import PolyakError
from polyak.heads import PolicyValue
from polyak.minibatches import passes, pieces
from polyak.nets import MLP
from polyak.recurrent import GRU, LSTM, Recurrent, beyond, start, step, unroll, views
from polyak.spaces import Box, Discrete

T, N, D, M = 7, 3, 5, 4
OBS = Box(-1.0, 1.0, (D,))
SPEC = Spec(OBS, Discrete(2), N, 1000)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def dense(layer, x):
    return x @ np.float64(layer.W) + np.float64(layer.b)


def gru(cell, x, h):
    """Cho et al. (2014) with the reset gate on the product with the memory, as in cuDNN's cell."""
    (r, z, n), (r_h, z_h, n_h) = (np.split(dense(layer, v), 3, -1) for layer, v in ((cell.enter, x), (cell.stay, h)))
    r, z = sigmoid(r + r_h), sigmoid(z + z_h)
    h = z * h + (1 - z) * np.tanh(n + r * n_h)
    return h, h


def lstm(cell, x, memory):
    c, h = memory
    i, f, g, o = np.split(dense(cell.enter, x) + dense(cell.stay, h), 4, -1)
    c = sigmoid(f + 1) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    return h, (c, h)


CELLS = {"gru": (GRU, gru), "lstm": (LSTM, lstm)}


def network(kind, seed=0):
    """A recurrent network with random biases too."""
    k_torso, k_cell, k_b = jax.random.split(jax.random.key(seed), 3)
    cell = CELLS[kind][0].init(k_cell, 6, M)
    stay = dataclasses.replace(cell.stay, b=jax.random.normal(k_b, cell.stay.b.shape))
    return Recurrent(MLP((6,)).build(k_torso, OBS), dataclasses.replace(cell, stay=stay))


def steps(seed=0, chance=0.3):
    rng = np.random.default_rng(seed)
    obs, after = (jnp.float32(rng.normal(size=(T, N, D))) for _ in range(2))
    end = jnp.asarray(rng.random((T, N)) < chance)
    return Transition(
        obs, jnp.int32(rng.integers(0, 2, (T, N))), jnp.float32(rng.normal(size=(T, N))), after, end, ~end & False
    )


@pytest.mark.parametrize("kind", CELLS)
def test_a_cell_equals_its_equations(kind):
    net, rng = network(kind), np.random.default_rng(1)
    x, h, c = rng.normal(size=(N, 6)), rng.normal(size=(N, M)), rng.normal(size=(N, M))
    memory = h if kind == "gru" else (c, h)
    out, after = net.cell(jnp.float32(x), jax.tree.map(jnp.float32, memory))
    expected, expected_after = CELLS[kind][1](net.cell, x, memory)
    assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-5, atol=1e-6), after, expected_after)


@pytest.mark.parametrize("kind", CELLS)
def test_unrolling_is_acting_with_episodes_that_end(kind):
    """CT33: step by step, with the memory reset at every start as the driver does it, the same features come out."""
    net, seen = network(kind), steps()
    fresh = start(kind, M, N)
    unrolled = unroll(net, seen.obs, seen.terminated, jax.tree.map(lambda m: m + 0.3, fresh))
    memory = jax.tree.map(lambda m: m + 0.3, fresh)
    for t in range(T):
        features, after = step(net, seen.obs[t], memory)
        assert_allclose(unrolled.features[t], features, rtol=1e-5, atol=1e-6)
        jax.tree.map(lambda a, b, t=t: assert_allclose(a[t], b, atol=1e-6), unrolled.before, memory)
        assert_allclose(beyond(net, seen.next_obs, unrolled.after)[t], step(net, seen.next_obs[t], after)[0], atol=1e-6)
        end = seen.terminated[t][:, None]
        memory = jax.tree.map(lambda a, f, e=end: jnp.where(e, f, a), after, fresh)


@pytest.mark.parametrize("kind", CELLS)
def test_nothing_passes_an_end(kind):
    """The gradient of a feature for what was seen in an earlier episode is zero, and for its own episode it is not."""
    net, seen = network(kind), steps(chance=0.0)
    end = seen.terminated.at[3].set(True)

    def last(obs):
        return unroll(net, obs, end, start(kind, M, N)).features[-1].sum()

    g = np.abs(jax.grad(last)(seen.obs)).sum((1, 2))
    assert_array_equal(g[:4], 0.0)
    assert (g[4:] > 0).all()


def test_a_network_without_memory_is_only_called():
    net, seen = MLP((6,)).build(jax.random.key(0), OBS), steps()
    features, after = views(net, seen, ())
    assert_array_equal(features, net(seen.obs))
    assert_array_equal(after, net(seen.next_obs))
    assert start(None, M, N) == ()
    assert step(net, seen.obs[0], ())[1] == ()


@pytest.mark.parametrize("length", [1, 2, 4, 8])
def test_pieces_are_consecutive_steps_of_one_environment(length):
    data = jnp.arange(8 * N).reshape(8, N)  # row t, environment n holds t·N + n
    cut = np.asarray(pieces({"x": data}, length)["x"])
    assert cut.shape == (length, 8 // length * N)
    assert sorted(cut.ravel()) == list(range(8 * N))
    assert (np.diff(cut, axis=0) == N).all()


@pytest.mark.parametrize(("size", "sequences"), [(6, False), (24, False), (6, True), (12, True), (24, True)])
def test_every_step_is_met_once_in_each_pass(size, sequences):
    data = jnp.arange(24.0).reshape(6, 4)

    def learn(seen, batch):
        assert batch.size == size
        return seen + jnp.zeros(24).at[batch.astype(int).ravel()].add(1.0), {"mean": batch.mean()}

    seen, metrics = passes(learn, jnp.zeros(24), data, jax.random.key(0), 3, size, sequences)
    assert_array_equal(seen, 3.0)
    assert metrics["mean"] == pytest.approx(11.5)


AGENTS = {
    "ppo": PPO(rollout_length=6, batch_size=18, epochs=2, network=(8,), memory_size=M),
    "a2c": A2C(rollout_length=6, network=(8,), memory_size=M),
}


@pytest.mark.reuses_keys
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("name", AGENTS)
def test_the_policy_that_acted_is_recomputed(name, kind, shared):
    """CT10: `over` from the rollout's first memory gives the very distributions that `act` drew from."""
    agent = dataclasses.replace(AGENTS[name], recurrent=kind, shared=shared)
    state = agent.init(jax.random.key(0), SPEC)
    seen, memory, acted = steps(1), agent.memory(SPEC), []
    first, fresh = memory, memory
    for t in range(T):
        pi, memory = state.params.act(seen.obs[t], memory)
        acted.append(pi.logits)
        end = seen.terminated[t][:, None]
        memory = jax.tree.map(lambda a, f, e=end: jnp.where(e, f, a), memory, fresh)
    judged, V_next = state.params.rollout(seen, first)
    assert_allclose(judged.pi.logits, jnp.stack(acted), atol=1e-6)
    assert judged.V.shape == V_next.shape == (T, N)
    assert jax.tree.structure(judged.before) == jax.tree.structure(first)


@pytest.mark.reuses_keys
def test_the_first_ratio_of_recurrent_ppo_is_one():
    """Sequences begin with the memory of the parameters that acted: before the first step, no probability has moved."""
    agent = PPO(rollout_length=8, batch_size=8, epochs=1, network=(8,), memory_size=M, recurrent="gru", lr=0.0)
    state = agent.init(jax.random.key(0), Spec(OBS, Discrete(2), N, 1000))
    rng = np.random.default_rng(0)
    end = jnp.asarray(rng.random((8, N)) < 0.2)
    obs, after = (jnp.float32(rng.normal(size=(8, N, D))) for _ in range(2))
    record = Transition(obs, jnp.int32(rng.integers(0, 2, (8, N))), jnp.ones((8, N)), after, end, ~end & False)
    _, metrics = agent.update(state, Rollout(record, agent.memory(SPEC)), jax.random.key(1))
    assert float(metrics["train/approx_kl"]) < 1e-9
    assert float(metrics["train/clip_fraction"]) == 0.0


def test_actor_and_critic_carry_memories_of_their_own():
    agent = A2C(recurrent="lstm", memory_size=M)
    assert jax.tree.map(jnp.shape, PolicyValue.memory(agent, 2)) == (((2, M),) * 2,) * 2
    shared = dataclasses.replace(agent, shared=True)
    assert jax.tree.map(jnp.shape, PolicyValue.memory(shared, 2)) == ((2, M),) * 2


def test_sequences_that_do_not_fill_minibatches_are_refused():
    agent = PPO(rollout_length=8, batch_size=6, recurrent="gru")
    with pytest.raises(PolyakError, match=r"batch_size is 6 and rollout_length 8, and sequences must fill minibatches"):
        agent.init(jax.random.key(0), SPEC)


@pytest.mark.parametrize(
    ("agent", "sentence"),
    [
        (DQN(recurrent="gru", n_step=3), "DQN: n_step is 3, and must be 1 with memory"),
        (DQN(recurrent="gru", prioritised=0.6), "DQN: with memory, rollouts have no priorities"),
        (DQN(recurrent="gru", rollout_length=5, updates_per_step=0.2), "batch_size 32 must be a multiple of rollout_l"),
        (SAC(recurrent="lstm", rollout_length=3), "SAC: with memory, a batch is whole rollouts: batch_size 256 must"),
    ],
)
def test_what_a_memory_does_not_go_with_is_refused(agent, sentence):
    with pytest.raises(PolyakError, match=sentence):
        agent.init(jax.random.key(0), SPEC)


def test_smooth_noise_needs_a_box():
    with pytest.raises(PolyakError, match="sde is noise on a Box"):
        SAC(sde=True).init(jax.random.key(0), SPEC)
