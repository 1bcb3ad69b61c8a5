"""Models from the transition tables of Gymnasium's toy environments.

`env.unwrapped.P[s][a]` lists (probability, next state, reward, terminated). FrozenLake with any map, CliffWalking and
Taxi have it, and so has every environment that was written after them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyak.errors import PolyakError, nearest
from polyak.mdp.model import Flags, Model, from_sparse, reached

Outcome = tuple[float, int, float, bool]
"""(probability, next state, reward, terminated)."""

_ACTIONS = {
    "FrozenLakeEnv": ("←", "↓", "→", "↑"),
    "CliffWalkingEnv": ("↑", "→", "↓", "←"),
    "TaxiEnv": ("south", "north", "east", "west", "pick up", "drop off"),
}


def from_gymnasium(env_or_id: Any, **kwargs: Any) -> Model:
    """The model of a Gymnasium environment that has a table `P`.

    A state becomes terminal where outcomes with terminated = True enter it, and no episode can go on from it: then
    its own rows in P, which Gymnasium never uses, are not used here either. (Taxi's table has rows that no episode
    reaches, in which its final states are plain ones; CliffWalking's lets the agent walk back out of the goal.)
    Outcomes of a pair that agree in successor, reward and flag are added up. `shape`, `cells` and `actions` are filled
    where the environment has a `desc` of as many letters as there are states, or a `shape`.

    Args:
        env_or_id: an environment, or an id of Gymnasium's registry: "FrozenLake-v1".
        kwargs: what `gymnasium.make` passes on: `is_slippery=False`, `desc=["SFF", "FHG"]`.

    Errors:
        PolyakError: no such environment, no table, or a row of the table that is no distribution.
    """
    env, name = _opened(env_or_id, kwargs)
    table = getattr(env, "P", None)
    if not isinstance(table, Mapping | Sequence) or not len(table):
        raise PolyakError(
            f"{name} has no transition table P, so its model is unknown: build one with from_arrays or from_sparse, "
            "or from a world written in JAX with from_world"
        )
    rows = [[_merged(name, s, a, row) for a, row in _items(name, table, s)] for s in range(len(table))]
    counts = {len(row) for row in rows}
    if len(counts) != 1 or counts == {0}:
        raise PolyakError(f"{name}: its states have {sorted(counts)} actions, and must all have the same, at least one")
    shape, cells = _drawn(env, len(rows))
    actions = next((_ACTIONS[c.__name__] for c in type(env).__mro__ if c.__name__ in _ACTIONS), ())
    about: dict[str, Any] = {
        "start": _start(env),
        "shape": shape,
        "cells": cells,
        "name": name,
        "actions": actions if len(actions) in counts else (),
    }
    return _without_ends(from_sparse(**_padded(rows), **about), about)


def _opened(env_or_id: Any, kwargs: dict[str, Any]) -> tuple[Any, str]:
    """(the environment without its wrappers, its name)."""
    if not isinstance(env_or_id, str):
        env = getattr(env_or_id, "unwrapped", env_or_id)
        if kwargs:
            raise PolyakError(f"{type(env).__name__} is made already: {sorted(kwargs)} can only be given with an id")
        return env, env.spec.id if getattr(env, "spec", None) is not None else type(env).__name__
    try:
        import gymnasium
    except ImportError as error:
        raise PolyakError(f"{env_or_id} needs gymnasium, which is not installed: pip install gymnasium") from error
    try:
        gymnasium.spec(env_or_id)
    except gymnasium.error.Error as error:
        hint = nearest(env_or_id, gymnasium.registry)
        raise PolyakError(f"there is no environment {env_or_id!r}{hint}") from error
    try:
        return gymnasium.make(env_or_id, disable_env_checker=True, **kwargs).unwrapped, env_or_id
    except Exception as error:  # an environment's constructor may raise anything
        raise PolyakError(f"{env_or_id} could not be made with {kwargs}: {error}") from error


def _items(name: str, table: Any, s: int) -> list[tuple[int, Any]]:
    """(action, its list of outcomes) of a state, in the order of the actions."""
    try:
        row = table[s]
        return [(a, row[a]) for a in range(len(row))]
    except (KeyError, IndexError, TypeError) as error:
        raise PolyakError(
            f"{name}: P[{s}] can't be read ({error!r}); states and actions must be numbered from 0"
        ) from error


def _merged(name: str, s: int, a: int, row: Any) -> list[Outcome]:
    """A pair's outcomes, those that differ in their probability alone added up."""
    sums: dict[tuple[int, float, bool], float] = {}
    try:
        for probability, successor, reward, terminated in row:
            key = int(successor), float(reward), bool(terminated)
            sums[key] = sums.get(key, 0.0) + float(probability)
    except (TypeError, ValueError) as error:
        raise PolyakError(
            f"{name}: P[{s}][{a}] is not a list of (probability, next state, reward, terminated): {error}"
        ) from error
    return [(probability, *key) for key, probability in sums.items()]


def _padded(rows: list[list[list[Outcome]]]) -> dict[str, Any]:
    """The outcomes as the arrays [S, A, K] that `from_sparse` takes."""
    most = max(1, max(len(row) for actions in rows for row in actions))
    dims = (len(rows), len(rows[0]), most)
    successor = np.broadcast_to(np.arange(dims[0])[:, None, None], dims).copy()
    probability, reward, terminated = np.zeros(dims), np.zeros(dims), np.zeros(dims, bool)
    for s, actions in enumerate(rows):
        for a, row in enumerate(actions):
            for k, outcome in enumerate(row):
                probability[s, a, k], successor[s, a, k], reward[s, a, k], terminated[s, a, k] = outcome
    return {"successor": successor, "probability": probability, "R": reward, "terminated": terminated}


def _without_ends(model: Model, about: dict[str, Any]) -> Model:
    """The model with its terminal states marked, and their rows replaced."""
    entered, walked = _ends(model)
    terminal = entered & ~walked
    assert model.successor is not None
    reward = np.where(terminal[:, None, None], 0.0, model.reward)
    return from_sparse(
        model.successor, model.probability, reward, terminated=model.terminated, terminal=terminal, **about
    )


def _ends(model: Model) -> tuple[Flags, Flags]:
    """(states that some outcome ends in, states from which an episode can go on), [S] each."""
    assert model.successor is not None
    entered = np.zeros(model.n_states, bool)
    entered[model.successor[model.terminated & (model.probability > 0)]] = True
    return entered, reached(model)[1]


def _start(env: Any) -> NDArray[Any] | None:
    """The distribution of the first state where the environment tells it."""
    for field in ("initial_state_distrib", "isd"):
        if getattr(env, field, None) is not None:
            return np.asarray(getattr(env, field), np.float64)
    return None


def _drawn(env: Any, n: int) -> tuple[tuple[int, int] | None, str]:
    """(shape, cells) where the states are the cells of a grid; None and "" elsewhere."""
    desc = getattr(env, "desc", None)
    if desc is not None and np.ndim(desc) == 2 and np.size(desc) == n:
        rows, columns = np.shape(desc)
        return (rows, columns), "".join(c.decode() if isinstance(c, bytes) else str(c) for c in np.ravel(desc))
    shape = getattr(env, "shape", None)
    if not isinstance(shape, tuple) or len(shape) != 2 or shape[0] * shape[1] != n:
        return None, ""
    cliff, start = getattr(env, "_cliff", None), getattr(env, "start_state_index", None)
    if cliff is None or start is None or np.size(cliff) != n:
        return (int(shape[0]), int(shape[1])), ""
    letters = np.where(np.ravel(cliff), "C", ".")
    letters[int(start)], letters[n - 1] = "S", "G"  # the goal is the last cell (CliffWalking)
    return (int(shape[0]), int(shape[1])), "".join(letters.tolist())
