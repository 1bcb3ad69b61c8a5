"""TQC against its equations: pooled and truncated atoms, the quantile loss, the gradients of policy and temperature."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from polyak.agents import tqc
from polyak.agents.tqc import TQC
from polyak.core import Counter, Spec, Transition, hyper
from polyak.errors import PolyakError
from polyak.spaces import Box, Discrete, MultiDiscrete

B, D, A, N, M = 7, 5, 2, 3, 4  # batch, observation, action, critics, quantiles
SPEC = Spec(Box(-1.0, 1.0, (D,)), Box(-1.0, 1.0, (A,)), 3, 1000)
PLAIN = TQC(
    network=(8,), n_critics=N, n_quantiles=M, drop_per_critic=1, gamma=0.9, buffer_size=60, learning_starts=0,
    batch_size=4, tau=0.3, lr=0.01,
)  # fmt: skip


@functools.cache
def begun(agent, spec=SPEC, seed=0):
    return jax.jit(lambda key: agent.init(key, spec))(jax.random.key(seed))


learned = jax.jit(lambda agent, state, batch, key: agent.learn(state, batch, key))
acting = jax.jit(
    lambda agent, state, obs, key, explore: agent.act(state, obs, key, (), explore=explore)[0], static_argnums=4
)
atoms = jax.jit(lambda agent, state, batch, alpha, key: agent._target_atoms(state, batch, alpha, key))


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


def dense(layer, x):
    return x @ np.asarray(layer.W, np.float64) + np.asarray(layer.b, np.float64)


def relu(x):
    return np.maximum(x, 0)


def quantiles(theta, obs, action):
    return dense(theta.head, relu(dense(theta.body.layers[0], np.concatenate([obs, action], -1))))


def policy(actor, obs, noise):
    """(a, log π(a)) with the squashed Gaussian's density written by its definition."""
    f = relu(dense(actor.torso.body.layers[0], obs))
    mean, log_std = dense(actor.mean, f), np.clip(dense(actor.log_std, f), -20, 2)
    u = mean + np.exp(log_std) * noise
    log_normal = (-0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)
    return np.tanh(u), log_normal - np.log(1 - np.tanh(u) ** 2).sum(-1)


def noises(key):
    """The two draws of one `learn`, for the successor's action and for the state's."""
    k_next, k_pi = jax.random.split(key)
    return tuple(np.asarray(jax.random.normal(k, (B, A)), np.float64) for k in (k_next, k_pi))


def target_atoms(state, batch, alpha, noise, dropped, gamma=0.9):
    """The paper's truncated mixture, one transition at a time: y_i(s, a) for the smallest atoms."""
    next_obs = np.asarray(batch.next_obs, np.float64)
    a_next, log_pi = policy(state.actor, next_obs, noise)
    rows = [quantiles(theta, next_obs, a_next) for theta in state.targets]
    found = []
    for b in range(len(next_obs)):
        pool = sorted(z for row in rows for z in row[b])
        kept = pool[: len(pool) - dropped * len(rows)]
        future = [0.0 if batch.terminated[b] else z - alpha * log_pi[b] for z in kept]
        found.append([float(batch.reward[b]) + gamma * z for z in future])
    return np.array(found)


def quantile_loss(theta, y):
    """1/(K M) Σ_m Σ_i ρ_τm(y_i − θ_m), by loops."""
    total, m = 0.0, len(theta)
    for j in range(m):
        tau = (2 * (j + 1) - 1) / (2 * m)
        for target in y:
            u = target - theta[j]
            huber = 0.5 * u * u if abs(u) <= 1 else abs(u) - 0.5
            total += abs(tau - (u < 0)) * huber
    return total / (m * len(y))


@pytest.mark.reuses_keys
@pytest.mark.parametrize("dropped", [0, 1, 3])
@pytest.mark.parametrize("ent_coef", ["auto", 0.2])
def test_the_losses_equal_numpy(ent_coef, dropped):
    """(1)-(5): truncated atoms, entropy inside of the terminal mask (E3), and truncation that bootstraps."""
    agent = dataclasses.replace(PLAIN, ent_coef=ent_coef, ent_coef_init=0.5, lr=0.0, drop_per_critic=dropped)
    state, batch, key = begun(agent), experience(0), jax.random.key(3)
    state = state._replace(targets=begun(agent, SPEC, 1).critics)  # not the online ones
    alpha = 0.5 if ent_coef == "auto" else 0.2
    n_next, n_pi = noises(key)
    y = target_atoms(state, batch, alpha, n_next, dropped)
    assert y.shape == (B, N * (M - dropped))
    assert_allclose(atoms(agent, state, batch, jnp.float32(alpha), jax.random.split(key)[0]), y, rtol=1e-4, atol=1e-5)
    obs, a = np.asarray(batch.obs, np.float64), np.asarray(batch.action, np.float64)
    critic = sum(
        np.mean([quantile_loss(row, atoms) for row, atoms in zip(quantiles(theta, obs, a), y, strict=True)])
        for theta in state.critics
    )
    a_new, log_pi = policy(state.actor, obs, n_pi)
    Q = np.mean([quantiles(theta, obs, a_new).mean(-1) for theta in state.critics], axis=0)
    _, metrics = learned(agent, state, batch, key)
    assert metrics["train/critic_loss"] == pytest.approx(critic, rel=1e-4)
    assert metrics["train/actor_loss"] == pytest.approx((alpha * log_pi - Q).mean(), rel=1e-4)
    assert metrics["train/ent_coef"] == pytest.approx(alpha, rel=1e-6)
    if ent_coef == "auto":
        assert metrics["train/ent_coef_loss"] == pytest.approx(-math.log(0.5) * (log_pi.mean() - A), rel=1e-4)


@hyper
class Atoms:
    """A critic that says the same everywhere."""

    z: Any  # [M]

    def __call__(self, obs, action):
        return jnp.broadcast_to(self.z[None], (action.shape[0], self.z.shape[0]))


def of_atoms(agent, *rows):
    state = begun(agent)
    critics = tuple(Atoms(jnp.array(row)) for row in rows)
    opts = (state.opts[0], agent._rule().init(critics), state.opts[2])
    return state._replace(critics=critics, targets=critics, opts=opts)


def test_the_largest_of_all_are_dropped_not_the_largest_of_each():
    """2 critics of 3 quantiles, 1 per critic: 2 in all, here both of the second critic."""
    agent = dataclasses.replace(PLAIN, n_critics=2, n_quantiles=3, drop_per_critic=1, ent_coef=0.0)
    state = of_atoms(agent, [3.0, 1.0, 2.0], [0.0, 8.0, 9.0])
    y = atoms(agent, state, experience(0)._replace(reward=jnp.zeros(B)), jnp.float32(0), jax.random.key(0))
    going_on = np.asarray(~experience(0).terminated)
    assert_allclose(y[going_on], np.tile(0.9 * np.array([0.0, 1.0, 2.0, 3.0]), (going_on.sum(), 1)), rtol=1e-6)
    assert not np.any(y[~going_on])


def test_one_critic_without_truncation_has_the_mean_of_bellman():
    """E of the atoms is r + γ (1 − terminated) (E Z − α log π); with truncation it falls with every atom dropped."""
    agent = dataclasses.replace(PLAIN, n_critics=1, n_quantiles=5, drop_per_critic=0)
    state, batch, key = of_atoms(agent, [-2.0, 0.5, 4.0, 1.0, 7.0]), experience(0), jax.random.key(0)
    noise = np.asarray(jax.random.normal(key, (B, A)), np.float64)
    _, log_pi = policy(state.actor, np.asarray(batch.next_obs, np.float64), noise)
    wanted = np.asarray(batch.reward) + 0.9 * np.where(batch.terminated, 0, np.mean([-2, 0.5, 4, 1, 7]) - 0.3 * log_pi)
    with jax.debug_key_reuse(False):
        means = [
            np.asarray(atoms(dataclasses.replace(agent, drop_per_critic=n), state, batch, jnp.float32(0.3), key)).mean(
                -1
            )
            for n in range(5)
        ]
    assert_allclose(means[0], wanted, rtol=1e-4, atol=1e-5)
    going_on = np.asarray(~batch.terminated)
    assert (np.diff(np.array(means)[:, going_on], axis=0) < 0).all()
    assert_allclose(np.diff(np.array(means)[:, ~going_on], axis=0), 0, atol=1e-6)


def test_the_return_of_a_fair_coin_is_learned():
    """A terminal reward of ±5: below the median the quantiles go to −5, above it to 5, and their mean to 0."""
    agent = dataclasses.replace(PLAIN, n_critics=1, n_quantiles=4, drop_per_critic=0, lr=0.05)
    state, batch = of_atoms(agent, [0.0, 0.1, 0.2, 0.3]), experience(0, (8,))
    reward = jnp.where(jnp.arange(8) % 2 == 0, 5.0, -5.0)
    batch = batch._replace(reward=reward, terminated=jnp.ones(8, bool), truncated=jnp.zeros(8, bool))
    after = jax.jit(
        lambda s, keys: jax.lax.scan(lambda s, k: (agent.learn(s, batch, k)[0], None), s, keys)[0]
    )(state, jax.random.split(jax.random.key(0), 600))  # fmt: skip
    z = np.asarray(after.critics[0].z)
    # With Huber's κ = 1, τ |…| balances where (1 − τ) |z + 5| = τ: z = −5 + τ/(1 − τ), and mirrored.
    assert_allclose(z, [-5 + 1 / 7, -5 + 3 / 5, 5 - 3 / 5, 5 - 1 / 7], atol=0.05)


# ------------------------------------------------------------------------------------------------ the gradient map


def test_the_critics_differ_and_share_nothing():
    """G6, CT15."""
    state = begun(PLAIN)
    assert len(state.critics) == N
    for i in range(N):
        assert all(different(state.critics[i], state.critics[i - 1]))
    assert not any(different(state.critics, state.targets))
    for part, opt in zip((state.actor, state.critics, state.log_alpha), state.opts, strict=True):
        moments = sum(x.size for x in jax.tree.leaves(opt) if jnp.issubdtype(x.dtype, jnp.floating))
        assert moments == 2 * sum(x.size for x in jax.tree.leaves(part))


@pytest.mark.reuses_keys
def test_each_loss_moves_its_own_network():
    """The actor's gradient is that of α log π − mean θ with θ held still; the critics' has y held still."""
    agent = dataclasses.replace(PLAIN, ent_coef=0.2)
    state, batch, key = begun(agent), experience(0), jax.random.key(0)
    kept = []

    def keep(rule, lr, grads, opt, params):
        kept.append(grads)
        return params, opt

    def learn(state, batch, key):
        kept.clear()
        agent.learn(state, batch, key)
        return tuple(kept)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tqc, "descend", keep)
        critics, actor = jax.jit(learn)(state, batch, key)
    noise_next, noise = noises(key)

    def objective(actor):
        f = actor.torso(batch.obs)
        mean, log_std = actor.mean(f), actor.log_std(f)
        u = mean + jnp.exp(log_std) * noise
        log_pi = (-0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi) - jnp.log(1 - jnp.tanh(u) ** 2)).sum(-1)
        Q = sum(theta(batch.obs, jnp.tanh(u)).sum(-1) for theta in state.critics) / (N * M)
        return (0.2 * log_pi - Q).mean()

    for ours, theirs in zip(jax.tree.leaves(actor), jax.tree.leaves(jax.grad(objective)(state.actor)), strict=True):
        assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)
        assert (np.asarray(ours) != 0).any()
    y = target_atoms(state, batch, 0.2, noise_next, 1)
    obs, a = np.asarray(batch.obs, np.float64), np.asarray(batch.action, np.float64)
    tau = (np.arange(M) + 0.5) / M
    for got, theta in zip(critics, state.critics, strict=True):
        h = relu(dense(theta.body.layers[0], np.concatenate([obs, a], -1)))
        u = y[:, None, :] - dense(theta.head, h)[:, :, None]
        slope = -(np.abs(tau[None, :, None] - (u < 0)) * np.clip(u, -1, 1)).mean(-1) / M  # of a transition's loss
        assert_allclose(got.head.W, h.T @ slope / B, rtol=1e-3, atol=1e-5)


def test_targets_follow_the_new_critics():
    """(6): ψ′ ← τ ψ + (1 − τ) ψ′, at every gradient step, with the critics after it."""
    state, batch = begun(PLAIN), experience(0)
    state = state._replace(targets=begun(PLAIN, SPEC, 1).critics)
    after, _ = learned(PLAIN, state, batch, jax.random.key(0))
    assert all(different(after.critics, state.critics))
    assert all(different(after.actor, state.actor))
    expected = jax.tree.map(lambda t, o: 0.7 * t + 0.3 * o, state.targets, after.critics)
    for a, b in zip(jax.tree.leaves(after.targets), jax.tree.leaves(expected), strict=True):
        assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.reuses_keys
@pytest.mark.parametrize("above", [True, False])
def test_alpha_rises_where_the_entropy_is_below_its_target(above):
    """CT12; and a given α stays."""
    agent = dataclasses.replace(PLAIN, target_entropy=-9.0 if above else 9.0, ent_coef_init=0.3)
    state, batch = begun(agent), experience(0)
    after, _ = learned(agent, state, batch, jax.random.key(0))
    assert (after.log_alpha < state.log_alpha) == above
    assert abs(after.log_alpha - state.log_alpha) == pytest.approx(0.01, rel=1e-3)  # Adam's first step is lr
    fixed = dataclasses.replace(agent, ent_coef=0.3)
    assert learned(fixed, state, batch, jax.random.key(0))[0].log_alpha == state.log_alpha


# ------------------------------------------------------------------------------------------------ acting, refusals


@pytest.mark.reuses_keys
def test_actions():
    """Random before learning starts; then the policy's; greedy is the mode, and takes no notice of the key."""
    agent = dataclasses.replace(PLAIN, learning_starts=10)
    state, obs = begun(agent), jnp.ones((3, D))
    mean = dataclasses.replace(state.actor.mean, b=jnp.full(A, 9.0))
    state = state._replace(actor=dataclasses.replace(state.actor, mean=mean))
    early = np.stack([acting(agent, state, obs, jax.random.key(i), True) for i in range(200)])
    assert abs(early.mean()) < 0.1 and early.std() == pytest.approx(1 / math.sqrt(3), rel=0.1)
    late = state._replace(steps=Counter.of(10))
    assert np.asarray(acting(agent, late, obs, jax.random.key(0), True)).min() > 0.5
    greedy = acting(agent, late, obs, jax.random.key(0), False)
    assert_array_equal(greedy, acting(agent, state, obs, jax.random.key(1), False))
    assert_allclose(greedy, np.tanh(9.0), rtol=1e-2)


def test_the_critics_may_have_a_network_of_their_own():
    state = begun(dataclasses.replace(PLAIN, critic_network=(6, 4)))
    assert [layer.W.shape for layer in state.critics[0].body.layers] == [(D + A, 6), (6, 4)]
    assert state.actor.torso.body.layers[0].W.shape == (D, 8)


@pytest.mark.parametrize("action", [Discrete(3), MultiDiscrete((2, 2)), Box(-math.inf, math.inf, (2,))])
def test_other_actions_are_refused(action):
    with pytest.raises(PolyakError, match=r"TQC can't take .*it takes Box with finite bounds; .*PPO.* can take"):
        PLAIN.init(jax.random.key(0), Spec(SPEC.obs, action, 1, 100))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"drop_per_critic": M}, "drop_per_critic is 4, and must lie in"),
        ({"drop_per_critic": -1}, "drop_per_critic is -1"),
        ({"n_critics": 0}, "n_critics is 0"),
        ({"n_quantiles": 0}, "n_quantiles is 0"),
        ({"updates_per_step": 0.5, "rollout_length": 1}, "gradient steps per update"),
        ({"ent_coef": "auto_0.1"}, "ent_coef is 'auto_0.1'"),
        ({"tau": 1.5}, "tau is 1.5"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, sentence):
    with pytest.raises(PolyakError, match=sentence):
        dataclasses.replace(PLAIN, **fields).init(jax.random.key(0), SPEC)
