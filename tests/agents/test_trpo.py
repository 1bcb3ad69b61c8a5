"""TRPO against its equations: the Fisher matrix, the natural step, the line search, and one whole update in NumPy."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from numpy.testing import assert_allclose, assert_array_equal

from polyak.agents import trpo
from polyak.agents.trpo import TRPO
from polyak.core import Rollout, Spec, Transition
from polyak.cranks import agent_key, init, interact
from polyak.envs.probes import PoisonedReset
from polyak.envs.vector import Vector
from polyak.errors import PolyakError
from polyak.normalise import Normalised
from polyak.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

T, N, B = 5, 3, 15  # T · N = B
OBS = Box(-1.0, 1.0, (7,))
ACTIONS = {
    "discrete": Discrete(4),
    "multidiscrete": MultiDiscrete((2, 3)),
    "multibinary": MultiBinary(2),
    "box": Box(-1.0, 1.0, (2,)),
}
MASKED = {"discrete": 4, "multidiscrete": 5, "multibinary": 2}  # numbers of a mask
CASES = [*((kind, False) for kind in ACTIONS), *((kind, True) for kind in MASKED)]
PLAIN = TRPO(rollout_length=T, batch_size=B, critic_epochs=1, network=(4,))


def space_of(kind, mask):
    return Dict({"action_mask": MultiBinary(MASKED[kind]), "x": OBS}) if mask else OBS


def observations(rng, lead, mask=0, dtype=jnp.float32):
    """Random observations; with a mask, one in which a part of the actions is allowed, but at least one of each."""
    x = jnp.asarray(rng.normal(size=(*lead, *OBS.shape)), dtype)
    if not mask:
        return x
    allowed = rng.integers(0, 2, (*lead, mask))
    allowed[..., 0], allowed[..., 2:3] = 1, 1
    return {"action_mask": jnp.asarray(allowed, dtype), "x": x}


@functools.cache
def begun(agent, spec, seed=0):
    return jax.jit(lambda key: agent.init(key, spec))(jax.random.key(seed))


learned = jax.jit(lambda agent, state, batch: agent.learn(state, batch))
updated = jax.jit(lambda agent, state, rollout, key: agent.update(state, rollout, key))
explored = jax.jit(lambda agent, state, obs, key: agent.act(state, obs, key, (), explore=True)[0])


@jax.jit
def moved(state, by=0.5, seed=9):
    """The state with an actor away from the start, where all actions are alike."""
    theta, tree = ravel_pytree(state.actor)
    return state._replace(actor=tree(theta + by * jax.random.normal(jax.random.key(seed), theta.shape)))


def prepared(kind, mask=False, agent=PLAIN, seed=0, size=B, by=0.5):
    """(state away from the start, batch of random states with actions that the policy takes there)."""
    rng = np.random.default_rng(seed)
    state = moved(begun(agent, Spec(space_of(kind, mask), ACTIONS[kind], N, 10_000)), by, seed)
    obs = observations(rng, (size,), MASKED[kind] if mask else 0)
    action = explored(agent, state, obs, jax.random.key(seed))
    return state, trpo.Batch(obs, action, jnp.asarray(rng.normal(size=size), jnp.float32))


def acted(agent, state, rng):
    """A rollout [T, N] of random observations, with the actions that the agent takes in them."""
    obs, next_obs = observations(rng, (T, N)), observations(rng, (T, N))
    keys = jax.random.split(jax.random.key(int(rng.integers(1 << 30))), T)
    action = jnp.stack([explored(agent, state, obs[t], keys[t]) for t in range(T)])
    terminated = rng.random((T, N)) < 0.2
    truncated = (rng.random((T, N)) < 0.2) & ~terminated
    reward = jnp.asarray(rng.normal(size=(T, N)), jnp.float32)
    flags = jnp.asarray(terminated), jnp.asarray(truncated)
    return Rollout(Transition(obs, action, reward, next_obs, *flags), ())


@jax.jit
def _solved(agent, state, batch):
    kept = []
    solve = trpo.cg

    def keep(F, g, **options):
        x, _ = solve(F, g, **options)
        kept.extend([jax.vmap(F)(jnp.eye(len(g), dtype=g.dtype)), g, x])
        return x, None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trpo, "cg", keep)
        agent.learn(state, batch)
    return kept


def solved(agent, state, batch):
    """What `learn` gives to the conjugate gradients, and what they find: (F, g, x); F as a matrix."""
    return [np.asarray(x) for x in _solved(agent, state, batch)]


def bits(tree):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


# ------------------------------------------------------------------------------------------------ the Fisher matrix


def float64(tree):
    wide = lambda x: jnp.asarray(np.asarray(x, np.float64)) if x.dtype == np.float32 else x  # noqa: E731
    return jax.tree.map(wide, tree)


def every_action(space):
    if isinstance(space, Discrete):
        return np.arange(space.n)
    sizes = space.nvec if isinstance(space, MultiDiscrete) else (2,) * space.n
    return np.array(list(itertools.product(*map(range, sizes))))


def fisher(kind, actor, obs):
    """E_s E_a[∇ log π(a | s) ∇ log π(a | s)ᵀ], over all actions; of a Gaussian in closed form."""
    theta, tree = ravel_pytree(actor)
    if kind == "box":  # Jᵀ diag(1/σ²) J for the mean, 2 for each log σ
        J = np.asarray(jax.jacfwd(lambda t: tree(t)(obs).mean)(theta))
        J_log = np.asarray(jax.jacfwd(lambda t: tree(t)(obs).log_std)(theta))
        precision = np.exp(-2 * np.asarray(actor(obs).log_std))
        return (np.einsum("bap,ba,baq->pq", J, precision, J) + 2 * np.einsum("bap,baq->pq", J_log, J_log)) / len(J)
    total, size = np.zeros((len(theta), len(theta))), jax.tree.leaves(obs)[0].shape[0]
    for action in every_action(ACTIONS[kind]):
        a = jnp.broadcast_to(jnp.asarray(action)[None], (size, *np.shape(action)))
        score = np.asarray(jax.jacfwd(lambda t, a=a: tree(t)(obs).log_prob(a))(theta))
        p = np.exp(np.asarray(actor(obs).log_prob(a)))
        total += np.einsum("b,bp,bq->pq", p, np.where(p[:, None] > 0, score, 0.0), score) / size
    return total


@pytest.mark.parametrize(("kind", "mask"), CASES)
def test_the_product_is_with_the_fisher_matrix_and_the_curvature_of_the_divergence(kind, mask):
    """In float64: F = E[∇log π ∇log πᵀ] by enumeration = Hessian of KL(π_old ‖ π) by differences, plus the damping."""
    state, batch = prepared(kind, mask)
    with jax.enable_x64(True):
        state, batch = float64(state), float64(batch)
        F, _, _ = solved(dataclasses.replace(PLAIN, cg_damping=0.3), state, batch)
        assert F.dtype == np.float64
        F = F - 0.3 * np.eye(len(F))
        assert np.abs(F).max() > 0.1
        assert_allclose(F, fisher(kind, state.actor, batch.obs), atol=1e-9)
        theta, tree = ravel_pytree(state.actor)
        old = state.actor(batch.obs)
        slope = jax.jit(jax.grad(lambda t: old.kl(tree(t)(batch.obs)).mean()))
        v, h = np.random.default_rng(1).normal(size=len(theta)), 1e-5
        assert_allclose(slope(theta), 0, atol=1e-12)
        assert_allclose(F @ v, (slope(theta + h * v) - slope(theta - h * v)) / (2 * h), atol=1e-7)


@pytest.mark.parametrize(("kind", "mask"), CASES)
def test_conjugate_gradients_solve_the_system(kind, mask):
    """‖F x − g‖ / ‖g‖ < 1e-4 without damping, in float32, for the gradient of the surrogate."""
    agent = dataclasses.replace(PLAIN, network=(), cg_damping=0.0, cg_iterations=200)
    state, batch = prepared(kind, mask, agent, size=64)
    F, g, x = solved(agent, state, batch)
    assert np.linalg.norm(F @ x - g) < 1e-4 * np.linalg.norm(g)
    theta, tree = ravel_pytree(state.actor)
    score = jax.jacfwd(lambda t: tree(t)(batch.obs).log_prob(batch.action))(theta)
    assert_allclose(g, np.asarray(batch.advantage) @ np.asarray(score) / 64, rtol=1e-4, atol=1e-5)


def test_few_iterations_stop_early_and_damping_shortens():
    state, batch = prepared("discrete")
    F, g, x = solved(dataclasses.replace(PLAIN, cg_iterations=1), state, batch)
    assert_allclose(x, g * (g @ g) / (g @ F @ g), rtol=1e-4, atol=1e-7)  # one step along the gradient
    _, _, more = solved(dataclasses.replace(PLAIN, cg_iterations=50), state, batch)
    assert_allclose(more, np.linalg.solve(F.astype(np.float64), g), rtol=1e-3, atol=1e-4)


def test_the_deviation_takes_part_in_the_natural_step():
    """Its Fisher information is 2, whatever the mean: x_log σ = E[A (z² − 1)] / 2, and log σ moves along."""
    agent = dataclasses.replace(PLAIN, network=(), cg_damping=0.0, cg_iterations=200)
    state, batch = prepared("box", agent=agent, size=64)
    _, _, x = solved(agent, state, batch)
    pi = state.actor(batch.obs)
    z = np.asarray((batch.action - pi.mean) / jnp.exp(pi.log_std), np.float64)
    want = (np.asarray(batch.advantage)[:, None] * (z**2 - 1)).mean(0) / 2
    step = ravel_pytree(state.actor)[1](jnp.asarray(x)).log_std
    assert_allclose(step, want, rtol=1e-3, atol=1e-4)
    after, metrics = learned(agent, state, batch)
    assert metrics["train/line_search_success"] == 1
    change = np.asarray(after.actor.log_std - state.actor.log_std)
    assert np.abs(change).min() > 1e-3 and (np.sign(change) == np.sign(want)).all()


# ------------------------------------------------------------------------------------------------ the step


def bandit(logits, agent):
    """One state, in which only the head's bias acts: a policy softmax(logits)."""
    state = begun(agent, Spec(OBS, Discrete(len(logits)), N, 10_000))
    head = dataclasses.replace(state.actor.head, b=jnp.asarray(logits, jnp.float32))
    return state._replace(actor=dataclasses.replace(state.actor, head=head))


def divergence(p, q):
    return float((p * np.log(p / q)).sum())


def natural(p, A, delta, agent, kl):
    """π_new ∝ π exp(αʲ β A) (Kakade 2002), β = sqrt(2 δ / Var_π A), for the first j that the bound `kl` lets pass."""
    A = np.asarray(A, np.float64)
    beta = math.sqrt(2 * delta / (p @ A**2 - (p @ A) ** 2))
    for j in range(agent.line_search_steps):
        q = p * np.exp(agent.line_search_shrink**j * beta * A)
        q /= q.sum()
        if kl(p, q) <= delta and q @ A > p @ A:
            return q, j
    return p, None


@pytest.mark.parametrize("delta", [1e-4, 0.01, 0.15])
@pytest.mark.parametrize("A", [(1.0, 0.0, -2.0), (-1.0, 3.0, 0.5)])
def test_the_natural_step_of_a_bandit(A, delta):
    """§8.4: probabilities (½, ¼, ¼) and a batch with exactly these shares."""
    p = np.array([0.5, 0.25, 0.25])
    agent = TRPO(network=(), cg_damping=0.0, target_kl=delta)
    state, actions = bandit(np.log(p), agent), np.array([0, 0, 1, 2])
    batch = trpo.Batch(jnp.zeros((4, 7)), jnp.asarray(actions), jnp.asarray(np.array(A)[actions], jnp.float32))
    after, metrics = learned(agent, state, batch)
    q, _ = natural(p, A, delta, agent, divergence)
    got = np.asarray(jax.nn.softmax(after.actor.head.b), np.float64)
    assert_allclose(got, q, rtol=1e-4)
    assert metrics["train/kl_divergence"] == pytest.approx(divergence(p, q), rel=2e-2, abs=1e-6)
    assert metrics["train/policy_objective"] == pytest.approx(q @ np.array(A), rel=1e-3, abs=1e-5)


def test_the_divergence_is_from_the_old_policy_to_the_new():
    """P9: where the two directions accept different steps, ours is KL(π_old ‖ π)."""
    p, actions, told_apart = np.array([0.5, 0.25, 0.25]), np.array([0, 0, 1, 2]), 0
    agent = TRPO(network=(), cg_damping=0.0, line_search_shrink=0.95, line_search_steps=20)
    for delta, A in itertools.product((0.1, 0.4), ((0.0, 3.0, 0.5), (-1.0, 3.0, 0.5), (0.0, 0.0, 1.0))):
        ours, j = natural(p, A, delta, agent, divergence)
        _, other = natural(p, A, delta, agent, lambda p, q: divergence(q, p))
        if j == other:
            continue
        told_apart += 1
        batch = trpo.Batch(jnp.zeros((4, 7)), jnp.asarray(actions), jnp.asarray(np.array(A)[actions], jnp.float32))
        after, _ = learned(dataclasses.replace(agent, target_kl=delta), bandit(np.log(p), agent), batch)
        assert_allclose(jax.nn.softmax(after.actor.head.b), ours, rtol=1e-3)
    assert told_apart >= 3


@pytest.mark.parametrize(("kind", "mask"), CASES)
def test_an_accepted_step_keeps_the_bound_and_improves_and_a_refused_one_changes_no_bit(kind, mask):
    """§8.4, G8: over many random policies and rollouts, some of which have no advantage at all; vmapped."""
    agent, many = dataclasses.replace(PLAIN, target_kl=0.05, cg_damping=1e-3, line_search_steps=3), 30
    pairs = [prepared(kind, mask, agent, seed, by=0.3 + seed / many) for seed in range(many)]
    pairs = [(s, b._replace(advantage=b.advantage * (i % 5 > 0))) for i, (s, b) in enumerate(pairs)]
    states, batches = jax.tree.map(lambda *x: jnp.stack(x), *pairs)
    after, metrics = jax.jit(jax.vmap(agent.learn))(states, batches)
    found = np.asarray(metrics["train/line_search_success"])
    assert set(found) == {0.0, 1.0} and found.mean() > 0.5
    for i in np.flatnonzero(found == 0):
        assert bits(jax.tree.map(lambda x, i=i: x[i], after.actor)) == bits(pairs[i][0].actor)

    @jax.jit
    @jax.vmap
    def judged(before, after, batch):
        old, new = before.actor(batch.obs), after.actor(batch.obs)
        return old.kl(new).mean(), new.log_prob(batch.action) - old.log_prob(batch.action)

    kl, log_rho = (np.float64(x) for x in judged(states, after, batches))
    A = np.float64(batches.advantage)
    gain = (np.expm1(log_rho) * A).mean(-1)
    assert (kl <= 1.001 * agent.target_kl).all()
    assert ((kl > 1e-5) == (found == 1)).all() and ((gain > 0) == (found == 1)).all()
    assert_allclose(metrics["train/kl_divergence"], kl, rtol=1e-3)
    assert_allclose(metrics["train/policy_objective"], gain + A.mean(-1), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("why", ["too far", "no advantage", "not a number"])
def test_a_failed_search_restores_every_bit(why):
    """G8, through a whole update: the actor stays as it was, and the critic learns all the same."""
    far = dataclasses.replace(PLAIN, target_kl=0.1, cg_damping=0.01, line_search_steps=1)
    agent = far if why == "too far" else PLAIN
    state = moved(begun(agent, Spec(OBS, Discrete(4), N, 10_000)))
    theta, tree = ravel_pytree(state.actor)
    state = state._replace(actor=tree(theta.at[0].set(-0.0)))
    rollout = acted(agent, state, np.random.default_rng(4))
    if why == "no advantage":
        agent = dataclasses.replace(agent, gamma=0.0)
        reward = state.critic(rollout.steps.obs)
        rollout = rollout._replace(steps=rollout.steps._replace(reward=reward))
    if why == "not a number":
        batch = trpo.Batch(rollout.steps.obs[0], rollout.steps.action[0], jnp.full(N, jnp.nan))
        after, metrics = learned(agent, state, batch)
    else:
        after, metrics = updated(agent, state, rollout, jax.random.key(0))
    assert bits(after.actor) == bits(state.actor)
    assert metrics["train/line_search_success"] == 0 and metrics["train/kl_divergence"] == 0
    assert (bits(after.critic) != bits(state.critic)) == (why == "too far")


@pytest.mark.parametrize("kind", MASKED)
def test_what_is_always_masked_adds_no_divergence_and_never_moves(kind):
    state, batch = prepared(kind, True)
    last = MASKED[kind] - 1
    mask = jnp.ones((B, last + 1)).at[:, last].set(0.0)
    obs = {"action_mask": mask, "x": batch.obs["x"]}
    action = state.actor(obs).sample(jax.random.key(1))
    agent = dataclasses.replace(PLAIN, cg_damping=1e-3)
    after, metrics = learned(agent, state, batch._replace(obs=obs, action=action))
    assert metrics["train/line_search_success"] == 1
    assert_array_equal(after.actor.head.W[:, last], state.actor.head.W[:, last])
    assert_array_equal(after.actor.head.b[last], state.actor.head.b[last])
    assert (after.actor.head.b[0] != state.actor.head.b[0]) or kind == "multidiscrete"
    # The divergence is the one over the actions that are left: the masked output could be anything.
    head = dataclasses.replace(state.actor.head, b=state.actor.head.b.at[last].add(5.0))
    other = state._replace(actor=dataclasses.replace(state.actor, head=head))
    _, same = learned(agent, other, batch._replace(obs=obs, action=action))
    assert_allclose(same["train/kl_divergence"], metrics["train/kl_divergence"], rtol=1e-5)


# ------------------------------------------------------------------------------------------------ one whole update


def policy_log(p, x):
    logits = np.tanh(x @ p[0] + p[1]) @ p[2] + p[3]
    z = logits - logits.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def value(p, x):
    return (np.tanh(x @ p[0] + p[1]) @ p[2] + p[3])[:, 0]


def differences(f, p):
    """∇f by central differences, one array [values of f, parameters] over all arrays of p, flattened."""
    columns = []
    for i, array in enumerate(p):
        for at in np.ndindex(array.shape):
            up, down = ([q.copy() for q in p] for _ in range(2))
            up[i][at] += 1e-6
            down[i][at] -= 1e-6
            columns.append((f(up) - f(down)) / 2e-6)
    return np.stack(columns, axis=-1)


def shifted(p, vector):
    ends = np.cumsum([q.size for q in p])
    return [q + v.reshape(q.shape) for q, v in zip(p, np.split(vector, ends[:-1]), strict=True)]


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


def tables(net):
    return [np.asarray(x, np.float64) for part in (net.torso.body.layers[0], net.head) for x in (part.W, part.b)]


@pytest.mark.parametrize(("delta", "damping", "seed"), [(0.01, 0.02, 5), (0.6, 0.002, 7)])
def test_one_update_equals_numpy(delta, damping, seed):
    """CT16: the policy's step with an explicit Fisher matrix and a solved system, then the critic's, in float64."""
    agent = TRPO(
        rollout_length=T, batch_size=B, critic_epochs=3, network=(4,), lr=0.03, gamma=0.9, gae_lambda=0.8,
        target_kl=delta, cg_iterations=100, cg_damping=damping, line_search_shrink=0.7, max_grad_norm=0.3,
    )  # fmt: skip
    state = moved(begun(agent, Spec(OBS, Discrete(3), N, 10_000)), 0.3)
    rollout = acted(agent, state, np.random.default_rng(seed))
    after, metrics = updated(agent, state, rollout, jax.random.key(1))

    steps, p, w = rollout.steps, tables(state.actor), tables(state.critic)
    x, x_next = (np.asarray(o, np.float64).reshape(B, -1) for o in (steps.obs, steps.next_obs))
    a, rows = np.asarray(steps.action).ravel(), np.arange(B)
    A = advantages(agent, steps, value(w, x).reshape(T, N), value(w, x_next).reshape(T, N)).ravel()
    scaled, old = (A - A.mean()) / A.std(), policy_log(p, x)
    surrogate = lambda p: (np.exp(policy_log(p, x) - old)[rows, a] * scaled).mean()  # noqa: E731
    kl = lambda p: (np.exp(old) * (old - policy_log(p, x))).sum(-1).mean()  # noqa: E731
    score = differences(lambda p: policy_log(p, x), p)  # [B, actions, parameters]
    g = (score[rows, a] * scaled[:, None]).mean(0)
    F = np.einsum("ba,bap,baq->pq", np.exp(old), score, score) / B + agent.cg_damping * np.eye(len(g))
    direction = np.linalg.solve(F, g)
    beta = math.sqrt(2 * delta / (direction @ F @ direction))
    tried = [shifted(p, agent.line_search_shrink**j * beta * direction) for j in range(10)]
    good = [surrogate(q) > surrogate(p) and kl(q) <= delta for q in tried]
    j = good.index(True)
    assert (j > 0) == (delta == 0.6)  # both a first trial that is accepted, and one that is not, were met
    for ours, theirs in zip(tables(after.actor), tried[j], strict=True):
        assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
    assert metrics["train/kl_divergence"] == pytest.approx(kl(tried[j]), rel=1e-3)
    assert metrics["train/policy_objective"] == pytest.approx(surrogate(tried[j]), rel=1e-3)
    assert metrics["train/entropy_loss"] == pytest.approx((np.exp(old) * old).sum(-1).mean(), rel=1e-4)

    G, losses = A + value(w, x), []
    flat = np.concatenate([q.ravel() for q in w])
    m, v, start = np.zeros(len(flat)), np.zeros(len(flat)), [np.zeros_like(q) for q in w]
    for k in (1, 2, 3):
        loss = lambda w: ((value(w, x) - G) ** 2).mean()  # noqa: E731
        losses.append(loss(shifted(start, flat)))
        grad = differences(loss, shifted(start, flat))
        assert np.linalg.norm(grad) > agent.max_grad_norm
        grad *= agent.max_grad_norm / np.linalg.norm(grad)
        m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
        flat = flat - agent.lr * (m / (1 - 0.9**k)) / (np.sqrt(v / (1 - 0.999**k)) + 1e-8)
    for ours, theirs in zip(tables(after.critic), shifted(start, flat), strict=True):
        assert_allclose(ours, theirs, rtol=1e-3, atol=5e-5)
    assert metrics["train/value_loss"] == pytest.approx(np.mean(losses), rel=1e-3)
    assert metrics["train/explained_variance"] == pytest.approx(1 - np.var(A) / np.var(G), rel=1e-3)
    assert after.steps.low == B


@pytest.mark.parametrize("terminates", [False, True])
def test_the_poison_of_a_reset_observation_reaches_no_target(terminates, monkeypatch):
    """CT2: V(reset observation) = 1e6 and V(final observation) = 7; the clock ends every third step."""
    agent = TRPO(rollout_length=8, batch_size=16, critic_epochs=1, network=(), gamma=0.9, gae_lambda=0.5)
    vector = Vector(PoisonedReset(poison=1e6, terminates=terminates), 2)
    spec = Spec(vector.obs_space, vector.action_space, 2, 1000)
    state = jax.jit(lambda keys: init(agent, vector, spec, *keys))(agent_key(0))
    critic = state.agent.critic
    head = dataclasses.replace(critic.head, W=jnp.array([[1e6], [7.0]]), b=jnp.zeros(1))
    state = state._replace(agent=state.agent._replace(critic=dataclasses.replace(critic, head=head)))
    _, rollout, _ = interact(agent, vector, spec, state)
    seen = []
    fit = TRPO._evaluate

    def fit_and_tell(self, state, batch):
        jax.debug.callback(lambda G: seen.append(np.asarray(G)), batch.G)
        return fit(self, state, batch)

    monkeypatch.setattr(TRPO, "_evaluate", fit_and_tell)
    jax.jit(agent.update)(state.agent, rollout, jax.random.key(1))
    jax.effects_barrier()
    last = 0.0 if terminates else 0.9 * 7
    middle = 0.9 * 7 + 0.45 * (last - 7)
    first = 1e6 + 0.9 * 7 + 0.45 * (middle - 7)  # 1e6 is the reward of the first step
    assert_allclose(seen[0].reshape(8, 2)[:3, 0], [first, middle, last], rtol=1e-7, atol=0.1)


# ------------------------------------------------------------------------------------------------ rhythm


def told(monkeypatch):
    """Every batch that the policy learns from."""
    seen = []
    learn = TRPO.learn

    def learn_and_tell(self, state, batch, key=None):
        jax.debug.callback(lambda b: seen.append(jax.tree.map(np.asarray, b)), batch)
        return learn(self, state, batch, key)

    monkeypatch.setattr(TRPO, "learn", learn_and_tell)
    return seen


def test_the_policy_learns_from_what_it_saw_with_advantages_of_unit_deviation(monkeypatch):
    """N6, CT10: observations on the scale with which they were acted, not on the one after the rollout."""
    agent = Normalised(dataclasses.replace(PLAIN, batch_size=T))
    state, rng = begun(agent, Spec(OBS, Discrete(4), N, 10_000)), np.random.default_rng(0)
    seen = told(monkeypatch)
    update = jax.jit(agent.update)
    for seed in (1, 2):
        before = state
        rollout = acted(agent, state, rng)
        state, metrics = update(state, rollout, jax.random.key(seed))
    jax.effects_barrier()
    assert len(seen) == 2
    scaled = agent._normal(before, rollout.steps.obs)
    assert_allclose(seen[1].obs, scaled.reshape(B, 7), rtol=1e-5, atol=1e-5)
    assert np.abs(scaled - agent._normal(state, rollout.steps.obs)).max() > 0.05
    assert abs(seen[1].advantage.mean()) < 1e-6 and seen[1].advantage.std() == pytest.approx(1, rel=1e-5)
    assert metrics["train/line_search_success"] == 1


@pytest.mark.parametrize("kind", ACTIONS)
def test_a_rollout_of_one_step_is_no_nan(kind):
    """G11: one advantage alone becomes 0, and moves nothing."""
    agent = TRPO(rollout_length=1, batch_size=1, critic_epochs=1, network=(4,))
    state = begun(agent, Spec(OBS, ACTIONS[kind], 1, 100))
    obs, flag = jnp.ones((1, 1, 7)), jnp.zeros((1, 1), bool)
    action = state.actor(obs).sample(jax.random.key(0))
    steps = Transition(obs, action, jnp.ones((1, 1)), obs, flag, flag)
    after, _ = updated(agent, state, Rollout(steps, ()), jax.random.key(1))
    assert bits(after.actor) == bits(state.actor)
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves((after.actor, after.critic)))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"batch_size": 4}, r"batch_size 4 must divide rollout_length 5 × n_envs 3 = 15"),
        ({"target_kl": 0.0}, "target_kl is 0"),
        ({"cg_iterations": 0}, "cg_iterations is 0"),
        ({"cg_damping": -0.1}, "cg_damping is -0.1"),
        ({"line_search_steps": 0}, "line_search_steps is 0"),
        ({"line_search_shrink": 1.5}, "line_search_shrink is 1.5"),
        ({"critic_epochs": 0}, "critic_epochs is 0"),
        ({"max_grad_norm": -1.0}, "max_grad_norm is -1"),
        ({"gamma": 1.5}, "gamma is 1.5"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, sentence):
    with pytest.raises(PolyakError, match=sentence):
        dataclasses.replace(PLAIN, **fields).init(jax.random.key(0), Spec(OBS, Discrete(4), N, 10_000))


@pytest.mark.parametrize("action", [Dict({"a": Discrete(2)}), Tuple([Discrete(2), Box(-1.0, 1.0, (1,))])])
def test_actions_that_no_agent_takes_are_refused(action):
    with pytest.raises(PolyakError, match="it takes Discrete, MultiDiscrete, MultiBinary"):
        begun(PLAIN, Spec(OBS, action, N, 10_000))
