"""Pendulum-v1: swing up a rod with a motor too weak to lift it in one go, and balance it.

The torque-limited swing-up of K. Doya, "Reinforcement Learning in Continuous Time and Space", Neural Computation 12
(2000), with the constants and the discretisation of Gymnasium 1.4. With θ = 0 upright and torque u:

    cost = θ² + 0.1 θ̇² + 0.001 u²                  of the state before the step, θ in [−π, π]
    θ̇ ← clip(θ̇ + (3g / 2l · sin θ + 3 / (m l²) · u) dt, ±max_speed)
    θ ← θ + θ̇ dt                                     with the new θ̇ (semi-implicit Euler)

The reward is −cost. There is no terminal state: only the clock ends an episode.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from numpy.typing import NDArray

from polyak.core import hyper
from polyak.envs.classic import raster
from polyak.envs.classic.bounds import limit, wrapped_angle
from polyak.spaces import Box


class PendulumState(NamedTuple):
    """Scalars, float32."""

    theta: Array  # angle from upright, rad, kept in [−π, π]: float32 would lose digits where turns add up
    theta_dot: Array  # rad/s


@hyper
class Pendulum:
    """Observation (cos θ, sin θ, θ̇), Box(3,); action: torque in N·m, Box(1,) within ±max_torque."""

    gravity: float = 10.0  # m/s²
    mass: float = 1.0  # kg
    length: float = 1.0  # m
    max_speed: float = 8.0  # rad/s
    max_torque: float = 2.0  # N·m
    dt: float = 0.05  # s per step
    max_steps: int = 200

    @property
    def obs_space(self) -> Box:
        high = np.array([1.0, 1.0, limit(self.max_speed, 8.0)])
        return Box(-high, high)

    @property
    def action_space(self) -> Box:
        torque = limit(self.max_torque, 2.0)
        return Box(-torque, torque, (1,))

    def action_bounds(self) -> tuple[Array, Array]:
        """Lowest and highest torque, [1], as they are inside a traced program."""
        torque = jnp.reshape(jnp.asarray(self.max_torque, jnp.float32), (1,))
        return -torque, torque

    def reset(self, key: Array) -> tuple[PendulumState, Array]:
        """θ uniform in ±π, θ̇ in ±1."""
        u = jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0)
        s = PendulumState(math.pi * u[0], u[1])
        return s, _observation(s)

    def step(self, s: PendulumState, action: Array, key: Array) -> tuple[PendulumState, Array, Array, Array]:
        del key  # the physics is deterministic
        u = jnp.clip(action[0], -self.max_torque, self.max_torque)
        # Of a sum of two products either may be contracted with the sum, and compilers choose differently from program
        # to program. The barrier keeps one product apart in each sum: so all programs round alike.
        angle2, pull = lax.optimization_barrier(
            (wrapped_angle(s.theta) ** 2, 3 * self.gravity / (2 * self.length) * jnp.sin(s.theta))
        )
        cost = angle2 + 0.1 * s.theta_dot**2 + 0.001 * u**2
        push = 3.0 / (self.mass * self.length**2) * u
        theta_dot = jnp.clip(s.theta_dot + (pull + push) * self.dt, -self.max_speed, self.max_speed)
        after = PendulumState(wrapped_angle(s.theta + theta_dot * self.dt), theta_dot)
        return after, _observation(after), -cost, jnp.zeros((), bool)

    def frame(self, s: PendulumState) -> NDArray[np.uint8]:
        """A picture of one state, uint8 [320, 320, 3]; computed with NumPy, outside jit."""
        theta = float(s.theta)
        canvas = raster.blank(320, 320)
        axle = (160.0, 160.0)
        tip = (160 - 110 * math.sin(theta), 160 - 110 * math.cos(theta))
        raster.disc(canvas, axle, 122, raster.PALE)
        raster.disc(canvas, axle, 120, raster.WHITE)
        raster.stroke(canvas, axle, tip, 22, raster.RED)
        raster.disc(canvas, axle, 5, raster.INK)
        return raster.picture(canvas)


def _observation(s: PendulumState) -> Array:
    return jnp.stack([jnp.cos(s.theta), jnp.sin(s.theta), s.theta_dot])
