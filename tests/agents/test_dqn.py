"""DQN against its equations: targets, tabular Q-learning, and when targets and ε change."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from polyak.agents import dqn
from polyak.agents.dqn import DQN
from polyak.core import Counter, Rollout, Spec, Transition
from polyak.cranks import agent_key, init, interact
from polyak.envs.probes import Forever, PoisonedReset
from polyak.envs.vector import Vector
from polyak.errors import PolyakError
from polyak.heads import Dueling
from polyak.optim import Linear, resolve_schedules
from polyak.replay import Drawn
from polyak.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete

B, D, K = 7, 5, 3  # batch, observation, actions: coprime
OBS = Box(-1.0, 1.0, (D,))
SPEC = Spec(OBS, Discrete(K), 2, 1000)
PLAIN = DQN(
    network=(), max_grad_norm=None, loss="squared", gamma=0.9, buffer_size=50, learning_starts=0, rollout_length=2
)


@functools.cache
def begun(agent, spec=SPEC, seed=0):
    return jax.jit(lambda key: agent.init(key, spec))(jax.random.key(seed))


learned = jax.jit(lambda agent, state, batch: agent.learn(state, batch, jax.random.key(0)))
updated = jax.jit(lambda agent, state, rollout, key: agent.update(state, rollout, key))
descended = jax.jit(lambda agent, state, batch: agent.learn(state, batch, jax.random.key(0))[0].Q)


def gradient(agent, state, batch):
    """What `learn` descends along: `descend` gives the gradient in place of the new parameters while it is traced."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dqn, "descend", lambda rule, lr, grads, opt, params: (grads, opt))
        return descended(agent, state, batch)


def linear(state, W, W_target):
    """The state with Q(s, a) = s·W_a and Q′(s, a) = s·W′_a."""

    def values(Q, W):
        return dataclasses.replace(Q, head=dataclasses.replace(Q.head, W=jnp.float32(W), b=jnp.zeros(W.shape[-1])))

    return state._replace(Q=values(state.Q, W), Q_target=values(state.Q_target, W_target))


def experience(seed, lead=(B,), mask=False, n_actions=K):
    rng = np.random.default_rng(seed)
    terminated, truncated = (np.arange(np.prod(lead)).reshape(lead) % 4 == k for k in (1, 2))

    def obs():
        x = jnp.float32(rng.normal(size=(*lead, D)))
        allowed = rng.integers(0, 2, (*lead, n_actions))
        allowed[..., 1] |= allowed.sum(-1) == 0
        return {"action_mask": jnp.float32(allowed), "x": x} if mask else x

    action, reward = jnp.int32(rng.integers(0, n_actions, lead)), jnp.float32(rng.normal(size=lead))
    return Transition(obs(), action, reward, obs(), jnp.asarray(terminated), jnp.asarray(truncated))


# ------------------------------------------------------------------------------------------------ the target


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("loss", ["huber", "squared"])
def test_the_gradient_equals_numpy(loss, double, mask):
    """Targets (1) and (2), bootstrapped where the clock ended and not where the world did; masks; Huber's slope (3)."""
    agent = dataclasses.replace(PLAIN, loss=loss, double=double)
    obs = Dict({"action_mask": MultiBinary(K), "x": OBS}) if mask else OBS
    rng = np.random.default_rng(3)
    W, W_target = rng.normal(0, 0.4, (2, D, K))
    state = linear(begun(agent, Spec(obs, Discrete(K), 2, 1000)), W, W_target)
    batch = experience(1, mask=mask)

    x, x_next = (np.float64(o["x"] if mask else o) for o in (batch.obs, batch.next_obs))
    allowed = np.asarray(batch.next_obs["action_mask"]) > 0 if mask else np.ones((B, K), bool)
    a, deltas, W_grad = np.asarray(batch.action), np.zeros(B), np.zeros((D, K))
    for i in range(B):
        chooser = x_next[i] @ (W if double else W_target)
        best = max((k for k in range(K) if allowed[i, k]), key=lambda k: chooser[k])
        future = 0.0 if batch.terminated[i] else 0.9 * (x_next[i] @ W_target)[best]
        deltas[i] = (x[i] @ W)[a[i]] - (float(batch.reward[i]) + future)
        W_grad[:, a[i]] += (np.clip(deltas[i], -1, 1) if loss == "huber" else deltas[i]) * x[i] / B
    assert (abs(deltas) > 1).any() and (abs(deltas) < 1).any()
    got = gradient(agent, state, batch)
    assert_allclose(got.head.W, W_grad, rtol=1e-4, atol=1e-6)
    error = np.where(abs(deltas) <= 1, deltas**2 / 2, abs(deltas) - 0.5) if loss == "huber" else deltas**2 / 2
    assert learned(agent, state, batch)[1]["train/loss"] == pytest.approx(error.mean(), rel=1e-4)


def test_double_and_single_differ_only_in_who_chooses():
    rng = np.random.default_rng(0)
    W, W_target = rng.normal(size=(2, D, K))
    state, batch = begun(PLAIN), experience(2)
    double = dataclasses.replace(PLAIN, double=True)
    apart, same = linear(state, W, W_target), linear(state, W, W)
    assert not np.allclose(gradient(PLAIN, apart, batch).head.W, gradient(double, apart, batch).head.W)
    assert_allclose(gradient(PLAIN, same, batch).head.W, gradient(double, same, batch).head.W, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("terminates", [False, True])
def test_the_poison_of_a_reset_observation_reaches_no_target(terminates):
    """CT2: Q(reset observation) = 1e6, Q(final) = 7; every third step is an end, and its target is 7γ or 0."""
    agent = dataclasses.replace(PLAIN, rollout_length=6)
    vector = Vector(PoisonedReset(poison=0.0, terminates=terminates), 2)
    spec = Spec(vector.obs_space, vector.action_space, 2, 1000)
    state = jax.jit(lambda keys: init(agent, vector, spec, *keys))(agent_key(0))
    _, rollout, _ = interact(agent, vector, spec, state)
    W = np.array([[1e6, 1e6], [7.0, 7.0]])
    final = jax.tree.map(lambda x: x[2], rollout.steps)  # the third step of both worlds
    assert (final.terminated if terminates else final.truncated).all()
    q_learned = linear(state.agent, W, W)
    error = (7 - (0 if terminates else 0.9 * 7)) ** 2 / 2
    assert learned(agent, q_learned, final)[1]["train/loss"] == pytest.approx(error, rel=1e-4)
    kept, _ = updated(agent, state.agent, rollout, jax.random.key(1))  # and so it is in the replay
    assert_array_equal(kept.replay.data.next_obs[:6], np.broadcast_to([0.0, 1.0], (6, 2, 2)))
    assert_array_equal(kept.replay.data.truncated[:6], rollout.steps.truncated)


def test_a_time_limit_is_no_end_of_the_world():
    """CT3: with r = 1 for ever, Q = 1/(1 − γ) is the fixed point on real steps, across the time limit."""
    agent = dataclasses.replace(PLAIN, rollout_length=16)
    vector = Vector(Forever(max_steps=4), 2)
    spec = Spec(vector.obs_space, vector.action_space, 2, 1000)
    state = jax.jit(lambda keys: init(agent, vector, spec, *keys))(agent_key(0))
    _, rollout, _ = interact(agent, vector, spec, state)
    assert rollout.steps.truncated.sum() == 8
    head = dataclasses.replace(state.agent.Q.head, W=jnp.zeros((1, 2)), b=jnp.full(2, 10.0))
    Q = dataclasses.replace(state.agent.Q, head=head)
    fixed = state.agent._replace(Q=Q, Q_target=Q)
    steps = jax.tree.map(lambda x: x.reshape(32, *x.shape[2:]), rollout.steps)
    assert learned(agent, fixed, steps)[1]["train/loss"] < 1e-9


def test_one_hot_and_plain_steps_are_tabular_q_learning(monkeypatch):
    """Architecture §8.2: one-hot states, a linear Q and SGD are Watkins' table, update by update."""
    monkeypatch.setattr(dqn, "descend", lambda rule, lr, g, opt, p: (jax.tree.map(lambda p, g: p - lr * g, p, g), opt))
    states = 4
    agent = dataclasses.replace(PLAIN, lr=0.5, updates_per_step=0.5)
    state = begun(agent, Spec(Discrete(states), Discrete(2), 1, 100))
    table = np.random.default_rng(0).normal(size=(states, 2))
    state = linear(state, table, table)
    rng = np.random.default_rng(1)
    learn = jax.jit(lambda agent, state, batch: agent.learn(state, batch, jax.random.key(0)))
    for _ in range(25):
        s, a, s_next = rng.integers(states), rng.integers(2), rng.integers(states)
        r, end = rng.normal(), rng.random() < 0.3
        batch = Transition(*(jnp.asarray([x]) for x in (s, np.int32(a), np.float32(r), s_next, end, False)))
        state, _ = learn(agent, state, batch)
        W = state.Q.head.W
        table[s, a] += 0.5 * (r + 0.9 * (not end) * table[s_next].max() - table[s, a])
        assert_allclose(W[s, a], table[s, a], rtol=1e-5, atol=1e-5)
        state = linear(state, np.asarray(W), np.asarray(W))  # a table has no bias, and is its own target
    assert_allclose(state.Q.head.W, table, rtol=1e-4, atol=1e-5)


# -------------------------------------------------------------------------------------------- how a batch was drawn

with_drawn = jax.jit(lambda agent, state, batch, drawn: agent.learn(state, batch, jax.random.key(0), drawn))


@pytest.mark.parametrize("double", [False, True])
def test_n_steps_discount_and_weights_scale_the_gradient(double):
    """(6), (8): y = R + γᵏ (1 − terminated) V with k of each transition, and the loss Σ w ℓ / B (G4)."""
    agent = dataclasses.replace(PLAIN, double=double, prioritised=0.6)
    rng = np.random.default_rng(5)
    W, W_target = rng.normal(0, 0.4, (2, D, K))
    state, batch = linear(begun(agent), W, W_target), experience(4)
    k, w = rng.integers(1, 6, B), rng.uniform(0.1, 1, B)
    x, x_next, a = np.float64(batch.obs), np.float64(batch.next_obs), np.asarray(batch.action)
    W_grad, deltas = np.zeros((D, K)), np.zeros(B)
    for i in range(B):
        best = (x_next[i] @ (W if double else W_target)).argmax()
        y = float(batch.reward[i]) + (0 if batch.terminated[i] else 0.9 ** k[i] * (x_next[i] @ W_target)[best])
        deltas[i] = (x[i] @ W)[a[i]] - y
        W_grad[:, a[i]] += w[i] * deltas[i] * x[i] / B
    drawn = Drawn(jnp.int32(k), jnp.float32(w))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dqn, "descend", lambda rule, lr, grads, opt, params: (grads, opt))
        run = jax.jit(lambda agent, state, batch, drawn: agent.learn(state, batch, jax.random.key(0), drawn))
        got, metrics = run(agent, state, batch, drawn)
    assert_allclose(got.Q.head.W, W_grad, rtol=1e-4, atol=1e-6)
    assert_allclose(metrics["train/td_error"], abs(deltas), rtol=1e-4)
    assert metrics["train/loss"] == pytest.approx((w * deltas**2 / 2).mean(), rel=1e-4)


def test_the_defaults_of_how_a_batch_was_drawn_change_no_bit():
    agent = dataclasses.replace(PLAIN, network=(8,))
    state, batch = begun(agent), experience(0)
    one, _ = learned(agent, state, batch)
    ones = Drawn(jnp.ones(B, jnp.int32), jnp.ones(B))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(with_drawn(agent, state, batch, Drawn())[0]), strict=True):
        assert_array_equal(a, b)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(with_drawn(agent, state, batch, ones)[0]), strict=True):
        assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_n_step_targets_reach_from_the_replay_to_the_gradient():
    """A corridor that pays 1 at its end: with 4 steps, one update values its start γ³ at once; one step takes four."""
    T, gamma = 4, 0.5
    for n, wanted in ((4, [gamma**3, gamma**2, gamma, 1.0]), (1, [0.0, 0.0, 0.0, 1.0])):
        agent = dataclasses.replace(
            PLAIN, n_step=n, gamma=gamma, rollout_length=T, updates_per_step=75.0, batch_size=16, lr=0.05,
            target_update_interval=100_000,
        )  # fmt: skip
        spec = Spec(Discrete(T + 1), Discrete(1), 1, T)
        state = begun(agent, spec)
        zero = dataclasses.replace(state.Q.head, W=jnp.zeros((T + 1, 1)), b=jnp.zeros(1))
        Q = dataclasses.replace(state.Q, head=zero)
        place, end = jnp.arange(T)[:, None], (jnp.arange(T) == T - 1)[:, None]
        steps = Transition(place, jnp.zeros((T, 1), jnp.int32), jnp.float32(end), place + 1, end, jnp.zeros_like(end))
        state, _ = updated(agent, state._replace(Q=Q, Q_target=Q), Rollout(steps, ()), jax.random.key(0))
        assert_allclose(state.Q(jnp.arange(T))[:, 0], wanted, atol=0.02)


def test_priorities_draw_what_is_surprising(monkeypatch):
    """One transition of 64 has a reward; prioritised, it is learned sooner than by uniform draws."""
    monkeypatch.setattr(dqn, "descend", lambda rule, lr, g, opt, p: (jax.tree.map(lambda p, g: p - lr * g, p, g), opt))
    values = {}
    for alpha in (None, 0.0, 1.0):
        agent = dataclasses.replace(
            PLAIN, prioritised=alpha, is_beta=0.0, rollout_length=32, updates_per_step=4.0, batch_size=2, lr=0.05,
            buffer_size=64,
        )  # fmt: skip
        state = begun(agent, Spec(Discrete(64), Discrete(1), 2, 64))
        zero = dataclasses.replace(state.Q.head, W=jnp.zeros((64, 1)), b=jnp.zeros(1))
        Q = dataclasses.replace(state.Q, head=zero)
        place = jnp.arange(64).reshape(32, 2)
        steps = Transition(
            place, jnp.zeros((32, 2), jnp.int32), jnp.float32(place == 13), place, jnp.ones((32, 2), bool),
            jnp.zeros((32, 2), bool),
        )  # fmt: skip
        update = jax.jit(lambda agent, state, rollout, key: agent.update(state, rollout, key))
        state, _ = update(agent, state._replace(Q=Q, Q_target=Q), Rollout(steps, ()), jax.random.key(0))
        values[alpha] = float(state.Q(jnp.array([13]))[0, 0])
    assert values[1.0] > 1.5 * max(values[None], values[0.0]) > 0


# ------------------------------------------------------------------------------------------------ duelling


def test_a_duel_tells_value_from_advantage():
    """(9): Q's mean over the allowed actions is V; what all advantages have in common changes nothing."""
    obs = Dict({"action_mask": MultiBinary(4), "x": OBS})
    agent = dataclasses.replace(PLAIN, dueling=True)
    Q = begun(agent, Spec(obs, Discrete(4), 2, 1000)).Q
    assert isinstance(Q, Dueling)
    rng = np.random.default_rng(0)
    mask = jnp.float32([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 1, 0]])
    seen = {"action_mask": mask, "x": jnp.float32(rng.normal(size=(3, D)))}
    values, V = Q(seen), Q.value(seen["x"])[:, 0]
    assert_allclose((values * mask).sum(-1) / mask.sum(-1), V, rtol=1e-5, atol=1e-6)
    shifted = dataclasses.replace(Q, advantage=dataclasses.replace(Q.advantage, b=Q.advantage.b + 100.0))
    assert_allclose(shifted(seen), values, atol=1e-4)
    forbidden = dataclasses.replace(Q, advantage=dataclasses.replace(Q.advantage, b=Q.advantage.b.at[1].add(50.0)))
    assert_allclose(forbidden(seen)[1:, 2], values[1:, 2], atol=1e-5)  # what is not allowed is not in the mean
    assert abs(forbidden(seen)[0, 2] - values[0, 2]) > 10
    plain = Q({**seen, "action_mask": jnp.ones((3, 4))})
    A = Q.advantage(seen["x"])
    assert_allclose(plain, V[:, None] + A - A.mean(-1, keepdims=True), rtol=1e-5, atol=1e-6)


def test_a_duel_learns_over_any_leading_axes():
    agent = dataclasses.replace(PLAIN, dueling=True, network=(8,), double=True)
    state, batch = begun(agent), experience(1)
    after, metrics = learned(agent, state, batch)
    assert np.isfinite(float(metrics["train/loss"]))
    assert (after.Q.value.W != state.Q.value.W).any() and (after.Q.advantage.W != state.Q.advantage.W).any()
    stacked = jnp.stack([batch.obs] * 3)
    assert_allclose(state.Q(stacked)[1], state.Q(batch.obs), rtol=1e-6)


# ------------------------------------------------------------------------------------------------ the gradient map


def test_the_target_has_no_gradient_and_is_not_optimised():
    """CT15, G5, G12: nothing moves θ′ but (4), and Adam holds moments of θ alone."""
    agent = dataclasses.replace(PLAIN, network=(8,), double=True)
    state, batch = begun(agent), experience(0)
    after, _ = learned(agent, state, batch)
    for a, b in zip(jax.tree.leaves(state.Q_target), jax.tree.leaves(after.Q_target), strict=True):
        assert_array_equal(a, b)
    for g in jax.tree.leaves(gradient(agent, state, batch)):
        assert (np.asarray(g) != 0).any()
    moments = sum(x.size for x in jax.tree.leaves(state.opt) if jnp.issubdtype(x.dtype, jnp.floating))
    assert moments == 2 * sum(x.size for x in jax.tree.leaves(state.Q))

    def loss_of(Q_target, Q):
        return agent.learn(state._replace(Q=Q, Q_target=Q_target), batch, jax.random.key(0))[1]["train/loss"]

    # The semi-gradient: what is descended along is not the derivative of the loss, whose target depends on θ too.
    residual = jax.jit(jax.grad(lambda Q: loss_of(Q, Q)))(state.Q)
    semi = jax.jit(jax.grad(lambda Q: loss_of(state.Q_target, Q)))(state.Q)
    assert_allclose(gradient(agent, state, batch).head.W, semi.head.W, rtol=1e-4, atol=1e-6)
    assert not np.allclose(residual.head.W, semi.head.W, rtol=0.05)


# ------------------------------------------------------------------------------------------------ rhythm


@pytest.mark.parametrize("tau", [1.0, 0.3])
@pytest.mark.parametrize(("T", "n_envs", "interval"), [(1, 1, 3), (2, 3, 7), (3, 2, 5), (5, 1, 1)])
def test_when_the_target_network_follows(T, n_envs, interval, tau):
    """CT17: at every update in which a multiple of the interval is reached, towards θ before the gradient steps."""
    agent = dataclasses.replace(
        PLAIN, rollout_length=T, updates_per_step=1.0, target_update_interval=interval, tau=tau, lr=0.1, batch_size=4
    )
    state = begun(agent, Spec(OBS, Discrete(K), n_envs, 1000))
    W = np.asarray(state.Q_target.head.W, np.float64)
    steps, followed = 0, 0
    for i in range(12):
        before = np.asarray(state.Q.head.W, np.float64)
        state, _ = updated(agent, state, Rollout(experience(i, (T, n_envs)), ()), jax.random.key(i))
        due = any(n % interval == 0 for n in range(steps + 1, steps + T * n_envs + 1))
        steps += T * n_envs
        followed += due
        W = tau * before + (1 - tau) * W if due else W
        assert_allclose(state.Q_target.head.W, W, rtol=1e-5, atol=1e-6)
    assert 0 < followed <= 12
    assert int(state.steps.low) == steps


def test_learning_starts_and_the_rhythm_of_gradient_steps():
    agent = dataclasses.replace(PLAIN, learning_starts=10, updates_per_step=0.5, lr=0.1, batch_size=4)
    state = begun(agent)
    for i in range(5):
        before = state
        state, metrics = updated(agent, state, Rollout(experience(i, (2, 2)), ()), jax.random.key(i))
        counts = [int(x) for x in jax.tree.leaves(state.opt) if jnp.issubdtype(x.dtype, jnp.integer)]
        learns = 4 * (i + 1) >= 10  # steps seen after this rollout
        assert counts == [2 * max(0, i - 1)]
        assert bool(jnp.isnan(metrics["train/loss"])) != learns
        assert bool((state.Q.head.W != before.Q.head.W).any()) == learns


def test_epsilon_falls_in_a_straight_line():
    agent = dataclasses.replace(PLAIN, eps_start=0.9, eps_end=0.1, eps_steps=100, learning_starts=8)
    state = begun(agent)
    rollout = Rollout(experience(0, (2, 2)), ())
    seen = []
    for i in range(30):
        state, metrics = updated(agent, state, rollout, jax.random.key(i))
        seen.append(float(metrics["rollout/exploration_rate"]))
    steps = 4 * np.arange(1, 31)
    assert_allclose(seen, np.where(steps < 8, 1.0, np.maximum(0.9 - 0.8 * steps / 100, 0.1)), rtol=1e-5)


def test_epsilon_is_how_often_a_random_action_is_taken():
    """(5), among the allowed actions only, and never where it does not explore."""
    agent = dataclasses.replace(PLAIN, eps_start=0.4, eps_end=0.4, learning_starts=1000)
    n = 4000
    obs_space = Dict({"action_mask": MultiBinary(4), "x": OBS})
    state = begun(agent, Spec(obs_space, Discrete(4), 2, 1000))
    head = dataclasses.replace(state.Q.head, W=jnp.zeros((D, 4)), b=jnp.array([1.0, 9.0, 2.0, 3.0]))
    state = state._replace(Q=dataclasses.replace(state.Q, head=head))
    obs = {"action_mask": jnp.broadcast_to(jnp.array([1.0, 0.0, 1.0, 1.0]), (n, 4)), "x": jnp.zeros((n, D))}

    def shares(steps, explore=True):
        now = state._replace(steps=Counter.of(steps))
        action, _ = agent.act(now, obs, jax.random.key(steps), (), explore=explore)
        return np.bincount(np.asarray(action), minlength=4) / n

    assert_array_equal(shares(5000, explore=False), [0, 0, 0, 1])  # the best one, 1, is not allowed
    assert_allclose(shares(5000), [0.4 / 3, 0, 0.4 / 3, 0.6 + 0.4 / 3], atol=0.03)
    assert_allclose(shares(999), [1 / 3, 0, 1 / 3, 1 / 3], atol=0.03)  # random before learning starts
    assert_array_equal(shares(999, explore=False), [0, 0, 0, 1])


def test_schedules_follow_the_steps():
    agent = resolve_schedules(dataclasses.replace(PLAIN, lr=Linear(0.1, 0.0), updates_per_step=0.25), 8)
    state, moves = begun(agent), []
    for i in range(3):
        before = state.Q.head.b
        state, _ = updated(agent, state, Rollout(experience(i, (2, 2)), ()), jax.random.key(i))
        moves.append(float(abs(state.Q.head.b - before).max()))
    assert moves[0] == pytest.approx(0.1, rel=1e-3)  # Adam's first step is lr
    assert 0 < moves[1] < 0.06
    assert moves[2] == 0


@pytest.mark.parametrize("action", [Box(-1.0, 1.0, (2,)), MultiDiscrete((2, 2)), MultiBinary(3)])
def test_other_actions_are_refused_with_the_agents_that_take_them(action):
    with pytest.raises(PolyakError, match=r"it takes Discrete, masked or not; .*PPO.* can take such a space"):
        PLAIN.init(jax.random.key(0), Spec(OBS, action, 1, 100))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"updates_per_step": 0.3}, "gradient steps per update"),
        ({"updates_per_step": 0.0}, "gradient steps per update"),
        ({"loss": "hubert"}, "loss is 'hubert'"),
        ({"tau": 1.1}, "tau is 1.1"),
        ({"max_grad_norm": 0.0}, "max_grad_norm is 0"),
        ({"eps_end": -0.1}, "eps_end is -0.1"),
        ({"n_step": 0}, "n_step is 0"),
        ({"prioritised": 1.1}, "prioritised is 1.1"),
        ({"is_beta": 1.1}, "is_beta is 1.1"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, sentence):
    with pytest.raises(PolyakError, match=sentence):
        dataclasses.replace(PLAIN, **fields).init(jax.random.key(0), SPEC)
