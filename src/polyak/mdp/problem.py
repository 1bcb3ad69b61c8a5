"""A model and a discount factor as planners read them, and one backup.

The optimality operator T and what it is made of (R. S. Sutton and A. G. Barto, "Reinforcement Learning: An
Introduction", 2nd edition, 2018, eq. 4.1 and 4.2), with γ and the ends of episodes folded into the weights:

    Q(s, a) = r(s, a) + Σₖ w(s, a, k) V(s'ₖ),   w = γ p [not terminated],   (TV)(s) = maxₐ Q(s, a)
"""

from typing import Any, NamedTuple

import numpy as np

from polyak.errors import PolyakError
from polyak.mdp.model import Flags, Floats, Indices, Model
from polyak.memory import require_memory

_LARGEST = 1e150


class Problem(NamedTuple):
    """What is to be solved. All arrays are float64."""

    weight: Floats  # [S, A, K]: γ p, 0 where the outcome ends the episode
    successor: Indices | None  # [S, A, K]; None: outcome k is state k
    reward: Floats  # [S, A]: expected; −inf where a state lacks the action
    ends: Flags  # [S, A]: some outcome ends the episode
    free: Flags  # [S]: not terminal
    scale: float  # the largest |reward| of any outcome

    @property
    def n_states(self) -> int:
        return self.weight.shape[0]

    @property
    def n_actions(self) -> int:
        return self.weight.shape[1]


def problem_of(model: Model, gamma: float) -> Problem:
    """The problem of a model at a discount factor.

    Errors:
        PolyakError: gamma is no number in [0, 1], a reward is too large, or the arrays would not fit into memory.
    """
    check_gamma(gamma)
    advice = "build the model with from_sparse" if model.successor is None else "it needs a larger machine"
    require_memory(3 * model.probability.nbytes, f"planning for {model.n_states} states", advice)
    scale = max(float(model.reward.max()), -float(model.reward.min()))
    if scale > _LARGEST:
        raise PolyakError(f"a reward has the size {scale:g}, whose sums float64 can't hold; divide all rewards by it")
    weight = model.probability * gamma
    np.copyto(weight, 0.0, where=model.terminated)
    weight[model.terminal] = 0.0
    ends = ((model.probability > 0) & model.terminated).any(2)
    return Problem(weight, model.successor, model.expected_reward, ends, ~model.terminal, scale)


def check_gamma(gamma: Any) -> None:
    """Refuse what is no discount factor."""
    number = isinstance(gamma, int | float | np.floating | np.integer) and not isinstance(gamma, bool)
    if not number or not 0 <= gamma <= 1:
        raise PolyakError(f"gamma is {gamma}, and must lie in [0, 1]")


def backup(problem: Problem, V: Floats) -> Floats:
    """Q(s, a) of one backup, [S, A]; −inf where a state lacks the action."""
    weight = problem.weight
    if problem.successor is None:
        return problem.reward + (weight.reshape(-1, weight.shape[2]) @ V).reshape(weight.shape[:2])
    if weight.shape[2] == 1:
        return problem.reward + weight[:, :, 0] * V[problem.successor[:, :, 0]]
    return problem.reward + np.einsum("sak,sak->sa", weight, V[problem.successor])


def part(problem: Problem, states: Indices) -> Problem:
    """The rows of some states: `backup` of the part is the backup of these states alone."""
    successor = None if problem.successor is None else problem.successor[states]
    return problem._replace(
        weight=problem.weight[states],
        successor=successor,
        reward=problem.reward[states],
        ends=problem.ends[states],
        free=problem.free[states],
    )


def followed(problem: Problem, policy: Indices) -> Problem:
    """The problem in which there is only the policy's action, A = 1."""
    place = np.arange(len(policy)), policy
    successor = None if problem.successor is None else problem.successor[place][:, None]
    return problem._replace(
        weight=problem.weight[place][:, None],
        successor=successor,
        reward=problem.reward[place][:, None],
        ends=problem.ends[place][:, None],
    )


def sparse(problem: Problem) -> Problem:
    """A dense problem with its possible outcomes listed."""
    if problem.successor is not None:
        return problem
    most = max(1, int(np.count_nonzero(problem.weight, 2).max()))
    successor = np.argsort(problem.weight == 0, axis=2, kind="stable")[:, :, :most].astype(np.int32)
    return problem._replace(weight=np.take_along_axis(problem.weight, successor, 2), successor=successor)
