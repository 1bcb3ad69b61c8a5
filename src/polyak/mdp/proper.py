"""Problems without discounting: which of them have a value, and in what form planners can find it.

At γ = 1 the value of a state is the largest expected sum of rewards until the episode ends (a stochastic shortest
path; D. P. Bertsekas and J. N. Tsitsiklis, "An Analysis of Stochastic Shortest Path Problems", Mathematics of
Operations Research 16(3), 1991). T has it as its only fixed point, and every method converges to it, if

    (a) from every state some policy ends the episode with probability 1 (it is proper), and
    (b) every policy that never ends it, from some state on, loses without bound.

Both are questions about end components, where an agent can stay for ever:

- where all rewards inside are 0, staying is worth exactly 0 (FrozenLake without slipping). Such a component becomes
  one state, whose actions are all ways out of it and one more: to stay, which ends the episode for nothing
  (L. de Alfaro, "Computing Minimum and Maximum Reachability Times in Probabilistic Systems", CONCUR 1999). Then every
  end component left has rewards other than 0;
- where the best average reward inside is positive, the value is infinite, and the problem is refused;
- where it is 0, with rewards that cancel around a loop, the sum has no limit, and the problem is refused;
- where it is negative, (b) holds. Bumping into CliffWalking's walls for ever costs −∞.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyak.errors import PolyakError
from polyak.mdp.graph import Graph, attracted, descent, end_components, escape, graph_of
from polyak.mdp.model import Flags, Floats, Indices
from polyak.mdp.problem import Problem, backup, part, sparse

_SWEEPS, _WORK = 20_000, 4_000_000_000  # sweeps, and outcomes in all, to decide whether a loop pays or costs
_STAY = -1  # an item of a merged state; −2 − i leads on to its i-th additional node, −inf is none
_NONE = np.iinfo(np.int64).min


class Merged(NamedTuple):
    """A problem whose free end components are single states, and how to read its answer.

    Attributes:
        problem: N nodes: one for every component or state outside of one, and then those additional nodes through
            which a component with more than A ways out reaches them.
        node: [S], where each state of the original went.
        item: [N, A]: the original's row behind each action, or `_STAY`, a link, or `_NONE`.
        inside: [S · A], rows that wander in a component for nothing.
        component: [S], states that were merged, alone or with others.
        graph, origin: the original's.
    """

    problem: Problem
    node: NDArray[np.int64]
    item: NDArray[np.int64]
    inside: Flags
    component: Flags
    graph: Graph
    origin: Problem

    def policy(self, chosen: Indices) -> Indices:
        """The original's policy [S] from the merged one [N]: members of a component walk to where it is left.

        Every member takes rows that stay inside for nothing, and may lead closer to the state with the way out; since
        none leads outside, that state is reached with probability 1. Where staying is best they stay.
        """
        n_actions = self.graph.n_actions
        action = chosen[self.node] % n_actions
        wander = self.inside.reshape(-1, n_actions)
        exits = np.zeros(len(action), bool)
        for node in np.unique(self.node[self.component]):
            item = self.item[node, chosen[node]]
            while item < _STAY:
                node = -2 - int(item)
                item = self.item[node, chosen[node]]
            if item != _STAY:
                exits[item // n_actions] = True
                action[item // n_actions] = item % n_actions
        level = attracted(self.graph, exits, self.inside)
        towards = descent(self.graph, self.origin, level, self.inside)
        action = np.where(self.component & ~exits & (level > 0), towards, action)
        return np.where(self.component & (level < 0), wander.argmax(1), action).astype(np.int32)


def require_proper(problem: Problem, names: str = "no policy") -> tuple[Merged | None, Problem, Indices, Indices]:
    """Checks (a) and (b), and merges free components.

    Args:
        names: who does not end the episode, for the sentence.

    Returns (how to read the merged answer, None where nothing had to be merged; the problem to solve; level [N];
    policy [N]): a proper policy, and the fewest steps to an end.

    Errors:
        PolyakError: some state has no finite value; the sentence names it, and the action where there is one.
    """
    graph = graph_of(problem)
    free = (problem.reward == 0) & ~problem.ends & problem.free[:, None]
    merged = None
    if free.any():
        label, inside = end_components(graph, free.ravel())
        if inside.any():
            merged = _merge(sparse(problem), graph, label, inside)
    target = problem if merged is None else merged.problem
    inner = graph if merged is None else graph_of(target)
    level, action = escape(inner, target)
    if (level < 0).any():
        node = int(np.flatnonzero(level < 0)[0])
        s = node if merged is None else int(np.flatnonzero(merged.node == node)[0])
        raise PolyakError(
            f"state {s}: {names} ends the episode from here with certainty, so it has no finite value at gamma = 1; "
            "use gamma < 1 or a finite horizon, or mark terminal what ends the episode"
        )
    _require_losses(target, inner, merged)
    return merged, target, level, action


def _merge(problem: Problem, graph: Graph, label: Indices, inside: Flags) -> Merged:
    """Every component as one state."""
    n, n_actions = problem.reward.shape
    component = label >= 0
    # components are numbered behind the states; both are then numbered anew without gaps, in the order of the states
    _, node = np.unique(np.where(component, n + label.astype(np.int64), np.arange(n)), return_inverse=True)
    count = int(node.max()) + 1
    items: list[list[int]] = []  # of the additional nodes
    table = np.full((count, n_actions), _NONE)
    alone = np.flatnonzero(~component)
    table[node[alone]] = alone[:, None] * n_actions + np.arange(n_actions)
    out = ~inside.reshape(n, n_actions) & np.isfinite(problem.reward) & component[:, None]
    rows = np.flatnonzero(out)
    order = np.argsort(node[rows // n_actions], kind="stable")
    rows, owners = rows[order], node[rows[order] // n_actions]
    for owner in np.unique(node[component]):
        low, high = np.searchsorted(owners, [owner, owner + 1])
        ways = [*rows[low:high].tolist(), _STAY]
        while len(ways) > n_actions:
            groups = [ways[i : i + n_actions] for i in range(0, len(ways), n_actions)]
            ways = [-2 - (count + len(items) + i) for i in range(len(groups))]
            items += groups
        table[owner, : len(ways)] = ways
    extra = np.full((len(items), n_actions), _NONE)
    for i, group in enumerate(items):
        extra[i, : len(group)] = group
    item = np.concatenate([table, extra])
    return Merged(_rewired(problem, node, item), node, item, inside, component, graph, problem)


def _rewired(problem: Problem, node: NDArray[np.int64], item: NDArray[np.int64]) -> Problem:
    """The problem whose actions are the items."""
    assert problem.successor is not None
    n, k = len(item), problem.weight.shape[2]
    row, real = np.where(item >= 0, item, 0), item >= 0
    link = (item < _STAY) & (item != _NONE)
    weight = np.where(real[:, :, None], problem.weight.reshape(-1, k)[row], 0.0)
    weight[link, 0] = 1.0
    successor = node[problem.successor.reshape(-1, k)[row]]
    successor[link, 0] = -2 - item[link]
    reward = np.where(real, problem.reward.ravel()[row], np.where(item == _NONE, -np.inf, 0.0))
    ends = np.where(real, problem.ends.ravel()[row], item == _STAY)
    free = np.ones(n, bool)
    free[node] = problem.free
    return Problem(weight, successor.astype(np.int32), reward, ends, free, problem.scale)


def _require_losses(problem: Problem, graph: Graph, merged: Merged | None) -> None:
    """Refuse a loop that doesn't cost anything: (b).

    Where no reward in any end component is positive there is nothing to do: its components have a negative one, and
    every policy that stays pays it again and again.
    """
    stays = (np.isfinite(problem.reward) & ~problem.ends & problem.free[:, None]).ravel()
    paid = problem.reward.ravel() > 0
    if not (stays & paid).any():
        return
    label, inside = end_components(graph, stays)
    gains = (inside & paid).reshape(problem.reward.shape)
    label[~np.isin(label, np.unique(label[gains.any(1)]))] = -1  # components without a reward above 0 lose
    if not (label >= 0).any():
        return
    low, high = _gains(problem._replace(reward=np.where(inside.reshape(gains.shape), problem.reward, -np.inf)), label)
    small = 1e-12 * problem.scale
    for component in np.unique(label[label >= 0]):
        if high[component] >= -small:
            infinite = bool(low[component] > small)
            _refuse(gains & (label == component)[:, None], problem, merged, infinite=infinite)


def _gains(game: Problem, label: Indices) -> tuple[Floats, Floats]:
    """Bounds on the best average reward of every component, by label, as tight as their signs need.

    Inside a component, where everything can reach everything, value iteration's smallest and largest change bracket
    it (M. L. Puterman, "Markov Decision Processes", 1994, §8.5). A step is halved, so that no loop has a period.
    """
    members = np.flatnonzero(label >= 0).astype(np.int32)
    rows, owner = part(game, members), label[members]
    h, small, size = np.zeros(game.n_states), 1e-12 * game.scale, int(label.max()) + 1
    low, high = np.empty(0), np.empty(0)
    for _ in range(max(100, min(_SWEEPS, _WORK // rows.weight.size))):
        change = backup(rows, h).max(1) - h[members]
        low, high = np.full(size, np.inf), np.full(size, -np.inf)
        np.minimum.at(low, owner, change)
        np.maximum.at(high, owner, change)
        if ((low[owner] > small) | (high[owner] < -small) | ((high - low)[owner] < small)).all():
            break
        h[members] += (change - high[owner]) / 2
    return low, high


def _refuse(where: Flags, problem: Problem, merged: Merged | None, *, infinite: bool) -> None:
    """The sentence about one of the marked pairs of the problem."""
    n, a = (int(i) for i in np.argwhere(where)[0])
    s, action = (n, a) if merged is None else divmod(int(merged.item[n, a]), problem.n_actions)
    what = f"state {s}, action {action}: the reward {problem.reward[n, a]:g}"
    advice = "use gamma < 1 or a finite horizon"
    if infinite:
        raise PolyakError(f"{what} can be collected for ever, so the value is infinite at gamma = 1; {advice}")
    raise PolyakError(
        f"{what} belongs to a loop whose rewards cancel (to within rounding), so their sum has no limit at gamma = 1; "
        f"{advice}"
    )
