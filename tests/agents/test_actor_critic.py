"""ActorCritic against exact values: the policy gradient through a true Q, what Q settles at, and one whole update.

The decision processes and their values are solved in NumPy, in float64.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from polyak.agents import actor_critic
from polyak.agents.actor_critic import ActorCritic
from polyak.core import Rollout, Spec, Transition
from polyak.errors import PolyakError
from polyak.optim import Linear, resolve_schedules
from polyak.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

PLAIN = ActorCritic(network=(), max_grad_norm=None)
S, A, GAMMA = 4, 3, 0.9
T, N = 5, 3
OBS = Box(-1.0, 1.0, (7,))
ACTIONS = {
    "discrete": Discrete(4),
    "multidiscrete": MultiDiscrete((2, 3)),
    "multibinary": MultiBinary(2),
    "box": Box(-1.0, 1.0, (2,)),
}


@functools.cache
def begun(agent, spec, seed=0):
    return jax.jit(lambda key: agent.init(key, spec))(jax.random.key(seed))


def softmax(x):
    z = np.exp(x - x.max(-1, keepdims=True))
    return z / z.sum(-1, keepdims=True)


def process(seed):
    """(P [S, A, S] whose rows sum to 0.9 as the rest ends, r [S, A], start [S], θ [S, A])."""
    rng = np.random.default_rng(seed)
    P = 0.9 * rng.dirichlet(np.ones(S), (S, A))
    return P, rng.normal(size=(S, A)), rng.dirichlet(np.ones(S)), rng.normal(size=(S, A))


def q_of(P, r, pi):
    P_pi, r_pi = np.einsum("sa,sak->sk", pi, P), (pi * r).sum(-1)
    return r + GAMMA * P @ np.linalg.solve(np.eye(len(r)) - GAMMA * P_pi, r_pi)


def tabular(agent, theta, Q):
    """A state whose policy has the logits θ [S, A] and whose critic is Q [S, A]; in float64 where jax allows it."""
    state = begun(agent, Spec(Discrete(S), Discrete(A), 1, 1000))
    policy = dataclasses.replace(state.actor.head, W=jnp.asarray(theta), b=jnp.zeros(A))
    table = dataclasses.replace(state.critic.net.head, W=jnp.asarray(Q), b=jnp.zeros(A))
    net = dataclasses.replace(state.critic.net, head=table)
    actor, critic = dataclasses.replace(state.actor, head=policy), dataclasses.replace(state.critic, net=net)
    return state._replace(actor=actor, critic=critic)


@jax.jit
def gradients(agent, state, batch):
    """(of the actor's loss in θ, of the critic's in w) of single transitions [M], each [M, S, A]."""

    def one(transition, key):
        after, _ = agent.learn(state, jax.tree.map(lambda x: x[None], transition), key)
        return after.actor.head.W, after.critic.net.head.W

    keys = jax.random.split(jax.random.key(0), len(batch.reward))
    with pytest.MonkeyPatch.context() as patch:  # while it is traced
        patch.setattr(actor_critic, "descend", lambda rule, lr, grads, opt, params: (grads, opt))
        return jax.vmap(one)(batch, keys)


@jax.jit
@jax.grad
def slope(theta, P, r, rho):
    """∇ of J(θ) = ρᵀ (I − γ P_π)⁻¹ r_π."""
    pi = jax.nn.softmax(theta)
    M = jnp.eye(S) - GAMMA * jnp.einsum("sa,sak->sk", pi, P)
    return rho @ jnp.linalg.solve(M, (pi * r).sum(-1))


def transitions(s, a, r, after, end):
    """A batch from arrays of numbers."""
    s, a, after = (jnp.asarray(x, jnp.int32) for x in (s, a, after))
    end = jnp.asarray(end, bool)
    return Transition(s, a, jnp.asarray(r), after, end, jnp.zeros(end.shape, bool))


# ------------------------------------------------------------------------------------------------ exact


def test_a_true_critic_gives_the_policy_gradient():
    """∇ J(θ) = Σ_s d_γ(s) Σ_a π(a | s) q(s, a) ∇ log π(a | s), J = ρᵀ (I − γ P_π)⁻¹ r_π by jax.grad."""
    with jax.enable_x64(True):
        for seed in range(5):
            P, r, rho, theta = process(seed)
            pi = softmax(theta)
            met = np.linalg.solve(np.eye(S) - GAMMA * np.einsum("sa,sak->sk", pi, P).T, rho)
            s, a = (x.ravel() for x in np.indices((S, A)))
            batch = transitions(s, a, r[s, a], s, np.zeros(S * A))
            q = q_of(P, r, pi)
            got, _ = gradients(PLAIN, tabular(PLAIN, theta, q), batch)
            exact = np.asarray(slope(*map(jnp.asarray, (theta, P, r, rho))))
            assert_allclose(np.einsum("m,msa->sa", met[s] * pi[s, a], -np.asarray(got)), exact, rtol=1e-7, atol=1e-10)
            # A baseline of the state alone changes nothing that can be expected.
            b = np.random.default_rng(seed).normal(size=(S, 1))
            got, _ = gradients(PLAIN, tabular(PLAIN, theta, q + b), batch)
            assert_allclose(np.einsum("m,msa->sa", met[s] * pi[s, a], -np.asarray(got)), exact, rtol=1e-7, atol=1e-10)


def test_nothing_of_the_target_is_learned():
    """The semi-gradient: −(y − Q(s, a)) at the entry (s, a) and nothing elsewhere; an end is worth nothing after."""
    theta = np.full((S, A), -40.0)
    theta[np.arange(S), [2, 0, 1, 1]] = 40.0  # so that a′ is known
    Q = np.arange(S * A).reshape(S, A) / 2.0
    batch = transitions([0, 0, 3], [1, 1, 0], jnp.float32([1.0, 1.0, -2.0]), [1, 1, 2], [False, True, False])
    state = tabular(PLAIN, np.float32(theta), np.float32(Q))
    agent = dataclasses.replace(PLAIN, gamma=GAMMA)
    _, got = gradients(agent, state, batch)
    expected = np.zeros((3, S, A))
    expected[0, 0, 1] = Q[0, 1] - (1.0 + GAMMA * Q[1, 0])
    expected[1, 0, 1] = Q[0, 1] - 1.0
    expected[2, 3, 0] = Q[3, 0] - (-2.0 + GAMMA * Q[2, 1])
    assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_the_clock_s_end_goes_on_in_q():
    """CT3: a truncated step has the target of any other step."""
    batch = transitions([0, 0], [1, 1], jnp.float32([1.0, 1.0]), [1, 1], [False, False])
    batch = batch._replace(truncated=jnp.array([False, True]))
    state = tabular(PLAIN, np.zeros((S, A), np.float32), np.full((S, A), 3.0, np.float32))
    _, got = gradients(PLAIN, state, batch)
    assert_allclose(np.asarray(got)[:, 0, 1], 3.0 - (1.0 + 0.99 * 3.0), rtol=1e-4)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_critic_settles_at_the_value_of_the_policy(seed):
    """Q_w → q_π where the actor stands still: from every (s, a) its successors as often as they come, a′ drawn anew."""
    P, r, _, theta = process(seed)
    per = 40  # successors of each pair: as many of each as its probability says
    count = np.round(P * per).astype(int)
    P = count / per
    s, a = (x.ravel() for x in np.indices((S, A)))
    outcomes = [np.repeat(np.arange(S), count[i, j]) for i, j in zip(s, a, strict=True)]
    after = np.concatenate([np.pad(k, (0, per - len(k)), constant_values=S) for k in outcomes])  # S: it ends
    s, a = np.repeat(s, per), np.repeat(a, per)
    batch = transitions(s, a, np.float32(r[s, a]), np.minimum(after, S - 1), after == S)
    updates, copies = 2000, 16  # the more copies, the less do the drawn a′ scatter
    agent = dataclasses.replace(PLAIN, gamma=GAMMA, lr=0.0, critic_lr=Linear(0.1))
    agent = resolve_schedules(agent, updates * len(s) * copies)
    state = tabular(agent, np.float32(theta), np.zeros((S, A), np.float32))
    rollout = Rollout(jax.tree.map(lambda x: jnp.repeat(x[:, None], copies, 1), batch), ())

    def trained(state):
        def step(state, key):
            return agent.update(state, rollout, key)[0], None

        return jax.lax.scan(step, state, jax.random.split(jax.random.key(seed), updates))[0]

    state = jax.jit(trained)(state)
    got = np.asarray(state.critic.net(jnp.arange(S)))
    assert_allclose(got, q_of(P, r, softmax(theta)), atol=0.02)


# ------------------------------------------------------------------------------------------------ one whole update

updated = jax.jit(lambda agent, state, rollout: agent.update(state, rollout, jax.random.key(1)))


def moved(state, by=0.5, seed=9):
    """The state with parameters away from the start, where all actions are alike."""
    leaves, tree = jax.tree.flatten((state.actor, state.critic))
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    actor, critic = tree.unflatten(
        p + by * jax.random.normal(k, p.shape) for p, k in zip(leaves, keys, strict=True)
    )  # fmt: skip
    return state._replace(actor=actor, critic=critic)


def recorded(state, seed, seen=lambda x: x):
    """A rollout [T, N] with the policy's own actions."""
    rng = np.random.default_rng(seed)
    x, after = (seen(jnp.float32(rng.normal(size=(T, N, *OBS.shape)))) for _ in range(2))
    action = state.actor(x).sample(jax.random.key(seed))
    terminated = rng.random((T, N)) < 0.3
    truncated = (rng.random((T, N)) < 0.2) & ~terminated
    reward = jnp.float32(rng.normal(size=(T, N)))
    return Rollout(Transition(x, action, reward, after, jnp.asarray(terminated), jnp.asarray(truncated)), ())


def encoded(kind, a):
    """Integers one-hot, bits and numbers as they are."""
    if kind == "multidiscrete":
        return np.concatenate([np.eye(2)[a[:, 0]], np.eye(3)[a[:, 1]]], -1)
    return np.asarray(a, np.float64)


@pytest.mark.parametrize("kind", ACTIONS)
def test_one_update_of_the_critic_equals_numpy(kind):
    """CT16 for every space: with linear networks, the clip of the norm and one step of Adam."""
    agent = ActorCritic(rollout_length=T, network=(), gamma=0.9, critic_lr=0.2, max_grad_norm=0.1)
    state = moved(begun(agent, Spec(OBS, ACTIONS[kind], N, 1000)))
    rollout = recorded(state, 3)
    after, metrics = updated(agent, state, rollout)
    steps = jax.tree.map(lambda x: np.asarray(x).reshape((T * N, *x.shape[2:])), rollout.steps)
    a_next = np.asarray(state.actor(jnp.asarray(steps.next_obs)).sample(jax.random.key(1)))

    def head(s):
        h = s.critic.net.head
        return np.asarray(h.W, np.float64), np.asarray(h.b, np.float64)

    W, b = head(state)
    B = T * N

    def features(obs, a):
        """(what a row of w is multiplied by [B, n], which of w's columns is asked)."""
        if kind == "discrete":
            return np.float64(obs), a
        return np.concatenate([np.float64(obs), encoded(kind, a)], -1), np.zeros(B, int)

    (x, column), (x_next, column_next) = features(steps.obs, steps.action), features(steps.next_obs, a_next)
    Q, Q_next = (x @ W + b)[np.arange(B), column], (x_next @ W + b)[np.arange(B), column_next]
    y = steps.reward + 0.9 * np.where(steps.terminated, 0.0, Q_next)
    error = ((Q - y) / B)[:, None] * np.eye(W.shape[1])[column]
    grads = [x.T @ error, error.sum(0)]
    norm = math.sqrt(sum((g**2).sum() for g in grads))
    assert norm > agent.max_grad_norm
    for got, start, g in zip(head(after), (W, b), grads, strict=True):
        g = g * agent.max_grad_norm / norm  # the first step of Adam: its moments over their corrections are g, g²
        assert_allclose(got, start - agent.critic_lr * g / (abs(g) + 1e-8), rtol=1e-4, atol=1e-5)
    assert metrics["train/critic_loss"] == pytest.approx((0.5 * (Q - y) ** 2).mean(), rel=1e-4)
    assert metrics["train/q_mean"] == pytest.approx(Q.mean(), rel=1e-4)
    log_pi = np.asarray(state.actor(jnp.asarray(steps.obs)).log_prob(jnp.asarray(steps.action)))
    assert metrics["train/policy_loss"] == pytest.approx(-(Q * log_pi).mean(), rel=1e-4)
    assert after.steps.low == T * N


def test_one_update_of_the_actor_equals_numpy(monkeypatch):
    """With the critic before the step, and the entropy bonus, in closed form."""
    agent = dataclasses.replace(PLAIN, rollout_length=T, ent_coef=0.3)
    state = moved(begun(agent, Spec(OBS, Discrete(4), N, 1000)))
    rollout = recorded(state, 4)
    with monkeypatch.context() as patch:
        patch.setattr(actor_critic, "descend", lambda rule, lr, grads, opt, params: (grads, opt))
        got = jax.jit(lambda s, r: agent.update(s, r, jax.random.key(1))[0])(state, rollout).actor.head
    B = T * N
    x, a = np.asarray(rollout.steps.obs, np.float64).reshape(B, -1), np.asarray(rollout.steps.action).ravel()

    def linear(head):
        return x @ np.asarray(head.W, np.float64) + np.asarray(head.b, np.float64)

    p, Q = softmax(linear(state.actor.head)), linear(state.critic.net.head)[np.arange(B), a]
    H = -(p * np.log(p)).sum(-1)
    error = -(Q[:, None] * (np.eye(4)[a] - p) - 0.3 * p * (np.log(p) + H[:, None])) / B
    assert_allclose(got.W, x.T @ error, rtol=1e-4, atol=1e-6)
    assert_allclose(got.b, error.sum(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["discrete", "multidiscrete", "multibinary"])
def test_what_a_mask_forbids_is_not_drawn_and_not_believed(kind):
    """A forbidden action that seems to be worth a fortune reaches no target."""
    n = {"discrete": 4, "multidiscrete": 5, "multibinary": 2}[kind]
    mask = jnp.float32([1, 0, 1, 1, 0][:n])
    agent = ActorCritic(rollout_length=T, network=(), ent_coef=0.1)
    state = moved(begun(agent, Spec(Dict({"action_mask": MultiBinary(n), "x": OBS}), ACTIONS[kind], N, 1000)))
    rollout = recorded(state, 1, lambda x: {"action_mask": jnp.broadcast_to(mask, (T, N, n)), "x": x})
    head = state.critic.net.head
    if kind == "discrete":
        rich = dataclasses.replace(head, b=jnp.where(mask > 0, head.b, 1e9))
    else:  # its last n rows are the action's
        rich = dataclasses.replace(head, W=head.W.at[-n:, 0].set(jnp.where(mask > 0, head.W[-n:, 0], 1e9)))
    net = dataclasses.replace(state.critic.net, head=rich)
    state = state._replace(critic=dataclasses.replace(state.critic, net=net))
    after, metrics = updated(agent, state, rollout)
    assert abs(metrics["train/q_mean"]) < 1e3 and metrics["train/critic_loss"] < 1e3
    changed = np.asarray(after.actor.head.W != state.actor.head.W).any(0)
    assert not changed[np.asarray(mask) == 0].any()


@pytest.mark.parametrize("kind", ACTIONS)
def test_where_nothing_is_worth_anything_the_entropy_bonus_raises_the_entropy(kind):
    """CT12: the sign of c_e, for every space; and without the bonus nothing moves."""
    agent = ActorCritic(rollout_length=T, network=(8,), lr=0.02, ent_coef=0.1)
    state = moved(begun(agent, Spec(OBS, ACTIONS[kind], N, 1000)))
    state = state._replace(critic=jax.tree.map(jnp.zeros_like, state.critic))
    rollout = recorded(state, 1)
    obs = rollout.steps.obs
    after, _ = updated(agent, state, rollout)
    assert after.actor(obs).entropy().mean() > state.actor(obs).entropy().mean() + 1e-4
    still, _ = updated(dataclasses.replace(agent, ent_coef=0.0), state, rollout)
    assert_array_equal(still.actor.head.W, state.actor.head.W)


def test_what_can_t_be_is_refused():
    with pytest.raises(PolyakError, match=r"ActorCritic can't take actions .*it takes Discrete"):
        begun(ActorCritic(), Spec(OBS, Tuple([Discrete(2)]), N, 1000))
    with pytest.raises(PolyakError, match=r"gamma is 1\.5"):
        ActorCritic(gamma=1.5)
    with pytest.raises(PolyakError, match="ActorCritic has no vf_coef"):
        ActorCritic(vf_coef=0.5)  # pyright: ignore[reportCallIssue]
