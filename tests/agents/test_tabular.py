"""Tabular and linear agents against the pseudo-code of Sutton & Barto (2018), done naively in float64.

The oracles keep whole episodes in lists, and add every return up term by term. They were written from the book, without
a look at the agents: where the two disagree, one of them is wrong.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from polyak import cranks
from polyak.agents.dyna_q import DynaQ
from polyak.agents.monte_carlo import MonteCarlo
from polyak.agents.q_learning import QLearning
from polyak.agents.sarsa import SARSA
from polyak.agents.td import TD
from polyak.core import Rollout, Spec, Transition, hyper
from polyak.cranks import agent_key, arrays_of, chunk, init
from polyak.envs.finite import FiniteWorld, random_walk
from polyak.envs.vector import Vector
from polyak.errors import PolyakError
from polyak.mdp import from_arrays
from polyak.mdp.features import Fourier, OneHot, Polynomial, Radial, Tiles
from polyak.optim import Exponential, Linear, resolve_schedules
from polyak.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

# The tests compare, so they give the same key twice on purpose.
pytestmark = pytest.mark.reuses_keys

S, A, T = 5, 3, 40
UNOPTIMISED = {"xla_backend_optimization_level": 0}
MASK = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 0], [1, 1, 0], [1, 1, 1]])  # what is allowed in each state


def some_full(names, quick):
    """Parameters of which only the quick ones run in `make quick`; the others compile for as long again."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.full) for name in names]


# ------------------------------------------------------------------------------------------------ scripted streams


def stream(seed, n_envs, allowed=None, length=T, scale=1.0, ends=(0.1, 0.1)):
    """Transitions [T, N] that hang together: a step begins where the one before it led, or in a fresh episode."""
    rng = np.random.default_rng(seed)
    allowed = np.ones((S, A)) if allowed is None else allowed
    s = rng.integers(0, S, n_envs)
    rows = []
    for _ in range(length):
        a = np.array([rng.choice(np.flatnonzero(allowed[x])) for x in s])
        after, u = rng.integers(0, S, n_envs), rng.random(n_envs)
        terminated, truncated = u < ends[0], (u >= ends[0]) & (u < sum(ends))
        rows.append(Transition(s, a, scale * rng.normal(size=n_envs), after, terminated, truncated))
        s = np.where(terminated | truncated, rng.integers(0, S, n_envs), after)
    steps = Transition(*map(np.stack, zip(*rows, strict=True)))
    return steps._replace(obs=np.int32(steps.obs), action=np.int32(steps.action), next_obs=np.int32(steps.next_obs))


def seen(steps, allowed=None):
    """The stream as an agent is given it: float32 rewards, and masks beside the states where there are any."""
    steps = steps._replace(reward=np.float32(steps.reward))
    if allowed is None:
        return steps
    rows = [{"action_mask": np.int32(allowed)[s], "state": s} for s in (steps.obs, steps.next_obs)]
    return steps._replace(obs=rows[0], next_obs=rows[1])


def spec_of(n_envs, masked=False, states=S, actions=A):
    obs = Discrete(states)
    obs = Dict({"state": obs, "action_mask": MultiBinary(actions)}) if masked else obs
    return Spec(obs, Discrete(actions), n_envs, 1000)


def weights(state):
    return (state.V if hasattr(state, "V") else state.Q).W


def with_weights(state, W):
    """The state with another table."""
    W = jnp.float32(W)

    def leaf(path, x):
        return W if jax.tree_util.keystr(path, simple=True, separator="/") in ("Q/W", "V/W") else x

    assert weights(state).shape == W.shape
    return jax.tree_util.tree_map_with_path(leaf, state)


def _started(agent, spec, key):
    return agent.init(key, spec)


def _fed(agent, spec, state, steps, keys):
    def body(state, x):
        step, key = x
        rollout = Rollout(jax.tree.map(lambda y: y[None], step), agent.memory(spec))
        state, _ = agent.update(state, rollout, key)
        return state, weights(state)

    return jax.lax.scan(body, state, (steps, keys))


started = jax.jit(_started, static_argnums=1, compiler_options=UNOPTIMISED)
fed_from = jax.jit(_fed, static_argnums=1, compiler_options=UNOPTIMISED)


def fed(agent, spec, steps, W=None, seed=0):
    """(the state after the stream, the table after each of its updates)."""
    agent = arrays_of(agent)
    k_init, k_run = jax.random.split(jax.random.key(seed))
    state = started(agent, spec, k_init)
    state = state if W is None else with_weights(state, W)
    state, tables = fed_from(agent, spec, state, steps, jax.random.split(k_run, len(steps.reward)))
    return state, np.asarray(tables)


def same(tables, expected, what=""):
    for u, (ours, book) in enumerate(zip(tables, expected, strict=True)):
        assert_allclose(ours, book, rtol=2e-5, atol=2e-5, err_msg=f"{what} after update {u}")


# ------------------------------------------------------------------------------------------------ the book's loops


def greedy_shares(q, eps, allowed):
    """π(a | s) (p. 100-101): ε shared among all that is allowed, 1 − ε among the best of it."""
    best = [a for a in range(len(q)) if allowed[a] and q[a] == max(q[b] for b in range(len(q)) if allowed[b])]
    n = sum(allowed)
    return np.array([eps / n * bool(allowed[a]) + (1 - eps) / len(best) * (a in best) for a in range(len(q))])


def walked(steps):
    """(u, i, s, a, r, s', terminated, truncated) by time, then by environment."""
    T, N = steps.reward.shape
    for u, i in itertools.product(range(T), range(N)):
        yield (u, i, *(x[u, i].item() for x in steps))


def collected(loop):
    """What a loop that yields (update, table) after each environment's turn has left after each update."""
    tables = {}
    for u, table in loop:
        tables[u] = table.copy()
    return [tables[u] for u in sorted(tables)]


def book_q_learning(steps, gamma, alpha, Q, allowed):
    """p. 131."""
    for u, _, s, a, r, after, terminated, _ in walked(steps):
        best = max(Q[after, b] for b in range(Q.shape[1]) if allowed[after][b])
        step = alpha(u) if callable(alpha) else alpha
        Q[s, a] += step * (r + (0.0 if terminated else gamma * best) - Q[s, a])
        yield u, Q


def summed(rewards, gamma):
    return sum(gamma**k * r for k, r in enumerate(rewards))


def book_sarsa(steps, n, gamma, alpha, Q, allowed):
    """p. 147; the policy is greedy, so the action that would follow a truncated episode is the best one.

    The book knows no truncation. The action that would follow, and its value, are taken once, as they are when the
    episode is cut, before any of the waiting steps is learned from.
    """
    episodes = [[] for _ in range(steps.reward.shape[1])]
    for u, i, s, a, r, after, terminated, truncated in walked(steps):
        cut = max(Q[after, b] for b in range(Q.shape[1]) if allowed[after][b])
        episode = episodes[i]
        episode.append((s, a, r))
        t = len(episode) - 1  # A_t is known now: step t - n is ripe
        if t >= n:
            x, y, _ = episode[t - n]
            G = summed([e[2] for e in episode[t - n : t]], gamma) + gamma**n * Q[s, a]
            Q[x, y] += alpha * (G - Q[x, y])
        if terminated or truncated:
            for tau in range(max(0, t - n + 1), t + 1):
                x, y, _ = episode[tau]
                G = summed([e[2] for e in episode[tau:]], gamma)
                G += gamma ** (t + 1 - tau) * cut if truncated else 0.0
                Q[x, y] += alpha * (G - Q[x, y])
            episodes[i] = []
        yield u, Q


def book_n_step(steps, n, gamma, alpha, table, where, value):
    """n-step TD (p. 144), and with other places and values n-step expected SARSA (eq. 7.7): no action is waited for.

    Where an episode is cut the last state's value is taken once, for all the steps that waited for it.
    """
    episodes = [[] for _ in range(steps.reward.shape[1])]
    for u, i, s, a, r, after, terminated, truncated in walked(steps):
        episode = episodes[i]
        episode.append((where(s, a), r))
        t, end, last = len(episode) - 1, terminated or truncated, value(table, after, u)
        ripe = range(max(0, t - n + 1), t + 1) if end else range(t - n + 1, t - n + 2)
        for tau in ripe:
            if tau >= 0:
                x = episode[tau][0]
                G = summed([e[1] for e in episode[tau:]], gamma)
                G += 0.0 if terminated else gamma ** (t + 1 - tau) * last
                table[x] += (alpha(u) if callable(alpha) else alpha) * (G - table[x])
        if end:
            episodes[i] = []
        yield u, table


def book_td_lambda(steps, lam, gamma, alpha, V):
    """p. 293, accumulating traces, one per environment."""
    z = np.zeros((steps.reward.shape[1], len(V), 1))
    for u, i, s, _, r, after, terminated, truncated in walked(steps):
        z[i] *= gamma * lam
        z[i, s] += 1
        delta = r + (0.0 if terminated else gamma * V[after, 0]) - V[s, 0]
        V += alpha * delta * z[i]
        if terminated or truncated:
            z[i] = 0
        yield u, V


def book_monte_carlo(steps, gamma, alpha, table, where, value, first_visit, forward=False):
    """p. 92 and 101, backwards through a finished episode (p. 202 forward); α = None is the average of all returns."""
    episodes = [[] for _ in range(steps.reward.shape[1])]
    count = np.zeros(table.shape)
    for u, i, s, a, r, after, terminated, truncated in walked(steps):
        episode = episodes[i]
        episode.append((where(s, a), r))
        if terminated or truncated:
            last = value(table, after) if truncated else 0.0
            times = range(len(episode))
            for t in times if forward else reversed(times):
                x = episode[t][0]
                G = summed([*(e[1] for e in episode[t:]), last], gamma)
                if first_visit and x in [e[0] for e in episode[:t]]:
                    continue
                count[x] += 1
                table[x] += (1 / count[x] if alpha is None else alpha) * (G - table[x])
            episodes[i] = []
        yield u, table


def expected(eps, allowed):
    """V̄(s) (eq. 7.8) of the ε-greedy policy; ε may be a function of the update."""

    def value(Q, s, u=0):
        return greedy_shares(Q[s], eps(u) if callable(eps) else eps, allowed[s]) @ Q[s]

    return value


ALL = np.ones((S, A), int)
PAIR = (lambda s, a: (s, a)), (S, A)
STATE = (lambda s, a: (s, 0)), (S, 1)


def drawn(seed):
    """(γ, α) of a seed."""
    rng = np.random.default_rng(1000 + seed)
    return (1.0 if seed == 0 else float(np.float32(rng.uniform(0.5, 1)))), float(np.float32(rng.uniform(0.05, 0.6)))


def compared(make, oracle, n_envs, masked=False, shape=(S, A), seeds=6, scale=1.0, start=None):
    """Streams of several seeds, each with a γ and α of its own, through the agent and through the oracle."""
    allowed = MASK if masked else ALL
    for seed in range(seeds):
        gamma, alpha = drawn(seed)
        steps = stream(seed, n_envs, allowed, scale=scale)
        steps = steps._replace(reward=np.float64(np.float32(steps.reward)))
        W = np.random.default_rng(500 + seed).normal(size=shape) if start is None else start(seed)
        W = np.float64(np.float32(W))
        _, tables = fed(make(gamma, alpha), spec_of(n_envs, masked), seen(steps, MASK if masked else None), W, seed)
        same(tables, collected(oracle(steps, gamma, alpha, W.copy(), allowed)), f"seed {seed}")


ENVS = pytest.mark.parametrize("n_envs", [1, 3])
MASKED = pytest.mark.parametrize(("n_envs", "masked"), [(1, False), (3, False), (3, True)])


@MASKED
@pytest.mark.parametrize("kind", ["q-learning", "dyna-q"])
def test_q_learning(kind, n_envs, masked):
    """Dyna-Q that never plans is Q-learning."""
    make = (
        (lambda g, a: QLearning(gamma=g, lr=a))
        if kind == "q-learning"
        else (lambda g, a: DynaQ(gamma=g, lr=a, planning_steps=0))
    )
    compared(make, book_q_learning, n_envs, masked)


def apart(seed):
    """Values so far apart, in an order of each state's own, that small rewards never change which is the best."""
    rng = np.random.default_rng(seed)
    return 10.0 * np.stack([rng.permutation(A) for _ in range(S)])


@MASKED
@pytest.mark.parametrize("n", [1, 2, 4])
def test_sarsa(n, n_envs, masked):
    def oracle(steps, gamma, alpha, Q, allowed):
        return book_sarsa(steps, n, gamma, 0.02 * alpha, Q, allowed)

    def make(gamma, alpha):
        return SARSA(gamma=gamma, lr=0.02 * alpha, n_step=n, eps_start=0.0, eps_end=0.0)

    compared(make, oracle, n_envs, masked, start=apart)


@pytest.mark.parametrize("n", [1, 3])
def test_sarsa_without_truncation_needs_no_policy(n):
    """The actions are those of the stream, whatever ε is."""
    for seed in range(4):
        gamma, alpha = drawn(seed)
        steps = stream(seed, 2, ends=(0.2, 0.0))
        _, tables = fed(SARSA(gamma=gamma, lr=alpha, n_step=n, eps_start=0.7, eps_end=0.7), spec_of(2), seen(steps))
        same(tables, collected(book_sarsa(steps, n, gamma, alpha, np.zeros((S, A)), ALL)), f"seed {seed}")


def test_sarsa_at_a_truncation_draws_the_action_that_would_have_followed():
    """With ε > 0 the value at the end is that of one action, each as often as the policy would take it."""
    eps, M = 0.6, 600
    agent = SARSA(gamma=0.5, lr=1.0, eps_start=eps, eps_end=eps)
    W = np.zeros((S, A))
    W[2] = [1.0, 3.0, 2.0]
    flags = np.ones((1, 1), bool)
    steps = Transition(
        np.zeros((1, 1), np.int32), np.zeros((1, 1), np.int32), np.zeros((1, 1), np.float32),
        np.full((1, 1), 2, np.int32), ~flags, flags,
    )  # fmt: skip
    agent = arrays_of(agent)
    state = with_weights(started(agent, spec_of(1), jax.random.key(0)), W)
    many = jax.jit(jax.vmap(lambda key: _fed(agent, spec_of(1), state, steps, key[None])[1][-1, 0, 0]))
    learned = np.asarray(many(jax.random.split(jax.random.key(1), M)))
    counts = [(np.abs(learned - 0.5 * q) < 1e-6).sum() for q in W[2]]
    assert sum(counts) == M
    assert stats.chisquare(counts, M * greedy_shares(W[2], eps, [1, 1, 1])).pvalue > 1e-5


@MASKED
@pytest.mark.parametrize("n", [1, 3])
def test_expected_sarsa(n, n_envs, masked):
    eps = 0.3

    def oracle(steps, gamma, alpha, Q, allowed):
        return book_n_step(steps, n, gamma, alpha, Q, PAIR[0], expected(eps, allowed))

    def make(gamma, alpha):
        return SARSA(gamma=gamma, lr=alpha, n_step=n, expected=True, eps_start=eps, eps_end=eps)

    compared(make, oracle, n_envs, masked)


def test_expected_sarsa_shares_ties():
    """From equal values: ties are shared, not decided (p. 133 with the ε-greedy policy of p. 100)."""
    steps = stream(3, 1, length=T)
    steps = steps._replace(reward=np.round(steps.reward))
    _, tables = fed(SARSA(gamma=0.5, lr=0.5, expected=True, eps_start=0.2, eps_end=0.2), spec_of(1), seen(steps))
    oracle = book_n_step(steps, 1, 0.5, 0.5, np.zeros((S, A)), PAIR[0], expected(0.2, ALL))
    same(tables, collected(oracle))


@ENVS
@pytest.mark.parametrize("n", [1, 2, 4])
def test_td(n, n_envs):
    def oracle(steps, gamma, alpha, V, _):
        return book_n_step(steps, n, gamma, alpha, V, STATE[0], lambda V, s, u: V[s, 0])

    compared(lambda g, a: TD(gamma=g, lr=a, n_step=n), oracle, n_envs, shape=STATE[1])


@ENVS
def test_td_lambda(n_envs):
    for lam in (0.0, 0.7, 1.0):

        def oracle(steps, gamma, alpha, V, _, lam=lam):
            return book_td_lambda(steps, lam, gamma, 0.5 * alpha, V)

        compared(lambda g, a, lam=lam: TD(gamma=g, lr=0.5 * a, lam=lam), oracle, n_envs, shape=STATE[1], seeds=4)


def test_the_trace_of_a_finished_episode_is_gone():
    """After a truncation the next episode's first error moves the value of its own state alone."""
    reward, flags = np.ones((2, 1), np.float32), np.array([[True], [False]])
    steps = Transition(
        np.int32([[0], [3]]), np.zeros((2, 1), np.int32), reward, np.int32([[1], [4]]), np.zeros((2, 1), bool), flags
    )
    state, tables = fed(TD(gamma=1.0, lam=1.0, lr=0.5), spec_of(1), steps)
    assert_allclose(tables[:, :, 0], [[0.5, 0, 0, 0, 0], [0.5, 0, 0, 0.5, 0]])
    assert_array_equal(np.asarray(state.trace), [[0, 0, 0, 1, 0]])


@ENVS
@pytest.mark.parametrize("first_visit", [True, False], ids=["first-visit", "every-visit"])
@pytest.mark.parametrize("constant", [True, False], ids=["constant", "average"])
@pytest.mark.parametrize("control", [True, False], ids=["control", "prediction"])
def test_monte_carlo(control, constant, first_visit, n_envs):
    """Every visit with a constant α may go through the episode backwards (p. 101) or forward (p. 202)."""
    eps = 0.3
    where, shape = PAIR if control else STATE

    def value(table, s):
        return expected(eps, ALL)(table, s) if control else table[s, 0]

    def oracle(steps, gamma, alpha, table, _, forward=False):
        return book_monte_carlo(steps, gamma, alpha if constant else None, table, where, value, first_visit, forward)

    def make(gamma, alpha):
        policy = None if control else "uniform"
        lr = alpha if constant else None
        return MonteCarlo(gamma=gamma, lr=lr, first_visit=first_visit, policy=policy, eps_start=eps, eps_end=eps)

    try:
        compared(make, oracle, n_envs, shape=shape)
    except AssertionError:
        if first_visit or not constant:
            raise
        compared(make, functools.partial(oracle, forward=True), n_envs, shape=shape)


@ENVS
@pytest.mark.parametrize("eps", [0.0, 0.3])
def test_monte_carlo_with_masks(eps, n_envs):
    """The value of a state in which the episode was cut is the mean over the policy, which takes what is allowed."""

    def oracle(steps, gamma, alpha, Q, allowed):
        return book_monte_carlo(steps, gamma, None, Q, PAIR[0], lambda Q, s: expected(eps, allowed)(Q, s), True)

    compared(lambda g, a: MonteCarlo(gamma=g, eps_start=eps, eps_end=eps), oracle, n_envs, True)


@ENVS
def test_monte_carlo_averages_are_exact(n_envs):
    """1/N is the plain average of the returns (p. 92), whatever the table began with, and N is counted."""
    steps = stream(5, n_envs, ends=(0.25, 0.0))
    state, tables = fed(MonteCarlo(gamma=0.9, q_init=7.0, policy="uniform"), spec_of(n_envs), seen(steps))
    returns, episodes = [[] for _ in range(S)], [[] for _ in range(n_envs)]
    for _, i, s, _, r, _, terminated, _ in walked(steps):
        episodes[i].append((s, r))
        if terminated:
            states = [e[0] for e in episodes[i]]
            for x in set(states):
                returns[x].append(summed([e[1] for e in episodes[i][states.index(x) :]], 0.9))
            episodes[i] = []
    means = [np.mean(g) if g else 7.0 for g in returns]
    assert_allclose(tables[-1][:, 0], means, rtol=1e-5, atol=1e-5)
    assert_array_equal(np.asarray(state.counts)[:, 0], [len(g) for g in returns])


def test_two_environments_average_their_returns():
    """The least of it: from one state two environments end together, with 1 and with 3, which is 2 on average."""
    at, end = np.zeros((2, 2), np.int32), np.array([[False, False], [True, True]])
    steps = Transition(at, at, np.float32([[0, 0], [1, 3]]), at, end, ~end & end)
    _, tables = fed(MonteCarlo(gamma=1.0, policy="uniform"), spec_of(2), steps)
    assert tables[-1][0, 0] == pytest.approx(2.0)


def test_every_visit_moves_towards_the_return_and_not_beyond():
    """Eq. 6.1 with α = ½, ten visits to a state in one episode, all with the return 1: V = 1 − 2⁻¹⁰, and not 5."""
    L = 10
    at, end = np.zeros((L, 1), np.int32), np.arange(L)[:, None] == L - 1
    steps = Transition(at, at, np.float32(end), at, end, end & ~end)
    _, tables = fed(MonteCarlo(gamma=1.0, policy="uniform", lr=0.5, first_visit=False), spec_of(1), steps)
    assert tables[-1][0, 0] == pytest.approx(1 - 0.5**L)


# ------------------------------------------------------------------------------------------------ double Q-learning


def double_updates(Q, s, a, r, after, terminated, gamma, alpha, allowed):
    """All that p. 136 may make of the pair (Q1, Q2): which of them learns is a coin's, and ties are too."""
    for learner in (0, 1):
        mine, other = Q[learner], Q[1 - learner]
        top = max(mine[after, b] for b in range(A) if allowed[after][b])
        for best in [b for b in range(A) if allowed[after][b] and abs(mine[after, b] - top) < 1e-6]:
            new = Q.copy()
            new[learner, s, a] += alpha * (r + (0 if terminated else gamma * other[after, best]) - mine[s, a])
            yield new


@MASKED
def test_double_q_learning_moves_one_table_by_the_other(n_envs, masked):
    allowed, moved = MASK if masked else ALL, []
    for seed in range(4):
        gamma, alpha = drawn(seed)
        steps = stream(seed, n_envs, allowed)
        W = np.float32(np.random.default_rng(500 + seed).normal(size=(S, 2 * A)))
        agent = QLearning(gamma=gamma, lr=alpha, double=True)
        _, tables = fed(agent, spec_of(n_envs, masked), seen(steps, MASK if masked else None), W, seed)
        before = np.float64(W)
        for u, W_u in enumerate(np.float64(tables)):
            branches = [np.stack([before[:, :A], before[:, A:]])]
            for i in range(n_envs):
                step = [x[u, i].item() for x in steps[:5]]
                branches = [new for Q in branches for new in double_updates(Q, *step, gamma, alpha, allowed)]
            ours = np.stack([W_u[:, :A], W_u[:, A:]])
            nearest = min(np.abs(ours - Q).max() for Q in branches)
            assert nearest < 2e-5, f"seed {seed}, update {u}: no outcome of the book's is nearer than {nearest}"
            if n_envs == 1:
                moved.append([(ours[k] != [before[:, :A], before[:, A:]][k]).any() for k in (0, 1)])
            before = W_u
    if n_envs == 1:
        moved = np.array(moved)
        assert (moved.sum(1) == 1).all()
        assert stats.binomtest(int(moved[:, 0].sum()), len(moved)).pvalue > 1e-4


@hyper
class Bias:
    """Example 6.7 (p. 134): in A go right and end with 0, or left to B, from where all actions end with N(−0.1, 1)."""

    arms: int = 10
    max_steps: int = 0

    @property
    def obs_space(self):
        return Dict({"state": Discrete(2), "action_mask": MultiBinary(self.arms)})

    @property
    def action_space(self):
        return Discrete(self.arms)

    def seen(self, s):
        return {"state": s, "action_mask": ((jnp.arange(self.arms) < 2) | (s == 1)).astype(jnp.int32)}

    def reset(self, key):
        return jnp.int32(0), self.seen(jnp.int32(0))

    def step(self, s, action, key):
        reward = jnp.where(s == 1, jax.random.normal(key) - 0.1, 0.0)
        after = jnp.where((s == 0) & (action == 0), 1, 0).astype(jnp.int32)
        return after, self.seen(after), reward, (s == 1) | (action != 0)


def _trained(agent, vector, spec, iterations, keys):
    return chunk(agent, vector, spec, init(agent, vector, spec, *keys), iterations)[0]


trained_from = jax.jit(_trained, static_argnums=2)


def trained(agent, world, n_envs, iterations, seed=0):
    """The compiled crank's state after a run, whose length schedules are measured by."""
    vector = Vector(world, n_envs)
    spec = Spec(vector.obs_space, vector.action_space, n_envs, n_envs * iterations)
    agent = arrays_of(resolve_schedules(agent, spec.steps))
    return trained_from(agent, arrays_of(vector), spec, np.int32(iterations), agent_key(seed))


@pytest.mark.parametrize("n_seeds", [pytest.param(4000, marks=pytest.mark.full), 400])
def test_double_q_learning_has_less_maximisation_bias(n_seeds):
    """Figure 6.5: after some hundred steps Q-learning still goes left much too often; double Q-learning hardly does."""
    vector = Vector(Bias(), 1)
    spec = Spec(vector.obs_space, vector.action_space, 1, 10_000)
    left, worth = {}, {}
    for double in (False, True):
        agent = arrays_of(QLearning(gamma=1.0, double=double, lr=0.1))

        def run(seed, agent=agent):
            keys = jax.random.split(jax.random.fold_in(jax.random.key(7), seed))
            state = _trained(agent, vector, spec, 200, (keys[0], keys[1]))
            return jnp.nanmean(state.recent.lengths) - 1, state.agent.Q.W

        lengths, W = jax.jit(jax.vmap(run))(jnp.arange(n_seeds))
        left[double] = float(lengths.mean())
        W = np.asarray(W)
        worth[double] = W[:, 0, 0].mean() if not double else (W[:, 0, 0] + W[:, 0, 10]).mean() / 2
    assert left[False] > left[True] + 0.1
    assert left[True] > 0.05  # 5 % would be the best at ε = 0.1
    assert worth[False] > 0.03 > 0.01 > worth[True]


# ------------------------------------------------------------------------------------------------ exact limits


def _one(agent, spec, state, step, key):
    rollout = Rollout(jax.tree.map(lambda y: y[None, None], step), agent.memory(spec))
    return weights(agent.update(state, rollout, key)[0])


each = jax.jit(jax.vmap(_one, in_axes=(None, None, None, 0, 0)), static_argnums=1, compiler_options=UNOPTIMISED)


def deterministic_mdp(seed):
    """(successor, reward, terminated), [S, A] each."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, S, (S, A)), np.float32(rng.normal(size=(S, A))), rng.random((S, A)) < 0.15


def swept(agent, Q, mdp, key):
    """Every pair (s, a) learned from once, each by a copy of the same agent: a synchronous sweep."""
    successor, reward, terminated = (x.ravel() for x in mdp)
    s, a = (np.int32(x.ravel()) for x in np.indices((S, A)))
    steps = Transition(s, a, reward, np.int32(successor), terminated, ~terminated & (s < 0))
    agent, spec = arrays_of(agent), spec_of(1)
    state = with_weights(started(agent, spec, jax.random.key(0)), Q)
    copies = np.asarray(each(agent, spec, state, steps, jax.random.split(key, len(s))))
    others = np.broadcast_to(np.float32(Q), copies.shape).copy()
    others[np.arange(len(s)), s, a] = copies[np.arange(len(s)), s, a]
    assert_array_equal(copies, others)  # nothing else has moved
    return copies[np.arange(len(s)), s, a].reshape(S, A)


@pytest.mark.parametrize("kind", ["q-learning", "expected-sarsa", "dyna-q"])
def test_step_size_one_is_value_iteration(kind):
    """Where nothing is random a sweep with α = 1 is the Bellman operator, which contracts by γ to its fixed point."""
    gamma, eps = 0.8, 0.25
    agent = {
        "q-learning": QLearning(gamma=gamma, lr=1.0),
        "expected-sarsa": SARSA(gamma=gamma, lr=1.0, expected=True, eps_start=eps, eps_end=eps),
        "dyna-q": DynaQ(gamma=gamma, lr=1.0, planning_steps=0),
    }[kind]
    soft = kind == "expected-sarsa"
    for seed in range(3):
        mdp = deterministic_mdp(seed)

        def backup(Q, mdp=mdp):
            successor, reward, terminated = mdp
            # Under the ε-greedy policy: ε · mean + (1 − ε) · max, a γ-contraction too.
            V = eps * Q.mean(1) + (1 - eps) * Q.max(1) if soft else Q.max(1)
            return np.float64(reward) + gamma * ~terminated * V[successor]

        best = np.zeros((S, A))
        for _ in range(200):
            best = backup(best)
        Q = np.float32(3 * np.random.default_rng(seed).normal(size=(S, A)))
        for k in range(25):
            new = swept(agent, Q, mdp, jax.random.key(k))
            assert_allclose(new, backup(np.float64(Q)), rtol=1e-5, atol=1e-5)
            assert np.abs(new - best).max() <= gamma * np.abs(Q - best).max() + 1e-5
            Q = new
        assert np.abs(Q - best).max() < 0.05


def _replayed(agent, spec, state, steps, passes, key):
    def once(i, state):
        return _fed(agent, spec, state, steps, jax.random.split(jax.random.fold_in(key, i), len(steps.reward)))[0]

    return jax.lax.fori_loop(0, passes, once, state)


replayed_from = jax.jit(_replayed, static_argnums=1)


def replayed(agent, spec, steps, passes):
    """The weights after the same transitions [M] again and again, with step sizes that go down."""
    steps = jax.tree.map(lambda x: np.asarray(x)[:, None], steps)
    agent = arrays_of(resolve_schedules(agent, passes * len(steps.reward)))
    state = started(agent, spec, jax.random.key(0))
    return np.float64(weights(replayed_from(agent, spec, state, steps, np.int32(passes), jax.random.key(1))))


def dense(features, space, obs):
    """Φ [M, n]: the value of every feature, those that are off included."""
    place, value = (np.asarray(x) for x in features.on(space, jnp.asarray(obs)))
    Phi = np.zeros((len(obs), features.size(space)))
    for row, places, values in zip(Phi, place, value, strict=True):
        for p, v in zip(places, values, strict=True):
            row[p] += v
    return Phi


def lstd(Phi, after, reward):
    """(the fixed point of TD, that of the residual gradient) of a batch (§9.4 p. 206, §11.5)."""
    A, residual = Phi.T @ (Phi - after), Phi - after
    return np.linalg.solve(A, Phi.T @ reward), np.linalg.lstsq(residual, reward, rcond=None)[0]


def test_td_does_not_split_the_difference():
    """§11.4, the A-split example: TD finds the values, naive residual gradient ¾ and ¼ in their place."""
    s, after = np.int32([0, 1, 0, 2]), np.int32([1, 3, 2, 3])
    end = np.array([False, True, False, True])
    steps = Transition(s, np.zeros(4, np.int32), np.float32([0, 1, 0, 0]), after, end, np.zeros(4, bool))
    V = replayed(TD(gamma=1.0, lr=Exponential(0.5, 1e-3)), spec_of(1), steps, 800)[:, 0]
    Phi = np.eye(S)[s]
    true, naive = lstd(Phi[:, :3], (np.eye(S)[after] * ~end[:, None])[:, :3], np.float64(steps.reward))
    assert_allclose(naive, [0.5, 0.75, 0.25])
    assert_allclose(true, [0.5, 1, 0])
    assert_allclose(V[:3], true, atol=2e-3)


def chain(M=240, states=6, actions=1, seed=11):
    """A continuing, very random chain on [0, 1]: positions, actions, rewards, next positions."""
    rng = np.random.default_rng(seed)
    P = rng.dirichlet(np.full(states, 0.7), (states, actions))
    value = rng.normal(size=(states, actions))
    s, rows = 0, []
    for _ in range(M):
        a = rng.integers(actions)
        after = rng.choice(states, p=P[s, a])
        rows.append((s, a, value[s, a], after))
        s = after
    s, a, r, after = (np.array(x) for x in zip(*rows, strict=True))
    here, there = (np.float32(x / (states - 1))[:, None] for x in (s, after))
    no = np.zeros(M, bool)
    return Transition(here, np.int32(a), np.float32(r), there, no, no)


UNIT = Box(0.0, 1.0, (1,))
LINEAR = {
    "fourier": (Fourier(order=2), 0.1, 150),
    "polynomial": (Polynomial(order=2), 0.3, 1500),
    "radial": (Radial(centres=3), 0.2, 800),
    "tiles": (Tiles(tilings=2, tiles=2), 0.1, 500),
}


@pytest.mark.parametrize("name", LINEAR)
def test_linear_td_finds_the_td_fixed_point(name):
    features, lr, passes = LINEAR[name]
    steps, gamma = chain(), 0.6
    agent = TD(gamma=gamma, lr=Exponential(lr, lr * 1e-3), features=features)
    w = replayed(agent, Spec(UNIT, Discrete(1), 1, 1000), steps, passes)[:, 0]
    Phi, after = dense(features, UNIT, steps.obs), gamma * dense(features, UNIT, steps.next_obs)
    if name == "tiles":  # one weight too many: the tilings share the constant; compare values
        true, naive = (np.linalg.lstsq(M, v, rcond=None)[0] for M, v in (
            (Phi.T @ (Phi - after), Phi.T @ steps.reward), (Phi - after, steps.reward)))  # fmt: skip
    else:
        true, naive = lstd(Phi, after, np.float64(steps.reward))
    V, V_true, V_naive = Phi @ w, Phi @ true, Phi @ naive
    assert np.abs(V_true - V_naive).max() > 0.1
    assert_allclose(V, V_true, atol=5e-3)
    if name == "fourier":
        assert_allclose(w, true, rtol=1e-2, atol=1e-3)


def test_linear_expected_sarsa_finds_the_fixed_point_of_lstdq():
    """ε = 1 is the uniform policy, whose Q is linear in a block of features for each action."""
    features, gamma, steps = Fourier(order=2), 0.6, chain(actions=2, seed=13)
    agent = SARSA(gamma=gamma, expected=True, eps_start=1.0, eps_end=1.0, lr=Exponential(0.1, 1e-4), features=features)
    W = replayed(agent, Spec(UNIT, Discrete(2), 1, 1000), steps, 200)
    phi, after = dense(features, UNIT, steps.obs), dense(features, UNIT, steps.next_obs)
    pick = np.eye(2)[steps.action]
    Phi = (phi[:, :, None] * pick[:, None, :]).reshape(len(phi), -1)
    mean = np.repeat(after[:, :, None] / 2, 2, axis=2).reshape(len(phi), -1)
    true, naive = lstd(Phi, gamma * mean, np.float64(steps.reward))
    assert np.abs(true - naive).max() > 0.3
    assert_allclose(W.ravel(), true, rtol=1e-2, atol=2e-3)


LINEAR_AGENTS = {
    "q-learning": QLearning, "sarsa": functools.partial(SARSA, eps_start=0.0, eps_end=0.0),
    "td": TD, "td-lambda": functools.partial(TD, lam=0.6), "monte-carlo": functools.partial(
        MonteCarlo, first_visit=False, policy="uniform"),
}  # fmt: skip


@pytest.mark.parametrize("name", LINEAR_AGENTS)
@pytest.mark.parametrize("features", [Tiles(tilings=4, tiles=3), Fourier(order=2)], ids=["tiles", "fourier"])
def test_semi_gradients(name, features):
    """Linear agents on a stream of positions: w ← w + α δ x(s), each feature with its own factor (Fourier)."""
    gamma, alpha, n = 0.8, 0.05, features.size(UNIT)
    steps = stream(17, 1, ends=(0.2, 0.0))
    at = np.linspace(0.05, 0.95, S, dtype=np.float32)
    steps_seen = seen(steps)._replace(obs=at[steps.obs][..., None], next_obs=at[steps.next_obs][..., None])
    x, rates = dense(features, UNIT, at[:, None]), features.rates(UNIT)
    factor = np.ones(n) if rates is None else np.asarray(rates)
    columns = A if name in ("q-learning", "sarsa") else 1
    W = np.random.default_rng(0).normal(size=(n, columns))
    agent = LINEAR_AGENTS[name](gamma=gamma, lr=alpha, features=features)
    _, tables = fed(agent, Spec(UNIT, Discrete(A), 1, 1000), steps_seen, W)
    w, z, book, before, episode = np.float64(np.float32(W)), np.zeros(n), [], None, []
    for _, _, s, a, r, after, terminated, _ in walked(steps):
        go = 0.0 if terminated else gamma
        match name:
            case "q-learning":
                w[:, a] += alpha * factor * x[s] * (r + go * (x[after] @ w).max() - x[s] @ w[:, a])
            case "sarsa":  # p. 244; a step is learned from when its successor's action is known
                if before is not None:
                    p, b, q = before
                    w[:, b] += alpha * factor * x[p] * (q + gamma * x[s] @ w[:, a] - x[p] @ w[:, b])
                if terminated:
                    w[:, a] += alpha * factor * x[s] * (r - x[s] @ w[:, a])
                before = None if terminated else (s, a, r)
            case "td":
                w[:, 0] += alpha * factor * x[s] * (r + go * x[after] @ w[:, 0] - x[s] @ w[:, 0])
            case "td-lambda":  # p. 293
                z = gamma * 0.6 * z + x[s]
                w[:, 0] += alpha * factor * z * (r + go * x[after] @ w[:, 0] - x[s] @ w[:, 0])
                z *= not terminated
            case _:  # p. 202, gradient Monte Carlo, forward through the episode
                episode.append((s, r))
                if terminated:
                    for t, (p, _) in enumerate(episode):
                        G = summed([e[1] for e in episode[t:]], gamma)
                        w[:, 0] += alpha * factor * x[p] * (G - x[p] @ w[:, 0])
                    episode = []
        book.append(w.copy())
    same(tables, book)


# ------------------------------------------------------------------------------------------------ values of worlds

WALKERS = {
    "td": TD(gamma=1.0, lr=Exponential(0.2, 0.002)),
    "n-step": TD(gamma=1.0, n_step=3, lr=Exponential(0.2, 0.002)),
    "lambda": TD(gamma=1.0, lam=0.8, lr=Exponential(0.1, 0.001)),
    "first-visit": MonteCarlo(gamma=1.0, policy="uniform"),
    "every-visit": MonteCarlo(gamma=1.0, policy="uniform", first_visit=False),
    "constant": MonteCarlo(gamma=1.0, policy="uniform", lr=Exponential(0.1, 0.001)),
}


@pytest.mark.parametrize("name", some_full(WALKERS, ("td", "n-step", "first-visit")))
def test_random_walk(name):
    """Example 6.2: from 1/6 to 5/6."""
    state = trained(WALKERS[name], random_walk(), 8, 6000)
    V = np.asarray(weights(state.agent))[:, 0]
    assert V.shape == (7,)
    assert_allclose(V[1:6], np.arange(1, 6) / 6, atol=0.03)
    assert_array_equal(V[[0, 6]], 0)


CHAIN = np.array([[0.7, 0.3], [0.4, 0.6]])


@pytest.mark.parametrize("agent", [TD, functools.partial(TD, lam=0.5), functools.partial(TD, n_step=2)],
                         ids=["td", "lambda", "n-step"])  # fmt: skip
def test_chain_of_two_states(agent):
    """A chain without end: V = (I − γP)⁻¹ r."""
    world = FiniteWorld.of(from_arrays(CHAIN[:, None], np.array([[1.0], [-1.0]]), start=0))
    exact = np.linalg.solve(np.eye(2) - 0.9 * CHAIN, [1.0, -1.0])
    assert_allclose(exact, [2.6027397, -0.136986], atol=1e-6)
    V = np.asarray(weights(trained(agent(gamma=0.9, lr=Exponential(0.1, 0.0005)), world, 8, 10_000).agent))[:, 0]
    assert_allclose(V, exact, atol=0.05)


def test_a_truncated_clock_changes_no_value():
    """The chain cut into episodes of three steps: bootstrapping at the cut keeps the values of the endless one."""
    world = FiniteWorld.of(from_arrays(CHAIN[:, None], np.array([[1.0], [-1.0]]), start=[0.5, 0.5]), max_steps=3)
    agent = TD(gamma=0.9, n_step=2, lr=Exponential(0.1, 0.0005))
    V = np.asarray(weights(trained(agent, world, 8, 10_000).agent))[:, 0]
    assert_allclose(V, [2.6027397, -0.136986], atol=0.05)


CONTROL = from_arrays(
    np.array([[[0.9, 0.1], [0.2, 0.8]], [[0.3, 0.7], [0.6, 0.4]]]), np.array([[1.0, 0.0], [0.0, 2.0]]), start=[0.5, 0.5]
)
BEST = np.array([[11.2328767, 11.0958904], [10.9726027, 12.6027397]])


@pytest.mark.parametrize("agent", [
    QLearning(gamma=0.9, eps_start=1.0, eps_end=1.0, lr=Exponential(0.5, 0.0005)),
    QLearning(gamma=0.9, eps_start=0.5, eps_end=0.5, lr=Linear(0.2)),
    QLearning(gamma=0.9, double=True, eps_start=1.0, eps_end=1.0, lr=Exponential(0.5, 0.001)),
], ids=["exponential", "linear", "double"])  # fmt: skip
def test_control_of_two_states(agent):
    W = np.asarray(trained(agent, FiniteWorld.of(CONTROL), 4, 20_000).agent.Q.W)
    for Q in (W[:, :2], W[:, 2:])[: 1 + agent.double]:
        assert_allclose(Q, BEST, rtol=0.015)


def grid():
    """Six cells in a row where nothing is random: a trap at the left end, a prize at the right."""
    n = 6
    P, R = np.zeros((n, 2, n)), np.zeros((n, 2, n))
    for s in range(n):
        P[s, 0, max(s - 1, 0)] = P[s, 1, min(s + 1, n - 1)] = 1
    R[1:-1] = -0.01
    R[1, 0, 0], R[n - 2, 1, n - 1] = -1.01, 0.99
    return from_arrays(P, R, start=2, terminal=[0, n - 1])


def exact_grid(gamma):
    n, Q = 6, np.zeros((6, 2))
    for _ in range(200):
        V = np.where(np.isin(range(n), [0, n - 1]), 0, Q.max(1))
        for s in range(1, n - 1):
            Q[s, 0] = -0.01 - (s == 1) + gamma * V[s - 1]
            Q[s, 1] = -0.01 + (s == n - 2) + gamma * V[s + 1]
    return Q


@pytest.mark.parametrize("n_envs", [1, 3])
def test_dyna_q_is_exact_where_nothing_is_random(n_envs):
    agent = DynaQ(gamma=0.9, lr=1.0, eps_start=0.5, eps_end=0.5, planning_steps=10)
    Q = np.asarray(trained(agent, FiniteWorld.of(grid()), n_envs, 400).agent.Q.W)
    assert_allclose(Q[1:5], exact_grid(0.9)[1:5], rtol=1e-5, atol=1e-6)
    assert_array_equal(Q[[0, 5]], 0)


def test_planning_needs_fewer_steps():
    """Figure 8.2: with the same real steps, the planner is nearer to the truth."""
    exact, error = exact_grid(0.95), []
    for agent in (QLearning, functools.partial(DynaQ, planning_steps=10)):
        made = agent(gamma=0.95, lr=0.5, eps_start=0.5, eps_end=0.5)
        errors = [np.abs(np.asarray(trained(made, FiniteWorld.of(grid()), 1, 60, k).agent.Q.W) - exact).mean()
                  for k in range(5)]  # fmt: skip
        error.append(np.mean(errors))
    assert error[1] < 0.5 * error[0]


# ------------------------------------------------------------------------------------------------ Dyna-Q


@MASKED
def test_the_model_holds_the_last_outcome(n_envs, masked):
    allowed = MASK if masked else ALL
    for seed in range(3):
        steps = stream(seed, n_envs, allowed)
        agent = DynaQ(planning_steps=0)
        state, _ = fed(agent, spec_of(n_envs, masked), seen(steps, MASK if masked else None))
        last = {(s, a): (r, after, end) for _, _, s, a, r, after, end, _ in walked(steps)}
        assert state.model.reward.shape == (S, A)
        for (s, a), (r, after, end) in last.items():
            assert float(state.model.reward[s, a]) == pytest.approx(r, rel=1e-6)
            assert int(state.model.successor[s, a]) == after
            assert bool(state.model.terminated[s, a]) == end


def planned(agent, pairs, M, W=None):
    """Tables [M, T, S, A] of M independent agents after each of the given outcomes (s, a, r, s')."""
    s, a, r, after = (np.array(x)[:, None] for x in zip(*pairs, strict=True))
    no = np.zeros(s.shape, bool)
    steps = Transition(np.int32(s), np.int32(a), np.float32(r), np.int32(after), no, no)
    agent, spec = arrays_of(agent), spec_of(1)
    state = with_weights(started(agent, spec, jax.random.key(0)), np.zeros((S, A)) if W is None else W)
    return np.asarray(planned_from(agent, spec, state, steps, jax.random.split(jax.random.key(3), M)), np.float64)


def _planned(agent, spec, state, steps, keys):
    T = len(steps.reward)
    return jax.lax.map(lambda key: _fed(agent, spec, state, steps, jax.random.split(key, T))[1], keys)


planned_from = jax.jit(_planned, static_argnums=1, compiler_options=UNOPTIMISED)


TRIED = [(0, 0, 0.0, 1), (0, 1, 0.0, 1), (0, 2, 0.0, 1), (1, 0, 0.0, 0)]


def test_planning_takes_a_state_then_an_action_that_was_taken_in_it():
    """p. 164 (f): a random state observed before, then a random action taken before in that state.

    Three actions were tried in state 0 and one in state 1: each of the three is planned with 1/6, the one with 1/2.
    """
    # All values are too high, so whatever is planned moves; the direct update is taken off.
    M = 1200
    tables = planned(DynaQ(gamma=0.5, lr=0.5, planning_steps=1), TRIED, M, np.full((S, A), 8.0))
    before, after = tables[:, -2], tables[:, -1]
    direct = before.copy()
    direct[:, 1, 0] += 0.5 * (0 + 0.5 * before[:, 0].max(1) - before[:, 1, 0])
    moved = np.abs(after - direct) > 1e-6
    assert (moved.sum((1, 2)) <= 1).all()
    counts = [moved[:, s, a].sum() for s, a in [(0, 0), (0, 1), (0, 2), (1, 0)]]
    assert sum(counts) == M
    assert stats.chisquare(counts, M * np.array([1, 1, 1, 3]) / 6).pvalue > 1e-5, counts


@pytest.mark.parametrize("masked", [False, True])
def test_a_planning_step_is_a_step_of_q_learning_on_the_model(masked):
    """p. 164 (d) to (f) on a stream: after learning directly, one pair that was seen is learned from again."""
    allowed = MASK if masked else ALL
    for seed in range(3):
        gamma, alpha = drawn(seed)
        steps = stream(seed, 1, allowed)
        W = np.random.default_rng(500 + seed).normal(size=(S, A))
        agent = DynaQ(gamma=gamma, lr=alpha, planning_steps=1)
        _, tables = fed(agent, spec_of(1, masked), seen(steps, MASK if masked else None), W, seed)
        Q, known = np.float64(np.float32(W)), {}

        def learned(Q, pair, outcome, gamma=gamma, alpha=alpha):
            (r, after, terminated), new = outcome, Q.copy()
            best = 0.0 if terminated else gamma * Q[after][allowed[after] == 1].max()
            new[pair] += alpha * (r + best - Q[pair])
            return new

        for u, _, s, a, r, after, terminated, _ in walked(steps):
            known[s, a] = r, after, terminated
            Q = learned(Q, (s, a), known[s, a])
            options = [learned(Q, pair, outcome) for pair, outcome in known.items()]
            nearest = min(np.abs(option - tables[u]).max() for option in options)
            assert nearest < 2e-5, f"seed {seed}, update {u}: no planning step is nearer than {nearest}"
            Q = np.float64(tables[u])


def test_the_bonus_grows_with_the_time_since_a_pair_was_taken():
    """p. 168: planned rewards are r + κ√τ, τ the steps since the pair was last taken in earnest."""
    kappa, n = 0.5, 12
    pairs = [(0, 0, 0.0, 1), *[(1, 1, 0.0, 1)] * n]
    # 80 planning steps leave no pair out. With γ = 0 and α = 1 a pair holds the bonus with which it was last planned.
    rows = planned(DynaQ(gamma=0.0, lr=1.0, kappa=kappa, planning_steps=80), pairs, 2)
    old = rows[:, :, 0, 0]  # taken at the first step
    assert (np.diff(old, axis=1) > 0).all()
    tau = (old[0] / kappa) ** 2
    assert_allclose(tau, np.arange(n + 1) + tau[0], atol=1e-3)  # √τ with τ one more each step
    assert 0 <= round(tau[0]) <= 1
    plain = planned(DynaQ(gamma=0.0, lr=1.0, kappa=0.0, planning_steps=80), pairs, 2)
    assert_array_equal(plain, 0)


def test_untried_actions_are_planned_with_a_bonus_only():
    """p. 168, footnote: actions never tried from a state that was seen may be planned, as if they led back with 0.

    Without a bonus there is plain Dyna-Q, which plans only what was taken.
    """
    pairs = [(0, 0, 0.0, 1), *[(1, 1, 0.0, 1)] * 12]
    W = np.ones((S, A))
    plain = planned(DynaQ(gamma=0.0, lr=1.0, kappa=0.0, planning_steps=80), pairs, 2, W)[:, -1]
    tried = np.zeros((S, A), bool)
    tried[[0, 1], [0, 1]] = True
    assert (plain[:, ~tried] == 1).all() and (plain[:, tried] == 0).all()
    bonus = planned(DynaQ(gamma=0.0, lr=1.0, kappa=0.5, planning_steps=80), pairs, 2, W)[:, -1]
    assert (bonus[:, 2:] == 1).all()  # states that were never acted in have no model
    assert (bonus[:, 0, 1:] > 1).all()  # 0.5 √τ with τ near 12
    assert (bonus[:, 0, 1:] <= 0.5 * np.sqrt(14)).all()


# ------------------------------------------------------------------------------------------------ how they act

VALUES = np.array([[0.5, 2.0, 1.0, 0.0], [3.0, 1.0, 3.0, -1.0], [1.0, 1.0, 1.0, 1.0], [9.0, 2.0, 9.0, 2.0]])
ALLOWED = np.array([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 0, 1]])
ACTORS = {
    "q-learning": QLearning, "double": functools.partial(QLearning, double=True),
    "sarsa": functools.partial(SARSA, n_step=2), "expected-sarsa": functools.partial(SARSA, expected=True),
    "monte-carlo": MonteCarlo, "dyna-q": functools.partial(DynaQ, planning_steps=2),
}  # fmt: skip
EACH = 1500


def _acted(agent, state, obs, key, explore):
    return agent.act(state, obs, key, (), explore=explore)[0]


acted = jax.jit(_acted, static_argnums=4, compiler_options=UNOPTIMISED)


@pytest.mark.parametrize("name", ACTORS)
def test_actions_are_epsilon_greedy(name):
    """ε is shared among all allowed actions, the rest among the best of them; χ² over four states."""
    spec, key = spec_of(4 * EACH, True, 4, 4), jax.random.key(5)
    s = np.repeat(np.arange(4), EACH).astype(np.int32)
    obs = {"state": s, "action_mask": np.int32(ALLOWED)[s]}
    W = VALUES
    if name == "double":  # the policy is greedy in Q1 + Q2, not in either
        other = np.random.default_rng(0).integers(-8, 8, VALUES.shape) / 4
        W = np.concatenate([VALUES - other, other], axis=1)
    for k, eps in enumerate((0.0, 0.3, 1.0)):
        agent = arrays_of(ACTORS[name](eps_start=eps, eps_end=eps))
        state = with_weights(started(agent, spec, key), W)
        actions = np.asarray(acted(agent, state, obs, jax.random.fold_in(key, k), True))
        assert actions.shape == s.shape and actions.dtype == np.int32
        for x in range(4):
            counts = np.bincount(actions[s == x], minlength=4)
            share = greedy_shares(VALUES[x], eps, ALLOWED[x])
            assert (counts[share == 0] == 0).all()
            drawn = share > 0
            if drawn.sum() > 1:
                assert stats.chisquare(counts[drawn], EACH * share[drawn]).pvalue > 1e-5, (x, eps, counts)


@pytest.mark.parametrize("name", ACTORS)
def test_evaluation_is_greedy_and_knows_no_chance(name):
    spec = spec_of(8, True, 4, 4)
    s = np.int32([0, 1, 2, 3, 0, 1, 2, 3])
    obs = {"state": s, "action_mask": np.int32(ALLOWED)[s]}
    agent = arrays_of(ACTORS[name](eps_start=0.9, eps_end=0.9))
    W = np.concatenate([VALUES] * (2 if name == "double" else 1), axis=1)
    state = with_weights(started(agent, spec, jax.random.key(0)), W)
    actions = np.stack([acted(agent, state, obs, jax.random.key(k), False) for k in range(6)])
    assert (actions == actions[0]).all()
    assert_array_equal(actions[:, :4], actions[:, 4:])
    for x, a in enumerate(actions[0][:4]):
        assert greedy_shares(VALUES[x], 0.0, ALLOWED[x])[a] > 0


@pytest.mark.parametrize("make", [TD, MonteCarlo])
def test_predictors_follow_the_policy_that_is_given(make):
    table = np.array([[0.5, 0.5, 0.0], [0.1, 0.2, 0.7], [0.0, 1.0, 0.0], [1 / 3, 1 / 3, 1 / 3], [0.25, 0.25, 0.5]])
    s = np.repeat(np.arange(S), EACH).astype(np.int32)
    for policy in (table, None if make is TD else "uniform"):
        agent = arrays_of(make(policy=policy))
        state = started(agent, spec_of(len(s)), jax.random.key(0))
        actions = np.asarray(acted(agent, state, s, jax.random.key(8), True))
        for x in range(S):
            share = table[x] if policy is table else np.full(A, 1 / 3)
            counts = np.bincount(actions[s == x], minlength=A)
            assert (counts[share == 0] == 0).all()
            if (share > 0).sum() > 1:
                assert stats.chisquare(counts[share > 0], EACH * share[share > 0]).pvalue > 1e-5


def test_a_uniform_policy_keeps_to_the_mask():
    s = np.repeat(np.arange(S), 300).astype(np.int32)
    obs = {"state": s, "action_mask": np.int32(MASK)[s]}
    for agent in (TD(), MonteCarlo(policy="uniform")):
        state = started(arrays_of(agent), spec_of(len(s), True), jax.random.key(0))
        actions = np.asarray(acted(arrays_of(agent), state, obs, jax.random.key(8), True))
        for x in range(S):
            counts = np.bincount(actions[s == x], minlength=A)
            assert (counts[MASK[x] == 0] == 0).all() and (counts[MASK[x] == 1] > 0).all()


@pytest.mark.parametrize("name", ACTORS)
def test_the_start_is_q_init(name):
    state = started(arrays_of(ACTORS[name](q_init=2.5)), spec_of(2), jax.random.key(0))
    assert_array_equal(np.asarray(state.Q.W), 2.5)


@pytest.mark.parametrize("make", [QLearning, SARSA, TD])
def test_the_start_of_linear_values_is_q_init(make):
    """Eight tiles are on at a time: together they are worth what a table's one entry would be."""
    name = "v_init" if make is TD else "q_init"
    state = started(arrays_of(make(features=Tiles(tilings=8), **{name: 4.0})), Spec(UNIT, Discrete(A), 1, 9),
                    jax.random.key(0))  # fmt: skip
    x = dense(Tiles(tilings=8), UNIT, np.array([[0.1], [0.9]]))
    assert_allclose(x @ np.asarray(weights(state)), 4.0, rtol=1e-6)


@pytest.mark.parametrize("name", ["q-learning", "sarsa", "expected-sarsa", "dyna-q"])
def test_optimism_explores(name):
    """§2.6: a greedy agent that expects much tries everything; one that expects nothing keeps to what it liked."""
    arms = 6
    P, R = np.ones((1, arms, 1)), (1 + np.arange(arms)[None, :]) / arms
    world = FiniteWorld.of(from_arrays(P, R, start=0))
    tried = {}
    for q_init in (5.0, 0.0):
        agent = ACTORS[name](gamma=0.0, lr=0.5, q_init=q_init, eps_start=0.0, eps_end=0.0)
        W = np.asarray(trained(agent, world, 1, 60).agent.Q.W)[0]
        tried[q_init] = int((W - q_init != 0).sum())
        if q_init:
            assert W.argmax() == arms - 1
    # What SARSA learns with two steps is known three steps late: until then all arms are equal.
    assert tried[5.0] == arms and tried[0.0] <= (3 if name == "sarsa" else 1)


# ------------------------------------------------------------------------------------------------ schedules


def scheduled(start, end, over, n_envs):
    """The value of a line at the environment steps before update u."""
    return lambda u: start + min(u * n_envs / over, 1.0) * (end - start)


@ENVS
def test_step_sizes_follow_their_schedule(n_envs):
    over = 60
    steps = stream(2, n_envs)
    _, tables = fed(QLearning(gamma=0.7, lr=Linear(0.8, 0.1, steps=over)), spec_of(n_envs), seen(steps))
    alpha = scheduled(0.8, 0.1, over, n_envs)
    same(tables, collected(book_q_learning(steps, 0.7, alpha, np.zeros((S, A)), ALL)))


@ENVS
def test_epsilon_follows_its_line(n_envs):
    """Read off the targets of expected SARSA, which are linear in ε."""
    over, W = 50, np.random.default_rng(0).normal(size=(S, A))
    steps, line = stream(4, n_envs), scheduled(1.0, 0.2, 50, n_envs)
    agent = SARSA(gamma=0.9, lr=0.3, expected=True, eps_start=1.0, eps_end=0.2, eps_steps=over)
    _, tables = fed(agent, spec_of(n_envs), seen(steps), W)
    oracle = book_n_step(steps, 1, 0.9, 0.3, np.float64(np.float32(W)), PAIR[0], expected(line, ALL))
    same(tables, collected(oracle))


@pytest.mark.parametrize("name", ACTORS)
def test_epsilon_of_acting_follows_its_line(name):
    """Greedy from the step on at which ε has come down to 0, random before."""
    N = 300
    agent = arrays_of(ACTORS[name](gamma=0.0, lr=1e-6, eps_start=1.0, eps_end=0.0, eps_steps=4 * N))
    spec = spec_of(N, True)
    W = np.tile(np.arange(A), (S, 2 if name == "double" else 1))
    state = with_weights(started(agent, spec, jax.random.key(0)), W)
    s = np.zeros(N, np.int32)
    obs = {"state": s, "action_mask": np.ones((N, A), np.int32)}
    step = Transition(obs, s, np.float32(s), obs, s > 0, s > 0)
    steps = jax.tree.map(lambda x: x[None], step)
    for u in range(6):
        actions = np.asarray(acted(agent, state, obs, jax.random.key(u), True))
        eps = max(0.0, 1 - u / 4)
        share = eps * 2 / 3
        assert abs((actions != A - 1).mean() - share) <= 5 * np.sqrt(share * (1 - share) / N), u
        state, _ = fed_from(agent, spec, state, steps, jax.random.key(u)[None])


# ------------------------------------------------------------------------------------------------ cranks

CRANKED = {
    "q-learning": QLearning(lr=Linear(0.5)),
    "double": QLearning(double=True, eps_start=0.9, eps_end=0.2, eps_steps=50),
    "sarsa": SARSA(n_step=3, eps_start=0.3, eps_end=0.3),
    "expected-sarsa": SARSA(expected=True, n_step=2),
    "td": TD(n_step=2, lr=Exponential(0.5, 0.1)),
    "td-lambda": TD(lam=0.7),
    "monte-carlo": MonteCarlo(eps_start=0.3, eps_end=0.3),
    "monte-carlo-constant": MonteCarlo(first_visit=False, lr=0.2, policy="uniform"),
    "dyna-q": DynaQ(planning_steps=4, kappa=0.01),
}


def cranked_world():
    """Four states, two actions, ends and a clock."""
    rng = np.random.default_rng(1)
    P, R = rng.dirichlet(np.ones(4), (4, 2)), rng.normal(size=(4, 2, 4))
    R[3] = 0
    return FiniteWorld.of(from_arrays(P, R, start=[0.5, 0.5, 0, 0], terminal=[3]), max_steps=5)


QUICK = ("sarsa", "td-lambda", "monte-carlo", "dyna-q")


@pytest.mark.parametrize("name", some_full(CRANKED, QUICK))
def test_cranks_agree_and_come_back_bit_for_bit(name):
    """Compiled and host crank end with the same bits, and so does each that went back to a snapshot of the middle."""
    world, steps = cranked_world(), 80
    spec = Spec(world.obs_space, world.action_space, 2, steps)
    agent = resolve_schedules(CRANKED[name], steps)
    makes = {
        "compiled": cranks.Compiled(agent, world, spec, (0,)),
        "host": cranks.Host(agent, lambda seed: cranks.JaxSteps(world, spec, seed), spec, (0,)),
    }
    ends = {}
    for kind, crank in makes.items():
        crank.advance(13)
        arrays, meta = crank.snapshot()
        arrays = {key: value.copy() for key, value in arrays.items()}
        crank.advance(27)
        ends[kind] = {key: x.tobytes() for key, x in cranks.named(crank.agent_state(0), "").items()}
        crank.restore(arrays, meta)
        assert crank.iterations() == 13
        crank.advance(27)
        again = {key: x.tobytes() for key, x in cranks.named(crank.agent_state(0), "").items()}
        assert again == ends[kind], f"{kind}: {[key for key in again if again[key] != ends[kind][key]]}"
    different = [key for key in ends["host"] if ends["host"][key] != ends["compiled"][key]]
    assert not different
    assert any(np.abs(x).max() > 0 for key, x in cranks.named(makes["host"].agent_state(0), "").items() if "/W" in key)


# ------------------------------------------------------------------------------------------------ what is refused


def refused(make, spec):
    """The one sentence with which an agent is refused, when it is made or when it sees its world."""
    with pytest.raises(PolyakError) as caught:
        jax.eval_shape(lambda key: make().init(key, spec), jax.random.key(0))
    sentence = str(caught.value)
    assert sentence and "\n" not in sentence
    return sentence


EVERY = {**ACTORS, "td": TD, "td-lambda": functools.partial(TD, lam=0.5)}
WRONG_ACTIONS = [Box(-1.0, 1.0, (1,)), MultiDiscrete((2, 2)), MultiBinary(2)]


@pytest.mark.parametrize("name", EVERY)
def test_actions_that_are_no_discrete_choice_are_refused(name):
    for action in WRONG_ACTIONS:
        assert "Discrete" in refused(EVERY[name], Spec(Discrete(3), action, 1, 10))


@pytest.mark.parametrize("name", EVERY)
def test_a_table_of_infinitely_many_observations_is_refused(name):
    for obs in (Box(-1.0, 1.0, (2,)), Tuple([Discrete(2), UNIT]), Dict({"a": UNIT})):
        assert "Box" in refused(EVERY[name], Spec(obs, Discrete(2), 1, 10))


GOOD = np.full((S, A), 1 / A)
BAD_POLICIES = {
    "sum": np.full((S, A), 0.3), "negative": np.tile([1.5, -0.5, 0.0], (S, 1)), "states": np.full((S - 1, A), 1 / A),
    "actions": np.full((S, A + 1), 1 / (A + 1)), "flat": np.full(A, 1 / A), "nan": np.full((S, A), np.nan),
    "word": "greedy",
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD_POLICIES)
@pytest.mark.parametrize("make", [TD, MonteCarlo])
def test_policies_that_are_none_are_refused(make, bad):
    assert "policy" in refused(functools.partial(make, policy=BAD_POLICIES[bad]), spec_of(1))


@pytest.mark.parametrize("make", [TD, MonteCarlo])
@pytest.mark.parametrize("policy", [GOOD, jnp.asarray(GOOD), GOOD.tolist()], ids=["numpy", "jax", "list"])
def test_policies_may_be_any_table(make, policy):
    """Also nested lists, and also where the agent is an argument of a jitted function, as the cranks have it."""
    state = started(arrays_of(make(policy=policy)), spec_of(1), jax.random.key(0))
    assert_allclose(np.asarray(state.policy), GOOD, rtol=1e-6)


BAD_FIELDS = {
    "lam and n_step": lambda: TD(lam=0.5, n_step=2),
    "sarsa of no step": lambda: SARSA(n_step=0),
    "td of no step": lambda: TD(n_step=0),
    "td of minus one step": lambda: TD(n_step=-1),
    "half a step": lambda: SARSA(n_step=1.5),
    "first visit of tiles": lambda: MonteCarlo(features=Tiles(), lr=0.1, first_visit=True),
    "average of tiles": lambda: MonteCarlo(features=Tiles(), first_visit=False),
    "gamma": lambda: QLearning(gamma=1.5),
    "negative gamma": lambda: SARSA(gamma=-0.1),
    "lambda": lambda: TD(lam=1.1),
    "epsilon": lambda: QLearning(eps_start=1.1),
    "negative epsilon": lambda: MonteCarlo(eps_end=-0.1),
    "negative planning": lambda: DynaQ(planning_steps=-1),
    "negative kappa": lambda: DynaQ(kappa=-1.0),
    "negative lr": lambda: QLearning(lr=-0.1),
    "lr is a word": lambda: QLearning(lr="high"),
    "lr is nothing": lambda: SARSA(lr=None),
}


@pytest.mark.parametrize("name", BAD_FIELDS)
def test_fields_that_can_not_be_are_refused(name):
    obs = UNIT if "tiles" in name else Discrete(S)
    refused(BAD_FIELDS[name], Spec(obs, Discrete(A), 1, 10))


@pytest.mark.parametrize(
    ("make", "field", "meant"),
    [
        (QLearning, "alpha", "lr"), (QLearning, "epsilon", "eps_start"), (QLearning, "doubel", "double"),
        (SARSA, "nstep", "n_step"), (TD, "lambda_", "lam"), (MonteCarlo, "first_visits", "first_visit"),
        (DynaQ, "planning", "planning_steps"), (DynaQ, "features", ""),
    ],
)  # fmt: skip
def test_unknown_fields_name_the_nearest(make, field, meant):
    with pytest.raises(PolyakError) as caught:
        make(**{field: 1})
    sentence = str(caught.value)
    assert field in sentence and meant in sentence and "\n" not in sentence


@pytest.mark.parametrize("features", [OneHot(), Tiles(), Fourier(), Polynomial(), Radial()])
def test_features_are_structure(features):
    """Agents with equal features are one compiled program, and their floats are leaves."""
    one, two = QLearning(features=features), QLearning(features=type(features)(), lr=0.3)
    assert jax.tree.structure(one) == jax.tree.structure(two)
    assert all(isinstance(x, float) for x in jax.tree.leaves(one))
