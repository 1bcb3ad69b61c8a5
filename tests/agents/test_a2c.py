"""A2C against its equations, and at the limits where it meets other algorithms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose

from polyak.agents import a2c, ppo
from polyak.agents.a2c import A2C
from polyak.agents.ppo import PPO
from polyak.core import Rollout, Spec, Transition
from polyak.errors import PolyakError
from polyak.spaces import Box, Dict, Discrete

T, N, D, K = 5, 3, 4, 3
OBS = Box(-1.0, 1.0, (D,))
SPEC = Spec(OBS, Discrete(K), N, 1000)
# Without layers a network is its head, whose gradient can be written down.
LINEAR = A2C(rollout_length=T, network=(), gamma=0.9, gae_lambda=0.7, ent_coef=0.05, max_grad_norm=None)

begun = jax.jit(lambda agent, key: agent.init(key, SPEC))
updated = jax.jit(lambda agent, state, rollout, key: agent.update(state, rollout, key))


def moved(state, seed=3, by=0.5):
    leaves, tree = jax.tree.flatten(state.params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return state._replace(
        params=tree.unflatten(p + by * jax.random.normal(k, p.shape) for p, k in zip(leaves, keys, strict=True))
    )


def rollout(seed=0):
    rng = np.random.default_rng(seed)
    obs, after = (jnp.float32(rng.normal(size=(T, N, D))) for _ in range(2))
    terminated = rng.random((T, N)) < 0.2
    truncated = (rng.random((T, N)) < 0.2) & ~terminated
    action = jnp.int32(rng.integers(0, K, (T, N)))
    reward = jnp.float32(rng.normal(size=(T, N)))
    return Rollout(Transition(obs, action, reward, after, jnp.asarray(terminated), jnp.asarray(truncated)), ())


def gradient(module, agent, state, *batch):
    """What `learn` descends along: `descend` gives the gradient in place of the new parameters."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "descend", lambda rule, lr, grads, opt, params: (grads, opt))
        return jax.jit(lambda a, s, *b: a.learn(s, *b)[0].params)(agent, state, *batch)


def advantages(reward, V, V_next, terminated, truncated, gamma, lam):
    """Equations (1) and (2) as their sums are written, one step at a time."""
    A = np.zeros((T, N))
    for t in range(T):
        for n in range(N):
            factor = 1.0
            for k in range(t, T):
                A[t, n] += factor * (reward[k, n] + gamma * (1 - terminated[k, n]) * V_next[k, n] - V[k, n])
                if terminated[k, n] or truncated[k, n]:
                    break
                factor *= gamma * lam
    return A


def by_hand(agent, state, steps):
    """Gradients of actor and critic heads, in float64, from the equations."""
    reward, obs, after = (np.asarray(x, np.float64) for x in (steps.reward, steps.obs, steps.next_obs))
    W, b = (np.asarray(x, np.float64) for x in (state.params.actor.head.W, state.params.actor.head.b))
    w, c = (np.asarray(x, np.float64) for x in (state.params.critic.head.W, state.params.critic.head.b))
    V, V_next = obs @ w[:, 0] + c[0], after @ w[:, 0] + c[0]
    ends = np.asarray(steps.terminated), np.asarray(steps.truncated)
    A = advantages(reward, V, V_next, *ends, float(agent.gamma), float(agent.gae_lambda))
    logits = obs @ W + b
    log_pi = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    pi = np.exp(log_pi)
    score = np.eye(K)[np.asarray(steps.action)] - pi
    d_entropy = -pi * (log_pi - (pi * log_pi).sum(-1, keepdims=True))
    d_logits = -(score * A[..., None] + float(agent.ent_coef) * d_entropy) / (T * N)
    d_V = float(agent.vf_coef) * 2 * (V - (A + V)) / (T * N)
    return (
        np.einsum("tnd,tnk->dk", obs, d_logits), d_logits.sum((0, 1)), np.einsum("tnd,tn->d", obs, d_V), d_V.sum(),
    )  # fmt: skip


@pytest.mark.reuses_keys
@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_the_gradient_equals_the_equations(lam):
    agent = dataclasses.replace(LINEAR, gae_lambda=lam)
    state, data = moved(begun(agent, jax.random.key(0))), rollout()
    grads = gradient(a2c, agent, state, data)
    found = grads.actor.head.W, grads.actor.head.b, grads.critic.head.W[:, 0], grads.critic.head.b[0]
    for a, b in zip(found, by_hand(agent, state, data.steps), strict=True):
        assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.reuses_keys
def test_ppo_at_ratio_one_is_a2c():
    """§8.2: before it has moved, the gradient is A2C's, clipped or not, also with a penalty, flat there."""
    state, data = moved(begun(LINEAR, jax.random.key(0))), rollout()
    judged, V_next = state.params.rollout(data.steps, ())
    steps = data.steps
    A = a2c.gae(LINEAR.gamma, LINEAR.gae_lambda, steps.reward, judged.V, V_next, steps.terminated, steps.truncated)
    batch = ppo.Batch(steps.obs, steps.action, judged.pi.log_prob(steps.action), judged.V, A, judged.pi)
    batch = jax.tree.map(lambda x: x.reshape((T * N, *x.shape[2:])), batch)
    expected = gradient(a2c, LINEAR, state, data)
    for fields in ({}, {"clip_range": None}, {"kl_coef": 2.0}):
        other = PPO(
            network=(), ent_coef=0.05, max_grad_norm=None, normalize_advantage=False, rollout_length=T, batch_size=N,
            **fields,
        )  # fmt: skip
        found = gradient(ppo, other, ppo.State(state.params, (), (), state.steps), batch)
        jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected)


@pytest.mark.reuses_keys
def test_one_epoch_of_ppo_on_the_whole_rollout_is_one_update_of_a2c():
    """Huang et al. (2022), arXiv 2205.09123: A2C is PPO with one epoch, one minibatch and A2C's optimiser."""
    one = dataclasses.replace(LINEAR, optimizer="adam", opt_eps=1e-5, lr=1e-2)
    other = PPO(
        network=(), gamma=0.9, gae_lambda=0.7, ent_coef=0.05, normalize_advantage=False, rollout_length=T,
        batch_size=T * N, epochs=1, lr=1e-2, adam_eps=1e-5, max_grad_norm=None,
    )  # fmt: skip
    state, data = begun(one, jax.random.key(0)), rollout()
    first, _ = updated(one, state, data, jax.random.key(1))
    second, _ = updated(other, begun(other, jax.random.key(0)), data, jax.random.key(1))
    jax.tree.map(lambda a, b: assert_allclose(a, b, atol=1e-6), first.params, second.params)


@pytest.mark.reuses_keys
def test_the_critic_moves_with_its_own_rate():
    """With a rate of 0 for one of them, only the other moves; a shared torso is the actor's."""
    data = rollout()
    for fields, still, moves in (
        ({"lr": 0.0, "critic_lr": 0.1}, "actor", "critic"),
        ({"critic_lr": 0.0}, "critic", "actor"),
    ):
        agent = dataclasses.replace(LINEAR, **fields)
        state = moved(begun(agent, jax.random.key(0)))
        after, _ = updated(agent, state, data, jax.random.key(1))
        assert (getattr(after.params, still).head.W == getattr(state.params, still).head.W).all()
        assert (getattr(after.params, moves).head.W != getattr(state.params, moves).head.W).any()


@pytest.mark.reuses_keys
def test_the_critics_errors_do_not_hold_the_actor_back():
    """The norms of both gradients are bounded apart: with values far off, the actor's step is the same."""
    agent, data = dataclasses.replace(LINEAR, max_grad_norm=2.0, vf_coef=1e3), rollout()
    state = moved(begun(agent, jax.random.key(0)))
    g = gradient(a2c, agent, state, data)
    assert optax.tree.norm(g.actor) < 2.0 < 1e3 < optax.tree.norm(g.critic)
    free = dataclasses.replace(agent, max_grad_norm=1e6)
    steps = [updated(a, state, data, jax.random.key(1))[0].params for a in (agent, free)]
    assert_allclose(steps[0].actor.head.W, steps[1].actor.head.W, rtol=1e-5)
    assert abs(steps[0].critic.head.W - steps[1].critic.head.W).max() > 1e-6


def test_rmsprop_divides_by_the_root_mean_square():
    """θ ← θ − lr g / (√v + ε), v ← 0.99 v + 0.01 g²: the first step has the length 10 lr, whatever the gradient's."""
    state, data = moved(begun(LINEAR, jax.random.key(0))), rollout()
    g = gradient(a2c, LINEAR, state, data)
    after, _ = updated(LINEAR, state, data, jax.random.key(1))
    step = np.asarray(after.params.actor.head.W - state.params.actor.head.W)
    g = np.asarray(g.actor.head.W, np.float64)
    assert_allclose(step, -float(LINEAR.lr) * g / (np.sqrt(0.01 * g**2) + 1e-5), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"optimizer": "sgd"}, "optimizer is 'sgd', and must be 'rmsprop' or 'adam'"),
        ({"gae_lambda": 1.5}, "gae_lambda is 1.5"),
        ({"rollout_length": 0}, "rollout_length is 0"),
        ({"opt_eps": 0.0}, "opt_eps is 0.0"),
    ],
)
def test_bad_values_are_refused(fields, sentence):
    with pytest.raises(PolyakError, match=sentence):
        A2C(**fields)


def test_other_actions_are_refused():
    with pytest.raises(PolyakError, match=r"A2C can't take actions Dict\(.*no agent takes such a space"):
        A2C().init(jax.random.key(0), Spec(OBS, Dict({"a": Discrete(2)}), 1, 10))
