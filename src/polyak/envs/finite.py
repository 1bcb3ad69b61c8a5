"""A finite MDP as a compiled world: what a planner solves, a learner walks in. Gymnasium's toy texts among them.

The world draws outcomes from the model's own table: outcome k of (s, a) has probability p[s, a, k]. So a table of Q
that was learned here can be compared with the exact one, state by state.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from polyak.core import hyper
from polyak.errors import PolyakError
from polyak.keys import uniform
from polyak.mdp.model import Model, from_arrays
from polyak.mdp.tables import from_gymnasium
from polyak.spaces import Discrete


@hyper
class FiniteWorld:
    """Observation: the state's number, Discrete(S); actions Discrete(A). Made with `FiniteWorld.of(model)`."""

    up_to: Any  # float32 [S, A, K]: probability of an outcome before the k-th
    outcome: Any  # int32 [S, A, K, 2]: (successor, terminated)
    reward: Any  # float32 [S, A, K]
    starts: Any  # int32 [M]: the states in which an episode may begin
    starts_up_to: Any  # float32 [M]: probability of a start before the m-th
    model: Any  # the `Model` itself, for planners
    max_steps: int = 0

    @staticmethod
    def of(model: Model, max_steps: int = 0) -> "FiniteWorld":
        """The world of a model, truncated after `max_steps` (0: never).

        Errors:
            PolyakError: no episode can begin, because the model has no start distribution.
        """
        p, (S, A, K) = model.probability, model.probability.shape
        starts = np.flatnonzero(model.start).astype(np.int32)
        if not starts.size:
            raise PolyakError("the model has no start distribution, which a world needs: give start=")
        successor = np.broadcast_to(np.arange(K), (S, A, K)) if model.successor is None else model.successor
        outcome = np.stack([successor, model.terminated | model.terminal[successor]], axis=-1).astype(np.int32)
        begins = np.cumsum(model.start[starts]) - model.start[starts]
        before = np.cumsum(p, axis=-1) - p
        before[p == 0] = 2.0  # never drawn, wherever it stands
        up_to, starts_up_to, reward = (jnp.asarray(x, jnp.float32) for x in (before, begins, model.reward))
        return FiniteWorld(up_to, jnp.asarray(outcome), reward, jnp.asarray(starts), starts_up_to, model, max_steps)

    @property
    def obs_space(self) -> Discrete:
        return Discrete(self.model.n_states)

    @property
    def action_space(self) -> Discrete:
        return Discrete(self.model.n_actions)

    def reset(self, key: Array) -> tuple[Array, Array]:
        """A first state; the state is its number, int32, and so is the observation."""
        if len(self.starts) == 1:
            return self.starts[0], self.starts[0]
        s = self.starts[_drawn(self.starts_up_to, uniform(key, 1)[0])]
        return s, s

    def step(self, s: Array, action: Array, key: Array) -> tuple[Array, Array, Array, Array]:
        K = self.up_to.shape[-1]
        k = _drawn(self.up_to[s, action], uniform(key, 1)[0]) if K > 1 else jnp.int32(0)
        after, terminated = self.outcome[s, action, k]
        return after, after, self.reward[s, action, k], terminated > 0


def _drawn(up_to: Array, u: Array) -> Array:
    """The last place at which the probabilities before it do not exceed u; places that are never drawn hold 2."""
    places = jnp.where(up_to <= u, jnp.arange(up_to.shape[-1]), 0)
    return places.max()


def _toy_text(id: str) -> Callable[..., FiniteWorld]:
    """Gymnasium's environment of this id from its own table, with its own time limit."""

    def world(max_steps: int | None = None, **kwargs: Any) -> FiniteWorld:
        import gymnasium

        limit = gymnasium.spec(id).max_episode_steps or 0
        return FiniteWorld.of(from_gymnasium(id, **kwargs), limit if max_steps is None else max_steps)

    return world


def random_walk(n: int = 5, max_steps: int = 0) -> FiniteWorld:
    """The random walk of Sutton & Barto (2018), Example 6.2: n states in a row, from the middle, +1 at the right end.

    States 1 … n are the walk, 0 and n + 1 its ends; there is one action, which steps left or right alike.
    """
    P, R = np.zeros((n + 2, 1, n + 2)), np.zeros((n + 2, 1, n + 2))
    for s in range(1, n + 1):
        P[s, 0, s - 1] = P[s, 0, s + 1] = 0.5
    P[0, 0, 0] = P[n + 1, 0, n + 1] = 1.0
    R[n, 0, n + 1] = 1.0
    start, ends = np.zeros(n + 2), np.zeros(n + 2, bool)
    start[(n + 1) // 2], ends[[0, -1]] = 1.0, True
    model = from_arrays(P, R, start=start, terminal=ends, shape=(1, n + 2), name="RandomWalk-v0")
    return FiniteWorld.of(model, max_steps)


FINITE: dict[str, Callable[..., FiniteWorld]] = {
    "CliffWalking-v1": _toy_text("CliffWalking-v1"),
    "FrozenLake-v1": _toy_text("FrozenLake-v1"),
    "FrozenLake8x8-v1": _toy_text("FrozenLake8x8-v1"),
    "RandomWalk-v0": random_walk,
    "Taxi-v4": _toy_text("Taxi-v4"),
}
