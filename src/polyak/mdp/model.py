"""Finite Markov decision processes as arrays: what planners and the pictures of them read.

The model of R. S. Sutton and A. G. Barto, "Reinforcement Learning: An Introduction" (2nd edition, 2018, §3.1), with
the K outcomes of each pair (s, a) listed:

    p(s', r | s, a) = Σₖ probability[s, a, k] · [successor[s, a, k] = s'] · [reward[s, a, k] = r]

An episode ends with an outcome that is `terminated`, or in a state that is `terminal`; what comes after is worth 0.
Everything is NumPy, in float64. Arrays of a model can't be written to, so that models may be shared.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from polyak.errors import PolyakError
from polyak.memory import require_memory

Floats: TypeAlias = NDArray[np.float64]
Flags: TypeAlias = NDArray[np.bool_]
Indices: TypeAlias = NDArray[np.int32]
Values: TypeAlias = Sequence[Any] | NDArray[Any]  # what a user may give for an array

_TOLERANCE = 1e-9  # how far K probabilities may be from summing to one, per outcome


@dataclass(frozen=True, eq=False)
class Model:
    """A finite Markov decision process: S states, A actions, at most K outcomes of each pair.

    Build one with `from_arrays`, `from_sparse`, `from_matrices`, `from_gymnasium` or `from_world`, which check what
    they are given. An outcome that enters a terminal state is `terminated`; a terminal state leads to itself.
    """

    probability: Floats  # [S, A, K]; each row [s, a] sums to 1 (padding outcomes have probability 0)
    successor: Indices | None  # [S, A, K]; None: dense, K = S and outcome k is state k
    reward: Floats  # [S, A, K], may be a broadcast view
    terminated: Flags  # [S, A, K], may be a broadcast view: the episode ends with this outcome
    start: Floats  # [S]: distribution of the first state
    terminal: Flags  # [S]: nothing happens here any more; V = 0 by definition
    shape: tuple[int, int] | None = None  # (rows, columns) where the states are the cells of a grid, row-major
    name: str = ""
    actions: tuple[str, ...] = ()  # glyphs or words for pictures: ("←", "↓", "→", "↑")
    cells: str = ""  # for grids: one letter per cell such as S F H G # . (row-major), "" where unknown

    @property
    def n_states(self) -> int:
        return self.probability.shape[0]

    @property
    def n_actions(self) -> int:
        return self.probability.shape[1]

    @cached_property
    def expected_reward(self) -> Floats:
        """r(s, a) = Σₖ p r, [S, A] (Sutton & Barto, eq. 3.5); exactly the reward where no outcome changes it."""
        same = self.reward.shape[2] > 0 and self.reward.strides[2] == 0
        expected = self.reward[:, :, 0] if same else np.einsum("sak,sak->sa", self.probability, self.reward)
        return _sealed(np.array(expected, np.float64))

    @cached_property
    def transitions(self) -> int:
        """How many outcomes have a probability above 0."""
        return int(np.count_nonzero(self.probability))

    def unreachable(self) -> Flags:
        """States that no policy enters from the start, [S]."""
        entered, walked = reached(self)
        return ~(entered | walked)


def reached(model: Model) -> tuple[Flags, Flags]:
    """(entered, walked), [S] each: which states end an episode on entering, and which ones it starts in or goes on
    from, over all policies. Breadth first from the start."""
    entered, walked = np.zeros(model.n_states, bool), model.start > 0
    frontier = np.flatnonzero(walked & ~model.terminal)
    while frontier.size:
        possible, ends = model.probability[frontier] > 0, model.terminated[frontier]
        if model.successor is None:
            entered |= (possible & ends).any((0, 1))
            ahead = np.flatnonzero((possible & ~ends).any((0, 1)) & ~walked)
        else:
            successor = model.successor[frontier]
            entered[successor[possible & ends]] = True
            ahead = np.unique(successor[possible & ~ends])
            ahead = ahead[~walked[ahead]]
        walked[ahead] = True
        frontier = ahead[~model.terminal[ahead]]
    return entered, walked


def from_arrays(
    P: Values,
    R: Values,
    *,
    start: Values | int | None = None,
    terminal: Values | None = None,
    shape: tuple[int, int] | None = None,
    name: str = "",
    actions: Sequence[str] = (),
    cells: str = "",
) -> Model:
    """A dense model.

    Args:
        P: P[s, a, s'] = p(s' | s, a), [S, A, S]. (pymdptoolbox has [A, S, S]: `numpy.swapaxes(P, 0, 1)`.)
        R: R[s, a, s'], the reward of going from s to s' by a; or R[s, a]; or R[s], for acting in s.
        start: distribution of the first state [S], or one state's number; uniform over the states that are not
            terminal unless given.
        terminal: mask [S] or numbers of the states that end an episode. Their rows in P are not read, and may be 0.
        shape, name, actions, cells: see `Model`.

    Errors:
        PolyakError: a shape, probability, sum or reward that can't be; the sentence names state, action and value.
    """
    P = _numbers("P", P)
    if P.ndim != 3 or P.shape[0] != P.shape[2] or not P.size:
        swapped = P.ndim == 3 and P.shape[1] == P.shape[2]
        hint = "; as [A, S, S] it goes through numpy.swapaxes(P, 0, 1) first" if swapped else ""
        raise PolyakError(f"P has the shape {list(P.shape)}, and must be [states, actions, states]{hint}")
    n, n_actions = P.shape[:2]
    require_memory(P.nbytes, f"a copy of P[{n}, {n_actions}, {n}]", "give its nonzero entries to from_sparse")
    reward = _rewards(R, P.shape, per_state=True)
    ends, P = _states("terminal", terminal, n), P.copy()
    _settle(P, reward, ends, None)
    return _built(P, None, reward, np.broadcast_to(ends, P.shape), start, ends, shape, name, actions, cells)


def from_sparse(
    successor: Values,
    probability: Values,
    R: Values,
    *,
    terminated: Values | None = None,
    start: Values | int | None = None,
    terminal: Values | None = None,
    shape: tuple[int, int] | None = None,
    name: str = "",
    actions: Sequence[str] = (),
    cells: str = "",
) -> Model:
    """A model of which only the possible outcomes are stored: 10⁶ states with 4 actions take 100 MB.

    Args:
        successor: state numbers [S, A, K], or [S, A] where every outcome is certain.
        probability: [S, A, K] (or [S, A], all 1); outcomes that a pair doesn't have are padded with probability 0.
        R: rewards [S, A, K] or [S, A].
        terminated: bool [S, A, K] (or [S, A]), the episode ends with this outcome; none does unless given, but for
            those that enter a terminal state.
        start, terminal, shape, name, actions, cells: as in `from_arrays`.

    Errors:
        PolyakError: a shape, successor, probability, sum or reward that can't be, named by state and action.
    """
    P, to = _numbers("probability", probability), np.asarray(successor)
    P, to = (x[:, :, None] if x.ndim == 2 else x for x in (P, to))
    if P.ndim != 3 or to.shape != P.shape or not P.size:
        raise PolyakError(
            f"successor and probability have the shapes {list(to.shape)} and {list(P.shape)}, and must both be "
            "[states, actions, outcomes]"
        )
    if to.dtype.kind not in "iu":
        raise PolyakError(f"successor holds {to.dtype}, and must hold state numbers: integers from 0 to {len(P) - 1}")
    outside = (to < 0) | (to >= len(P))
    if outside.any():
        s, a, k = np.argwhere(outside)[0]
        raise PolyakError(
            f"state {s}, action {a}: outcome {k} leads to state {to[s, a, k]}, and there are states 0 to {len(P) - 1}"
        )
    reward = _rewards(R, P.shape, per_state=False)
    ends, P, to = _states("terminal", terminal, len(P)), P.copy(), to.astype(np.int32)
    _settle(P, reward, ends, to)
    over = ends[to] | _ended(terminated, P.shape)
    return _built(P, to, reward, over, start, ends, shape, name, actions, cells)


def from_matrices(P: Sequence[Any], R: Any, **about: Any) -> Model:
    """A sparse model from one SciPy matrix per action, the form that pymdptoolbox takes.

    Args:
        P: A matrices [S, S] (`scipy.sparse`, or arrays); row s of the a-th is p(· | s, a).
        R: rewards [S], [S, A], or one matrix [S, S] per action; an entry that such a matrix lacks is 0.
        about: start, terminal, shape, name, actions and cells, as in `from_arrays`.

    Errors:
        PolyakError: as `from_sparse`.
    """
    from scipy.sparse import csr_matrix

    matrices: list[Any] = [csr_matrix(matrix, dtype=np.float64) for matrix in P]
    if not matrices or any(m.shape != (matrices[0].shape[0],) * 2 for m in matrices) or not matrices[0].shape[0]:
        raise PolyakError(
            f"P holds matrices of the shapes {[list(m.shape) for m in matrices]}, and must hold one [S, S] per action"
        )
    for matrix in matrices:
        matrix.sum_duplicates()
    n, n_actions = matrices[0].shape[0], len(matrices)
    most = max(1, max(int(np.diff(m.indptr).max()) for m in matrices))
    require_memory(24 * n * n_actions * most, f"{n} states with up to {most} outcomes", "split the pair with so many")
    successor = np.broadcast_to(np.arange(n, dtype=np.int32)[:, None, None], (n, n_actions, most)).copy()
    probability = np.zeros(successor.shape)
    places = [_places(matrix) for matrix in matrices]
    for a, (matrix, (rows, columns)) in enumerate(zip(matrices, places, strict=True)):
        successor[rows, a, columns], probability[rows, a, columns] = matrix.indices, matrix.data
    if not _per_action(R):
        reward = _numbers("R", R)
        reward = np.repeat(reward[:, None], n_actions, 1) if reward.ndim == 1 else reward
        return from_sparse(successor, probability, reward, **about)
    reward = np.zeros(successor.shape)
    rewards: list[Any] = [csr_matrix(matrix, dtype=np.float64) for matrix in R]
    if [m.shape for m in rewards] != [m.shape for m in matrices]:
        raise PolyakError(f"R holds {len(rewards)} matrices, and must hold one [{n}, {n}] for each of P's {n_actions}")
    for a, (rows, columns) in enumerate(places):
        if rows.size:
            reward[rows, a, columns] = np.asarray(rewards[a][rows, matrices[a].indices]).ravel()
    return from_sparse(successor, probability, reward, **about)


def _places(matrix: Any) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """(row, number within the row) of every entry of a CSR matrix."""
    counts = np.diff(matrix.indptr)
    rows = np.repeat(np.arange(len(counts)), counts)
    return rows, np.arange(matrix.nnz) - np.repeat(matrix.indptr[:-1], counts)


def _per_action(R: Any) -> bool:
    """Whether rewards come as one matrix [S, S] per action."""
    return np.ndim(R[0] if isinstance(R, list | tuple) and len(R) else R) + isinstance(R, list | tuple) == 3 or (
        isinstance(R, list | tuple) and len(R) > 0 and len(getattr(R[0], "shape", ())) == 2
    )


# ---- checks


def _numbers(label: str, values: Values) -> Floats:
    """An array of finite float64."""
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise PolyakError(f"{label} is no array of numbers: {error}") from error
    bad = ~np.isfinite(array)
    if bad.any():
        place = np.argwhere(bad)[0].tolist()
        raise PolyakError(f"{label}{place} is {array[tuple(place)]}, and must be finite")
    return array


def _rewards(R: Values, shape: tuple[int, ...], *, per_state: bool) -> Floats:
    """R as [S, A, K], a broadcast view where it doesn't depend on everything."""
    reward, (n, n_actions, k) = _numbers("R", R), shape
    if per_state and reward.shape == (n,):
        return np.broadcast_to(reward.copy()[:, None, None], shape)
    if reward.shape == (n, n_actions):
        return np.broadcast_to(reward.copy()[:, :, None], shape)
    if reward.shape == shape:
        return reward.copy()
    allowed = f"[{n}], " * per_state + f"[{n}, {n_actions}] or [{n}, {n_actions}, {k}]"
    raise PolyakError(f"R has the shape {list(reward.shape)}, and must be {allowed}")


def _states(label: str, values: Values | None, n: int) -> Flags:
    """A mask [S] from a mask or from state numbers."""
    mask = np.zeros(n, bool)
    if values is None:
        return mask
    given = np.asarray(values)
    if given.dtype == bool and given.shape == (n,):
        return given.copy()
    given = given.astype(np.int64) if not given.size else np.atleast_1d(given)
    if given.dtype.kind not in "iu" or given.ndim != 1:
        raise PolyakError(f"{label} has the shape {list(given.shape)}, and must be a mask [{n}] or state numbers")
    if given.size and not 0 <= given.min() <= given.max() < n:
        wrong = given[(given < 0) | (given >= n)][0]
        raise PolyakError(f"{label} names state {wrong}, and there are states 0 to {n - 1}")
    mask[given] = True
    return mask


def _ended(terminated: Values | None, shape: tuple[int, ...]) -> Flags:
    """`terminated` as [S, A, K]."""
    if terminated is None:
        return np.zeros(shape, bool)
    given = np.asarray(terminated)
    given = given[:, :, None] if given.ndim == 2 else given
    if given.dtype != bool or given.ndim != 3 or any(m not in (1, k) for m, k in zip(given.shape, shape, strict=True)):
        raise PolyakError(
            f"terminated is {given.dtype} of the shape {list(given.shape)}, and must be bool {list(shape)}"
        )
    return np.broadcast_to(given, shape)


def _settle(P: Floats, reward: Floats, ends: Flags, successor: Indices | None) -> None:
    """Let terminal states lead to themselves for nothing, in place; refuse a reward that would be lost so."""
    stops = np.flatnonzero(ends)
    whole = reward.strides[2] != 0  # else a view, the same for all outcomes
    lost = np.argwhere((reward[stops] != 0) & ((P[stops] > 0) | (not whole)))
    if lost.size:
        s, a = int(stops[lost[0, 0]]), int(lost[0, 1])
        raise PolyakError(
            f"state {s}, action {a}: the reward {reward[s, a, lost[0, 2]]:g} would never be paid, since state {s} is "
            "terminal; set it to 0, and give what is paid for entering the state as R[state, action, outcome]"
        )
    P[stops] = 0.0
    if successor is None:
        P[stops, :, stops] = 1.0
    else:
        P[stops, :, 0] = 1.0
        successor[stops] = stops[:, None, None]
    if whole:
        reward[stops] = 0.0


def _started(start: Values | int | None, terminal: Flags) -> Floats:
    """The distribution of the first state, [S]."""
    n = len(terminal)
    if start is None:
        among = np.ones(n, bool) if terminal.all() else ~terminal
        return among / among.sum()
    given = np.asarray(start)
    if given.ndim == 0 and given.dtype.kind in "iu":
        return _states("start", given[None], n).astype(np.float64)
    distribution = _numbers("start", given)
    if distribution.shape != (n,):
        raise PolyakError(f"start has the shape {list(distribution.shape)}, and must be [{n}] or one state's number")
    if (distribution < 0).any() or abs(distribution.sum() - 1) > n * _TOLERANCE:
        raise PolyakError(f"start sums to {distribution.sum():.12g}, and must be a distribution over the {n} states")
    return distribution.copy()


def _check_rows(P: Floats, kind: str) -> None:
    """Every row of P [S, A, K] is a distribution."""
    negative = P < 0
    if negative.any():
        s, a, k = np.argwhere(negative)[0]
        raise PolyakError(f"state {s}, action {a}: the probability of {kind} {k} is {P[s, a, k]:g}, which is negative")
    sums = P.sum(2)
    off = np.abs(sums - 1) > _TOLERANCE * max(1, np.sqrt(P.shape[2]))
    if off.any():
        s, a = np.argwhere(off)[0]
        advice = "divide the row by its sum" if abs(sums[s, a] - 1) < 1e-3 else "complete the row, or mark the state"
        advice += " as terminal" * advice.endswith("state")
        raise PolyakError(
            f"state {s}, action {a}: the probabilities sum to {sums[s, a]:.12g}, and must sum to 1; {advice}"
        )


def _sealed(array: Any) -> Any:
    """An array that can't be written to any more."""
    array.flags.writeable = False
    return array


def _built(
    P: Floats,
    successor: Indices | None,
    reward: Floats,
    terminated: Flags,
    start: Values | int | None,
    terminal: Flags,
    shape: tuple[int, int] | None,
    name: str,
    actions: Sequence[str],
    cells: str,
) -> Model:
    """The model, checked."""
    n, n_actions = P.shape[:2]
    _check_rows(P, "successor" if successor is None else "outcome")
    if shape is not None and (len(shape) != 2 or shape[0] * shape[1] != n):
        raise PolyakError(f"shape is {shape}, and must be (rows, columns) of {n} cells, one per state")
    if actions and len(actions) != n_actions:
        raise PolyakError(f"actions has {len(actions)} words, and there are {n_actions} actions")
    if cells and len(cells) != n:
        raise PolyakError(f"cells has {len(cells)} letters, and there are {n} states")
    first = _started(start, terminal)
    arrays = [_sealed(x) for x in (P, reward, terminated, first, terminal)]
    P, reward, terminated, first, terminal = arrays
    to = None if successor is None else _sealed(successor)
    grid = None if shape is None else (int(shape[0]), int(shape[1]))
    return Model(P, to, reward, terminated, first, terminal, grid, name, tuple(actions), cells)
