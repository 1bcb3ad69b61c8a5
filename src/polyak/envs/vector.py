"""Many copies of one JAX world side by side: batch, clock, auto-reset, episode statistics, action bounds.

A world describes the physics of one environment and knows no ends but its own; this file is the only place on the
compiled side that says when an episode is over:

    terminatedₜ = what the world said                            the successor is worth 0
    truncatedₜ  = (t + 1 ≥ max_steps) ∧ ¬terminatedₜ              the clock ran out: the successor keeps its value

`Outcome.next_obs` is always the true successor; the observation that `step` returns beside it is what to act on
next, the first one of a new episode where the old one ended. Both are computed in every step and one is selected,
because a `lax.cond` on batched data would run both branches anyway; so the stream of random numbers that one
environment sees depends only on the key, the step and its index, never on what its neighbours do.

The physics has the same bits stepped one call at a time as inside a scan (see `rounding`), provided that the
`Vector` is an argument of both jitted functions: closed over, its constants are folded, and round differently.
"""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from polyak.core import hyper, where
from polyak.envs.rounding import separately_rounded
from polyak.errors import PolyakError
from polyak.keys import parted
from polyak.spaces import Box, Dict, Space, Tuple, agent_action_space, describe


class World(Protocol):
    """One environment, as a frozen dataclass made with `polyak.core.hyper`: float fields are physical constants.

    `step` takes an action of `action_space` (within the world's own bounds) and returns the successor's state, its
    observation, the reward (float32 scalar) and whether the task ended (bool scalar). `max_steps` is the time limit
    in steps, 0 for none. All of it is pure and traceable; states are any pytree of arrays.

    A world whose action bounds are float fields also has `action_bounds() -> (low, high)`, which gives them as they
    are inside a traced program, where the (static) space can only show their nominal values.

    A world with goals has an observation Dict(observation, achieved_goal, desired_goal) and `goal_reward(achieved,
    desired) -> reward`, and may say with `success(obs) -> bool` whether an episode that ends with obs succeeded.
    """

    @property
    def max_steps(self) -> int: ...
    @property
    def obs_space(self) -> Space: ...
    @property
    def action_space(self) -> Space: ...
    def reset(self, key: Array) -> tuple[Any, Any]: ...
    def step(self, s: Any, action: Any, key: Array) -> tuple[Any, Any, Array, Array]: ...


class VectorState(NamedTuple):
    """Everything that changes in N worlds; lives for the run."""

    s: Any  # the worlds' own states, [N, ...]
    t: Array  # steps taken in the episode, [N] int32
    episode_return: Array  # sum of its rewards so far, undiscounted and unnormalised, [N] float32


class Outcome(NamedTuple):
    """What one step of N worlds brought."""

    reward: Array  # [N] float32
    next_obs: Any  # [N, ...] the true successor: at an end the final observation, never the reset one
    terminated: Array  # [N] bool
    truncated: Array  # [N] bool; never true together with terminated
    episode_return: Array  # [N] float32, NaN unless the episode ended in this step
    episode_length: Array  # [N] int32, 0 unless the episode ended in this step


@hyper
class Vector:
    """N copies of a world that reset themselves.

    Actions come in the agent's view of the action space, where every bounded Box is [-1, 1]: they are clipped to it
    and mapped affinely to the world's own, possibly asymmetric, bounds, which -1 and 1 meet exactly.
    """

    world: Any
    n_envs: int = 1

    def __post_init__(self) -> None:
        if self.n_envs < 1:
            raise PolyakError(f"n_envs is {self.n_envs}, and must be at least 1")

    @property
    def obs_space(self) -> Space:
        return self.world.obs_space

    @property
    def action_space(self) -> Space:
        """The agent's view: a bounded Box is [-1, 1], everything else is the world's own space."""
        return agent_action_space(self.world.action_space)

    def reset(self, key: Array) -> tuple[VectorState, Any]:
        """N fresh episodes from one key; the observations are [N, ...]."""
        s, obs = jax.vmap(self.world.reset)(jax.random.split(key, self.n_envs))
        return VectorState(s, jnp.zeros(self.n_envs, jnp.int32), jnp.zeros(self.n_envs, jnp.float32)), obs

    def step(self, vstate: VectorState, action: Any, key: Array) -> tuple[VectorState, Any, Outcome]:
        """One step of every world.

        Args:
            vstate: as returned by `reset` or by the step before.
            action: [N, ...] in the agent's view of the action space.
            key: one key; it is split per environment, for the steps and for the resets.

        Returns:
            The new state, the observations to act on next [N, ...], and the outcome of this step.
        """
        k_step, k_reset = parted(key, 2)
        step_keys, reset_keys = self._keys(k_step), self._keys(k_reset)

        zero = vstate.t >> 31  # t ≥ 0, which only we know
        s, next_obs, reward, terminated = jax.vmap(self._physics)(vstate.s, action, step_keys, zero)
        t = vstate.t + 1
        episode_return = vstate.episode_return + reward
        late = t >= self.world.max_steps if self.world.max_steps else jnp.zeros(self.n_envs, bool)
        truncated = late & ~terminated
        end = terminated | truncated

        fresh_s, fresh_obs = jax.vmap(self._fresh)(reset_keys, zero)
        outcome = Outcome(
            reward, next_obs, terminated, truncated, jnp.where(end, episode_return, jnp.nan), jnp.where(end, t, 0)
        )
        after = VectorState(where(end, fresh_s, s), jnp.where(end, 0, t), jnp.where(end, 0.0, episode_return))
        return after, where(end, fresh_obs, next_obs), outcome

    def success(self, obs: Any) -> Array:
        """Whether episodes that end with obs [N, ...] succeeded, [N] float32; NaN where the world doesn't say."""
        says = getattr(self.world, "success", None)
        return jnp.full(self.n_envs, jnp.nan) if says is None else jax.vmap(says)(obs).astype(jnp.float32)

    def _keys(self, key: Array) -> Array:
        """One key per environment: those of `jax.random.split(key, N)`."""
        if self.n_envs == 1:
            return parted(key, 1)[0][None]
        return jax.random.split(key, self.n_envs)

    def _physics(self, s: Any, action: Any, key: Array, zero: Array) -> tuple[Any, Any, Array, Array]:
        """One step of one environment, with the same bits alone as inside a scan (see `rounding`)."""

        def step(s: Any, action: Any, key: Array) -> tuple[Any, Any, Array, Array]:
            s, obs, reward, terminated = self.world.step(s, self._world_action(action), key)
            return s, obs, jnp.asarray(reward, jnp.float32), jnp.asarray(terminated, bool)

        return separately_rounded(step, zero, s, action, key)

    def _fresh(self, key: Array, zero: Array) -> tuple[Any, Any]:
        return separately_rounded(self.world.reset, zero, key)

    def _world_action(self, action: Any) -> Any:
        """One environment's action in the world's own units."""
        space = self.world.action_space
        own = getattr(self.world, "action_bounds", None)
        if own is not None and isinstance(space, Box):
            low, high = own()
            return _within(action, low, high, space.dtype)
        return world_action(space, action)


def world_action(space: Space, action: Any) -> Any:
    """An action in the agent's view, [-1, 1] for every bounded Box, as the world's own space has it.

    Leading axes are allowed before those of the space. Raises PolyakError where the tree of actions does not fit.
    """
    match space:
        case Box() if space.bounded:
            return _within(action, *space.bounds, space.dtype)
        case Dict():
            if set(action) != {name for name, _ in space.items}:
                raise PolyakError(f"the action has the keys {sorted(action)}, and the space is {describe(space)}")
            return {name: world_action(inner, action[name]) for name, inner in space.items}
        case Tuple():
            return tuple(world_action(inner, part) for inner, part in zip(space.items, action, strict=True))
        case _:
            return action


def _within(action: Array, low: Any, high: Any, dtype: Any) -> Array:
    """½(1−a)·low + ½(1+a)·high with a clipped to [-1, 1]: in this form a = ±1 gives the bounds to the last bit."""
    a = jnp.clip(jnp.asarray(action, jnp.float32), -1.0, 1.0)
    low, high = (jnp.broadcast_to(jnp.asarray(bound, jnp.float32), a.shape) for bound in (low, high))
    value = 0.5 * (1.0 - a) * low + 0.5 * (1.0 + a) * high
    return jnp.round(value).astype(dtype) if np.issubdtype(dtype, np.integer) else value.astype(dtype)
