"""Exploration: random actions, ε-greedy choice, state-dependent noise."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from polyak.dists import Bernoulli, Categorical, MultiCategorical
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


def _level(mask: Array | None, shape: tuple[int, int]) -> Array:
    """Equal logits, −1e9 where an action is not allowed."""
    return jnp.zeros(shape) if mask is None else jnp.where(mask > 0, 0.0, -1e9)


def epsilon_greedy(key: Array, greedy: Array, random: Array, epsilon: Any) -> Array:
    """Each of the n actions is random with probability ε, else greedy (Sutton & Barto 2018, §2.4)."""
    explores = jax.random.uniform(key, greedy.shape[:1]) < epsilon
    return jnp.where(explores.reshape((-1,) + (1,) * (greedy.ndim - 1)), random, greedy)
