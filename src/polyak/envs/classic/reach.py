"""Reach-v0: a point in a square must come to a goal, and is told nothing but whether it is there.

A world of our own, the smallest one with goals: FetchReach (Plappert et al. 2018, arXiv 1802.09464) without the arm.
The point p starts in the middle of the square [−1, 1]², the goal g anywhere in it; a step with the action u is

    p ← clip(p + speed · clip(u, ±1), ±1)

The reward is 0 where ‖p − g‖ ≤ threshold after the step, and −1 elsewhere. There is no terminal state: only the clock
ends an episode, which succeeded if the point is at its goal then.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from polyak.core import hyper
from polyak.envs.classic import raster
from polyak.envs.goals import DistanceReward
from polyak.spaces import Box, Dict


class ReachState(NamedTuple):
    """Points of the square, [2] float32."""

    position: Array
    goal: Array


@hyper
class Reach:
    """Observation Dict(observation: p, achieved_goal: p, desired_goal: g), each Box(2,); action: velocity, Box(2,)."""

    speed: float = 0.1  # farthest that a step goes, along each axis
    threshold: float = 0.05  # distance from the goal within which it counts as reached
    max_steps: int = 50

    @property
    def obs_space(self) -> Dict:
        square = Box(-1.0, 1.0, (2,))
        return Dict({"observation": square, "achieved_goal": square, "desired_goal": square})

    @property
    def action_space(self) -> Box:
        return Box(-1.0, 1.0, (2,))

    def reset(self, key: Array) -> tuple[ReachState, Any]:
        """p = 0, g uniform in the square."""
        s = ReachState(jnp.zeros(2), jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0))
        return s, _observation(s)

    def step(self, s: ReachState, action: Array, key: Array) -> tuple[ReachState, Any, Array, Array]:
        del key  # the physics is deterministic
        position = jnp.clip(s.position + self.speed * jnp.clip(action, -1.0, 1.0), -1.0, 1.0)
        after = ReachState(position, s.goal)
        return after, _observation(after), self.goal_reward(position, s.goal), jnp.zeros((), bool)

    def goal_reward(self, achieved: Array, desired: Array) -> Array:
        """The reward of a step that ends at `achieved` [2] where `desired` [2] was the goal."""
        return DistanceReward(self.threshold, dense=False)(achieved, desired)

    def success(self, obs: Any) -> Array:
        """Whether an episode that ends with this observation succeeded."""
        return self.goal_reward(obs["achieved_goal"], obs["desired_goal"]) == 0.0

    def frame(self, s: ReachState) -> NDArray[np.uint8]:
        """A picture of one state, uint8 [320, 320, 3]; computed with NumPy, outside jit."""
        canvas = raster.blank(320, 320)
        raster.rectangle(canvas, 10, 10, 310, 310, raster.PALE)
        for point, radius, colour in (
            (s.goal, 150 * float(self.threshold) + 6, raster.GREEN),
            (s.position, 6, raster.BLUE),
        ):
            x, y = (float(v) for v in point)
            raster.disc(canvas, (160 + 150 * x, 160 - 150 * y), radius, colour)
        return raster.picture(canvas)


def _observation(s: ReachState) -> dict[str, Array]:
    return {"observation": s.position, "achieved_goal": s.position, "desired_goal": s.goal}
