"""Returns and advantages: one equation each, and the project's only arithmetic with the ends of episodes.

Everywhere: γ (1 − terminated) V(next_obs) bootstraps, and 1 − (terminated ∨ truncated) carries a trace. Arrays are
time-major, [T, ...]; `next_value` is the value of the true successor, also where the clock ended the episode.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float

from polyak.core import Transition

Reals = Float[Array, "T *N"]
Flags = Bool[Array, "T *N"]
Quantiles = Float[Array, "*B M"]
Samples = Float[Array, "*B K"]
Masses = Float[Array, "*B M"]


def discount(gamma: Any, terminated: Array) -> Array:
    """γ (1 − terminated): what the successor's value is multiplied by."""
    return gamma * (1.0 - terminated)


def ended(steps: Transition) -> Array:
    """Whether the episode ended with this step, by the world or by the clock."""
    return steps.terminated | steps.truncated


def td_target(gamma: Any, reward: Array, terminated: Array, next_value: Array) -> Array:
    """r + γ (1 − terminated) V(s′), any shape. Sutton & Barto (2018), eq. 6.2."""
    return reward + discount(gamma, terminated) * next_value


def gae(
    gamma: Any, lam: Any, reward: Reals, value: Reals, next_value: Reals, terminated: Flags, truncated: Flags
) -> Reals:
    """Generalised advantage estimates, Schulman et al. (2016), arXiv 1506.02438, eq. 16.

    δ = r + γ (1 − terminated) V(s′) − V(s);  A = δ + γ λ (1 − end) A′
    """
    delta = td_target(gamma, reward, terminated, next_value) - value
    carry = gamma * lam * (1.0 - (terminated | truncated))

    def backwards(A: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        A = step[0] + step[1] * A
        return A, A

    return lax.scan(backwards, jnp.zeros_like(delta[0]), (delta, carry), reverse=True, unroll=4)[1]


def lambda_return(gamma: Any, lam: Any, reward: Reals, next_value: Reals, terminated: Flags, truncated: Flags) -> Reals:
    """λ-returns, Sutton & Barto (2018), eq. 12.2 in its recursive form; λ = 1 is the discounted return.

    G = r + γ (1 − terminated) [(1 − λ′) V(s′) + λ′ G′] with λ′ = λ inside an episode and 0 at its end.
    """
    trace = lam * (1.0 - (terminated | truncated))

    def backwards(G: Array, step: tuple[Array, Array, Array, Array]) -> tuple[Array, Array]:
        r, gammas, v, t = step
        G = r + gammas * ((1.0 - t) * v + t * G)
        return G, G

    steps = (reward, discount(gamma, terminated), next_value, trace)
    return lax.scan(backwards, next_value[-1], steps, reverse=True)[1]


def n_step_return(gamma: Any, n: int, reward: Reals, next_value: Reals, terminated: Flags, truncated: Flags) -> Reals:
    """n-step returns, Sutton & Barto (2018), eq. 7.1, which stop earlier at an end of episode or of the arrays.

    G = Σ_{i<k} γⁱ r_i + γᵏ (1 − terminated) V(s_k), where k ≤ n is the number of steps really taken.
    """
    total = td_target(gamma, reward, terminated, next_value)
    for _ in range(n - 1):  # G_k of this step from G_{k−1} of the next
        later = jnp.concatenate([total[1:], next_value[-1:]])
        total = jnp.where(
            terminated | truncated, td_target(gamma, reward, terminated, next_value), reward + gamma * later
        )
    return total


def quantile_huber_loss(quantiles: Quantiles, targets: Samples) -> Quantiles:
    """The loss of each of M quantiles against K samples, Dabney et al. (2018), arXiv 1710.10044, eq. 9-10 with κ = 1.

    u_mk = target_k − quantile_m,  τ_m = (2 m − 1) / 2 M:  the mean over k of |τ_m − 1(u < 0)| · (½ u² or |u| − ½)
    """
    M = quantiles.shape[-1]
    tau = ((jnp.arange(M) + 0.5) / M).reshape((1,) * (quantiles.ndim - 1) + (M, 1))
    u = targets[..., None, :] - quantiles[..., :, None]
    size = jnp.abs(u)
    huber = jnp.where(size <= 1.0, 0.5 * u**2, size - 0.5)
    return (jnp.abs(tau - (u < 0)) * huber).mean(-1)


def categorical_projection(z: Masses, p: Masses, v_min: Any, v_max: Any) -> Masses:
    """A distribution of returns brought back to M evenly spaced atoms of [v_min, v_max]: Bellemare, Dabney & Munos
    (2017), arXiv 1707.06887, eq. 7.

    Each value z with its probability p, cut at the ends, is shared between the two atoms next to it, to the nearer one
    the more. Mass is kept, and so is the mean where nothing was cut.
    """
    M = z.shape[-1]
    at = (jnp.clip(z, v_min, v_max) - v_min) * (M - 1) / (v_max - v_min)  # in steps between atoms
    atom = jnp.arange(M, dtype=z.dtype).reshape((1,) * (z.ndim - 1) + (M, 1))
    return (jnp.clip(1.0 - jnp.abs(at[..., None, :] - atom), 0.0, 1.0) * p[..., None, :]).sum(-1)


def explained_variance(target: Array, value: Array) -> Array:
    """1 − Var(target − value) / Var(target): 1 is perfect, ≤ 0 no better than a constant; NaN for a constant target."""
    spread = jnp.var(target)
    return jnp.where(spread > 0, 1.0 - jnp.var(target - value) / jnp.where(spread > 0, spread, 1.0), jnp.nan)


def value_error(V: Array, G: Array, V_old: Array, clip: Any) -> Array:
    """(V − G)², any shape; with `clip` the larger of this and the error of V brought within `clip` of V_old."""
    if clip is None:
        return (V - G) ** 2
    return jnp.maximum((V - G) ** 2, (V_old + jnp.clip(V - V_old, -clip, clip) - G) ** 2)


def standardised(A: Array) -> Array:
    """Zero mean and unit deviation; one element alone becomes 0."""
    return (A - A.mean()) / (A.std() + 1e-8)


__all__ = [
    "categorical_projection",
    "discount",
    "ended",
    "explained_variance",
    "gae",
    "lambda_return",
    "n_step_return",
    "quantile_huber_loss",
    "standardised",
    "td_target",
    "value_error",
]
