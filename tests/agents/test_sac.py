"""SAC against its equations: the soft target, the gradients of policy and temperature, noise that lasts a rollout."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from polyak.agents import sac
from polyak.agents.sac import SAC
from polyak.core import Counter, Rollout, Spec, Transition, hyper
from polyak.dists import TanhNormal
from polyak.errors import PolyakError
from polyak.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete

B, D, A = 7, 5, 2  # batch, observation, action: coprime
SPEC = Spec(Box(-1.0, 1.0, (D,)), Box(-1.0, 1.0, (A,)), 3, 1000)
PLAIN = SAC(network=(8,), gamma=0.9, buffer_size=60, learning_starts=0, batch_size=4, tau=0.3, lr=0.01)
SDE = dataclasses.replace(PLAIN, sde=True, log_std_init=-1.0, rollout_length=4, updates_per_step=0.25)


@functools.cache
def begun(agent, spec=SPEC, seed=0):
    return jax.jit(lambda key: agent.init(key, spec))(jax.random.key(seed))


learned = jax.jit(lambda agent, state, batch, key: agent.learn(state, batch, key))
updated = jax.jit(lambda agent, state, rollout, key: agent.update(state, rollout, key))
acting = jax.jit(
    lambda agent, state, obs, key, explore: agent.act(state, obs, key, (), explore=explore)[0], static_argnums=4
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


def dense(layer, x):
    return x @ np.asarray(layer.W, np.float64) + np.asarray(layer.b, np.float64)


def relu(x):
    return np.maximum(x, 0)


def q_value(Q, obs, action):
    return dense(Q.head, relu(dense(Q.body.layers[0], np.concatenate([obs, action], -1))))[:, 0]


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


@pytest.mark.reuses_keys
@pytest.mark.parametrize("ent_coef", ["auto", 0.2])
def test_the_losses_equal_numpy(ent_coef):
    """(1)-(4): the smaller target, entropy inside of the terminal mask (E3), and truncation that bootstraps."""
    agent = dataclasses.replace(PLAIN, ent_coef=ent_coef, ent_coef_init=0.5, lr=0.0)
    state, batch, key = begun(agent), experience(0), jax.random.key(3)
    state = state._replace(targets=begun(agent, SPEC, 1).critics)  # not the online ones
    alpha = 0.5 if ent_coef == "auto" else 0.2
    obs, next_obs, a = (np.asarray(x, np.float64) for x in (batch.obs, batch.next_obs, batch.action))
    n_next, n_pi = noises(key)
    a_next, log_next = policy(state.actor, next_obs, n_next)
    V_next = np.minimum(*(q_value(Q, next_obs, a_next) for Q in state.targets)) - alpha * log_next
    y = np.asarray(batch.reward) + 0.9 * np.where(batch.terminated, 0, V_next)
    a_new, log_pi = policy(state.actor, obs, n_pi)
    Qs = [q_value(Q, obs, a_new) for Q in state.critics]
    assert (Qs[0] < Qs[1]).any() and (Qs[0] > Qs[1]).any()
    _, metrics = learned(agent, state, batch, key)
    critic = sum(0.5 * ((q_value(Q, obs, a) - y) ** 2).mean() for Q in state.critics)
    assert metrics["train/critic_loss"] == pytest.approx(critic, rel=1e-4)
    assert metrics["train/actor_loss"] == pytest.approx((alpha * log_pi - np.minimum(*Qs)).mean(), rel=1e-4)
    assert metrics["train/ent_coef"] == pytest.approx(alpha, rel=1e-6)
    if ent_coef == "auto":
        assert metrics["train/ent_coef_loss"] == pytest.approx(-math.log(0.5) * (log_pi.mean() - A), rel=1e-4)


@pytest.mark.reuses_keys
def test_without_entropy_and_noise_the_target_is_td3s():
    """Architecture §8.2: α → 0 and σ → 0 leave r + γ (1 − terminated) min_i Q′_i(s′, tanh μ(s′))."""
    agent = dataclasses.replace(PLAIN, ent_coef=0.0, lr=0.0)
    state, batch = begun(agent), experience(0)
    log_std = dataclasses.replace(state.actor.log_std, W=jnp.zeros((8, A)), b=jnp.full(A, -20.0))
    state = state._replace(actor=dataclasses.replace(state.actor, log_std=log_std))
    next_obs = np.asarray(batch.next_obs, np.float64)
    mean_action, _ = policy(state.actor, next_obs, np.zeros((B, A)))
    future = np.minimum(*(q_value(Q, next_obs, mean_action) for Q in state.targets))
    y = np.asarray(batch.reward) + 0.9 * np.where(batch.terminated, 0, future)
    obs, a = np.asarray(batch.obs, np.float64), np.asarray(batch.action, np.float64)
    losses = [0.5 * ((q_value(Q, obs, a) - y) ** 2).mean() for Q in state.critics]
    for seed in (1, 2):  # whatever the noise
        metrics = learned(agent, state, batch, jax.random.key(seed))[1]
        assert metrics["train/critic_loss"] == pytest.approx(sum(losses), rel=1e-4)


# ------------------------------------------------------------------------------------------------ the gradient map


def test_the_twins_differ_and_share_nothing():
    """G6, CT15."""
    state = begun(PLAIN)
    assert all(different(state.critics[0], state.critics[1]))
    assert not any(different(state.critics, state.targets))
    for part, opt in zip((state.actor, state.critics, state.log_alpha), state.opts, strict=True):
        moments = sum(x.size for x in jax.tree.leaves(opt) if jnp.issubdtype(x.dtype, jnp.floating))
        assert moments == 2 * sum(x.size for x in jax.tree.leaves(part))


@functools.cache
def gradients(agent, seed=0):
    """(actor, critics, log α): what each of the three descends along, and the state and batch that it is taken at."""
    state, batch, key = begun(agent), experience(seed), jax.random.key(seed)
    kept = []

    def keep(rule, lr, grads, opt, params):
        kept.append(grads)
        return params, opt

    def learn(state, batch, key):
        kept.clear()
        agent.learn(state, batch, key)
        critics, actor, *alpha = kept
        return actor, critics, alpha

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sac, "descend", keep)
        return jax.jit(learn)(state, batch, key), state, batch, key


@pytest.mark.reuses_keys
def test_each_loss_moves_its_own_network():
    """The actor's gradient is that of α log π − min Q with Q held still; the critics' of ½ (Q − y)², y held still."""
    agent = dataclasses.replace(PLAIN, ent_coef=0.2)
    (actor, critics, alpha), state, batch, key = gradients(agent)
    assert alpha == []
    noise_next, noise = noises(key)

    def objective(actor):
        f = actor.torso(batch.obs)
        mean, log_std = actor.mean(f), actor.log_std(f)
        u = mean + jnp.exp(log_std) * noise
        log_pi = (-0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi) - jnp.log(1 - jnp.tanh(u) ** 2)).sum(-1)
        Q = jnp.minimum(*(Q(batch.obs, jnp.tanh(u)) for Q in state.critics))
        return (0.2 * log_pi - Q).mean()

    for ours, theirs in zip(jax.tree.leaves(actor), jax.tree.leaves(jax.grad(objective)(state.actor)), strict=True):
        assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)
        assert (np.asarray(ours) != 0).any()
    a_next, log_next = policy(state.actor, np.asarray(batch.next_obs, np.float64), noise_next)
    future = np.minimum(*(q_value(Q, np.asarray(batch.next_obs), a_next) for Q in state.targets)) - 0.2 * log_next
    y = np.asarray(batch.reward) + 0.9 * np.where(batch.terminated, 0, future)
    obs, a = np.asarray(batch.obs, np.float64), np.asarray(batch.action, np.float64)
    for got, Q in zip(critics, state.critics, strict=True):
        h = relu(dense(Q.body.layers[0], np.concatenate([obs, a], -1)))
        assert_allclose(got.head.W[:, 0], h.T @ (dense(Q.head, h)[:, 0] - y) / B, rtol=1e-3, atol=1e-5)


def test_targets_follow_the_new_critics():
    """(5): θ′ ← τ θ + (1 − τ) θ′, at every gradient step, with the critics after it."""
    state, batch = begun(PLAIN), experience(0)
    state = state._replace(targets=begun(PLAIN, SPEC, 1).critics)
    after, _ = learned(PLAIN, state, batch, jax.random.key(0))
    assert all(different(after.critics, state.critics))
    assert all(different(after.actor, state.actor))
    expected = jax.tree.map(lambda t, o: 0.7 * t + 0.3 * o, state.targets, after.critics)
    for a, b in zip(jax.tree.leaves(after.targets), jax.tree.leaves(expected), strict=True):
        assert_allclose(a, b, rtol=1e-5, atol=1e-7)


# ------------------------------------------------------------------------------------------------ the temperature


@pytest.mark.reuses_keys
@pytest.mark.parametrize("above", [True, False])
def test_alpha_rises_where_the_entropy_is_below_its_target(above):
    """CT12; the gradient is −(log π + H̄), and a given α stays."""
    agent = dataclasses.replace(PLAIN, target_entropy=-9.0 if above else 9.0, ent_coef_init=0.3)
    state, batch = begun(agent), experience(0)
    after, _ = learned(agent, state, batch, jax.random.key(0))
    assert (after.log_alpha < state.log_alpha) == above
    assert abs(after.log_alpha - state.log_alpha) == pytest.approx(0.01, rel=1e-3)  # Adam's first step is lr
    fixed = dataclasses.replace(agent, ent_coef=0.3)
    assert learned(fixed, state, batch, jax.random.key(0))[0].log_alpha == state.log_alpha
    if above:  # the default target is minus the dimension
        (_, _, (g,)), state, batch, key = gradients(dataclasses.replace(agent, target_entropy=None))
        _, log_pi = policy(state.actor, np.asarray(batch.obs, np.float64), noises(key)[1])
        assert g == pytest.approx(-(log_pi.mean() - A), rel=1e-3)


@hyper
class Parabola:
    """A critic with one parameter: Q(s, a) = −c a² / 2."""

    c: Any

    def torso(self, obs):
        return obs

    def given(self, features, action):
        return -self.c * (action**2).sum(-1) / 2


def test_the_temperature_of_a_gaussian_bandit_is_found():
    """§8.5: r = −c a²/2 with c = 2 and H̄ = −1 has α* = c e^{2H̄} / (2πe) = 0.0158477 and σ = 0.0890161.

    The critics start from other curvatures and learn c as well. Tanh changes the result by σ², less than 2 %.
    """
    agent = SAC(network=(8,), lr=0.01, target_entropy=-1.0, ent_coef_init=0.05, tau=0.05)
    state = begun(agent, Spec(Box(-1.0, 1.0, (1,)), Box(-1.0, 1.0, (1,)), 1, 100))
    critics = (Parabola(jnp.float32(1.0)), Parabola(jnp.float32(1.5)))
    opts = (state.opts[0], agent._rule().init(critics), state.opts[2])
    state = state._replace(critics=critics, targets=critics, opts=opts)
    a = jnp.linspace(-1, 1, 64)[:, None]
    end = jnp.ones(64, bool)
    batch = Transition(jnp.zeros((64, 1)), a, -(a[:, 0] ** 2), jnp.zeros((64, 1)), end, ~end)

    def step(state, key):
        state, _ = agent.learn(state, batch, key)
        return state, (state.log_alpha, state.actor(jnp.zeros((1, 1))).log_std[0, 0], state.critics[0].c)

    _, (log_alpha, log_std, c) = jax.jit(lambda s, k: jax.lax.scan(step, s, k))(
        state, jax.random.split(jax.random.key(0), 4000)
    )
    log_alpha, log_std, c = (np.asarray(x[-1500:]).mean() for x in (log_alpha, log_std, c))
    assert c == pytest.approx(2, rel=1e-2)
    assert np.exp(log_alpha) == pytest.approx(0.0158477, rel=0.04)
    assert np.exp(log_std) == pytest.approx(0.0890161, rel=0.03)


# ------------------------------------------------------------------------------------------------ acting


def test_the_squashed_density_is_one_in_all_and_finite_at_the_ends():
    """CT11, P1, P2."""
    for mean, log_std in ((0.3, -0.5), (-1.5, 0.4)):
        pi = TanhNormal(jnp.array([mean]), jnp.array([log_std]))
        a = np.linspace(-1, 1, 400_001)[1:-1]
        density = np.exp(np.asarray(jax.vmap(lambda x, pi=pi: pi.log_prob(x[None]))(jnp.float32(a)), np.float64))
        assert np.trapezoid(density, a) == pytest.approx(1, abs=2e-3)
    pi = TanhNormal(jnp.zeros(1), jnp.zeros(1))
    for x in (-1.0, 1.0, 1 - 1e-7):
        assert jnp.isfinite(pi.log_prob(jnp.array([x])))
        slope = jax.grad(lambda m, x=x: TanhNormal(m, jnp.zeros(1)).log_prob(jnp.array([x])))(jnp.zeros(1))
        assert jnp.isfinite(slope).all()
    assert jnp.isfinite(jax.vmap(lambda u: pi.log_prob_of(u[None]))(jnp.linspace(-50, 50, 101))).all()


@pytest.mark.reuses_keys
@pytest.mark.parametrize("agent", [PLAIN, SDE], ids=["gaussian", "sde"])
def test_actions(agent):
    """Random before learning starts; then the policy's; greedy is the mode, and takes no notice of the key."""
    state, obs = begun(dataclasses.replace(agent, learning_starts=10)), jnp.ones((3, D))
    mean = dataclasses.replace(state.actor.mean, b=jnp.full(A, 9.0))
    state = state._replace(actor=dataclasses.replace(state.actor, mean=mean))
    agent = dataclasses.replace(agent, learning_starts=10)
    early = np.stack([acting(agent, state, obs, jax.random.key(i), True) for i in range(200)])
    assert abs(early.mean()) < 0.1 and early.std() == pytest.approx(1 / math.sqrt(3), rel=0.1)
    late = state._replace(steps=Counter.of(10))
    assert np.asarray(acting(agent, late, obs, jax.random.key(0), True)).min() > 0.5
    greedy = acting(agent, late, obs, jax.random.key(0), False)
    assert_array_equal(greedy, acting(agent, state, obs, jax.random.key(1), False))
    assert_allclose(greedy, np.tanh(2.0 if agent.sde else 9.0), rtol=1e-2)  # with sde the mean stays within ±2


@pytest.mark.reuses_keys
def test_the_noise_of_sde_lasts_one_rollout():
    state = begun(SDE)
    obs = experience(0, (3,)).obs
    one, two = (acting(SDE, state, obs, jax.random.key(i), True) for i in (1, 2))
    assert_array_equal(one, two)  # no new noise with a new key
    f = np.asarray(state.actor.torso(obs), np.float64)
    u = np.clip(dense(state.actor.mean, f), -2, 2) + np.einsum("nf,nfa->na", f, np.asarray(state.noise, np.float64))
    assert_allclose(one, np.tanh(u), rtol=1e-4, atol=1e-6)
    after, _ = updated(SDE, state, Rollout(experience(1, (4, 3)), ()), jax.random.key(0))
    assert all(different(after.noise, state.noise))
    gaussian = begun(PLAIN)
    assert different(*(acting(PLAIN, gaussian, obs, jax.random.key(i), True) for i in (1, 2))) == [True]


def test_the_variance_of_sde():
    """Wᵀ f with W_ij ~ N(0, σ_ij²) has the variance Σ_i f_i² σ_ij²."""
    actor = begun(SDE).actor
    actor = dataclasses.replace(actor, log_std=jax.random.normal(jax.random.key(5), actor.log_std.shape) * 0.5)
    f = jnp.abs(jax.random.normal(jax.random.key(1), (1, 8)))
    sigma = np.exp(np.asarray(actor.log_std, np.float64))
    expected = (np.asarray(f, np.float64) ** 2) @ sigma**2
    assert_allclose(np.exp(2 * np.asarray(actor.given(f).log_std)), expected + 1e-6, rtol=1e-4)
    W = actor.noise(jax.random.key(2), 40_000)
    assert_allclose(np.einsum("f,nfa->na", np.asarray(f)[0], np.asarray(W)).var(0), expected[0], rtol=0.04)


# ------------------------------------------------------------------------------------------------ discrete actions


def discrete(n_obs, n_actions, **fields):
    """A linear agent on one-hot observations, which is a table, and its state."""
    agent = SAC(network=(), buffer_size=10, **fields)
    spec = Spec(Discrete(n_obs), Discrete(n_actions), 1, 100)
    return agent, jax.jit(lambda key: agent.init(key, spec))(jax.random.key(0))


def learned_for(agent, state, batch, n):
    def step(state, key):
        return agent.learn(state, batch, key)[0], (jnp.exp(state.log_alpha),)

    return jax.jit(lambda s, k: jax.lax.scan(step, s, k))(state, jax.random.split(jax.random.key(1), n))


@pytest.mark.parametrize(("entropy", "alpha", "p"), [(0.3, 0.4297262042, 0.9110937), (0.5, 0.7204048031, 0.8002901)])
def test_the_temperature_of_a_discrete_bandit_is_found(entropy, alpha, p):
    """§8.5: rewards (1, 0). π = softmax(r / α) has the wanted entropy at one α alone."""
    agent, state = discrete(1, 2, lr=0.01, target_entropy=entropy, ent_coef_init=0.2)
    zero, end = jnp.zeros(2, jnp.int32), jnp.ones(2, bool)
    batch = Transition(zero, jnp.arange(2), jnp.array([1.0, 0.0]), zero, end, ~end)
    state, (alphas,) = learned_for(agent, state, batch, 4000)
    assert_allclose(alphas[-500:].mean(), alpha, rtol=0.01)
    assert_allclose(jax.nn.softmax(state.actor(zero[:1]).logits)[0, 0], p, rtol=0.01)


def test_soft_values_of_a_known_mdp_are_found():
    """§8.1: the 2×2 control problem's soft optimum at α = 0.5, from exact expected batches."""
    P = np.array([[[0.9, 0.1], [0.2, 0.8]], [[0.3, 0.7], [0.6, 0.4]]])
    r = np.array([[1.0, 0.0], [0.0, 2.0]])
    expected = [[12.9274080909, 12.6184309704], [12.5197134162, 14.2235607535]]
    rows = [(s, a, t) for s in range(2) for a in range(2) for t in range(2) for _ in range(round(10 * P[s, a, t]))]
    s, a, t = (jnp.array(x, jnp.int32) for x in zip(*rows, strict=True))
    end = jnp.zeros(len(rows), bool)
    batch = Transition(s, a, jnp.float32(r[np.asarray(s), np.asarray(a)]), t, end, end)
    agent, state = discrete(2, 2, gamma=0.9, ent_coef=0.5, tau=0.05)
    for lr in (0.1, 0.01, 0.002):
        state, _ = learned_for(dataclasses.replace(agent, lr=lr), state, batch, 3000)
    for Q in state.critics:
        assert_allclose(Q(jnp.arange(2)), expected, atol=0.1)
    pi = jax.nn.softmax(state.actor(jnp.arange(2)).logits)
    assert_allclose(pi, [[0.64975313, 0.35024687], [0.03205585, 0.96794415]], atol=0.01)


@pytest.mark.reuses_keys
def test_forbidden_actions_are_neither_taken_nor_valued():
    """CT17: nothing of a masked action enters the target, the actor's loss, the entropy or a draw, warm-up included."""
    spec = Spec(Dict({"action_mask": MultiBinary(3), "x": Box(-1.0, 1.0, (2,))}), Discrete(3), 4, 100)
    agent = SAC(network=(4,), buffer_size=10, learning_starts=0)
    state = jax.jit(lambda key: agent.init(key, spec))(jax.random.key(0))
    rng = np.random.default_rng(0)
    mask = jnp.tile(jnp.array([1, 0, 1], jnp.int32), (6, 1))
    obs = {"action_mask": mask, "x": jnp.float32(rng.normal(size=(6, 2)))}
    for start in (0, 1000):
        actor = dataclasses.replace(agent, learning_starts=start)
        drawn = [actor.act(state, obs, jax.random.key(i), (), explore=True)[0] for i in range(20)]
        assert not (np.asarray(drawn) == 1).any()
    end = jnp.zeros(6, bool)
    batch = Transition(obs, jnp.zeros(6, jnp.int32), jnp.ones(6), obs, end, end)
    learn = jax.jit(lambda s: agent.learn(s, batch, jax.random.key(0)))

    def raised(critics):
        return tuple(
            dataclasses.replace(Q, head=dataclasses.replace(Q.head, b=Q.head.b.at[1].add(1e3))) for Q in critics
        )

    _, plain = learn(state)
    _, other = learn(state._replace(critics=raised(state.critics), targets=raised(state.targets)))
    for tag in plain:
        assert_allclose(other[tag], plain[tag], rtol=1e-5)


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("action", [MultiDiscrete((2, 2)), Box(-math.inf, math.inf, (2,))])
def test_other_actions_are_refused_with_the_agents_that_take_them(action):
    with pytest.raises(
        PolyakError, match=r"it takes Box with finite bounds, and Discrete.*PPO.* can take such a space"
    ):
        PLAIN.init(jax.random.key(0), Spec(SPEC.obs, action, 1, 100))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"updates_per_step": 0.5, "rollout_length": 1}, "gradient steps per update"),
        ({"ent_coef": "auto_0.1"}, "ent_coef is 'auto_0.1'"),
        ({"ent_coef": -0.1}, "ent_coef is -0.1"),
        ({"max_grad_norm": -1.0}, "max_grad_norm is -1"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, sentence):
    with pytest.raises(PolyakError, match=sentence):
        dataclasses.replace(PLAIN, **fields).init(jax.random.key(0), SPEC)
