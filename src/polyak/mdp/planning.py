"""Exact planning: the value function V* of a finite model, with a bound on its error that holds.

Dynamic programming (R. S. Sutton and A. G. Barto, "Reinforcement Learning: An Introduction", 2nd edition, 2018, §4;
M. L. Puterman, "Markov Decision Processes", 1994, §4, §6 and §7). Every method ends when `certificate` shows that its
answer is within `tol` of V*, never because its changes have become small; they differ in how they get there. All
arithmetic is float64. γ = 1 is accepted where V* is finite and unique (see `proper`); the policy returned then ends
every episode.
"""

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyak.errors import PolyakError
from polyak.mdp.certificate import Certificate, Limits, certified, limits_of, rounding
from polyak.mdp.graph import Graph, descent, graph_of
from polyak.mdp.model import Flags, Floats, Indices, Model
from polyak.mdp.problem import Problem, backup, check_gamma, followed, problem_of
from polyak.mdp.proper import Merged, require_proper
from polyak.mdp.solution import Progress, Record, Solution
from polyak.mdp.sweeps import Sweeper, estimate, guaranteed, levels, stalled, sweeper
from polyak.memory import require_memory

Sweep = Literal["synchronous", "gauss-seidel", "prioritised"]

_KINDS = {"synchronous": "synchronous", "gauss-seidel": "sequential", "prioritised": "prioritised"}
_NAMES = {"synchronous": "value-iteration", "gauss-seidel": "gauss-seidel", "prioritised": "prioritised-sweeping"}
_FEW = 2000  # states for which linear equations take no longer than sweeps
_SHORT, _LONG = 0.1, 0.5  # seconds that one call of compiled sweeps should take: Ctrl-C and progress wait for it


# ---- methods


def value_iteration(
    model: Model,
    gamma: float,
    *,
    tol: float = 1e-6,
    sweep: Sweep = "synchronous",
    keep: int = 0,
    max_sweeps: int | None = None,
    progress: Progress | None = None,
) -> Solution:
    """Vₖ₊₁ = T Vₖ (Sutton & Barto, eq. 4.10).

    Args:
        model: the finite model.
        gamma: the discount factor, in [0, 1].
        tol: ‖V − V*‖∞ that is guaranteed in the end.
        sweep: "synchronous" starts from V⁰ = 0. "gauss-seidel" takes the states in the order in which values spread,
            each from the newest values; "prioritised" the states that would change most. These two start from a lower
            bound of V* where rewards are negative, from which values spread at once and not as slowly as errors decay.
        keep: how many frames of V to keep for pictures, 0 for none.
        max_sweeps: stop after so many; the bound then says how far it got.
        progress: called about every 0.1 s to 0.5 s with (sweeps so far, bound or NaN).

    Errors:
        PolyakError: gamma or tol can't be; at gamma = 1 a state has no finite value; float64 can't promise tol.
    """
    if sweep not in _KINDS:
        raise PolyakError(f"sweep is {sweep!r}, and must be one of {', '.join(_KINDS)}")
    task = _task(model, gamma)
    record = Record(keep, progress)
    found = _swept(task, _KINDS[sweep], tol, record, max_sweeps)
    return _solution(task, found, record, _NAMES[sweep])


def q_value_iteration(
    model: Model,
    gamma: float,
    *,
    tol: float = 1e-6,
    keep: int = 0,
    max_sweeps: int | None = None,
    progress: Progress | None = None,
) -> Solution:
    """Qₖ₊₁(s, a) = r + γ Σ p maxₐ' Qₖ(s', a') from Q⁰ = 0, which Q-learning samples (Sutton & Barto, eq. 4.2).

    Arguments and errors as of `value_iteration`; the bound holds for V = maxₐ Q.
    """
    task = _task(model, gamma)
    record = Record(keep, progress)
    found = _swept(task, "q", tol, record, max_sweeps)
    return _solution(task, found, record, "q-value-iteration")


def modified_policy_iteration(
    model: Model,
    gamma: float,
    *,
    tol: float = 1e-6,
    evaluations: int = 20,
    keep: int = 0,
    max_sweeps: int | None = None,
    progress: Progress | None = None,
) -> Solution:
    """A sweep of value iteration, then `evaluations` sweeps under the policy that it found, each an A-th of the work.

    Puterman, 1994, §6.5. All sweeps are Gauss–Seidel sweeps in the order in which values spread, from a lower bound of
    V*; this is the fastest method for large models. Other arguments and errors as of `value_iteration`.
    """
    if evaluations < 0:
        raise PolyakError(f"evaluations is {evaluations}, and must be at least 0")
    task = _task(model, gamma)
    record = Record(keep, progress)
    found = _swept(task, "sequential", tol, record, max_sweeps, evaluations)
    return _solution(task, found, record, "modified-policy-iteration")


def policy_iteration(
    model: Model,
    gamma: float,
    *,
    keep: int = 0,
    max_sweeps: int | None = None,
    progress: Progress | None = None,
) -> Solution:
    """Exact evaluation and greedy improvement in turn (Sutton & Barto, §4.3; Puterman, 1994, §6.4).

    An action is changed only for one that is better by more than rounding errors, so ties can't make it cycle, and
    every policy on the way is proper if the first one is: at γ = 1 that is a way to an end. It ends when a policy comes
    for the second time. A sweep is one improvement.

    Args: as of `value_iteration`.

    Errors:
        PolyakError: gamma can't be; at gamma = 1 a state has no finite value.
    """
    task = _task(model, gamma)
    record = Record(keep, progress)
    problem = task.problem
    policy, seen = _promising(task), set[int]()
    record.frame(lambda: task.expanded(np.zeros(problem.n_states)))
    while True:
        seen.add(hash(policy.tobytes()))
        V = _exact(followed(problem, policy))
        Q = backup(problem, V)
        error = rounding(task.limits, float(np.abs(V).max()))
        here = Q[np.arange(len(policy)), policy]
        better = Q.max(1) > here + 2 * (error + float(np.abs(here - V).max()))
        policy = np.where(better, Q.argmax(1), policy).astype(np.int32)
        ended = hash(policy.tobytes()) in seen
        last = ended or (max_sweeps is not None and record.sweeps + 1 >= max_sweeps)
        found = certified(problem, task.limits, V, task.graph, task.steps) if last else Certificate(V, math.nan)
        found = _proved(found) if ended else found
        record.counted(np.array([found.bound]))
        record.frame(lambda V=V: task.expanded(V))
        if last:
            return _solution(task, found, record, "policy-iteration")


def linear_program(model: Model, gamma: float) -> Solution:
    """min Σ V(s) subject to V(s) ≥ r(s, a) + γ Σ p V(s') for all pairs, whose solution is V* (Puterman, 1994, §6.9.1).

    HiGHS solves it, and the greedy policy of its answer is evaluated exactly, since a solver stops at 10⁻¹⁰ of its own
    scale. It takes coefficients up to 10⁻⁹ for 0. `sweeps` counts its iterations. Arguments and errors as of
    `policy_iteration`; and it may be refused that the program was not solved.
    """
    from scipy.optimize import linprog

    task = _task(model, gamma)
    problem, n, scale = task.problem, task.problem.n_states, task.problem.scale or 1.0
    matrix, reward = _constraints(problem)
    bounds = np.where(problem.free[:, None], [[-np.inf, np.inf]], [[0.0, 0.0]])
    exact = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    result: Any = linprog(np.ones(n), A_ub=matrix, b_ub=-reward / scale, bounds=bounds, method="highs", options=exact)
    if result.x is None:
        raise PolyakError(f"the linear program of {n} states was not solved: {result.message}")
    V = _exact(followed(problem, backup(problem, result.x * scale).argmax(1).astype(np.int32)))
    record = Record(0, None)
    record.counted(np.full(max(1, int(result.nit)) - 1, np.nan))
    found = _proved(certified(problem, task.limits, V, task.graph, task.steps))
    record.counted(np.array([found.bound]))
    return _solution(task, found, record, "linear-program")


def policy_evaluation(
    model: Model,
    policy: Any,
    gamma: float,
    *,
    tol: float | None = None,
    keep: int = 0,
    max_sweeps: int | None = None,
    progress: Progress | None = None,
) -> Solution:
    """V^π, the value of acting by a policy (Sutton & Barto, eq. 4.4).

    Args:
        policy: an action per state, [S] integers, or probabilities [S, A].
        tol: by linear equations unless given (sparse models by sparse factors); otherwise by sweeps, until
            ‖V − V^π‖∞ ≤ tol.
        keep, max_sweeps, progress: as of `value_iteration`, for sweeps.

    Returns V^π; Q is Q^π, `policy` its greedy policy, and the bound is that of V^π.

    Errors:
        PolyakError: the policy is none; at gamma = 1 it never ends the episode from some state.
    """
    full = problem_of(model, gamma)
    task = _prepared(model, _under(full, _checked(model, policy)), gamma, "this policy never")
    record = Record(keep, progress)
    if tol is None:
        V = _exact(task.problem)
        found = certified(task.problem, task.limits, V, task.graph, task.steps)
        record.counted(np.array([found.bound]))
    else:
        found = _swept(task, "synchronous", tol, record, max_sweeps)
    return _solution(task, found, record, "policy-evaluation", full)


def finite_horizon(model: Model, horizon: int, gamma: float = 1.0) -> Solution:
    """The best that can be had in `horizon` steps, by backward induction (Puterman, 1994, §4.5).

    V[t, s] is what is expected from step t on (Vₜ = T Vₜ₊₁, V_H = 0), and policy[t, s] the action there. An episode
    that Gymnasium truncates after H steps is such a problem: FrozenLake's 100 steps are worth 0.744, and not 0.824.
    Every discount factor will do, and every model. A sweep is one step.

    Errors:
        PolyakError: horizon or gamma can't be, or the arrays would not fit into memory.
    """
    check_gamma(gamma)
    if not _is_count(horizon):
        raise PolyakError(f"horizon is {horizon}, and must be a whole number of steps, at least 1")
    problem, n = problem_of(model, gamma), model.n_states
    require_memory(12 * (horizon + 1) * n, f"{horizon} steps of {n} states", "take a shorter horizon")
    limits = limits_of(problem, proper=False)
    V, policy = np.zeros((horizon + 1, n)), np.zeros((horizon, n), np.int32)
    errors, Q = np.zeros(horizon), problem.reward
    for t in reversed(range(horizon)):
        Q = backup(problem, V[t + 1])
        V[t], policy[t] = Q.max(1), Q.argmax(1)
        before = errors[horizon - t - 2] if t + 1 < horizon else 0.0
        largest = max(float(np.abs(V[t]).max()), float(np.abs(V[t + 1]).max()))
        errors[horizon - t - 1] = limits.high * before + rounding(limits, largest)
    bound, start_value = float(errors.max()), float(model.start @ V[0])
    frames = V[::-1], np.arange(horizon + 1)
    return Solution(V, Q, policy, horizon, bound, gamma, "finite-horizon", errors, *frames, start_value)


def bellman(model: Model, V: Floats, gamma: float) -> Floats:
    """Q(s, a) = r(s, a) + γ Σ p [not terminated] V(s'), [S, A]: one backup of V [S]."""
    V = np.asarray(V, np.float64)
    if V.shape != (model.n_states,):
        raise PolyakError(f"V has the shape {list(V.shape)}, and must be [{model.n_states}]")
    return backup(problem_of(model, gamma), V)


METHODS: dict[str, Callable[..., Solution]] = {
    "value-iteration": value_iteration,
    "gauss-seidel": partial(value_iteration, sweep="gauss-seidel"),
    "prioritised-sweeping": partial(value_iteration, sweep="prioritised"),
    "policy-iteration": policy_iteration,
    "modified-policy-iteration": modified_policy_iteration,
    "linear-program": linear_program,
    "q-value-iteration": q_value_iteration,
    "finite-horizon": finite_horizon,
}
"""The planners by the names that the command line uses; finite-horizon takes (model, horizon, gamma)."""


# ---- what all methods share


class _Task(NamedTuple):
    """A model at a discount factor, ready to be solved.

    Attributes:
        problem: what is solved: the model's, or at γ = 1 the one in which free loops are merged.
        graph, policy: at γ = 1 its graph, and a proper policy [N].
        merged: how to read the merged answer.
    """

    model: Model
    gamma: float
    problem: Problem
    limits: Limits
    graph: Graph | None
    policy: Indices | None
    merged: Merged | None

    def expanded(self, V: Floats) -> Floats:
        """The model's values [S] from the problem's [N]."""
        return V if self.merged is None else V[self.merged.node]

    def ordered(self) -> Graph:
        """The problem's graph."""
        return graph_of(self.problem) if self.graph is None else self.graph

    def steps(self, near: Flags, guess: Floats) -> Floats:
        """About the largest expected number of steps to the end under the actions `near` [N, A]; see `certificate`.

        Of few states it is the exact one, by policy iteration, since sweeps would take as long as the episodes last.
        """
        reward = np.where(near, 1.0, np.where(self.problem.free[:, None], -np.inf, 0.0))
        if self.problem.n_states <= _FEW:
            return _most(self.problem._replace(reward=reward))
        counting = sweeper(self.problem, self.limits, "sequential", self.graph).rewarded(reward, 1.0)
        X = counting.load(guess)
        while True:
            X, rows = counting.advance(X, 64, 0.25)
            if np.abs(rows[-1, :2]).max() <= 0.25:
                return counting.values(X)


def _task(model: Model, gamma: float) -> _Task:
    return _prepared(model, problem_of(model, gamma), gamma, "no policy")


def _prepared(model: Model, problem: Problem, gamma: float, names: str) -> _Task:
    """The task of a problem; at γ = 1 whatever has no finite value is refused."""
    if gamma == 1:
        merged, problem, _, policy = require_proper(problem, names)
        graph = graph_of(problem)
        return _Task(model, gamma, problem, limits_of(problem, proper=True), graph, policy, merged)
    limits = limits_of(problem, proper=False)
    if limits.high >= 1:
        raise PolyakError(
            f"gamma is {gamma!r}, so close to 1 that the probabilities' sums, up to {limits.high / gamma!r}, undo it; "
            "normalise them, or use gamma = 1"
        )
    return _Task(model, gamma, problem, limits, None, None, None)


def _swept(
    task: _Task, kind: str, tol: float, record: Record, max_sweeps: int | None, evaluations: int = 0
) -> Certificate:
    """Sweeps until the certificate is within tol, or max_sweeps are done; evaluations: see modified policy iteration.

    The certificate's own backup is a sweep where γ < 1. At γ = 1 how far changes have to fall is found out as it goes.
    """
    _check_tolerance(tol, max_sweeps)
    graph = task.ordered() if kind in ("sequential", "prioritised") else None
    engine = sweeper(task.problem, task.limits, kind, graph)
    most = math.inf if max_sweeps is None else max_sweeps - (not task.limits.proper)
    target, chunk = tol / 64 if task.limits.proper else tol, 4
    first = _first(task, record, most) if graph is not None else np.zeros(task.problem.n_states)
    record.frame(lambda: task.expanded(first))
    X = engine.load(first)
    while True:
        left = most - record.sweeps
        met = stuck = left <= 0
        if not met:
            begun = time.perf_counter()
            n = record.room(int(min(1 if evaluations else chunk, left)))
            X, rows = engine.advance(X, n, target)
            record.counted(guaranteed(engine.change, task.limits, rows))
            record.frame(lambda X=X: task.expanded(engine.values(X)))
            met = estimate(engine.change, task.limits, *rows[-1]) <= target
            stuck = bool(stalled(task.limits, *rows[-1]))
            chunk = _length(chunk, time.perf_counter() - begun)
        if met or stuck:
            found = certified(task.problem, task.limits, engine.values(X), task.graph, task.steps)
            if found.bound <= tol or left <= 0:
                return _closed(found, task, record)
            if stuck:
                raise PolyakError(_unreachable(tol, found.bound))
            target /= 2 * max(min(found.bound / tol, 50.0), 1.0)
        elif evaluations and left > 1:
            X = _evaluated(engine, X, int(min(evaluations, left - 1)), target / 4, record)
            record.frame(lambda X=X: task.expanded(engine.values(X)))


def _evaluated(engine: Sweeper, X: Any, n: int, target: float, record: Record) -> Any:
    """At most n sweeps under the greedy policy of X, fewer where its own target is met."""
    X, rows = engine.greedy(X).advance(X, n, target)
    record.counted(np.full(len(rows), np.nan))
    return X


def _length(chunk: int, seconds: float) -> int:
    """How many sweeps the next call should do."""
    if seconds < _SHORT:
        return min(2 * chunk, 256)
    return max(1, chunk // 2) if seconds > _LONG else chunk


def _check_tolerance(tol: Any, max_sweeps: Any) -> None:
    if not (isinstance(tol, int | float | np.floating) and 0 < tol < math.inf):
        raise PolyakError(f"tol is {tol}, and must be a number above 0")
    if max_sweeps is not None and not _is_count(max_sweeps):
        raise PolyakError(f"max_sweeps is {max_sweeps}, and must be a whole number, at least 1")


def _is_count(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 1)


def _proved(found: Certificate) -> Certificate:
    """The certificate of a method that can't go on, unless it says nothing."""
    if math.isinf(found.bound):
        raise PolyakError(_unreachable(0.0, found.bound))
    return found


def _unreachable(tol: float, bound: float) -> str:
    if math.isinf(bound):
        return (
            "no bound could be proved at gamma = 1: some loop costs less than float64 can tell from nothing; use "
            "gamma < 1, or a larger cost per step"
        )
    return f"tol is {tol:g}, and float64 can promise {1.1 * bound:.2g} for this model; use at least that"


def _closed(found: Certificate, task: _Task, record: Record) -> Certificate:
    """Counts the certificate's sweep, or at γ = 1 gives its bound to the last one."""
    if not task.limits.proper:
        record.counted(np.array([found.bound]))
    elif record.errors:
        record.errors[-1] = found.bound
    return found


def _first(task: _Task, record: Record, most: float) -> Floats:
    """V⁰ [N]: 0, or where rewards are negative a V with V ≤ TV: a constant, at γ = 1 about a proper policy's value.

    That value is found by sweeps from 0 on, which count.
    """
    problem = task.problem
    worst = float(problem.reward.min(initial=0.0, where=np.isfinite(problem.reward)))
    zero = np.zeros(problem.n_states)
    if worst >= 0 or task.policy is None:
        return np.where(problem.free, worst / (1 - task.limits.high), 0.0) if worst < 0 else zero
    record.frame(lambda: task.expanded(zero))
    alone = followed(problem, task.policy)
    engine = sweeper(alone, task.limits, "sequential", graph_of(alone))
    X, near = engine.load(zero), 1e-3 * problem.scale
    while record.sweeps < most:
        X, rows = engine.advance(X, int(min(64, most - record.sweeps)), near)
        record.counted(np.full(len(rows), np.nan))
        if np.abs(rows[-1, :2]).max() <= near:
            break
    return engine.values(X)


def _most(problem: Problem) -> Floats:
    """V* [N] of a problem all of whose policies are proper, by policy iteration, to a relative 10⁻⁹."""
    policy = problem.reward.argmax(1).astype(np.int32)
    while True:
        V = _exact(followed(problem, policy))
        Q = backup(problem, V)
        better = Q.max(1) > V + 1e-9 * np.abs(V)
        if not better.any():
            return V
        policy = np.where(better, Q.argmax(1), policy).astype(np.int32)


def _promising(task: _Task) -> Indices:
    """A policy [N] to start from: towards where the best reward is; proper where γ = 1."""
    if task.policy is not None:
        return task.policy
    problem, graph = task.problem, task.ordered()
    level, real = levels(problem, graph), np.isfinite(problem.reward).ravel()
    return np.where(level > 0, descent(graph, problem, level, real), problem.reward.argmax(1)).astype(np.int32)


def _exact(problem: Problem) -> Floats:
    """The solution of V = r + W V for a problem with one action, refined once."""
    n, reward = problem.n_states, problem.reward[:, 0]
    try:
        if problem.successor is None:
            require_memory(16 * n * n, f"the equations of {n} dense states", "use value_iteration")
            matrix = np.eye(n) - problem.weight[:, 0]
            V = np.linalg.solve(matrix, reward)
            return V + np.linalg.solve(matrix, reward - matrix @ V)
        from scipy.sparse import csc_matrix, identity
        from scipy.sparse.linalg import splu

        k = problem.weight.shape[2]
        rows = np.repeat(np.arange(n), k)
        weights: Any = csc_matrix((problem.weight.ravel(), (rows, problem.successor.ravel())), shape=(n, n))
        weights.eliminate_zeros()
        matrix = (identity(n, format="csc") - weights).tocsc()
        factors = splu(matrix)
        V = factors.solve(reward)
        return V + factors.solve(reward - matrix @ V)
    except (np.linalg.LinAlgError, RuntimeError) as error:
        raise PolyakError(f"the values of a policy on {n} states are not determined in float64: {error}") from error


def _constraints(problem: Problem) -> tuple[Any, Floats]:
    """(W − I, r) of the pairs that exist: W V − V ≤ −r, sparse [rows, S]."""
    from scipy.sparse import csr_matrix

    n, n_actions = problem.reward.shape
    graph = graph_of(problem)
    weight = problem.weight.ravel()[np.flatnonzero(problem.weight)]
    pairs = np.arange(n * n_actions)
    data = np.concatenate([weight, np.full(n * n_actions, -1.0)])
    place = np.concatenate([graph.row, pairs]), np.concatenate([graph.to, pairs // n_actions])
    matrix: Any = csr_matrix((data, place), shape=(n * n_actions, n))
    real = (np.isfinite(problem.reward) & problem.free[:, None]).ravel()
    return matrix[real], problem.reward.ravel()[real]


def _checked(model: Model, policy: Any) -> NDArray[Any]:
    """A policy as [S] int32 or [S, A] float64."""
    given, n, n_actions = np.asarray(policy), model.n_states, model.n_actions
    if given.shape == (n,) and given.dtype.kind in "iu":
        wrong = np.flatnonzero((given < 0) | (given >= n_actions))
        if wrong.size:
            s = wrong[0]
            raise PolyakError(f"state {s}: the policy takes action {given[s]}, and there are 0 to {n_actions - 1}")
        return given.astype(np.int32)
    if given.shape != (n, n_actions) or given.dtype.kind not in "fiu":
        raise PolyakError(
            f"the policy is {given.dtype} of the shape {list(given.shape)}, and must be integers [{n}] or "
            f"probabilities [{n}, {n_actions}]"
        )
    given = given.astype(np.float64)
    sums = given.sum(1)
    wrong = np.flatnonzero(~((given >= 0).all(1) & (np.abs(sums - 1) <= 1e-9)))
    if wrong.size:
        raise PolyakError(f"state {wrong[0]}: the policy's probabilities {given[wrong[0]].tolist()} must sum to 1")
    return given


def _under(problem: Problem, policy: NDArray[Any]) -> Problem:
    """The problem with one action, which is to follow the policy."""
    if policy.ndim == 1:
        return followed(problem, policy)
    n = problem.n_states
    ends = ((policy > 0) & problem.ends).any(1, keepdims=True)
    reward = np.einsum("sa,sa->s", policy, problem.reward)[:, None]
    if problem.successor is None:
        weight = np.einsum("sa,sak->sk", policy, problem.weight)[:, None]
        return problem._replace(weight=weight, reward=reward, ends=ends)
    weight = (policy[:, :, None] * problem.weight).reshape(n, 1, -1)
    return problem._replace(weight=weight, successor=problem.successor.reshape(n, 1, -1), reward=reward, ends=ends)


def _solution(task: _Task, found: Certificate, record: Record, method: str, full: Problem | None = None) -> Solution:
    """The answer for the model; full: the model's problem where the task's is that of a policy."""
    V = np.where(task.model.terminal, 0.0, task.expanded(found.V))
    Q = backup(problem_of(task.model, task.gamma) if full is None else full, V)
    policy = Q.argmax(1).astype(np.int32)
    if task.merged is not None and full is None:
        policy = task.merged.policy(backup(task.problem, found.V).argmax(1).astype(np.int32))
    record.frame(lambda: V, last=True)
    frames = np.array([frame for _, frame in record.frames]) if record.frames else np.zeros((0, len(V)))
    at = np.array([sweeps for sweeps, _ in record.frames], np.int64)
    errors, start_value = np.array(record.errors), float(task.model.start @ V)
    bound = float(found.bound)
    return Solution(V, Q, policy, record.sweeps, bound, task.gamma, method, errors, frames, at, start_value)
