"""The exact values of a small finite world, beside which a table is measured while it learns.

Where the world's model is known and the agent keeps a table, a planner says what the table ought to become: Q* for
control (for SARSA and Monte Carlo too, which learn the values of a policy that still explores), V of the given policy
for prediction. It only looks: training has the same bits with and without it.
"""

import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyak.agents import td
from polyak.agents.dyna_q import DynaQ
from polyak.agents.monte_carlo import MonteCarlo
from polyak.agents.q_learning import QLearning
from polyak.agents.sarsa import SARSA
from polyak.agents.td import TD
from polyak.envs.finite import FiniteWorld
from polyak.errors import PolyakError
from polyak.mdp import Model, from_gymnasium, from_world, planning
from polyak.runs import disk
from polyak.spaces import Discrete

FILE = "exact.npz"
MOST = 100_000  # states times actions; a larger model would take longer to solve than its agent to train
_TABULAR = (QLearning, SARSA, DynaQ, MonteCarlo, TD)


class Yardstick(NamedTuple):
    """What a table ought to become."""

    model: Model
    exact: NDArray[np.float64]  # [S, A] Q*, or [S, 1] V of the given policy
    counted: NDArray[np.bool_]  # [S] states in which an agent acts, sooner or later
    gamma: float
    kind: str  # "Q" or "V"

    def table(self, state: Any) -> NDArray[np.float64]:
        """An agent's table, [S, C]; of two tables their mean."""
        W = np.asarray((state.V if isinstance(state, td.State) else state.Q).W, np.float64)
        return W.reshape(len(W), -1, self.exact.shape[1]).mean(1)

    def error(self, state: Any) -> float:
        """The largest difference between an agent's table and the exact one, over the states that count."""
        return float(np.abs(self.table(state) - self.exact)[self.counted].max())

    def write(self, folder: Path, states: list[Any]) -> None:
        """exact.npz of a run: what the report draws."""
        model, words = self.model, np.array
        arrays = {
            "exact": self.exact, "learned": np.stack([self.table(state) for state in states]),
            "reachable": self.counted, "shape": np.array(model.shape or (0, 0), np.int64), "cells": words(model.cells),
            "actions": words(model.actions or [str(a) for a in range(model.n_actions)]), "kind": words(self.kind),
            "gamma": np.float64(self.gamma),
        }  # fmt: skip
        packed = io.BytesIO()
        np.savez(packed, allow_pickle=False, **arrays)
        disk.write_atomic(folder / FILE, packed.getvalue())


def of(plan: Any) -> Yardstick | None:
    """The yardstick of a run; None where its agent keeps no table of a finite world that is known and small.

    Raises:
        PolyakError: there is such a model, and it can't be solved at this discount; the sentence says why.
    """
    agent = plan.agent
    if not isinstance(agent, _TABULAR) or not isinstance(agent.gamma, float) or agent.gamma > 1:
        return None
    if not isinstance(agent, DynaQ) and agent.features is not None:
        return None
    model = finite_model(plan.source)
    if model is None or model.n_states * model.n_actions > MOST:
        return None
    judged = isinstance(agent, TD) or (isinstance(agent, MonteCarlo) and agent.policy is not None)
    exact = _judged(model, agent) if judged else planning.policy_iteration(model, agent.gamma).Q
    counted = ~model.unreachable() & ~model.terminal
    return Yardstick(model, exact, counted, agent.gamma, "V" if judged else "Q")


def _judged(model: Model, agent: Any) -> NDArray[np.float64]:
    """V of the policy that an agent judges, [S, 1]."""
    pi = np.full((model.n_states, model.n_actions), 1 / model.n_actions)
    if agent.policy is not None and not isinstance(agent.policy, str):
        pi = np.asarray(agent.policy, np.float64)
        pi = pi / pi.sum(-1, keepdims=True)  # float32 rows sum to 1 only nearly
    return planning.policy_evaluation(model, pi, agent.gamma).V[:, None]


def finite_model(source: Any) -> Model | None:
    """The model of an environment, None where it has none that can be read."""
    if not isinstance(source.obs_space, Discrete) or not isinstance(source.action_space, Discrete):
        return None
    if isinstance(source.world, FiniteWorld):
        return source.world.model
    try:
        if source.world is not None:
            return from_world(source.world)
        import gymnasium

        return from_gymnasium(source.id, **source.kwargs) if source.id in gymnasium.registry else None
    except PolyakError:
        return None  # it is not a finite world with a known table, which few are
