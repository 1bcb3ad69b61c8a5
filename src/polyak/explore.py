"""Exploration: random actions, ε-greedy choice, noise on actions."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from polyak import keys
from polyak.core import Counter
from polyak.dists import Bernoulli, Categorical, MultiCategorical, normal
from polyak.optim import Linear
from polyak.spaces import Box, Discrete, MultiBinary, MultiDiscrete, Space


def uniform(key: Array, space: Space, n: int, mask: Array | None = None) -> Array:
    """n actions drawn uniformly from `space` (a Box is [-1, 1]), of the allowed ones where there is a mask [n, ·]."""
    match space:
        case Box():
            return jax.random.uniform(key, (n, *space.shape), minval=-1.0, maxval=1.0)
        case Discrete():
            return Categorical(_level(mask, (n, space.n))).sample(key)
        case MultiDiscrete():
            return MultiCategorical(_level(mask, (n, sum(space.nvec))), space.nvec).sample(key)
        case MultiBinary():
            return Bernoulli(jnp.zeros((n, space.n))).sample(key)
        case _:
            raise TypeError(f"no actions in {space}")


def random_at_first(key: Array, ready: Array, action: Array, space: Space, mask: Array | None = None) -> Array:
    """The actions [N, ...], or uniformly random ones until learning is ready."""
    return jnp.where(ready, action, uniform(key, space, action.shape[0], mask))


def _level(mask: Array | None, shape: tuple[int, int]) -> Array:
    """Equal logits, −1e9 where an action is not allowed."""
    return jnp.zeros(shape) if mask is None else jnp.where(mask > 0, 0.0, -1e9)


def epsilon_at(agent: Any, steps: Counter) -> Array:
    """ε of an agent with eps_start, eps_end and eps_steps at this point of the run."""
    return Linear(agent.eps_start, agent.eps_end, steps=float(agent.eps_steps))(steps.float())


def epsilon_greedy_choice(key: Array, Q: Array, epsilon: Any, mask: Array | None = None) -> Array:
    """ε-greedy actions [N] from values [N, A], ties broken at random (Sutton & Barto 2018, §2.2).

    Where all values start equal, the first of the best would be one action for every state. Two random numbers per
    environment: whether it explores, and which of the actions in question it takes.
    """
    u = keys.uniform(key, 2 * Q.shape[0]).reshape(2, -1)
    allowed = jnp.ones(Q.shape, bool) if mask is None else mask > 0
    best = allowed & (jnp.where(allowed, Q, -jnp.inf).max(-1, keepdims=True) <= Q)
    return nth_of(jnp.where((u[0] < epsilon)[:, None], allowed, best), u[1])


def epsilon_greedy_probabilities(Q: Array, epsilon: Any, mask: Array | None = None) -> Array:
    """π(a | s) of `epsilon_greedy_choice`: ε shared among all allowed actions, 1 − ε among the best; [..., A]."""
    allowed = jnp.ones(Q.shape, bool) if mask is None else mask > 0
    best = allowed & (jnp.where(allowed, Q, -jnp.inf).max(-1, keepdims=True) <= Q)
    share = [among / among.sum(-1, keepdims=True) for among in (best.astype(Q.dtype), allowed.astype(Q.dtype))]
    return (1 - epsilon) * share[0] + epsilon * share[1]


def nth_of(among: Array, u: Array) -> Array:
    """One of the marked places of each row [N, A], drawn by a uniform number u [N]."""
    rank = jnp.cumsum(among, axis=-1)  # 1, 2, ... at the marked places
    wanted = jnp.floor(u * rank[:, -1]) + 1  # u < 1, so at most their number
    return jnp.argmax(rank >= wanted[:, None], axis=-1).astype(jnp.int32)


def disturbed(key: Array, action: Array, std: Any, theta: Any, memory: Any) -> tuple[Array, Any]:
    """(actions with noise, cut at ±1; the noise's memory) from actions [N, n], σ and θ.

    Without memory, (), the noise is σ ξ with ξ ~ N(0, 1), independent at every step. With the last noise x [N, n] as
    memory it is the Ornstein-Uhlenbeck process x ← (1 − θ) x + σ ξ (Lillicrap et al. 2016, arXiv 1509.02971), whose
    deviation in the long run is σ / √(2θ − θ²).
    """
    noise = std * normal(key, action.shape)
    if not isinstance(memory, tuple):
        noise = memory = (1 - theta) * memory + noise
    return jnp.clip(action + noise, -1.0, 1.0), memory
