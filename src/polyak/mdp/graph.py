"""What can lead where: distances to the end, and sets of states that an agent can stay in for ever.

A row is a state with one of its actions, numbered s · A + a; masks of rows are flat, [S · A]. Everything works level
by level on whole arrays, in time proportional to the number of outcomes.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyak.mdp.model import Flags, Indices
from polyak.mdp.problem import Problem


class Graph(NamedTuple):
    """The possible outcomes that don't end the episode, E of them."""

    row: Indices  # [E], ascending
    to: Indices  # [E]
    pointer: NDArray[np.int64]  # [S + 1]: entering[pointer[s] : pointer[s + 1]] are the rows that may lead to s
    entering: Indices  # [E]
    n_actions: int

    @property
    def n_states(self) -> int:
        return len(self.pointer) - 1


def graph_of(problem: Problem) -> Graph:
    """The outcomes with positive weight."""
    from scipy.sparse import csr_matrix

    n, n_actions, k = problem.weight.shape
    flat = np.flatnonzero(problem.weight)
    row = (flat // k).astype(np.int32)
    to = (flat % k if problem.successor is None else problem.successor.ravel()[flat]).astype(np.int32)
    counts = np.bincount(row, minlength=n * n_actions)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32 if len(row) < 2**31 else np.int64)
    by_row: Any = csr_matrix((np.ones(len(row), np.int8), to, starts), shape=(n * n_actions, n))
    by_state: Any = by_row.tocsc()
    return Graph(row, to, by_state.indptr.astype(np.int64), by_state.indices, n_actions)


def _entering(graph: Graph, states: NDArray[Any]) -> Indices:
    """The rows that may lead to one of the states, with repetitions."""
    first, counts = graph.pointer[states], graph.pointer[states + 1] - graph.pointer[states]
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return graph.entering[np.repeat(first - ends + counts, counts) + np.arange(total)]


def predecessors(graph: Graph, states: NDArray[Any]) -> Indices:
    """The states with a row that may lead to one of these, ascending."""
    return np.unique(_entering(graph, states) // graph.n_actions)


def attracted(graph: Graph, targets: Flags, allowed: Flags) -> Indices:
    """Level [S]: how many allowed rows a state is away, at best, from the targets, −1 where it can't reach them."""
    level = np.where(targets, 0, -1).astype(np.int32)
    frontier, depth = np.flatnonzero(targets), 0
    while frontier.size:
        depth += 1
        rows = _entering(graph, frontier)
        frontier = np.unique(rows[allowed[rows]] // graph.n_actions)
        frontier = frontier[level[frontier] < 0]
        level[frontier] = depth
    return level


def descent(graph: Graph, problem: Problem, level: Indices, allowed: Flags) -> Indices:
    """The allowed action [S] that most probably leads to a lower level, or ends the episode."""
    weight = problem.weight.ravel()[np.flatnonzero(problem.weight)]
    lower = level[graph.to] < level[graph.row // graph.n_actions]
    size = problem.reward.shape
    falls, stays = (np.bincount(graph.row, weight * part, size[0] * size[1]) for part in (lower, ~lower))
    falls = np.where(problem.ends.ravel(), np.maximum(falls, 1 - stays), falls)
    return np.where(allowed, falls, -1.0).reshape(size).argmax(1).astype(np.int32)


def surely_attracted(graph: Graph, ends: Flags, allowed: Flags) -> Indices:
    """Level [S] of the states from which every choice among allowed rows ends the episode at last, −1 elsewhere.

    A state joins when each of its allowed rows may end the episode or lead to a state that joined before. If all
    join, the allowed rows hold no end component: every policy that they permit is proper. Otherwise those left out
    have a row each that leads to states left out alone.
    """
    n_actions, level = graph.n_actions, np.full(graph.n_states, -1, np.int32)
    hit = allowed & ends
    missing = allowed.reshape(-1, n_actions).sum(1) - hit.reshape(-1, n_actions).sum(1)
    frontier, depth = np.flatnonzero(missing == 0), 0
    while frontier.size:
        level[frontier] = depth
        depth += 1
        rows = np.unique(_entering(graph, frontier))
        rows = rows[allowed[rows] & ~hit[rows]]
        hit[rows] = True
        states, counts = np.unique(rows // n_actions, return_counts=True)
        missing[states] -= counts
        frontier = states[missing[states] == 0]
    return level


def escape(graph: Graph, problem: Problem) -> tuple[Indices, Indices]:
    """(level, action) [S] of a policy that ends the episode with probability 1; level −1 where no policy does.

    Rows are dropped that may lead to where no end can be reached, until none is left (C. Baier and J.-P. Katoen,
    "Principles of Model Checking", 2008, §10.6.1). Level: the fewest steps to an end.
    """
    allowed = np.isfinite(problem.reward).ravel()
    while True:
        last = problem.ends & allowed.reshape(problem.ends.shape) & problem.free[:, None]
        level = attracted(graph, ~problem.free | last.any(1), allowed)
        level = np.where(problem.free & (level >= 0), level + 1, level)
        dropped = _entering(graph, np.flatnonzero(level < 0))
        if not allowed[dropped].any():
            return level, descent(graph, problem, level, allowed)
        allowed[dropped] = False


def end_components(graph: Graph, allowed: Flags) -> tuple[Indices, Flags]:
    """(label [S], inside [S · A]): the maximal end components of the allowed rows.

    An end component is a set of states with rows of theirs that never lead out of it and connect all of it: a place
    that an agent can stay in for ever (L. de Alfaro, "Formal Verification of Probabilistic Systems", 1997, §3). The
    label is −1 for states that are in none. `inside` marks the rows that stay in their state's component.
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    inside, n = allowed.copy(), graph.n_states
    source = graph.row // graph.n_actions
    while True:
        kept = inside[graph.row]
        pair: Any = (np.ones(int(kept.sum()), np.int8), (source[kept], graph.to[kept]))
        label = connected_components(csr_matrix(pair, shape=(n, n)), connection="strong")[1]
        crossing = graph.row[kept & (label[source] != label[graph.to])]
        if not crossing.size:
            members = inside.reshape(n, -1).any(1)
            return np.where(members, label, -1).astype(np.int32), inside
        inside[crossing] = False
