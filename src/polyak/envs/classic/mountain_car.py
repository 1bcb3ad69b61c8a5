"""MountainCar-v0: an underpowered car must rock back and forth to climb out of a valley.

A. W. Moore, "Efficient Memory-Based Learning for Robot Control", PhD thesis, University of Cambridge (1990), in the
form of Sutton and Barto's book and Gymnasium 1.4:

    v ← clip(v + force (a − 1) − gravity cos 3x, ±max_speed)
    x ← clip(x + v, [min_position, max_position]);   at the left wall a leftward v becomes 0

The reward is −1 a step; the episode terminates at x ≥ goal_position with v ≥ goal_velocity.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from polyak.core import hyper
from polyak.envs.classic import raster
from polyak.envs.classic.bounds import limit
from polyak.spaces import Box, Discrete


class MountainCarState(NamedTuple):
    """Scalars, float32."""

    position: Array
    velocity: Array  # per step


@hyper
class MountainCar:
    """Observation (x, v), Box(2,); actions 0: push left, 1: coast, 2: push right."""

    min_position: float = -1.2
    max_position: float = 0.6
    max_speed: float = 0.07  # per step
    goal_position: float = 0.5
    goal_velocity: float = 0.0
    force: float = 0.001
    gravity: float = 0.0025
    max_steps: int = 200

    @property
    def obs_space(self) -> Box:
        return valley_space(self)

    @property
    def action_space(self) -> Discrete:
        return Discrete(3)

    def reset(self, key: Array) -> tuple[MountainCarState, Array]:
        """x uniform in [−0.6, −0.4], at rest."""
        return valley_start(key)

    def step(self, s: MountainCarState, action: Array, key: Array) -> tuple[MountainCarState, Array, Array, Array]:
        del key  # the physics is deterministic
        push = (action.astype(jnp.float32) - 1.0) * self.force
        after, terminated = roll(self, s, push)
        return after, jnp.stack(after), jnp.float32(-1.0), terminated

    def frame(self, s: MountainCarState) -> NDArray[np.uint8]:
        """A picture of one state, uint8 [320, 480, 3]; computed with NumPy, outside jit."""
        return valley_frame(self, s)


def valley_space(world: Any) -> Box:
    """The observations of both cars: position and velocity within the world's limits."""
    speed = limit(world.max_speed, 0.07)
    low = np.array([limit(world.min_position, -1.2), -speed])
    high = np.array([limit(world.max_position, 0.6), speed])
    return Box(low, high)


def valley_start(key: Array) -> tuple[MountainCarState, Array]:
    """At rest near the bottom of the valley; the state and its observation."""
    s = MountainCarState(jax.random.uniform(key, (), minval=-0.6, maxval=-0.4), jnp.zeros((), jnp.float32))
    return s, jnp.stack(s)


def roll(world: Any, s: MountainCarState, push: Array) -> tuple[MountainCarState, Array]:
    """One step of either car under an acceleration `push`; the state after it and whether the goal is reached."""
    velocity = s.velocity + push - world.gravity * jnp.cos(3 * s.position)
    velocity = jnp.clip(velocity, -world.max_speed, world.max_speed)
    position = jnp.clip(s.position + velocity, world.min_position, world.max_position)
    velocity = jnp.where((position <= world.min_position) & (velocity < 0), 0.0, velocity)
    terminated = (position >= world.goal_position) & (velocity >= world.goal_velocity)
    return MountainCarState(position, velocity), terminated


def valley_frame(world: Any, s: MountainCarState) -> NDArray[np.uint8]:
    """The valley y = 0.55 + 0.45 sin 3x, the flag and the car."""
    left, right, goal = float(world.min_position), float(world.max_position), float(world.goal_position)
    scale = 480 / (right - left)  # pixels per unit, on both axes

    def pixel(x: float) -> raster.Point:
        return scale * (x - left), 312 - scale * (0.55 + 0.45 * math.sin(3 * x))

    canvas = raster.blank(320, 480)
    raster.path(canvas, [pixel(x) for x in np.linspace(left, right, 60)], 3, raster.INK)
    foot = pixel(goal)
    raster.stroke(canvas, foot, (foot[0], foot[1] - 40), 2, raster.INK)
    raster.rectangle(canvas, foot[0], foot[1] - 40, foot[0] + 20, foot[1] - 28, raster.ORANGE)
    x = float(s.position)
    ground, slope = pixel(x), math.atan(1.35 * math.cos(3 * x))
    along, up = (math.cos(slope), -math.sin(slope)), (-math.sin(slope), -math.cos(slope))
    body = (ground[0] + 12 * up[0], ground[1] + 12 * up[1])
    ends = [(body[0] + k * along[0], body[1] + k * along[1]) for k in (-11, 11)]
    raster.stroke(canvas, ends[0], ends[1], 12, raster.BLUE)
    for k in (-11, 11):
        raster.disc(canvas, (ground[0] + k * along[0] + 5 * up[0], ground[1] + k * along[1] + 5 * up[1]), 5, raster.INK)
    return raster.picture(canvas)
