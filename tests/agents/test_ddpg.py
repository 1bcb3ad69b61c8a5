"""DDPG against its equations: the target, the chain rule through the critic, noise that lasts an episode."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from polyak import cranks
from polyak.agents.ddpg import DDPG
from polyak.core import Counter, Rollout, Spec, Transition
from polyak.envs.classic import Pendulum
from polyak.envs.vector import Vector
from polyak.errors import PolyakError
from polyak.explore import disturbed
from polyak.optim import Linear, resolve_schedules
from polyak.spaces import Box, Discrete, MultiDiscrete

B, D, A = 7, 5, 2  # batch, observation, action: coprime
SPEC = Spec(Box(-1.0, 1.0, (D,)), Box(-1.0, 1.0, (A,)), 3, 1000)
PLAIN = DDPG(network=(8,), gamma=0.9, buffer_size=60, learning_starts=0, batch_size=4, tau=0.3, lr=0.01)
OU = dataclasses.replace(PLAIN, noise="ou", noise_std=0.05)


@functools.cache
def begun(agent, spec=SPEC, seed=0):
    return jax.jit(lambda key: agent.init(key, spec))(jax.random.key(seed))


def apart():
    """A state whose targets are not the online networks."""
    other = begun(PLAIN, SPEC, 1)
    return begun(PLAIN)._replace(actor_target=other.actor, critic_target=other.critic)


learned = jax.jit(lambda agent, state, batch: agent.learn(state, batch, jax.random.key(0)))
updated = jax.jit(lambda agent, state, rollout, key: agent.update(state, rollout, key))
acting = jax.jit(
    lambda agent, state, obs, key, memory, explore: agent.act(state, obs, key, memory, explore=explore),
    static_argnums=5,
)


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
    """Gradients of mean (Q(s, a) − y)² for the layers, (W, b) each: hidden, then head."""
    x = np.concatenate([obs, action], -1)
    h = relu(dense(Q.body.layers[0], x))
    out = (2 * (dense(Q.head, h)[:, 0] - y) / len(y))[:, None]
    inner = (out @ wide(Q.head)[0].T) * (h > 0)
    return (x.T @ inner, inner.sum(0)), (h.T @ out, out.sum(0))


def actor_gradients(actor, Q, obs, weight):
    """Gradients of mean [weight · mean a² − Q(s, a)] by the chain rule ∇_a Q · ∇_φ μ: hidden, then head."""
    f = relu(dense(actor.torso.body.layers[0], obs))
    a = np.tanh(dense(actor.head, f))
    h = dense(Q.body.layers[0], np.concatenate([obs, a], -1))
    dQ_da = ((h > 0) * wide(Q.head)[0][:, 0]) @ wide(Q.body.layers[0])[0][D:].T
    z = (2 * weight * a / A - dQ_da) / len(obs) * (1 - a**2)
    inner = (z @ wide(actor.head)[0].T) * (f > 0)
    return (obs.T @ inner, inner.sum(0)), (f.T @ z, z.sum(0))


def moments(opt):
    """The gradient that Adam has seen, flat, where it has seen one: its first moment is a tenth of it."""
    return np.asarray(optax.tree_utils.tree_get(opt, "mu")) * 10


def flat(*layers):
    return np.concatenate([x.ravel() for layer in layers for x in layer])


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_losses_and_gradients_equal_numpy(weight):
    """(1)-(3), CT16: truncation bootstraps, termination does not; the actor climbs the critic after its step."""
    agent = dataclasses.replace(PLAIN, action_l2=weight)
    state, batch = apart(), experience(0)
    obs, next_obs, a, r = (np.asarray(x, np.float64) for x in (batch.obs, batch.next_obs, batch.action, batch.reward))
    future = q_value(state.critic_target, next_obs, policy(state.actor_target, next_obs))
    y = r + 0.9 * np.where(batch.terminated, 0, future)
    after, metrics = learned(agent, state, batch)
    assert metrics["train/critic_loss"] == pytest.approx(((q_value(state.critic, obs, a) - y) ** 2).mean(), rel=1e-4)
    mu = policy(state.actor, obs)
    value = (weight * (mu**2).mean(-1) - q_value(after.critic, obs, mu)).mean()
    assert metrics["train/actor_loss"] == pytest.approx(value, rel=1e-4)
    actor_opt, critic_opt = after.opts
    assert_allclose(moments(critic_opt), flat(*critic_gradients(state.critic, obs, a, y)), rtol=1e-3, atol=1e-6)
    expected = flat(*actor_gradients(state.actor, after.critic, obs, weight))
    assert_allclose(moments(actor_opt), expected, rtol=1e-3, atol=1e-6)
    assert all(different(after.actor, state.actor)) and all(different(after.critic, state.critic))


def test_targets_follow_both_networks():
    """(4): θ′ ← τ θ + (1 − τ) θ′ and φ′ likewise, with the networks after their steps (G13, G16)."""
    state = apart()
    after, _ = learned(PLAIN, state, experience(0))
    online, old = (after.actor, after.critic), (state.actor_target, state.critic_target)
    expected = jax.tree.map(lambda t, o: 0.7 * t + 0.3 * o, old, online)
    for a, b in zip(jax.tree.leaves((after.actor_target, after.critic_target)), jax.tree.leaves(expected), strict=True):
        assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    fresh = begun(PLAIN)
    assert not any(different((fresh.actor, fresh.critic), (fresh.actor_target, fresh.critic_target)))


@pytest.mark.parametrize(("critic_lr", "expected"), [(None, 0.01), (0.002, 0.002)])
def test_step_sizes(critic_lr, expected):
    """Adam's first step is as long as the step size, in every parameter that has a gradient."""
    state = begun(PLAIN)
    after, _ = learned(dataclasses.replace(PLAIN, critic_lr=critic_lr), state, experience(0))
    step = {part: abs(getattr(after, part).head.W - getattr(state, part).head.W) for part in ("actor", "critic")}
    assert_allclose(step["actor"], 0.01, rtol=1e-3)
    assert_allclose(np.median(step["critic"]), expected, rtol=1e-3)


def test_the_optimisers_cover_exactly_the_online_networks():
    """G12."""
    state = begun(PLAIN)
    for part, opt in zip((state.actor, state.critic), state.opts, strict=True):
        assert moments(opt).size == sum(x.size for x in jax.tree.leaves(part))


# ------------------------------------------------------------------------------------------------ acting


def still(state, bias=0.0):
    """The state with an actor that gives tanh(bias) everywhere."""
    head = dataclasses.replace(state.actor.head, W=jnp.zeros((8, A)), b=jnp.full(A, bias))
    return state._replace(actor=dataclasses.replace(state.actor, head=head))


@pytest.mark.reuses_keys
@pytest.mark.parametrize("agent", [PLAIN, OU], ids=["gaussian", "ou"])
def test_actions(agent):
    """(5): random before learning starts; then the policy's with noise, cut at ±1; greedy has no noise."""
    agent = dataclasses.replace(agent, learning_starts=10, noise_std=0.2)
    early, obs, memory = still(begun(PLAIN)), jnp.ones((3, D)), agent.memory(SPEC)
    late = early._replace(steps=Counter.of(10))
    many = [jax.random.key(i) for i in range(400)]
    random = np.stack([acting(agent, early, obs, k, memory, True)[0] for k in many])
    assert abs(random.mean()) < 0.1 and random.std() == pytest.approx(1 / math.sqrt(3), rel=0.1)
    noisy = np.stack([acting(agent, late, obs, k, memory, True)[0] for k in many])
    assert abs(noisy.mean()) < 0.02 and noisy.std() == pytest.approx(0.2, rel=0.05)
    assert not (noisy[:, 0] == noisy[:, 1]).any() and not (noisy[..., 0] == noisy[..., 1]).any()
    near = np.stack([acting(agent, still(late, 1.5), obs, k, memory, True)[0] for k in many])  # tanh 1.5 = 0.905
    assert near.max() == 1.0 and 0.25 < (near == 1).mean() < 0.4
    greedy, kept = acting(agent, still(late, 0.5), obs, jax.random.key(0), memory, False)
    assert_allclose(greedy, np.tanh(0.5), rtol=1e-5)
    assert jax.tree.structure(kept) == jax.tree.structure(memory)


@pytest.mark.reuses_keys
def test_noise_on_a_schedule():
    agent = resolve_schedules(dataclasses.replace(PLAIN, noise_std=Linear(0.4, 0.0)), 100)
    obs = jnp.ones((3, D))
    for steps, std in ((0, 0.4), (50, 0.2), (100, 0.0)):
        state = still(begun(PLAIN))._replace(steps=Counter.of(steps))
        noise = np.stack([acting(agent, state, obs, jax.random.key(i), (), True)[0] for i in range(200)])
        assert noise.std() == pytest.approx(std, rel=0.1, abs=1e-6)


@pytest.mark.parametrize(("theta", "std"), [(0.15, 0.05), (0.5, 0.2)])
def test_the_deviation_of_ornstein_uhlenbeck_noise(theta, std):
    """x ← (1 − θ) x + σ ξ: variance σ² / (2θ − θ²) in the long run, and a correlation of 1 − θ between neighbours."""

    def step(x, key):
        return disturbed(key, jnp.zeros((64, 2)), std, theta, x)[::-1]

    keys = jax.random.split(jax.random.key(3), 1200)
    x = np.asarray(jax.lax.scan(step, jnp.zeros((64, 2)), keys)[1], np.float64)
    assert x[0].std() == pytest.approx(std, rel=0.2)  # from 0
    x = x[200:]
    assert x.std() == pytest.approx(std / math.sqrt(2 * theta - theta**2), rel=0.03)
    assert (x[1:] * x[:-1]).mean() / x.var() == pytest.approx(1 - theta, abs=0.02)
    assert abs(np.corrcoef(x[:, 0, 0], x[:, 1, 0])[0, 1]) < 0.3  # environments have noise of their own


def test_ornstein_uhlenbeck_noise_begins_anew_in_each_episode():
    """Without new noise a disturbance of 0.8 halves with each step, until the episode ends; then it is 0."""
    vector = Vector(Pendulum(max_steps=4), 3)
    spec = Spec(vector.obs_space, vector.action_space, 3, 100)
    agent = dataclasses.replace(OU, noise_std=0.0, ou_theta=0.5, rollout_length=6)
    state = jax.jit(lambda keys: cranks.init(agent, vector, spec, *keys))(jax.random.split(jax.random.key(0)))
    head = dataclasses.replace(state.agent.actor.head, W=jnp.zeros((8, 1)), b=jnp.zeros(1))
    quiet = state.agent._replace(actor=dataclasses.replace(state.agent.actor, head=head))
    state = state._replace(agent=quiet, memory=jnp.full((3, 1), 0.8), started=jnp.array([False, False, True]))
    after, rollout, _ = jax.jit(lambda state: cranks.interact(agent, vector, spec, state))(state)
    action = np.asarray(rollout.steps.action[..., 0])
    assert_array_equal(np.asarray(rollout.steps.truncated)[3], True)
    assert_allclose(action[:, 0], [0.4, 0.2, 0.1, 0.05, 0.0, 0.0], atol=1e-6)
    assert_array_equal(action[:, 2], 0)
    assert_array_equal(after.memory, 0)


def test_gaussian_noise_needs_no_memory():
    assert PLAIN.memory(SPEC) == ()
    assert OU.memory(SPEC).shape == (3, A)


# ------------------------------------------------------------------------------------------------ the rhythm


def test_nothing_is_learned_before_learning_starts():
    agent = dataclasses.replace(PLAIN, rollout_length=4, updates_per_step=0.25, learning_starts=13)
    state = begun(agent)
    rollout = Rollout(experience(1, (4, 3)), ())
    early, metrics = updated(agent, state, rollout, jax.random.key(0))  # 12 steps
    assert np.isnan(metrics["train/critic_loss"]) and not any(different(early.critic, state.critic))
    late, metrics = updated(agent, early, rollout, jax.random.key(1))
    assert np.isfinite(metrics["train/critic_loss"]) and all(different(late.critic, state.critic))


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("action", [Discrete(3), MultiDiscrete((2, 2)), Box(-math.inf, math.inf, (2,))])
def test_other_actions_are_refused(action):
    with pytest.raises(PolyakError, match=r"DDPG can't take actions .* it takes Box with finite bounds"):
        PLAIN.init(jax.random.key(0), Spec(SPEC.obs, action, 1, 100))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"updates_per_step": 0.5, "rollout_length": 1}, "gradient steps per update"),
        ({"noise": "pink"}, "noise is 'pink', and must be 'gaussian' or 'ou'"),
        ({"noise_std": -0.1}, "noise_std is -0.1"),
        ({"ou_theta": 1.5}, "ou_theta is 1.5"),
        ({"critic_lr": -1.0}, "critic_lr is -1"),
        ({"action_l2": -1.0}, "action_l2 is -1"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, sentence):
    with pytest.raises(PolyakError, match=sentence):
        dataclasses.replace(PLAIN, **fields).init(jax.random.key(0), SPEC)
