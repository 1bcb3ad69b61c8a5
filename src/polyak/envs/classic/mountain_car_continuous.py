"""MountainCarContinuous-v0: the car in the valley (see `mountain_car`) with a continuous throttle u.

Moore's car in the continuous form of Gymnasium 1.4:

    v ← clip(v + power · clip(u, ±1) − gravity cos 3x, ±max_speed)

The reward is 100 at the goal, minus 0.1 u² in every step; so an agent that never reaches the goal learns to stand
still, which makes this a test of exploration.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from polyak.core import hyper
from polyak.envs.classic.mountain_car import MountainCarState, roll, valley_frame, valley_space, valley_start
from polyak.spaces import Box


@hyper
class MountainCarContinuous:
    """Observation (x, v), Box(2,); action: throttle in [−1, 1], Box(1,)."""

    min_position: float = -1.2
    max_position: float = 0.6
    max_speed: float = 0.07  # per step
    goal_position: float = 0.45  # Gymnasium's: 0.05 before that of the discrete car
    goal_velocity: float = 0.0
    power: float = 0.0015
    gravity: float = 0.0025
    max_steps: int = 999

    @property
    def obs_space(self) -> Box:
        return valley_space(self)

    @property
    def action_space(self) -> Box:
        return Box(-1.0, 1.0, (1,))

    def reset(self, key: Array) -> tuple[MountainCarState, Array]:
        """x uniform in [−0.6, −0.4], at rest."""
        return valley_start(key)

    def step(self, s: MountainCarState, action: Array, key: Array) -> tuple[MountainCarState, Array, Array, Array]:
        del key  # the physics is deterministic
        u = action[0]
        after, terminated = roll(self, s, jnp.clip(u, -1.0, 1.0) * self.power)
        reward = jnp.where(terminated, 100.0, 0.0) - 0.1 * u**2  # the cost counts u as given, unclipped
        return after, jnp.stack(after), reward, terminated

    def frame(self, s: MountainCarState) -> NDArray[np.uint8]:
        """A picture of one state, uint8 [320, 480, 3]; computed with NumPy, outside jit."""
        return valley_frame(self, s)
