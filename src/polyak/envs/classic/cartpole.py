"""CartPole-v1: keep a pole upright on a cart by pushing the cart left or right.

A. G. Barto, R. S. Sutton, C. W. Anderson, "Neuronlike adaptive elements that can solve difficult learning control
problems", IEEE Transactions on Systems, Man and Cybernetics 13 (1983). Without friction, as in Gymnasium 1.4.

With cart mass m_c, pole mass m_p, M = m_c + m_p, half the pole's length l, and a push F:

    w  = (F + m_p l θ̇² sin θ) / M
    θ̈  = (g sin θ − w cos θ) / (l (4/3 − m_p cos² θ / M))
    ẍ  = w − m_p l θ̈ cos θ / M

One explicit Euler step of tau seconds advances (x, ẋ, θ, θ̇). The reward is 1 a step, the last one included; the
episode terminates when the cart leaves ±x_threshold or the pole tilts beyond ±theta_threshold.
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
from polyak.envs.classic.bounds import limit
from polyak.spaces import Box, Discrete


class CartPoleState(NamedTuple):
    """Scalars, float32."""

    x: Array  # position of the cart, m
    x_dot: Array  # m/s
    theta: Array  # angle of the pole from upright, clockwise, rad
    theta_dot: Array  # rad/s


@hyper
class CartPole:
    """Observation (x, ẋ, θ, θ̇), Box(4,); actions 0: push left, 1: push right."""

    gravity: float = 9.8  # m/s²
    masscart: float = 1.0  # kg
    masspole: float = 0.1  # kg
    length: float = 0.5  # half the pole's length, m
    force_mag: float = 10.0  # N
    tau: float = 0.02  # s per step
    x_threshold: float = 2.4  # m
    theta_threshold: float = 12 * 2 * math.pi / 360  # rad
    sutton_barto_reward: bool = False  # 0 a step and −1 at the fall, instead of 1 a step
    max_steps: int = 500

    @property
    def obs_space(self) -> Box:
        # Twice the thresholds, so that the final observation, which is beyond them, lies inside.
        x, theta = limit(self.x_threshold * 2, 4.8), limit(self.theta_threshold * 2, 48 * math.pi / 360)
        high = np.array([x, np.inf, theta, np.inf])
        return Box(-high, high)

    @property
    def action_space(self) -> Discrete:
        return Discrete(2)

    def reset(self, key: Array) -> tuple[CartPoleState, Array]:
        """All four quantities uniform in ±0.05."""
        obs = jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05)
        return CartPoleState(obs[0], obs[1], obs[2], obs[3]), obs

    def step(self, s: CartPoleState, action: Array, key: Array) -> tuple[CartPoleState, Array, Array, Array]:
        del key  # the physics is deterministic
        x, x_dot, theta, theta_dot = s.x, s.x_dot, s.theta, s.theta_dot
        force = jnp.where(action == 1, self.force_mag, -self.force_mag)
        cos, sin = jnp.cos(theta), jnp.sin(theta)
        mass = self.masscart + self.masspole
        moment = self.masspole * self.length

        w = (force + moment * theta_dot**2 * sin) / mass
        theta_acc = (self.gravity * sin - w * cos) / (self.length * (4.0 / 3.0 - self.masspole * cos**2 / mass))
        x_acc = w - moment * theta_acc * cos / mass

        after = CartPoleState(
            x + self.tau * x_dot,
            x_dot + self.tau * x_acc,
            theta + self.tau * theta_dot,
            theta_dot + self.tau * theta_acc,
        )
        terminated = (jnp.abs(after.x) > self.x_threshold) | (jnp.abs(after.theta) > self.theta_threshold)
        reward = jnp.where(terminated, -1.0, 0.0) if self.sutton_barto_reward else jnp.float32(1.0)
        return after, jnp.stack(after), reward, terminated

    def frame(self, s: CartPoleState) -> NDArray[np.uint8]:
        """A picture of one state, uint8 [320, 480, 3]; computed with NumPy, outside jit."""
        x, theta = float(s.x), float(s.theta)
        canvas = raster.blank(320, 480)
        scale = 480 / (2 * float(self.x_threshold))  # pixels per metre
        cart, rail = 240 + scale * x, 230
        pole = scale * 2 * float(self.length)
        raster.stroke(canvas, (0, rail + 15), (480, rail + 15), 2, raster.PALE)
        raster.rectangle(canvas, cart - 24, rail - 14, cart + 24, rail + 14, raster.INK)
        axle = (cart, rail - 8.0)
        tip = (axle[0] + pole * math.sin(theta), axle[1] - pole * math.cos(theta))
        raster.stroke(canvas, axle, tip, 9, raster.ORANGE)
        raster.disc(canvas, axle, 4, raster.PALE)
        return raster.picture(canvas)
