"""Acrobot-v1: swing the foot of a two-link robot above a bar, with a motor only at the elbow.

R. S. Sutton, "Generalization in Reinforcement Learning: Successful Examples Using Sparse Coarse Coding", NIPS 8
(1996); the equations of motion are those of Sutton and Barto's book (they contain one term that the paper lacks), as
in Gymnasium 1.4. θ₁ is the first link's angle from hanging, θ₂ the second's relative to it, τ the torque, both
links with mass m, length l, centre of mass l_c and inertia I:

    d₁ = m l_c² + m (l² + l_c² + 2 l l_c cos θ₂) + 2I
    d₂ = m (l_c² + l l_c cos θ₂) + I
    φ₂ = m l_c g sin(θ₁ + θ₂)
    φ₁ = −m l l_c (θ̇₂² + 2 θ̇₂ θ̇₁) sin θ₂ + m (l_c + l) g sin θ₁ + φ₂
    θ̈₂ = (τ + (d₂/d₁) φ₁ − m l l_c θ̇₁² sin θ₂ − φ₂) / (m l_c² + I − d₂²/d₁)
    θ̈₁ = −(d₂ θ̈₂ + φ₁) / d₁

with each link's own m, l, l_c in the code. One classical Runge–Kutta step of dt seconds, then the angles are wrapped
to [−π, π] and the speeds clipped. The reward is −1 a step, 0 at the goal, −cos θ₁ − cos(θ₁ + θ₂) > 1 (in links).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from polyak.core import hyper
from polyak.envs.classic import raster
from polyak.envs.classic.bounds import limit, wrapped_angle
from polyak.spaces import Box, Discrete


class AcrobotState(NamedTuple):
    """Scalars, float32; also used for the time derivative of a state."""

    theta1: Array  # rad from hanging
    theta2: Array  # rad relative to the first link
    dtheta1: Array  # rad/s
    dtheta2: Array  # rad/s


@hyper
class Acrobot:
    """Observation (cos θ₁, sin θ₁, cos θ₂, sin θ₂, θ̇₁, θ̇₂), Box(6,); actions 0, 1, 2: torque −1, 0, 1 N·m."""

    gravity: float = 9.8  # m/s²
    length1: float = 1.0  # m; the second link's length enters neither the motion nor the goal
    mass1: float = 1.0  # kg
    mass2: float = 1.0  # kg
    com1: float = 0.5  # from the joint to the link's centre of mass, m
    com2: float = 0.5  # m
    inertia: float = 1.0  # of either link, kg·m²
    torque: float = 1.0  # N·m
    max_speed1: float = 4 * math.pi  # rad/s
    max_speed2: float = 9 * math.pi  # rad/s
    dt: float = 0.2  # s per step
    max_steps: int = 500

    @property
    def obs_space(self) -> Box:
        speeds = limit(self.max_speed1, 4 * math.pi), limit(self.max_speed2, 9 * math.pi)
        high = np.array([1.0, 1.0, 1.0, 1.0, *speeds])
        return Box(-high, high)

    @property
    def action_space(self) -> Discrete:
        return Discrete(3)

    def reset(self, key: Array) -> tuple[AcrobotState, Array]:
        """All four quantities uniform in ±0.1."""
        u = jax.random.uniform(key, (4,), minval=-0.1, maxval=0.1)
        s = AcrobotState(u[0], u[1], u[2], u[3])
        return s, _observation(s)

    def step(self, s: AcrobotState, action: Array, key: Array) -> tuple[AcrobotState, Array, Array, Array]:
        del key  # the physics is deterministic
        torque = self.torque * (action.astype(jnp.float32) - 1.0)
        k1 = self._derivative(s, torque)
        k2 = self._derivative(_advanced(s, k1, self.dt / 2), torque)
        k3 = self._derivative(_advanced(s, k2, self.dt / 2), torque)
        k4 = self._derivative(_advanced(s, k3, self.dt), torque)
        slope = AcrobotState(*(a + 2 * b + 2 * c + d for a, b, c, d in zip(k1, k2, k3, k4, strict=True)))
        free = _advanced(s, slope, self.dt / 6)
        after = AcrobotState(
            wrapped_angle(free.theta1),
            wrapped_angle(free.theta2),
            jnp.clip(free.dtheta1, -self.max_speed1, self.max_speed1),
            jnp.clip(free.dtheta2, -self.max_speed2, self.max_speed2),
        )
        terminated = -jnp.cos(after.theta1) - jnp.cos(after.theta1 + after.theta2) > 1.0
        return after, _observation(after), jnp.where(terminated, 0.0, -1.0), terminated

    def _derivative(self, s: AcrobotState, torque: Array) -> AcrobotState:
        m1, m2, l1, c1, c2, g = self.mass1, self.mass2, self.length1, self.com1, self.com2, self.gravity
        cos2, sin2 = jnp.cos(s.theta2), jnp.sin(s.theta2)
        d1 = m1 * c1**2 + m2 * (l1**2 + c2**2 + 2 * l1 * c2 * cos2) + 2 * self.inertia
        d2 = m2 * (c2**2 + l1 * c2 * cos2) + self.inertia
        phi2 = m2 * c2 * g * jnp.sin(s.theta1 + s.theta2)
        coupling = m2 * l1 * c2 * sin2
        phi1 = -coupling * (s.dtheta2**2 + 2 * s.dtheta2 * s.dtheta1)
        phi1 = phi1 + (m1 * c1 + m2 * l1) * g * jnp.sin(s.theta1) + phi2
        pull = torque + d2 / d1 * phi1 - coupling * s.dtheta1**2 - phi2
        ddtheta2 = pull / (m2 * c2**2 + self.inertia - d2**2 / d1)
        ddtheta1 = -(d2 * ddtheta2 + phi1) / d1
        return AcrobotState(s.dtheta1, s.dtheta2, ddtheta1, ddtheta2)

    def frame(self, s: AcrobotState) -> NDArray[np.uint8]:
        """A picture of one state, uint8 [320, 320, 3]; computed with NumPy, outside jit. The line is the goal."""
        first, second = float(s.theta1), float(s.theta1) + float(s.theta2)
        canvas = raster.blank(320, 320)
        scale = 70.0  # pixels per link
        hand = (160.0, 160.0)
        elbow = (hand[0] + scale * math.sin(first), hand[1] + scale * math.cos(first))
        foot = (elbow[0] + scale * math.sin(second), elbow[1] + scale * math.cos(second))
        raster.stroke(canvas, (0, hand[1] - scale), (320, hand[1] - scale), 2, raster.PALE)
        raster.stroke(canvas, hand, elbow, 14, raster.BLUE)
        raster.stroke(canvas, elbow, foot, 14, raster.GREEN)
        raster.disc(canvas, hand, 5, raster.ORANGE)
        raster.disc(canvas, elbow, 5, raster.ORANGE)
        return raster.picture(canvas)


def _advanced(s: AcrobotState, slope: AcrobotState, dt: float) -> AcrobotState:
    return AcrobotState(*(x + dt * dx for x, dx in zip(s, slope, strict=True)))


def _observation(s: AcrobotState) -> Array:
    return jnp.stack([jnp.cos(s.theta1), jnp.sin(s.theta1), jnp.cos(s.theta2), jnp.sin(s.theta2), s.dtheta1, s.dtheta2])
