"""REINFORCE against exact gradients: every rollout of a small decision process, weighed by its probability, in float64.

The processes, their values and the sums over paths are written in NumPy from the policy gradient theorem (Sutton &
Barto 2018, §13.2), not from the code.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from polyak.agents import reinforce
from polyak.agents.reinforce import REINFORCE
from polyak.core import Rollout, Spec, Transition
from polyak.errors import PolyakError
from polyak.normalise import Normalised
from polyak.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

PLAIN = REINFORCE(network=(), baseline="none", max_grad_norm=None)


@functools.cache
def begun(agent, spec, seed=0):
    return jax.jit(lambda key: agent.init(key, spec))(jax.random.key(seed))


def double(tree):
    """The same state in float64."""
    return jax.tree.map(lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, tree)


def tabular(agent, theta, V=None):
    """A state in float64 whose policy has the logits theta [S, A], and whose baseline is V [S]."""
    S, A = theta.shape
    state = double(begun(agent, Spec(Discrete(S), Discrete(A), 1, 1000)))
    head = dataclasses.replace(state.actor.head, W=jnp.asarray(theta), b=jnp.zeros(A))
    state = state._replace(actor=dataclasses.replace(state.actor, head=head))
    if V is not None:
        head = dataclasses.replace(state.critic.head, W=jnp.asarray(V)[:, None], b=jnp.zeros(1))
        state = state._replace(critic=dataclasses.replace(state.critic, head=head))
    return state


@functools.partial(jax.jit, static_argnames="verb")
def ascent(agent, state, given, verb="update"):
    """What the logits θ [S, A] climb along, for many rollouts (or batches) side by side: [M, S, A]."""

    def one(given):
        after, _ = agent.update(state, given, jax.random.key(0)) if verb == "update" else agent.learn(state, given)
        return -after.actor.head.W

    with pytest.MonkeyPatch.context() as patch:  # while it is traced
        patch.setattr(reinforce, "descend", lambda rule, lr, grads, opt, params: (grads, opt))
        return jax.vmap(one)(given)


# ------------------------------------------------------------------------------------------------ a process in NumPy

S, A, L = 2, 2, 3  # the clock stops an episode after L steps
GAMMA = 0.8


def softmax(theta):
    z = np.exp(theta - theta.max(-1, keepdims=True))
    return z / z.sum(-1, keepdims=True)


def process(seed):
    """(p [S, A, 3], r [S, A, 3]): outcomes 0 and 1 lead to these states, outcome 2 ends the episode; it starts in 0."""
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(3), (S, A)), rng.normal(size=(S, A, 3))


def clocked_q(p, r, pi, gamma=GAMMA):
    """q [L, S, A]: what is still earned after t steps of the episode, until its end or the clock's."""
    q = np.zeros((L + 1, S, A))
    for t in reversed(range(L)):
        v = (pi * q[t + 1]).sum(-1)
        q[t] = (p * r).sum(-1) + gamma * p[..., :2] @ v
    return q[:L]


def every_rollout(p, pi, T):
    """Paths of T steps from a fresh episode: rows (s, a, outcome, age) [M, T, 4], and the probability of each [M]."""
    rows, weights = [], []

    def walk(prefix, weight, s, age):
        if len(prefix) == T:
            rows.append(prefix)
            weights.append(weight)
            return
        for a in range(A):
            for k in range(3):
                over = k == 2 or age == L - 1
                after = (0, 0) if over else (k, age + 1)
                walk([*prefix, (s, a, k, age)], weight * pi[s, a] * p[s, a, k], *after)

    walk([], 1.0, 0, 0)
    return np.array(rows), np.array(weights)


def rollout_of(r, rows):
    """The record of paths [M, T, 4], one environment each: leaves [M, T, 1]."""
    s, a, k, age = (rows[..., i : i + 1] for i in range(4))
    end, clock = k == 2, (k != 2) & (age == L - 1)
    obs, action, successor = (jnp.asarray(x, jnp.int32) for x in (s, a, np.minimum(k, 1)))
    record = Transition(obs, action, jnp.asarray(r[s, a, k]), successor, jnp.asarray(end), jnp.asarray(clock))
    return Rollout(record, ())


def score(theta, s, a):
    """∇ log π(a | s) in θ, [..., S, A] for s, a [...]."""
    out = np.zeros((*s.shape, S, A))
    np.put_along_axis(out, s[..., None, None], (np.eye(A)[a] - softmax(theta)[s])[..., None, :], axis=-2)
    return out


def true_gradient(p, r, theta, gamma, weigh):
    """∇ of an episode's return, Σ_t γ^t Σ_s Pr(s_t = s) Σ_a q_t(s, a) ∇π(a | s); without γ^t unless `weigh`."""
    pi = softmax(theta)
    q, at, total = clocked_q(p, r, pi, gamma), np.eye(S)[0], np.zeros((S, A))
    for t in range(L):
        advantage = q[t] - (pi * q[t]).sum(-1, keepdims=True)
        total += (gamma**t if weigh else 1.0) * at[:, None] * pi * advantage
        at = np.einsum("s,sa,sak->k", at, pi, p)[:2]
    return total


def test_the_oracle_is_the_derivative():
    (p, r), theta = process(0), np.random.default_rng(1).normal(size=(S, A))

    def J(theta):
        pi = softmax(theta)
        return (pi * clocked_q(p, r, pi)[0])[0].sum()

    got = true_gradient(p, r, theta, GAMMA, True)
    for at in np.ndindex(S, A):
        step = np.zeros((S, A))
        step[at] = 1e-5
        assert got[at] == pytest.approx((J(theta + step) - J(theta - step)) / 2e-5, abs=1e-9)


# ------------------------------------------------------------------------------------------------ the expectation


@pytest.mark.parametrize("weigh", [True, False])
@pytest.mark.parametrize("baseline", ["none", "value"])
@pytest.mark.parametrize("T", [3, 5])
def test_with_a_horizon_the_estimate_is_unbiased(T, baseline, weigh):
    """Its mean over all rollouts is the gradient of an episode's return, times the episodes that count per step."""
    agent = dataclasses.replace(
        PLAIN, gamma=GAMMA, horizon=L, rollout_length=T, baseline=baseline, discounted=weigh
    )  # fmt: skip
    with jax.enable_x64(True):
        for seed in range(2):
            (p, r), rng = process(seed), np.random.default_rng(seed)
            theta, V = rng.normal(size=(S, A)), 3 * rng.normal(size=S)
            rows, weight = every_rollout(p, softmax(theta), T)
            assert weight.sum() == pytest.approx(1, abs=1e-12)
            state = tabular(agent, theta, V if baseline == "value" else None)
            got = np.einsum("m,msa->sa", weight, ascent(agent, state, rollout_of(r, rows)))
            episodes = (weight[:, None] * (rows[..., 3] == 0)[:, : T - L + 1]).sum()  # begin early enough to be whole
            assert_allclose(got, episodes / T * true_gradient(p, r, theta, GAMMA, weigh), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("baseline", ["none", "value"])
def test_without_a_horizon_the_bias_is_what_follows_the_rollout(baseline):
    """What is missing is γ^(T−t) V(s_T) ∇ log π(a_t | s_t), of episodes that go on; a baseline changes nothing."""
    T, rng = 4, np.random.default_rng(7)
    agent = dataclasses.replace(PLAIN, gamma=GAMMA, rollout_length=T, baseline=baseline)
    (p, r), theta, V = process(3), rng.normal(size=(S, A)), 3 * rng.normal(size=S)
    pi = softmax(theta)
    q, (rows, weight) = clocked_q(p, r, pi), every_rollout(p, pi, T)
    s, a, k, age = np.moveaxis(rows, -1, 0)
    scores = score(theta, s, a)
    with jax.enable_x64(True):
        state = tabular(agent, theta, V if baseline == "value" else None)
        got = np.einsum("m,msa->sa", weight, ascent(agent, state, rollout_of(r, rows)))
    whole = np.einsum("m,mt,mtij->ij", weight, q[age, s, a], scores) / T
    goes_on = (k[:, -1] != 2) & (age[:, -1] < L - 1)
    v = np.concatenate([(pi * q).sum(-1), np.zeros((1, S))])  # [L + 1, S]
    after = np.where(goes_on, v[age[:, -1] + 1, np.minimum(k[:, -1], 1)], 0.0)
    same = (age[:, -1:] - age) == (T - 1 - np.arange(T))  # whether a step is of the episode that goes on
    missing = GAMMA ** (T - np.arange(T)) * same * after[:, None]
    bias = np.einsum("m,mt,mtij->ij", weight, missing, scores) / T
    assert abs(bias).max() > 1e-3
    assert_allclose(got + bias, whole, rtol=1e-9, atol=1e-12)


def test_the_mean_of_a_batch_takes_its_share_away():
    """Episodes of one step, M in a batch: each return is 1/M of the mean that is taken off it."""
    M, theta = 3, np.array([[0.3, -0.5]])
    pi, reward = softmax(theta)[0], np.array([1.0, -2.0])
    choices = np.stack(np.meshgrid(*[np.arange(2)] * M, indexing="ij"), -1).reshape(-1, M)
    weight = pi[choices].prod(-1)
    a = jnp.asarray(choices[..., None], jnp.int32)
    end = jnp.ones(a.shape, bool)
    zeros = jnp.zeros(a.shape, jnp.int32)
    exact = pi * (reward - pi @ reward)
    with jax.enable_x64(True):
        rollout = Rollout(Transition(zeros, a, jnp.asarray(reward[choices[..., None]]), zeros, end, ~end), ())
        for baseline, share in (("none", 1.0), ("mean", 1 - 1 / M)):
            agent = dataclasses.replace(PLAIN, rollout_length=M, baseline=baseline)
            got = np.einsum("m,msa->sa", weight, ascent(agent, tabular(agent, theta), rollout))
            assert_allclose(got[0], share * exact, rtol=1e-9)


@jax.jit
@jax.grad
def slope(theta, P, R, rho, gamma):
    """∇ of J(θ) = ρᵀ (I − γ P_π)⁻¹ r_π."""
    pi = jax.nn.softmax(theta)
    M = jnp.eye(len(rho)) - gamma * jnp.einsum("sa,sak->sk", pi, P)
    return rho @ jnp.linalg.solve(M, (pi * R).sum(-1))


@pytest.mark.parametrize("weigh", [True, False])
def test_exact_returns_give_the_policy_gradient(weigh):
    """The theorem on random processes, which end with the probability 0.1 in each step: against jax.grad of J(θ).

    Without γ^t, states count by how often an episode meets them.
    """
    n, m, gamma = 5, 3, 0.9
    with jax.enable_x64(True):
        for seed in range(20):
            rng = np.random.default_rng(seed)
            P, R, rho = 0.9 * rng.dirichlet(np.ones(n), (n, m)), rng.normal(size=(n, m)), rng.dirichlet(np.ones(n))
            theta = rng.normal(size=(n, m))
            pi = softmax(theta)
            P_pi, r_pi = np.einsum("sa,sak->sk", pi, P), (pi * R).sum(-1)
            q = R + gamma * P @ np.linalg.solve(np.eye(n) - gamma * P_pi, r_pi)
            met = np.linalg.solve(np.eye(n) - (gamma if weigh else 1.0) * P_pi.T, rho)
            s, a = (x.ravel() for x in np.indices((n, m)))
            c = met[s] * pi[s, a] * (n * m)  # `learn` takes the mean
            batch = reinforce.Batch(jnp.int32(s), jnp.int32(a), jnp.asarray(q[s, a]), jnp.asarray(c))
            given = jax.tree.map(lambda x: x[None], batch)
            got = ascent(PLAIN, tabular(PLAIN, theta), given, "learn")[0]
            dropped = met[:, None] * pi * (q - (pi * q).sum(-1, keepdims=True))
            exact = slope(*map(jnp.asarray, (theta, P, R, rho, gamma))) if weigh else dropped
            assert_allclose(got, exact, rtol=1e-7, atol=1e-10)


# ------------------------------------------------------------------------------------------------ which steps count


def test_an_episode_counts_as_a_whole_or_not_at_all():
    """Random ends, several rollouts in a row: by brute force over the whole stream of each environment."""
    T, N, horizon, rollouts = 11, 3, 4, 5
    rng = np.random.default_rng(0)
    ends = rng.random((rollouts * T, N)) < 0.25
    agent = dataclasses.replace(PLAIN, gamma=0.5, horizon=horizon, rollout_length=T, discounted=True)
    age, got = jnp.zeros(N, jnp.int32), []
    for i in range(rollouts):
        age, ages = reinforce._ages(age, jnp.asarray(ends[i * T : (i + 1) * T]))
        got.append(agent._counted(ages))
    expected = np.zeros(ends.shape)
    for n in range(N):
        began = 0
        for t in range(len(ends)):
            first = t // T * T  # of this rollout
            if began >= first and began + horizon <= first + T:
                expected[t, n] = 0.5 ** (t - began)
            began = t + 1 if ends[t, n] else began
    assert_allclose(np.concatenate(got), expected, rtol=1e-6)
    assert 0.2 < (expected > 0).mean() < 0.9


# ------------------------------------------------------------------------------------------------ one whole update

T, N = 5, 3
OBS = Box(-1.0, 1.0, (7,))
ACTIONS = {
    "discrete": Discrete(4),
    "multidiscrete": MultiDiscrete((2, 3)),
    "multibinary": MultiBinary(2),
    "box": Box(-1.0, 1.0, (2,)),
}
updated = jax.jit(lambda agent, state, rollout: agent.update(state, rollout, jax.random.key(1)))


def moved(state, by=0.5, seed=9):
    """The state with parameters away from the start, where all actions are alike."""
    leaves, tree = jax.tree.flatten((state.actor, state.critic))
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    moved = (p + by * jax.random.normal(k, p.shape) for p, k in zip(leaves, keys, strict=True))
    actor, critic = tree.unflatten(moved)
    return state._replace(actor=actor, critic=critic)


def recorded(state, seed, obs=None):
    """A rollout [T, N] with the policy's own actions."""
    rng = np.random.default_rng(seed)
    x, after = (jnp.float32(rng.normal(size=(T, N, *OBS.shape))) for _ in range(2))
    x = x if obs is None else obs(x)
    action = state.actor(x).sample(jax.random.key(seed))
    terminated = rng.random((T, N)) < 0.2
    truncated = (rng.random((T, N)) < 0.2) & ~terminated
    reward = jnp.float32(rng.normal(size=(T, N)))
    return Rollout(Transition(x, action, reward, after, jnp.asarray(terminated), jnp.asarray(truncated)), ())


def test_one_update_equals_numpy():
    """CT1, CT16: returns by their definition, the gradients in closed form, the norm's clip and one step of Adam."""
    agent = REINFORCE(
        rollout_length=T, network=(), gamma=0.9, baseline="value", ent_coef=0.05, lr=0.03, critic_lr=0.2, horizon=2,
        max_grad_norm=0.1, discounted=True,
    )  # fmt: skip
    state = moved(begun(agent, Spec(OBS, Discrete(4), N, 1000)))._replace(age=jnp.int32([0, 2, 0]))
    rollout = recorded(state, 3)
    after, metrics = updated(agent, state, rollout)
    steps = rollout.steps
    end = np.asarray(steps.terminated | steps.truncated)
    r = np.asarray(steps.reward, np.float64)
    G, c = np.zeros((T, N)), np.zeros((T, N))
    for n in range(N):
        began = -int(state.age[n])
        for t in range(T):
            stop = next((k for k in range(t, T) if end[k, n]), T - 1)
            G[t, n] = sum(0.9 ** (k - t) * r[k, n] for k in range(t, stop + 1))
            c[t, n] = 0.9 ** (t - began) if 0 <= began <= T - 2 else 0.0
            began = t + 1 if end[t, n] else began
        assert after.age[n] == T - began
    assert 0 < (c > 0).sum() < T * N

    def double(dense):
        return (np.asarray(x, np.float64) for x in (dense.W, dense.b))

    (W, b), (w, d) = double(state.actor.head), double(state.critic.head)
    x, a = np.asarray(steps.obs, np.float64).reshape(T * N, -1), np.asarray(steps.action).ravel()
    G, c, B = G.ravel(), c.ravel(), T * N
    p = softmax(x @ W + b)
    H = -(p * np.log(p)).sum(-1)
    V = (x @ w + d)[:, 0]
    d_logits = -(c / B)[:, None] * (
        (G - V)[:, None] * (np.eye(4)[a] - p) - agent.ent_coef * p * (np.log(p) + H[:, None])
    )
    d_value = (2 * c / B * (V - G))[:, None]
    for new, old, error, lr in (
        (after.actor.head, (W, b), d_logits, agent.lr),
        (after.critic.head, (w, d), d_value, agent.critic_lr),
    ):
        grads = [x.T @ error, error.sum(0)]
        norm = math.sqrt(sum((g**2).sum() for g in grads))
        assert norm > agent.max_grad_norm
        for got, start, g in zip((new.W, new.b), old, grads, strict=True):
            g = g * agent.max_grad_norm / norm  # the first step of Adam: its moments over their corrections are g, g²
            assert_allclose(got, start - lr * g / (abs(g) + 1e-8), rtol=1e-4, atol=1e-5)
    assert metrics["train/policy_loss"] == pytest.approx(
        -(c * (G - V) * np.log(p[np.arange(B), a])).mean(), rel=1e-4
    )  # fmt: skip
    assert metrics["train/entropy_loss"] == pytest.approx(-(c * H).mean(), rel=1e-4)
    assert metrics["train/value_loss"] == pytest.approx((c * (V - G) ** 2).mean(), rel=1e-4)
    assert metrics["train/steps_counted"] == pytest.approx((c > 0).mean(), rel=1e-6)
    assert after.steps.low == T * N


def test_v_takes_several_steps_on_a_rollout_and_the_policy_one():
    """The second step starts where a first one ended, so two updates with a policy that stands still tell it."""
    still = REINFORCE(rollout_length=T, network=(), baseline="value", lr=0.0, critic_lr=0.1)
    twice = dataclasses.replace(still, lr=0.02, critic_epochs=2)
    state = moved(begun(still, Spec(OBS, Discrete(4), N, 1000)))
    rollout = recorded(state, 4)
    (first, once), (both, metrics) = updated(still, state, rollout), updated(twice, state, rollout)
    second, _ = updated(still, first._replace(age=state.age), rollout)
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-5), both.critic, second.critic)
    assert abs(second.critic.head.W - first.critic.head.W).max() > 0.01
    alone, _ = updated(dataclasses.replace(twice, critic_epochs=1), state, rollout)
    jax.tree.map(assert_array_equal, both.actor, alone.actor)
    assert metrics["train/value_loss"] == once["train/value_loss"]  # before any step


def test_the_clock_s_end_is_an_end():
    """What follows a truncation, or its own observation, enters no return: nothing is bootstrapped."""
    agent = dataclasses.replace(PLAIN, rollout_length=T, baseline="value")
    state = moved(begun(agent, Spec(OBS, Discrete(4), N, 1000)))
    rollout = recorded(state, 5)
    flags = rollout.steps.terminated | rollout.steps.truncated
    other = rollout.steps._replace(terminated=~flags & flags, truncated=flags, next_obs=1e6 * rollout.steps.next_obs)
    one, two = updated(agent, state, rollout)[0], updated(agent, state, Rollout(other, ()))[0]
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert_array_equal(x, y)


@pytest.mark.parametrize("kind", ACTIONS)
def test_without_rewards_the_entropy_bonus_raises_the_entropy(kind):
    """CT12: the sign of c_e, for every space; and without the bonus nothing moves."""
    agent = REINFORCE(rollout_length=T, network=(8,), lr=0.02, ent_coef=0.1)
    state = moved(begun(agent, Spec(OBS, ACTIONS[kind], N, 1000)))
    rollout = recorded(state, 1)
    rollout = Rollout(rollout.steps._replace(reward=jnp.zeros((T, N))), ())
    after, _ = updated(agent, state, rollout)
    obs = rollout.steps.obs
    assert after.actor(obs).entropy().mean() > state.actor(obs).entropy().mean() + 1e-4
    still, _ = updated(dataclasses.replace(agent, ent_coef=0.0), state, rollout)
    assert_array_equal(still.actor.head.W, state.actor.head.W)


@pytest.mark.parametrize("kind", ["discrete", "multidiscrete", "multibinary"])
def test_what_a_mask_forbids_is_not_drawn_and_not_learned(kind):
    n = {"discrete": 4, "multidiscrete": 5, "multibinary": 2}[kind]
    mask = jnp.float32([1, 0, 1, 1, 0][:n])
    agent = REINFORCE(rollout_length=T, network=(), ent_coef=0.1)
    state = moved(begun(agent, Spec(Dict({"action_mask": MultiBinary(n), "x": OBS}), ACTIONS[kind], N, 1000)))
    rollout = recorded(state, 1, lambda x: {"action_mask": jnp.broadcast_to(mask, (T, N, n)), "x": x})
    a = np.asarray(rollout.steps.action)
    assert {"discrete": a != 1, "multidiscrete": a[..., :1] == 0, "multibinary": a[..., 1:] == 0}[kind].all()
    after, _ = updated(agent, state, Rollout(rollout.steps._replace(next_obs=rollout.steps.obs), ()))
    changed = np.asarray(after.actor.head.W != state.actor.head.W).any(0)
    assert not changed[np.asarray(mask) == 0].any()


def test_the_normaliser_goes_around_it():
    agent = Normalised(REINFORCE(rollout_length=T, network=(8,), baseline="value"))
    state = begun(agent, Spec(OBS, Discrete(4), N, 1000))
    rollout = recorded(state.agent, 2)
    for seed in range(2):
        state, _ = jax.jit(agent.update)(state, rollout, jax.random.key(seed))
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(state.agent.actor))


def test_what_can_t_be_is_refused():
    with pytest.raises(PolyakError, match="baseline is 'median', and must be 'none', 'mean' or 'value'"):
        REINFORCE(baseline="median")  # pyright: ignore[reportArgumentType]
    with pytest.raises(PolyakError, match="horizon 100 needs a rollout_length as long, not 64"):
        REINFORCE(horizon=100, rollout_length=64)
    with pytest.raises(PolyakError, match="horizon is 0"):
        REINFORCE(horizon=0)
    with pytest.raises(PolyakError, match=r"REINFORCE can't take actions .*it takes Discrete"):
        begun(REINFORCE(), Spec(OBS, Tuple([Discrete(2)]), N, 1000))
