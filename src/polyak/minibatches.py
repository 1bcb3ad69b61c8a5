"""Minibatches of a rollout: every step once in each pass, in random order, alone or in sequences."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from polyak.core import Metrics, flat, leading, require

Learn = Callable[[Any, Any], tuple[Any, Metrics]]


def passes(
    learn: Learn, carry: Any, data: Any, key: Array, epochs: int, batch_size: int, sequences: bool = False
) -> tuple[Any, Metrics]:
    """`epochs` passes over steps [T, N] in minibatches of `batch_size`, which must divide T · N.

    Args:
        learn: (carry, minibatch [batch_size, ...]) ↦ (carry, metrics).
        sequences: minibatches are [length, batch_size / length, ...] of consecutive steps, length = min(T, batch_size).

    Returns:
        The carry after the last minibatch, and the metrics' means; NaN did not happen, and isn't counted.
    """
    T, N = leading(data, 2)
    length = min(T, batch_size) if sequences else 1
    data = pieces(data, length) if sequences else flat(data)
    rows, count = T * N // length, T * N // batch_size

    def minibatch(carry: Any, chosen: Array) -> tuple[Any, Metrics]:
        return learn(carry, jax.tree.map(lambda x: x[:, chosen] if sequences else x[chosen], data))

    def epoch(carry: Any, key: Array) -> tuple[Any, Metrics]:
        if count == 1:  # the order within one batch doesn't matter
            return learn(carry, data)
        order = jnp.argsort(jax.random.bits(key, (rows,))).reshape(count, -1)
        return lax.scan(minibatch, carry, order)

    carry, metrics = lax.scan(epoch, carry, jax.random.split(key, epochs))
    return carry, jax.tree.map(jnp.nanmean, metrics)


def check_minibatches(name: str, T: int, n_envs: int, size: int, sequences: bool = False) -> None:
    """Refuse a batch_size that doesn't divide a rollout, or sequences that don't divide its length."""
    product = f"rollout_length {T} × n_envs {n_envs} = {T * n_envs}"
    require(T * n_envs % size == 0, f"{name}: batch_size {size} must divide {product}")
    fits = not sequences or (T % min(T, size) == 0 and size % min(T, size) == 0)
    whole = "sequences must fill minibatches: give a batch_size that divides rollout_length, or is a multiple of it"
    require(fits, f"{name}: batch_size is {size} and rollout_length {T}, and {whole}")


def pieces(data: Any, length: int) -> Any:
    """Steps [T, N, ...] as sequences [length, T/length · N, ...]."""

    def cut(x: Array) -> Array:
        T, N = x.shape[:2]
        x = jnp.moveaxis(x.reshape((T // length, length, N, *x.shape[2:])), 1, 0)
        return x.reshape((length, T // length * N, *x.shape[3:]))

    return jax.tree.map(cut, data)
