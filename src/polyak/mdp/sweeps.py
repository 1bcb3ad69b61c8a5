"""Sweeps over the states in NumPy: for small models, for dense ones, and for prioritised sweeping.

A sweeper holds a problem and advances what is iterated, X: a V [S], or a Q [S, A]. Every sweep leaves a row (smallest
change, largest change, largest |V|), from which `certificate` knows a bound. `compiled` has the same for large sparse
models.
"""

from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np

from polyak.mdp.certificate import Limits, bracket, rounding
from polyak.mdp.graph import Graph, attracted, graph_of, predecessors
from polyak.mdp.model import Flags, Floats, Indices
from polyak.mdp.problem import Problem, backup, followed, part

COMPILED = 50_000  # outcomes from which a sparse problem is swept by compiled programs
_BLOCKS = 48  # a Gauss–Seidel sweep in NumPy takes at most this many steps

Change: TypeAlias = Literal["synchronous", "sequential", "residual"]
"""What a row's changes are: X' − X with X' = TX; the same with X' from a sweep that read its own news; or TX − X."""


class Sweeper(Protocol):
    """What iterates."""

    @property
    def change(self) -> Change: ...
    def load(self, V: Floats) -> Any: ...
    def values(self, X: Any) -> Floats: ...
    def advance(self, X: Any, n: int, target: float) -> tuple[Any, Floats]:
        """At most n sweeps, fewer where `estimate` meets the target; the new X, and their rows [m, 3], m ≥ 1."""
        ...

    def rewarded(self, reward: Floats, scale: float) -> "Sweeper":
        """The same for other rewards [S, A], finite ones of at most `scale`."""
        ...

    def greedy(self, X: Any) -> "Sweeper":
        """The same for the problem in which there are only the greedy actions of X."""
        ...


def estimate(change: Change, limits: Limits, low: Any, high: Any, largest: Any, xp: Any = np) -> Any:
    """What has to fall to the target: the guaranteed bound, of a sequential sweep without the part of rounding; for
    γ = 1 the largest change."""
    size = xp.maximum(xp.abs(low), xp.abs(high))
    if change == "sequential":
        bound = size * limits.high / xp.maximum(1 - limits.high, 2.0**-60)
    else:
        bound = bracket(limits, low, high, largest, xp)[0] + (size if change == "residual" else 0.0)
    return xp.where(limits.proper, size, bound)


def guaranteed(change: Change, limits: Limits, rows: Floats) -> Floats:
    """The bound on ‖V − V*‖∞ for V after each sweep, from its rows [n, 3]; NaN for γ = 1.

    A sequential sweep contracts too: ‖V' − V*‖ ≤ (β ‖V' − V‖ + ε) / (1 − β), where ε ≤ e / (1 − β) is what rounding
    errors e, handed on inside the sweep, may add up to.
    """
    low, high, largest = rows.T
    if limits.proper:
        return np.full(len(rows), np.nan)
    if change == "sequential":
        bound = np.asarray(estimate(change, limits, low, high, largest))
        return bound * (1 + 1e-12) + rounding(limits, largest) / (1 - limits.high) ** 2
    plain = np.asarray(bracket(limits, low, high, largest)[2])
    return plain + np.maximum(np.abs(low), np.abs(high)) if change == "residual" else plain


def stalled(limits: Limits, low: Any, high: Any, largest: Any, xp: Any = np) -> Any:
    """Whether a sweep changed nothing beyond what rounding may."""
    return xp.maximum(xp.abs(low), xp.abs(high)) <= 2 * rounding(limits, largest)


def _row(change: Floats, values: Floats) -> tuple[float, float, float]:
    """A sweep's row from its changes and new values, of states that are not terminal."""
    if not change.size:
        return 0.0, 0.0, 0.0
    return float(change.min()), float(change.max()), max(float(values.max()), -float(values.min()))


def _enough(change: Change, limits: Limits, row: tuple[float, float, float], target: float) -> bool:
    return bool(estimate(change, limits, *row) <= target or stalled(limits, *row))


class Synchronous(NamedTuple):
    """All states at once, from the values of the sweep before (Sutton & Barto, eq. 4.10)."""

    problem: Problem
    limits: Limits
    live: Flags  # [S], or [S, A] where Q is iterated: what counts
    change: Change = "synchronous"

    def load(self, V: Floats) -> Floats:
        return V.copy() if self.live.ndim == 1 else np.where(np.isfinite(self.problem.reward), V[:, None], -np.inf)

    def values(self, X: Floats) -> Floats:
        return X if self.live.ndim == 1 else X.max(1)

    def advance(self, X: Floats, n: int, target: float) -> tuple[Floats, Floats]:
        rows: list[tuple[float, float, float]] = []
        for _ in range(n):
            Q = backup(self.problem, self.values(X))
            old, X = X, Q.max(1) if self.live.ndim == 1 else Q
            rows.append(_row(X[self.live] - old[self.live], X[self.live]))
            if _enough(self.change, self.limits, rows[-1], target):
                break
        return X, np.array(rows)

    def rewarded(self, reward: Floats, scale: float) -> "Synchronous":
        limits = self.limits._replace(scale=scale)
        return self._replace(problem=self.problem._replace(reward=reward), limits=limits)

    def greedy(self, X: Floats) -> "Synchronous":
        return self._replace(problem=_greedy(self.problem, self.values(X)), live=self.problem.free)


class Sequential(NamedTuple):
    """Block after block, each from the newest values: Gauss–Seidel (M. L. Puterman, 1994, §6.3.3)."""

    problem: Problem
    limits: Limits
    blocks: list[Indices]  # the states that each step of a sweep backs up
    change: Change = "sequential"

    def load(self, V: Floats) -> Floats:
        return V.copy()

    def values(self, X: Floats) -> Floats:
        return X

    def advance(self, X: Floats, n: int, target: float) -> tuple[Floats, Floats]:
        rows: list[tuple[float, float, float]] = []
        parts = [(states, part(self.problem, states)) for states in self.blocks]
        for _ in range(n):
            old, X = X, X.copy()
            for states, block in parts:
                X[states] = backup(block, X).max(1)
            rows.append(_row((X - old)[self.problem.free], X))
            if _enough(self.change, self.limits, rows[-1], target):
                break
        return X, np.array(rows)

    def rewarded(self, reward: Floats, scale: float) -> "Sequential":
        limits = self.limits._replace(scale=scale)
        return self._replace(problem=self.problem._replace(reward=reward), limits=limits)

    def greedy(self, X: Floats) -> "Sequential":
        return self._replace(problem=_greedy(self.problem, X))


class _Known(NamedTuple):
    """What prioritised sweeping iterates."""

    V: Floats
    change: Floats  # TV − V, [S], always that of V
    backups: int  # since the last whole sweep


class Prioritised(NamedTuple):
    """Prioritised sweeping: next come the states whose values would change most (Sutton & Barto, §8.4).

    The changes of all states are known at any time, since those that a backup may affect, the states with a row that
    may lead to it, are computed anew. States whose change is at least half of the largest are backed up together. A
    sweep is S backups, of whichever states, and those that only find out a change count.
    """

    problem: Problem
    limits: Limits
    graph: Graph
    change: Change = "residual"

    def load(self, V: Floats) -> _Known:
        return _Known(V.copy(), backup(self.problem, V).max(1) - V, self.problem.n_states)

    def values(self, X: _Known) -> Floats:
        return X.V

    def advance(self, X: _Known, n: int, target: float) -> tuple[_Known, Floats]:
        V, change, backups = X.V.copy(), X.change.copy(), X.backups
        rows: list[tuple[float, float, float]] = []
        while len(rows) < n:
            row = _row(change[self.problem.free], V)
            done = _enough(self.change, self.limits, row, target)
            if done or backups >= self.problem.n_states:
                backups = max(0, backups - self.problem.n_states)
                rows.append(row)
            if done:
                break
            size = np.abs(change)
            chosen = np.flatnonzero(size >= size.max() / 2)
            V[chosen] += change[chosen]
            affected = np.union1d(chosen, predecessors(self.graph, chosen)).astype(np.int32)
            change[affected] = backup(part(self.problem, affected), V).max(1) - V[affected]
            backups += len(affected)
        return _Known(V, change, backups), np.array(rows)

    def rewarded(self, reward: Floats, scale: float) -> "Prioritised":
        limits = self.limits._replace(scale=scale)
        return self._replace(problem=self.problem._replace(reward=reward), limits=limits)

    def greedy(self, X: _Known) -> "Prioritised":
        problem = _greedy(self.problem, X.V)
        return self._replace(problem=problem, graph=graph_of(problem))


def _greedy(problem: Problem, V: Floats) -> Problem:
    return followed(problem, backup(problem, V).argmax(1).astype(np.int32))


def levels(problem: Problem, graph: Graph) -> Indices:
    """In which order values spread, [S]: the number of steps to where the best is had.

    That is an outcome that ends the episode, of the largest reward among these; where no outcome does, the largest
    reward of all. States that can't get there come last.
    """
    ending = np.where(problem.ends & problem.free[:, None], problem.reward, -np.inf)
    reward = ending if np.isfinite(ending).any() else problem.reward
    best = (reward >= reward.max()).any(1) & problem.free
    level = attracted(graph, best, np.isfinite(problem.reward).ravel())
    return np.where(level < 0, level.max() + 1, level).astype(np.int32)


def is_large(problem: Problem) -> bool:
    """Whether compiled programs sweep it: dense problems are matrix products, which NumPy has too."""
    return problem.successor is not None and max(problem.weight.size, 8 * problem.n_states) >= COMPILED


def sweeper(problem: Problem, limits: Limits, kind: str, graph: Graph | None) -> Sweeper:
    """The sweeper for a problem of this size.

    Args:
        kind: "synchronous", "q", "sequential" or "prioritised"; the last two need the graph.
    """
    if graph is not None and kind == "prioritised":
        return Prioritised(problem, limits, graph)
    level = levels(problem, graph) if graph is not None and kind == "sequential" else None
    if is_large(problem):
        from polyak.mdp.compiled import compiled

        return compiled(problem, limits, level, on_q=kind == "q")
    if level is not None:
        order = np.argsort(level, kind="stable").astype(np.int32)
        return Sequential(problem, limits, np.array_split(order, min(len(order), _BLOCKS)))
    live = np.isfinite(problem.reward) & problem.free[:, None]
    return Synchronous(problem, limits, live if kind == "q" else problem.free)
