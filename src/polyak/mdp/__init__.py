"""Finite Markov decision processes, and planning that proves its answer. Importing it imports neither jax nor SciPy."""

from polyak.mdp.enumeration import from_world
from polyak.mdp.model import Model, from_arrays, from_matrices, from_sparse
from polyak.mdp.planning import (
    METHODS,
    bellman,
    finite_horizon,
    linear_program,
    modified_policy_iteration,
    policy_evaluation,
    policy_iteration,
    q_value_iteration,
    value_iteration,
)
from polyak.mdp.solution import Solution
from polyak.mdp.tables import from_gymnasium

__all__ = [
    "METHODS",
    "Model",
    "Solution",
    "bellman",
    "finite_horizon",
    "from_arrays",
    "from_gymnasium",
    "from_matrices",
    "from_sparse",
    "from_world",
    "linear_program",
    "modified_policy_iteration",
    "policy_evaluation",
    "policy_iteration",
    "q_value_iteration",
    "value_iteration",
]
