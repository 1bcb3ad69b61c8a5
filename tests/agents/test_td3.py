"""TD3 against its equations: the smoothed target, the smaller twin, and what moves at which gradient step."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from polyak.agents.ddpg import DDPG
from polyak.agents.td3 import TD3
from polyak.core import Rollout, Spec, Transition
from polyak.errors import PolyakError
from polyak.spaces import Box, Discrete, MultiDiscrete

B, D, A = 7, 5, 2  # batch, observation, action: coprime
SPEC = Spec(Box(-1.0, 1.0, (D,)), Box(-1.0, 1.0, (A,)), 3, 1000)
SAME = {"network": (8,), "gamma": 0.9, "buffer_size": 60, "learning_starts": 0, "batch_size": 4, "tau": 0.3, "lr": 0.01}
PLAIN = TD3(target_noise=0.4, target_noise_clip=0.3, policy_delay=1, **SAME)


@functools.cache
def begun(agent, spec=SPEC, seed=0):
    return jax.jit(lambda key: agent.init(key, spec))(jax.random.key(seed))


def apart(agent=PLAIN):
    """A state whose targets are not the online networks."""
    other = begun(agent, SPEC, 1)
    return begun(agent)._replace(actor_target=other.actor, critic_targets=other.critics)


learned = jax.jit(lambda agent, state, batch, key: agent.learn(state, batch, key))
updated = jax.jit(lambda agent, state, rollout, key: agent.update(state, rollout, key))


def experience(seed, lead=(B,)):
    rng = np.random.default_rng(seed)
    terminated, truncated = (np.arange(np.prod(lead)).reshape(lead) % 4 == k for k in (1, 2))
    obs, next_obs = (jnp.float32(rng.normal(size=(*lead, D))) for _ in range(2))
    action, reward = jnp.float32(rng.uniform(-1, 1, (*lead, A))), jnp.float32(rng.normal(size=lead))
    return Transition(obs, action, reward, next_obs, jnp.asarray(terminated), jnp.asarray(truncated))


def different(a, b):
    """For each leaf, whether any element differs."""
    return [bool((x != y).any()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]


# ------------------------------------------------------------------------------------------------ NumPy, float64


def wide(layer):
    return np.asarray(layer.W, np.float64), np.asarray(layer.b, np.float64)


def dense(layer, x):
    W, b = wide(layer)
    return x @ W + b


def relu(x):
    return np.maximum(x, 0)


def q_value(Q, obs, action):
    return dense(Q.head, relu(dense(Q.body.layers[0], np.concatenate([obs, action], -1))))[:, 0]


def policy(actor, obs):
    return np.tanh(dense(actor.head, relu(dense(actor.torso.body.layers[0], obs))))


def critic_gradients(Q, obs, action, y):
    """Gradients of mean (Q(s, a) − y)²: hidden W and b, head W and b, flat."""
    x = np.concatenate([obs, action], -1)
    h = relu(dense(Q.body.layers[0], x))
    out = (2 * (dense(Q.head, h)[:, 0] - y) / len(y))[:, None]
    inner = (out @ wide(Q.head)[0].T) * (h > 0)
    return np.concatenate([g.ravel() for g in (x.T @ inner, inner.sum(0), h.T @ out, out.sum(0))])


def actor_gradients(actor, Q, obs, weight):
    """Gradients of mean [weight · mean a² − Q(s, a)] by the chain rule ∇_a Q · ∇_φ μ, flat."""
    f = relu(dense(actor.torso.body.layers[0], obs))
    a = np.tanh(dense(actor.head, f))
    h = dense(Q.body.layers[0], np.concatenate([obs, a], -1))
    dQ_da = ((h > 0) * wide(Q.head)[0][:, 0]) @ wide(Q.body.layers[0])[0][D:].T
    z = (2 * weight * a / A - dQ_da) / len(obs) * (1 - a**2)
    inner = (z @ wide(actor.head)[0].T) * (f > 0)
    return np.concatenate([g.ravel() for g in (obs.T @ inner, inner.sum(0), f.T @ z, z.sum(0))])


def moments(opt):
    """The gradient that Adam has seen, flat, where it has seen one: its first moment is a tenth of it."""
    return np.asarray(optax.tree_utils.tree_get(opt, "mu")) * 10


def moves(opt):
    """How many steps Adam has taken."""
    return int(optax.tree_utils.tree_get(opt, "count"))


def float64(batch):
    return tuple(np.asarray(x, np.float64) for x in (batch.obs, batch.next_obs, batch.action, batch.reward))


@pytest.mark.reuses_keys
@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_losses_and_gradients_equal_numpy(weight):
    """(1)-(4), CT16: clipped noise, clipped action, the smaller twin; the actor climbs the first critic alone."""
    agent = dataclasses.replace(PLAIN, action_l2=weight)
    state, batch, key = apart(), experience(0), jax.random.key(3)
    head = dataclasses.replace(state.actor_target.head, b=jnp.array([1.5, -1.5]))  # near the bounds
    state = state._replace(actor_target=dataclasses.replace(state.actor_target, head=head))
    obs, next_obs, a, r = float64(batch)
    raw = 0.4 * np.asarray(jax.random.normal(key, (B, A)), np.float64)
    noise = np.clip(raw, -0.3, 0.3)
    assert (raw > 0.3).any() and (raw < -0.3).any() and (raw == noise).any()
    a_next = np.clip(policy(state.actor_target, next_obs) + noise, -1, 1)
    assert (a_next == 1).any() and (a_next == -1).any()
    first, second = state.critic_targets
    between = np.median(q_value(first, next_obs, a_next) - q_value(second, next_obs, a_next)) + 1e-3
    second = dataclasses.replace(second, head=dataclasses.replace(second.head, b=second.head.b + jnp.float32(between)))
    state = state._replace(critic_targets=(first, second))
    Qs = [q_value(Q, next_obs, a_next) for Q in state.critic_targets]
    assert (Qs[0] < Qs[1]).any() and (Qs[0] > Qs[1]).any()
    y = r + 0.9 * np.where(batch.terminated, 0, np.minimum(*Qs))
    after, metrics = learned(agent, state, batch, key)
    loss = sum(((q_value(Q, obs, a) - y) ** 2).mean() for Q in state.critics)
    assert metrics["train/critic_loss"] == pytest.approx(loss, rel=1e-4)
    mu = policy(state.actor, obs)
    value = (weight * (mu**2).mean(-1) - q_value(after.critics[0], obs, mu)).mean()
    assert metrics["train/actor_loss"] == pytest.approx(value, rel=1e-4)
    expected = np.concatenate([critic_gradients(Q, obs, a, y) for Q in state.critics])
    assert_allclose(moments(after.opts[1]), expected, rtol=1e-3, atol=1e-6)
    expected = actor_gradients(state.actor, after.critics[0], obs, weight)
    assert_allclose(moments(after.opts[0]), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.reuses_keys
def test_the_noise_on_targets_is_clipped():
    """With c = 0 there is none; however large σ̃ is, no action moves by more than c."""
    state, batch, key = apart(), experience(0), jax.random.key(3)
    none, clipped = (dataclasses.replace(PLAIN, target_noise=s, target_noise_clip=c) for s, c in ((0.0, 0.5), (9.0, 0)))
    a, b = (learned(agent, state, batch, key)[1]["train/critic_loss"] for agent in (none, clipped))
    assert_array_equal(a, b)
    obs, next_obs, a, r = float64(batch)
    sign = np.sign(np.asarray(jax.random.normal(key, (B, A)), np.float64))
    wild = dataclasses.replace(PLAIN, target_noise=1e6, target_noise_clip=0.1)
    a_next = np.clip(policy(state.actor_target, next_obs) + 0.1 * sign, -1, 1)
    future = np.minimum(*(q_value(Q, next_obs, a_next) for Q in state.critic_targets))
    y = r + 0.9 * np.where(batch.terminated, 0, future)
    loss = sum(((q_value(Q, obs, a) - y) ** 2).mean() for Q in state.critics)
    assert learned(wild, state, batch, key)[1]["train/critic_loss"] == pytest.approx(loss, rel=1e-4)


def test_without_its_three_means_it_is_ddpg():
    """policy_delay 1, no noise on targets and equal twins: DDPG's step, parameter by parameter."""
    one, other = DDPG(**SAME), dataclasses.replace(PLAIN, target_noise=0.0)
    plain, batch = begun(one), experience(0)
    far = begun(one, SPEC, 1)
    plain = plain._replace(actor_target=far.actor, critic_target=far.critic)
    twins = begun(other)._replace(
        actor=plain.actor, critics=(plain.critic,) * 2, actor_target=far.actor, critic_targets=(far.critic,) * 2
    )
    for seed in range(3):
        plain, m_plain = learned(one, plain, batch, jax.random.key(seed))
        twins, m_twins = learned(other, twins, batch, jax.random.key(seed))
        assert m_twins["train/critic_loss"] == pytest.approx(2 * float(m_plain["train/critic_loss"]), rel=1e-4)
        assert m_twins["train/actor_loss"] == pytest.approx(float(m_plain["train/actor_loss"]), rel=1e-4)
    for k in (0, 1):
        pairs = (
            (plain.actor, twins.actor), (plain.critic, twins.critics[k]), (plain.actor_target, twins.actor_target),
            (plain.critic_target, twins.critic_targets[k]),
        )  # fmt: skip
        for x, y in zip(jax.tree.leaves([p[0] for p in pairs]), jax.tree.leaves([p[1] for p in pairs]), strict=True):
            assert_allclose(x, y, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------ the delay


@pytest.mark.parametrize("delay", [1, 2, 3])
def test_what_moves_at_which_gradient_step(delay):
    """(4), (5), CT17, G7: critics at every step; actor, its moments and all targets at steps d, 2d, 3d, ..."""
    agent = dataclasses.replace(PLAIN, policy_delay=delay)
    state = apart()._replace(updates=begun(agent).updates)
    for step in range(1, 8):
        after, metrics = learned(agent, state, experience(step), jax.random.key(step))
        due = step % delay == 0
        assert all(different(after.critics, state.critics))
        for part in ("actor", "actor_target", "critic_targets"):
            moved = different(getattr(after, part), getattr(state, part))
            assert all(moved) if due else not any(moved), (part, step)
        assert (moves(after.opts[0]), moves(after.opts[1])) == (step // delay, step)
        assert np.isfinite(metrics["train/actor_loss"]) == due
        if due:
            online, old = (after.actor, after.critics), (state.actor_target, state.critic_targets)
            expected = jax.tree.map(lambda t, o: 0.7 * t + 0.3 * o, old, online)
            pair = (after.actor_target, after.critic_targets)
            for a, b in zip(jax.tree.leaves(pair), jax.tree.leaves(expected), strict=True):
                assert_allclose(a, b, rtol=1e-5, atol=1e-7)
        state = after


@pytest.mark.parametrize(("T", "per_step", "delay"), [(1, 1.0, 2), (5, 1 / 3, 3), (4, 0.25, 5), (1, 1 / 3, 2)])
def test_the_delay_counts_gradient_steps_across_updates(T, per_step, delay):
    """CT17: with rollouts, gradient steps per rollout and delay coprime, floor(n / d) moves after n gradient steps."""
    agent = dataclasses.replace(PLAIN, rollout_length=T, updates_per_step=per_step, policy_delay=delay)
    state, each, total = begun(agent), round(T * 3 * per_step), 0
    for i in range(6):
        before, total = total // delay, total + each
        state, metrics = updated(agent, state, Rollout(experience(i, (T, 3)), ()), jax.random.key(i))
        assert (moves(state.opts[0]), moves(state.opts[1])) == (total // delay, total)
        assert np.isfinite(metrics["train/actor_loss"]) == (total // delay > before)  # a mean of those that happened
        assert np.isfinite(metrics["train/critic_loss"])
    assert int(state.updates.low) == total


# ------------------------------------------------------------------------------------------------ the gradient map


def test_the_twins_differ_and_share_nothing():
    """G6, G12, CT15."""
    state = begun(PLAIN)
    assert all(different(state.critics[0], state.critics[1]))
    assert not any(different((state.actor, state.critics), (state.actor_target, state.critic_targets)))
    for part, opt in zip((state.actor, state.critics), state.opts, strict=True):
        assert moments(opt).size == sum(x.size for x in jax.tree.leaves(part))


@pytest.mark.reuses_keys
def test_a_batch_is_the_mean_of_its_transitions():
    """CT13, CT14, for the critics; then for the actor, whose critics must stay for that."""
    agent = dataclasses.replace(PLAIN, target_noise=0.0, critic_lr=0.0)
    state, batch, key = apart(), experience(0), jax.random.key(0)
    whole = learned(agent, state, batch, key)[0]
    singles = [learned(agent, state, jax.tree.map(lambda x, i=i: x[i : i + 1], batch), key)[0] for i in range(B)]
    for k in (0, 1):
        mean = np.mean([moments(s.opts[k]) for s in singles], axis=0)
        assert_allclose(mean, moments(whole.opts[k]), rtol=1e-3, atol=1e-5)


def test_step_sizes():
    """Adam's first step is as long as the step size."""
    state = begun(PLAIN)
    after, _ = learned(dataclasses.replace(PLAIN, critic_lr=0.002), state, experience(0), jax.random.key(0))
    assert_allclose(abs(after.actor.head.W - state.actor.head.W), 0.01, rtol=1e-3)
    for new, old in zip(after.critics, state.critics, strict=True):
        assert np.median(abs(new.head.W - old.head.W)) == pytest.approx(0.002, rel=1e-3)


# ------------------------------------------------------------------------------------------------ acting


@pytest.mark.reuses_keys
@pytest.mark.parametrize("noise", ["gaussian", "ou"])
def test_actions(noise):
    """(6), of which DDPG's tests say more: noise around the policy's action, none where it is greedy."""
    agent = dataclasses.replace(PLAIN, noise=noise, noise_std=0.05)
    state, obs, memory = begun(agent), experience(0, (3,)).obs, agent.memory(SPEC)
    greedy = policy(state.actor, np.asarray(obs, np.float64))
    for i in range(3):
        assert_allclose(agent.act(state, obs, jax.random.key(i), memory, explore=False)[0], greedy, rtol=1e-4)
    noisy, after = agent.act(state, obs, jax.random.key(0), memory, explore=True)
    assert 0.01 < np.std(noisy - greedy) < 0.12
    if noise == "ou":
        assert_allclose(after, noisy - greedy, atol=1e-5)
    else:
        assert after == ()


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("action", [Discrete(3), MultiDiscrete((2, 2)), Box(-math.inf, math.inf, (2,))])
def test_other_actions_are_refused(action):
    with pytest.raises(PolyakError, match=r"TD3 can't take actions .* it takes Box with finite bounds"):
        PLAIN.init(jax.random.key(0), Spec(SPEC.obs, action, 1, 100))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"updates_per_step": 0.5, "rollout_length": 1}, "gradient steps per update"),
        ({"noise": "pink"}, "noise is 'pink', and must be 'gaussian' or 'ou'"),
        ({"policy_delay": 0}, "policy_delay is 0"),
        ({"target_noise": -0.1}, "target_noise is -0.1"),
        ({"target_noise_clip": -0.1}, "target_noise_clip is -0.1"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, sentence):
    with pytest.raises(PolyakError, match=sentence):
        dataclasses.replace(PLAIN, **fields).init(jax.random.key(0), SPEC)
