"""PPO against its equations: ratios, clipping, the policy gradient, and one whole update in float64 NumPy."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from polyak.agents import ppo
from polyak.agents.ppo import PPO
from polyak.core import Rollout, Spec, Transition
from polyak.cranks import agent_key, init, interact
from polyak.envs.probes import PoisonedReset
from polyak.envs.vector import Vector
from polyak.errors import PolyakError
from polyak.normalise import Normalised
from polyak.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

T, N = 5, 3  # coprime with all other sizes
OBS = Box(-1.0, 1.0, (7,))
ACTIONS = {
    "discrete": Discrete(4),
    "multidiscrete": MultiDiscrete((2, 3)),
    "multibinary": MultiBinary(2),
    "box": Box(-1.0, 1.0, (2,)),
}
PLAIN = PPO(rollout_length=T, batch_size=T * N, epochs=1, network=(8,), max_grad_norm=None)


def spec_of(action, obs=OBS):
    return Spec(obs, action, N, 10_000)


def masks(rng, lead, n):
    """Random 0/1 masks with at least one action allowed."""
    mask = rng.integers(0, 2, (*lead, n))
    mask[..., 0] |= mask.sum(-1) == 0
    return mask.astype(np.float32)


def observations(rng, lead, mask=0):
    obs = jnp.asarray(rng.normal(size=(*lead, *OBS.shape)), jnp.float32)
    return {"action_mask": jnp.asarray(masks(rng, lead, mask)), "x": obs} if mask else obs


@functools.cache
def begun(agent, spec, seed=0):
    return jax.jit(lambda key: agent.init(key, spec))(jax.random.key(seed))


# One compilation serves every value of the float fields, which are leaves.
updated = jax.jit(lambda agent, state, rollout, key: agent.update(state, rollout, key))
learned = jax.jit(lambda agent, state, batch: agent.learn(state, batch))
explored = jax.jit(lambda agent, state, obs, key: agent.act(state, obs, key, (), explore=True)[0])


def acted(agent, state, rng, mask=0):
    """A rollout [T, N] of random observations, with the actions that the agent takes in them."""
    obs, next_obs = observations(rng, (T, N), mask), observations(rng, (T, N), mask)
    keys = jax.random.split(jax.random.key(int(rng.integers(1 << 30))), T)
    action = jnp.stack([explored(agent, state, jax.tree.map(lambda x, t=t: x[t], obs), keys[t]) for t in range(T)])
    terminated = rng.random((T, N)) < 0.2
    truncated = (rng.random((T, N)) < 0.2) & ~terminated
    reward = rng.normal(size=(T, N)).astype(np.float32)
    flags = jnp.asarray(terminated), jnp.asarray(truncated)
    return Rollout(Transition(obs, action, jnp.asarray(reward), next_obs, *flags), ())


def moved(state, by=0.5, seed=9):
    """The state with parameters away from the start, where all actions are alike."""
    leaves, tree = jax.tree.flatten(state.params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return state._replace(
        params=tree.unflatten(p + by * jax.random.normal(k, p.shape) for p, k in zip(leaves, keys, strict=True))
    )


def batch_of(state, obs, action, advantage, log_rho=0.0, value=None):
    """A minibatch whose ratios are exp(log_rho) under the state's present policy."""
    pi, V = state.params.actor(obs), state.params.critic(obs)
    return ppo.Batch(obs, action, pi.log_prob(action) - log_rho, V if value is None else value, jnp.asarray(advantage))


descended = jax.jit(lambda agent, state, batch: agent.learn(state, batch)[0].params)


def gradient(agent, state, batch):
    """What `learn` descends along: `descend` gives the gradient in place of the new parameters while it is traced."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ppo, "descend", lambda rule, lr, grads, opt, params: (grads, opt))
        return descended(agent, state, batch)


# ------------------------------------------------------------------------------------------------ the old policy (CT10)


def watched(monkeypatch):
    """Every minibatch that PPO learns from, and the ratio of each under the parameters it is learned with."""
    seen = []
    learn = PPO.learn

    def learn_and_tell(self, state, batch, key=None):
        ratio = jnp.exp(state.params.actor(batch.obs).log_prob(batch.action) - batch.log_prob)
        jax.debug.callback(lambda b, r: seen.append(jax.tree.map(np.asarray, (b, r))), batch, ratio)
        return learn(self, state, batch, key)

    monkeypatch.setattr(PPO, "learn", learn_and_tell)
    return seen


@pytest.mark.parametrize(
    ("kind", "normalised", "mask"),
    [
        ("discrete", False, False),
        ("discrete", True, True),
        ("multidiscrete", False, True),
        ("multibinary", True, True),
        ("box", False, False),
        ("box", True, False),
    ],
)
def test_the_ratio_is_one_at_the_first_minibatch(kind, normalised, mask, monkeypatch):
    """log π_old is that of the policy that acted, with the statistics that it acted with (N6, G10)."""
    action = ACTIONS[kind]
    n = {"discrete": 4, "multidiscrete": 5, "multibinary": 2}[kind] if mask else 0
    plain = dataclasses.replace(PLAIN, lr=0.05, batch_size=T)
    agent = Normalised(plain) if normalised else plain
    obs = Dict({"action_mask": MultiBinary(n), "x": OBS}) if mask else OBS
    rng = np.random.default_rng(0)
    state = begun(agent, spec_of(action, obs))
    seen = watched(monkeypatch)
    update = jax.jit(agent.update)
    for seed in (1, 2):  # away from the start, with statistics that are not 0 and 1
        state, _ = update(state, acted(agent, state, rng, n), jax.random.key(seed))
    jax.effects_barrier()
    seen.clear()
    rollout = acted(agent, state, rng, n)
    inner, scaled = (state.agent, agent._normal(state, rollout.steps.obs)) if normalised else (state, rollout.steps.obs)
    then = np.asarray(inner.params.actor(scaled).log_prob(rollout.steps.action))
    update(state, rollout, jax.random.key(7))
    jax.effects_barrier()
    assert len(seen) == N  # minibatches of T
    assert_allclose(seen[0][1], 1, atol=1e-5)
    used = np.concatenate([batch.log_prob for batch, _ in seen])
    assert_allclose(np.sort(used), np.sort(then.ravel()), rtol=1e-5, atol=1e-6)
    assert np.abs(seen[-1][1] - 1).max() > 1e-3  # or nothing was learned, and nothing tested


def test_a_learning_rate_of_zero_keeps_every_ratio_at_one():
    agent = dataclasses.replace(PLAIN, lr=0.0, epochs=3, batch_size=5, clip_range=1e-5)
    state = begun(agent, spec_of(Discrete(4)))
    after, metrics = updated(agent, state, acted(agent, state, np.random.default_rng(1)), jax.random.key(1))
    assert metrics["train/clip_fraction"] == 0
    assert abs(metrics["train/approx_kl"]) < 1e-6
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(after.params), strict=True):
        assert_array_equal(a, b)
    assert after.steps.low == T * N


# ------------------------------------------------------------------------------------------------ the surrogate


@pytest.mark.parametrize("rho", [0.5, 0.9, 1.1, 1.5])
@pytest.mark.parametrize("advantage", [-2.0, 2.0])
@pytest.mark.parametrize("kind", ["discrete", "box"])
def test_clip_grid(kind, advantage, rho):
    """Outside of the range on the far side the gradient is exactly 0; elsewhere it is that of ρ A."""
    agent = dataclasses.replace(PLAIN, normalize_advantage=False, clip_range=0.2, vf_coef=0.0)
    state = moved(begun(agent, spec_of(ACTIONS[kind])))
    obs = jnp.asarray(observations(np.random.default_rng(0), (1,)))
    action = state.params.actor(obs).sample(jax.random.key(3))
    batch = batch_of(state, obs, action, [advantage], math.log(rho))
    got = gradient(agent, state, batch).actor
    clipped = rho > 1.2 if advantage > 0 else rho < 0.8
    score = jax.grad(lambda actor: actor(obs).log_prob(action)[0])(state.params.actor)
    for g, s in zip(jax.tree.leaves(got), jax.tree.leaves(score), strict=True):
        if clipped:
            assert_array_equal(g, 0)
        else:
            assert_allclose(g, -advantage * rho * s, rtol=1e-4, atol=1e-6)
    metrics = learned(agent, state, batch)[1]
    assert metrics["train/policy_gradient_loss"] == pytest.approx(
        -min(rho * advantage, min(max(rho, 0.8), 1.2) * advantage), rel=1e-4
    )
    assert metrics["train/approx_kl"] == pytest.approx(rho - 1 - math.log(rho), rel=1e-3)
    assert metrics["train/clip_fraction"] == (abs(rho - 1) > 0.2)


def test_at_ratio_one_the_gradient_is_the_actor_critics():
    """Linear softmax policy and linear value: A2C's gradient in closed form (arXiv 2205.09123)."""
    B, n_actions, c_v, c_e = 11, 4, 0.7, 0.3
    agent = PPO(network=(), normalize_advantage=False, vf_coef=c_v, ent_coef=c_e, clip_range=0.1, max_grad_norm=None)
    state = moved(begun(agent, Spec(OBS, Discrete(n_actions), 1, 10_000)))
    rng = np.random.default_rng(4)
    x, a = rng.normal(size=(B, 7)), rng.integers(0, n_actions, B)
    A, V_old = rng.normal(size=B), rng.normal(size=B)
    batch = batch_of(state, jnp.float32(x), jnp.int32(a), jnp.float32(A), 0.0, jnp.float32(V_old))
    got = gradient(agent, state, batch)

    W, b = (np.asarray(p, np.float64) for p in (state.params.actor.head.W, state.params.actor.head.b))
    w, c = (np.asarray(p, np.float64) for p in (state.params.critic.head.W, state.params.critic.head.b))
    logits = x @ W + b
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    H = -(p * np.log(p)).sum(-1)
    d_score = np.eye(n_actions)[a] - p  # ∂ log π(a) / ∂ logits
    d_entropy = -p * (np.log(p) + H[:, None])
    d_logits = -(A[:, None] * d_score + c_e * d_entropy) / B
    d_value = c_v * 2 * ((x @ w + c)[:, 0] - (A + V_old)) / B
    assert_allclose(got.actor.head.W, x.T @ d_logits, rtol=1e-4, atol=1e-6)
    assert_allclose(got.actor.head.b, d_logits.sum(0), rtol=1e-4, atol=1e-6)
    assert_allclose(got.critic.head.W[:, 0], x.T @ d_value, rtol=1e-4, atol=1e-6)
    assert_allclose(got.critic.head.b, d_value.sum(keepdims=True), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("value", "target", "loss", "moves"),
    # V_old = 0, clip_range_vf = 0.2: the larger error counts, and only the unclipped one has a gradient
    [(1.0, -1.0, 4.0, True), (1.0, 2.0, 1.8**2, False), (-1.0, -2.0, 1.8**2, False), (0.1, 1.0, 0.81, True)],
)
def test_the_value_may_move_no_further_than_its_clip_range(value, target, loss, moves):
    agent = PPO(network=(), normalize_advantage=False, clip_range_vf=0.2, max_grad_norm=None, vf_coef=1.0)
    state = begun(agent, Spec(OBS, Discrete(2), 1, 10_000))
    head = dataclasses.replace(state.params.critic.head, b=jnp.array([value]))
    state = state._replace(
        params=dataclasses.replace(state.params, critic=dataclasses.replace(state.params.critic, head=head))
    )
    batch = batch_of(state, jnp.zeros((1, 7)), jnp.zeros(1, int), [target], value=jnp.zeros(1))
    assert learned(agent, state, batch)[1]["train/value_loss"] == pytest.approx(loss, rel=1e-5)
    assert bool(gradient(agent, state, batch).critic.head.b[0] != 0) == moves


@pytest.mark.parametrize("kind", ACTIONS)
def test_without_advantage_the_entropy_bonus_raises_the_entropy(kind):
    """CT12: the sign of c_e, for every space; and without the bonus nothing moves."""
    rng = np.random.default_rng(0)
    agent = dataclasses.replace(PLAIN, lr=0.02, ent_coef=0.1, vf_coef=0.0)
    state = moved(begun(agent, spec_of(ACTIONS[kind]), 1))
    obs = jnp.asarray(observations(rng, (11,)))
    batch = batch_of(state, obs, state.params.actor(obs).sample(jax.random.key(2)), np.zeros(11, np.float32))
    before = state.params.actor(obs).entropy().mean()
    after, metrics = learned(agent, state, batch)
    assert metrics["train/entropy_loss"] == pytest.approx(-float(before), rel=1e-5)
    assert after.params.actor(obs).entropy().mean() > before + 1e-4
    still, _ = learned(dataclasses.replace(agent, ent_coef=0.0), state, batch)
    assert_array_equal(still.params.actor.head.W, state.params.actor.head.W)


# ------------------------------------------------------------------------------------------------ one whole update


def forward(p, x):
    """(log π [B, n], V [B]) of two networks with one tanh layer, float64."""
    logits = np.tanh(x @ p[0] + p[1]) @ p[2] + p[3]
    z = logits - logits.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True)), (np.tanh(x @ p[4] + p[5]) @ p[6] + p[7])[:, 0]


def loss(p, agent, x, a, log_old, V_old, A):
    """The objective of the paper with clipped values, to be made small; its gradient is taken by differences."""
    log_pi, V = forward(p, x)
    rho = np.exp(log_pi[np.arange(len(a)), a] - log_old)
    scaled = (A - A.mean()) / A.std()
    surrogate = np.minimum(rho * scaled, np.clip(rho, 1 - agent.clip_range, 1 + agent.clip_range) * scaled)
    near = V_old + np.clip(V - V_old, -agent.clip_range_vf, agent.clip_range_vf)
    G = A + V_old
    value = np.maximum((V - G) ** 2, (near - G) ** 2)
    entropy = -(np.exp(log_pi) * log_pi).sum(-1)
    return -surrogate.mean() + agent.vf_coef * value.mean() - agent.ent_coef * entropy.mean()


def differences(p, *args):
    grads = []
    for i, array in enumerate(p):
        g = np.zeros_like(array)
        for at in np.ndindex(array.shape):
            up, down = ([q.copy() for q in p] for _ in range(2))
            up[i][at] += 1e-6
            down[i][at] -= 1e-6
            g[at] = (loss(up, *args) - loss(down, *args)) / 2e-6
        grads.append(g)
    return grads


def advantages(agent, steps, V, V_next):
    """Σ_l (γλ)^l δ_{t+l} by its definition: a sum that stops with the episode."""
    terminated, truncated = np.asarray(steps.terminated), np.asarray(steps.truncated)
    r, A = np.asarray(steps.reward, np.float64), np.zeros((T, N))
    for n in range(N):
        for t in range(T):
            for k in range(t, T):
                delta = r[k, n] + agent.gamma * V_next[k, n] * (not terminated[k, n]) - V[k, n]
                A[t, n] += (agent.gamma * agent.gae_lambda) ** (k - t) * delta
                if terminated[k, n] or truncated[k, n]:
                    break
    return A


def test_one_update_equals_numpy(monkeypatch):
    """CT16: 3 epochs over one minibatch, with Adam, both clips, entropy and the norm of gradients, in float64."""
    agent = PPO(
        rollout_length=T, batch_size=T * N, epochs=3, network=(4,), lr=0.03, gamma=0.9, gae_lambda=0.8, clip_range=0.1,
        clip_range_vf=0.05, ent_coef=0.02, vf_coef=0.4, max_grad_norm=0.3,
    )  # fmt: skip
    state = moved(begun(agent, spec_of(Discrete(3))), 0.3)
    rollout = acted(agent, state, np.random.default_rng(5))
    after, metrics = updated(agent, state, rollout, jax.random.key(1))

    def tables(params):
        actor, critic = params.actor, params.critic
        parts = (actor.torso.body.layers[0], actor.head, critic.torso.body.layers[0], critic.head)
        return [np.asarray(x, np.float64) for part in parts for x in (part.W, part.b)]

    p, steps = tables(state.params), rollout.steps
    x, a = np.asarray(steps.obs, np.float64).reshape(T * N, -1), np.asarray(steps.action).ravel()
    log_old, V_old = forward(p, x)
    V_next = forward(p, np.asarray(steps.next_obs, np.float64).reshape(T * N, -1))[1]
    A = advantages(agent, steps, V_old.reshape(T, N), V_next.reshape(T, N)).ravel()
    data = (x, a, log_old[np.arange(T * N), a], V_old, A)
    m, v = ([np.zeros_like(q) for q in p] for _ in range(2))
    clipped, kl = [], []
    for k in (1, 2, 3):
        log_rho = forward(p, x)[0][np.arange(T * N), a] - data[2]
        clipped.append((abs(np.exp(log_rho) - 1) > 0.1).mean())
        kl.append((np.exp(log_rho) - 1 - log_rho).mean())
        grads = differences(p, agent, *data)
        norm = math.sqrt(sum((g**2).sum() for g in grads))
        assert norm > agent.max_grad_norm
        for i, g in enumerate(grads):
            g = g * agent.max_grad_norm / norm
            m[i], v[i] = 0.9 * m[i] + 0.1 * g, 0.999 * v[i] + 0.001 * g**2
            p[i] = p[i] - agent.lr * (m[i] / (1 - 0.9**k)) / (np.sqrt(v[i] / (1 - 0.999**k)) + agent.adam_eps)
    assert clipped[0] == 0 and clipped[-1] > 0.2  # both sides of the clip were met
    for ours, theirs in zip(tables(after.params), p, strict=True):
        assert_allclose(ours, theirs, rtol=1e-3, atol=2e-5)  # float32 through three Adam steps
    assert metrics["train/clip_fraction"] == pytest.approx(np.mean(clipped), abs=1e-6)
    assert metrics["train/approx_kl"] == pytest.approx(np.mean(kl), rel=1e-3)
    assert metrics["train/explained_variance"] == pytest.approx(1 - np.var(A) / np.var(A + V_old), rel=1e-3)


def test_the_poison_of_a_reset_observation_reaches_no_advantage(monkeypatch):
    """CT2: V(reset observation) = 1e6 and V(final observation) = 7; the clock ends every third step."""
    agent = PPO(rollout_length=8, batch_size=16, epochs=1, network=(), gamma=0.9, gae_lambda=0.5)
    for terminates in (False, True):
        vector = Vector(PoisonedReset(poison=1e6, terminates=terminates), 2)
        spec = Spec(vector.obs_space, vector.action_space, 2, 1000)
        state = jax.jit(lambda keys, v=vector, s=spec: init(agent, v, s, *keys))(agent_key(0))
        critic = state.agent.params.critic
        head = dataclasses.replace(critic.head, W=jnp.array([[1e6], [7.0]]), b=jnp.zeros(1))
        params = dataclasses.replace(state.agent.params, critic=dataclasses.replace(critic, head=head))
        state = state._replace(agent=state.agent._replace(params=params))
        _, rollout, _ = interact(agent, vector, spec, state)
        with monkeypatch.context() as patch:
            seen = watched(patch)
            jax.jit(agent.update)(state.agent, rollout, jax.random.key(1))
            jax.effects_barrier()
        A = seen[0][0].advantage.reshape(8, 2)[:3, 0]
        last = (0.0 if terminates else 0.9 * 7) - 7
        middle = 0.9 * 7 - 7 + 0.45 * last
        assert_allclose(A, [1e6 + 0.9 * 7 - 1e6 + 0.45 * middle, middle, last], rtol=1e-4, atol=0.1)


# ------------------------------------------------------------------------------------------------ rhythm


def test_an_update_stops_where_the_policy_has_gone_too_far():
    """G9: before the minibatch that is too far, and for the rest of the update, by 1.5 times `target_kl`."""
    base = dataclasses.replace(PLAIN, lr=0.1, epochs=3)
    state = begun(base, spec_of(Discrete(4)))
    rollout = acted(base, state, np.random.default_rng(2))

    def after(target_kl):
        agent = dataclasses.replace(base, target_kl=target_kl)
        new, metrics = updated(agent, state, rollout, jax.random.key(1))
        return new, float(metrics["train/approx_kl"]), int(optax.tree_utils.tree_get(new.opt, "count"))

    assert after(1e9)[2] == 3
    stopped, mean, steps = after(1e-4)
    assert steps == 1 and mean < 1e-6  # the mean over the steps that were taken: before the first it is 0
    log_rho = np.float64(stopped.params.actor(rollout.steps.obs).log_prob(rollout.steps.action))
    log_rho -= np.float64(state.params.actor(rollout.steps.obs).log_prob(rollout.steps.action))
    kl = (np.exp(log_rho) - 1 - log_rho).mean()
    assert kl > 1e-3
    again, _, steps = after(kl / 1.6)
    assert steps == 1
    assert again.steps.low == T * N
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(stopped), strict=True):
        assert_array_equal(a, b)  # parameters and moments stay as they were, bit for bit
    _, mean, steps = after(kl / 1.4)
    assert steps == 2 and mean == pytest.approx(kl / 2, rel=1e-3)
    once, _ = updated(dataclasses.replace(base, epochs=1), state, rollout, jax.random.key(1))
    for a, b in zip(jax.tree.leaves(stopped.params), jax.tree.leaves(once.params), strict=True):
        assert_allclose(a, b, atol=1e-6)  # another program: rounded otherwise; one more step would move by 0.1


def test_every_epoch_sees_every_step_once_in_another_order(monkeypatch):
    seen = watched(monkeypatch)
    agent = dataclasses.replace(PLAIN, epochs=3, batch_size=5, lr=0.0)
    state = begun(agent, spec_of(Discrete(4)))
    rollout = acted(agent, state, np.random.default_rng(2))
    jax.jit(agent.update)(state, rollout, jax.random.key(1))
    jax.effects_barrier()
    orders = [np.concatenate([b.obs[:, 0] for b, _ in seen[i : i + 3]]) for i in (0, 3, 6)]
    everything = np.sort(np.asarray(rollout.steps.obs)[..., 0].ravel())
    assert all((np.sort(order) == everything).all() for order in orders)
    assert not (orders[0] == orders[1]).all() and not (orders[1] == orders[2]).all()
    for batch, _ in seen:  # what belongs to one step stays together
        at = [np.argwhere(np.asarray(rollout.steps.obs)[..., 0] == o)[0] for o in batch.obs[:, 0]]
        assert_array_equal(batch.action, [np.asarray(rollout.steps.action)[tuple(i)] for i in at])


def test_a_minibatch_of_one_is_no_nan():
    """G11: the deviation of one advantage is 0."""
    agent = dataclasses.replace(PLAIN, batch_size=1)
    state = begun(agent, spec_of(Discrete(4)))
    after, _ = updated(agent, state, acted(agent, state, np.random.default_rng(2)), jax.random.key(1))
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(after.params))


def test_a_shared_torso_is_one_network():
    agent = dataclasses.replace(PLAIN, shared=True)
    state = begun(agent, spec_of(Discrete(4)))
    apart = begun(PLAIN, spec_of(Discrete(4)))
    count = [sum(x.size for x in jax.tree.leaves(s.params)) for s in (state, apart)]
    assert count[1] - count[0] == 7 * 8 + 8  # the second torso
    rollout = acted(agent, state, np.random.default_rng(0))
    value_only = dataclasses.replace(agent, vf_coef=1.0, ent_coef=0.0)
    batch = batch_of(apart, rollout.steps.obs[0], rollout.steps.action[0], np.zeros(N, np.float32), value=jnp.ones(N))
    torso = gradient(value_only, state, batch).actor.torso.body.layers[0].W
    assert (np.asarray(torso) != 0).any()  # the value's gradient reaches the torso that acts


# ------------------------------------------------------------------------------------------------ the KL penalty


@pytest.mark.reuses_keys
@pytest.mark.parametrize("kind", ACTIONS)
def test_the_penalty_is_the_divergence_from_the_old_policy(kind):
    """L = E[ρ A] − β E[KL(π_old ‖ π)]: its gradient is that of both parts, the KL in closed form and this direction."""
    agent = dataclasses.replace(PLAIN, clip_range=None, kl_coef=0.7, normalize_advantage=False, vf_coef=0.0)
    old = moved(begun(agent, spec_of(ACTIONS[kind])))
    new = moved(old, 0.3, 4)
    rng = np.random.default_rng(0)
    obs = observations(rng, (6,))
    pi = old.params.actor(obs)
    action = pi.sample(jax.random.key(1))
    batch = batch_of(old, obs, action, np.float32(rng.normal(size=6)))._replace(pi=pi)

    def objective(actor):
        rho = jnp.exp(actor(obs).log_prob(action) - batch.log_prob)
        return -(rho * batch.advantage).mean() + 0.7 * pi.kl(actor(obs)).mean()

    expected = jax.grad(objective)(new.params.actor)
    found = gradient(agent, new, batch).actor
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected)


@pytest.mark.reuses_keys
def test_the_weight_of_the_penalty_follows_the_divergence():
    """β halves below d_targ / 1.5, doubles above 1.5 d_targ, and rests between; the KL is that of the whole rollout."""
    state = begun(PLAIN, spec_of(Discrete(4)))
    rollout = acted(PLAIN, state, np.random.default_rng(1))
    for lr, d_targ, factor in ((0.0, 1e-3, 0.5), (0.05, 1e-7, 2.0)):
        agent = dataclasses.replace(PLAIN, kl_coef=0.4, d_targ=d_targ, lr=lr, clip_range=None)
        after, metrics = updated(agent, begun(agent, spec_of(Discrete(4))), rollout, jax.random.key(1))
        assert_allclose(after.beta, 0.4 * factor, rtol=1e-6)
        assert_allclose(metrics["train/kl_coef"], 0.4, rtol=1e-6)  # the weight that this update was made with
    agent = dataclasses.replace(agent, d_targ=float(metrics["train/kl_divergence"]))
    after, _ = updated(agent, begun(agent, spec_of(Discrete(4))), rollout, jax.random.key(1))
    assert_allclose(after.beta, 0.4, rtol=1e-6)
    seen = rollout.steps.obs
    kl = begun(agent, spec_of(Discrete(4))).params.actor(seen).kl(after.params.actor(seen)).mean()
    assert_allclose(metrics["train/kl_divergence"], kl, rtol=1e-4)


@pytest.mark.reuses_keys
def test_a_heavy_penalty_keeps_the_policy_near():
    """Ten epochs with a large step: the divergence falls as β grows."""
    agent = dataclasses.replace(PLAIN, epochs=10, lr=0.02, clip_range=None)
    rollout = acted(agent, begun(agent, spec_of(Discrete(4))), np.random.default_rng(1))

    def divergence(beta):
        other = dataclasses.replace(agent, kl_coef=beta)
        _, metrics = updated(other, begun(other, spec_of(Discrete(4))), rollout, jax.random.key(1))
        return float(metrics["train/kl_divergence"])

    assert divergence(0.0) > divergence(1.0) > 1.5 * divergence(10.0) > 3 * divergence(100.0) > 0


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"batch_size": 4}, r"batch_size 4 must divide rollout_length 5 × n_envs 3 = 15"),
        ({"batch_size": 30}, r"batch_size 30 must divide"),
        ({"clip_range": -0.1}, "clip_range is -0.1"),
        ({"max_grad_norm": -1.0}, "max_grad_norm is -1"),
        ({"adam_eps": 0.0}, "adam_eps is 0"),
        ({"gamma": 1.5}, "gamma is 1.5"),
        ({"epochs": 0}, "epochs is 0"),
        ({"d_targ": 0.01}, "d_targ adapts β: give its start, kl_coef, too"),
        ({"kl_coef": -1.0}, "kl_coef is -1"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, sentence):
    with pytest.raises(PolyakError, match=sentence):
        dataclasses.replace(PLAIN, **fields).init(jax.random.key(0), spec_of(Discrete(4)))


@pytest.mark.parametrize("action", [Dict({"a": Discrete(2)}), Tuple([Discrete(2), Box(-1.0, 1.0, (1,))])])
def test_actions_that_no_agent_takes_are_refused(action):
    with pytest.raises(PolyakError, match="no agent takes such a space"):
        begun(PLAIN, spec_of(action))
