"""Models of worlds that are written in JAX: from their own tables, or by walking through all of their states."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyak.errors import PolyakError
from polyak.mdp.model import Model, from_arrays, from_sparse
from polyak.memory import require_memory
from polyak.spaces import Discrete, describe

_BATCH = 256  # states that one call of the compiled step expands
_GLYPHS = ("←", "↓", "→", "↑")  # the actions of a world with a layout


def from_world(
    world: Any, *, starts: Sequence[tuple[Any, Any]] | None = None, limit: int = 100_000, name: str = ""
) -> Model:
    """The model of a JAX world: `reset(key)`, `step(s, action, key)`, `obs_space` and a Discrete `action_space`.

    A world that knows its own model is asked for it: `outcomes()` returns (successor, probability, reward,
    terminated), [S, A, K] each; `transitions()` returns (P [S, A, S], r [S, A]), as GridWorld's does. State numbers
    are then observations; it starts in the cells S of its `layout`, or where reset does unless that draws.

    Any other world is walked through, breadth first from where it starts, provided that its physics is deterministic.
    States are told apart by their bytes; they are numbered as they are found, or by their observations where these
    are Discrete and differ from state to state, so that tables line up with learners'. Numbers that no state has are
    terminal. Rewards are those of the world as it runs, float32 by default.

    Args:
        starts: first states with their observations, as `reset` returns them, each equally likely; for a world
            whose `reset` draws at random.
        limit: how many states may be enumerated.
        name: the model's name, the class's unless given.

    Errors:
        PolyakError: the world can't be enumerated; the sentence says why, and what can be done.
    """
    name = name or type(world).__name__
    missing = [word for word in ("reset", "step", "obs_space", "action_space") if not hasattr(world, word)]
    if missing:
        raise PolyakError(f"{name} is no JAX world: it has no {', '.join(missing)}")
    if not isinstance(world.action_space, Discrete):
        raise PolyakError(
            f"{name} can't be enumerated: its actions are {describe(world.action_space)}, and must be Discrete"
        )
    if hasattr(world, "outcomes") or hasattr(world, "transitions"):
        return _told(world, name)
    return _walked(world, name, starts, limit)


# ---- worlds that know their model


def _told(world: Any, name: str) -> Model:
    """The model of a world with `outcomes()` or `transitions()`; of two the first."""
    layout = getattr(world, "layout", None)
    cells = "".join(layout) if isinstance(layout, tuple) else ""
    about: dict[str, Any] = {"name": name, "cells": cells, "shape": _grid(world, len(cells)) if cells else None}
    if "S" in cells:
        about["start"] = np.array([cell == "S" for cell in cells]) / cells.count("S")
    elif not _draws_start(world):
        about["start"] = int(_first(world, name)[0][1])
    if cells and world.action_space.n == len(_GLYPHS):
        about["actions"] = _GLYPHS
    if not hasattr(world, "outcomes"):
        return _thinned(*_transitions(world, name, cells), about)
    successor, probability, reward, terminated = (np.asarray(x) for x in world.outcomes())
    stays = (successor == np.arange(len(successor))[:, None, None]) | (probability == 0)
    terminal = _idle(stays.all(2), np.abs(reward).max(2), cells)
    reward = np.where(terminal[:, None, None], 0.0, reward)
    return from_sparse(successor, probability, reward, terminated=terminated, terminal=terminal, **about)


def _transitions(world: Any, name: str, cells: str) -> tuple[NDArray[np.float64], NDArray[np.float64], Any]:
    """(P [S, A, S], r [S, A], terminal [S]) of a world with `transitions()`."""
    n = world.obs_space.n if isinstance(world.obs_space, Discrete) else 0
    dense = 16 * world.action_space.n * n * n
    require_memory(dense, f"transitions() of {name} with {n} states", "give its possible outcomes to from_sparse")
    P, r = (np.asarray(x, np.float64) for x in world.transitions())
    terminal = _idle(np.einsum("sas->sa", P) == 1, r, cells)
    return P, np.where(terminal[:, None], 0.0, r), terminal


def _idle(stays: NDArray[np.bool_], reward: NDArray[np.float64], cells: str) -> NDArray[np.bool_]:
    """States in which nothing happens, [S]: every action stays, for nothing or inside a wall."""
    wall = np.array([cell == "#" for cell in cells]) if cells else np.zeros(len(stays), bool)
    return stays.all(1) & ((reward == 0).all(1) | wall)


def _thinned(
    P: NDArray[np.float64], r: NDArray[np.float64], terminal: NDArray[np.bool_], about: dict[str, Any]
) -> Model:
    """The model of P [S, A, S], sparse where that is at most a quarter as large."""
    most = int(np.count_nonzero(P, 2).max())
    if 4 * most > len(P):
        return from_arrays(P, r, terminal=terminal, **about)
    successor = np.argsort(P == 0, axis=2, kind="stable")[:, :, :most]
    return from_sparse(successor, np.take_along_axis(P, successor, 2), r, terminal=terminal, **about)


def _grid(world: Any, n: int) -> tuple[int, int] | None:
    """(rows, columns) of a world whose n states are the cells of a grid."""
    shape = getattr(world, "shape", None)
    if isinstance(shape, tuple) and len(shape) == 2 and shape[0] * shape[1] == n:
        return int(shape[0]), int(shape[1])
    return None


# ---- worlds that are walked through


class _Walk(NamedTuple):
    """All states of a world, in the order in which they were found."""

    observations: list[Any]
    successor: dict[int, NDArray[np.int64]]  # by state: [A], of those from which episodes go on
    reward: dict[int, NDArray[np.float64]]
    terminated: dict[int, NDArray[np.bool_]]


def _walked(world: Any, name: str, starts: Sequence[tuple[Any, Any]] | None, limit: int) -> Model:
    """The model of a deterministic world."""
    first = _first(world, name) if starts is None else list(starts)
    if not first:
        raise PolyakError(f"{name} can't be enumerated from no state: starts is empty")
    _require_determinism(world, name, first[0][0])
    walk = _explored(world, name, first, limit)
    found, n_actions = len(walk.observations), world.action_space.n
    number = _numbering(world, walk.observations)
    n = world.obs_space.n if isinstance(world.obs_space, Discrete) and number is not None else found
    places = np.arange(found) if number is None else number
    successor = np.broadcast_to(np.arange(n)[:, None], (n, n_actions)).copy()
    reward, terminated = np.zeros((n, n_actions)), np.zeros((n, n_actions), bool)
    terminal = np.ones(n, bool)
    for s, to in walk.successor.items():
        place = places[s]
        successor[place], reward[place], terminated[place] = places[to], walk.reward[s], walk.terminated[s]
        terminal[place] = False
    start = np.zeros(n)
    start[places[: len(first)]] = 1 / len(first)
    shape = _grid(world, n)
    about: dict[str, Any] = {"start": start, "terminal": terminal, "shape": shape, "name": name}
    return from_sparse(successor, np.ones(successor.shape), reward, terminated=terminated, **about)


def _numbering(world: Any, observations: list[Any]) -> NDArray[np.int64] | None:
    """Each state's number: its observation, where observations are Discrete and no two states share one."""
    if not isinstance(world.obs_space, Discrete):
        return None
    numbers = np.array([int(obs) for obs in observations])
    inside = (numbers >= 0) & (numbers < world.obs_space.n)
    return numbers if inside.all() and len(set(numbers.tolist())) == len(numbers) else None


def _draws_start(world: Any) -> bool:
    """Whether a reset reads its random key."""
    import jax

    return _reads(jax.make_jaxpr(world.reset)(jax.random.key(0)).jaxpr, 0)


def _first(world: Any, name: str) -> list[tuple[Any, Any]]:
    """Where a world with a deterministic reset starts."""
    import jax

    if _draws_start(world):
        raise PolyakError(
            f"{name} can't be enumerated from its start, which reset draws at random: list the first states as starts"
        )
    return [world.reset(jax.random.key(0))]


def _require_determinism(world: Any, name: str, s: Any) -> None:
    """Refuse a world whose step reads its random key, or whose state holds one."""
    import jax
    import jax.numpy as jnp

    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(s)]
    if any(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves):
        raise PolyakError(f"{name} can't be enumerated: its state holds a random key")
    traced = jax.make_jaxpr(world.step)(s, jnp.int32(0), jax.random.key(0)).jaxpr
    if _reads(traced, len(traced.invars) - 1):
        raise PolyakError(
            f"{name} can't be enumerated: its step draws at random and it has no transitions() that would tell the "
            "probabilities; give it one, or build the model with from_sparse"
        )


def _reads(jaxpr: Any, i: int) -> bool:
    """Whether an output of a traced function depends on its i-th input."""
    return i in _inputs(jaxpr, set(range(len(jaxpr.outvars))))


def _inputs(jaxpr: Any, wanted: set[int]) -> set[int]:
    """Which inputs the wanted outputs depend on, from the last equation to the first.

    It looks into calls of jitted functions. Of loops and branches all inputs count as read.
    """
    needed = {id(jaxpr.outvars[i]) for i in wanted}
    for eqn in reversed(jaxpr.eqns):
        used = {i for i, var in enumerate(eqn.outvars) if id(var) in needed}
        if not used and not eqn.effects:
            continue
        inner = eqn.params.get("jaxpr") if eqn.primitive.name in ("jit", "pjit") else None
        read = range(len(eqn.invars)) if inner is None else _inputs(inner.jaxpr, used)
        needed |= {id(eqn.invars[i]) for i in read}
    return {i for i, var in enumerate(jaxpr.invars) if id(var) in needed}


def _explored(world: Any, name: str, first: list[tuple[Any, Any]], limit: int) -> _Walk:
    """Breadth first: every state is expanded once, a batch of them with all actions in one compiled call."""
    import jax

    states: list[list[NDArray[Any]]] = []  # by number: the leaves
    numbers: dict[bytes, int] = {}
    walk = _Walk([], {}, {}, {})
    structure = jax.tree.structure(first[0][0])

    def number(leaves: list[NDArray[Any]], obs: Any) -> int:
        found = numbers.setdefault(b"".join(leaf.tobytes() for leaf in leaves), len(states))
        if found == len(states):
            if found >= limit:
                raise PolyakError(
                    f"{name} has more than {limit:,} states, too many to enumerate (its state holds "
                    f"{', '.join(sorted({str(leaf.dtype) for leaf in leaves}))}; is it continuous, or does it count "
                    "steps?): raise limit, or build the model with from_sparse"
                )
            states.append(leaves)
            walk.observations.append(obs)
        return found

    for s, obs in first:
        number([np.asarray(leaf) for leaf in jax.tree.leaves(s)], obs)
    queue = list(range(len(states)))
    queued = set(queue)
    step = _compiled(world, structure)
    while queue:
        batch, queue = queue[:_BATCH], queue[_BATCH:]
        leaves, observations, rewards, ends = step([states[s] for s in batch])
        for i, s in enumerate(batch):
            outcomes = range(world.action_space.n)
            to = [number([leaf[i, a] for leaf in leaves], _at(observations, i, a)) for a in outcomes]
            walk.successor[s], walk.reward[s], walk.terminated[s] = np.array(to), rewards[i], ends[i]
            ahead = [t for t, over in zip(to, ends[i], strict=True) if not over and t not in queued]
            queued.update(ahead)
            queue += dict.fromkeys(ahead)
    return walk


def _at(observations: Any, i: int, a: int) -> Any:
    """The observation after action a in the batch's i-th state; only simple ones are ever read."""
    return observations[i, a] if isinstance(observations, np.ndarray) else None


def _compiled(world: Any, structure: Any) -> Any:
    """A function that expands at most `_BATCH` states with all actions, always by the same program.

    It takes each state's leaves, and returns the successors' leaves [n, A, ...], observations, rewards [n, A] float64
    and flags [n, A].
    """
    import jax
    import jax.numpy as jnp

    actions = jnp.arange(world.action_space.n, dtype=jnp.int32)

    @jax.jit
    def program(leaves: list[Any]) -> Any:
        key = jax.random.key(0)
        one = jax.vmap(lambda s, a: world.step(s, a, key), (None, 0))
        s, obs, reward, terminated = jax.vmap(one, (0, None))(jax.tree.unflatten(structure, leaves), actions)
        return jax.tree.leaves(s), obs, reward, terminated

    def expand(states: list[list[NDArray[Any]]]) -> tuple[Any, ...]:
        n = len(states)
        padded = states + [states[0]] * (_BATCH - n)
        leaves, obs, reward, terminated = program([np.stack(column) for column in zip(*padded, strict=True)])
        found = [np.asarray(leaf)[:n] for leaf in leaves]
        obs = np.asarray(obs) if isinstance(obs, jax.Array) else None
        return found, obs, np.asarray(reward, np.float64)[:n], np.asarray(terminated, bool)[:n]

    return expand
