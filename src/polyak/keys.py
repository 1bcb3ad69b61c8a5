"""Random keys and uniform numbers for inner loops: those of `jax.random`, calculated faster over vmapped seeds on CPU.

jax's keys are Threefry-2x32 counters (Salmon, Moraes, Dror & Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3"),
which XLA gets as a loop over rounds, and for several numbers as an array with a short last axis. Here every number is a
straight line of 20 rounds, so that one fused loop over the seeds remains. Keys were most of a tabular update before
(`bench/tabular.py` times it). `tests/test_keys.py` compares every bit.
"""

import jax
import jax.numpy as jnp
from jax import Array

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def fold_in(key: Array, data: Array | int) -> Array:
    """`jax.random.fold_in(key, data)` of one key, data a 32-bit integer."""
    words = jax.random.key_data(key)
    first, second = _threefry(words[0], words[1], jnp.uint32(0), jnp.asarray(data).astype(jnp.uint32))
    return jax.random.wrap_key_data(jnp.stack([first, second]))


def parted(key: Array, n: int) -> tuple[Array, ...]:
    """The n keys of `jax.random.split(key, n)`."""
    return tuple(fold_in(key, i) for i in range(n))


def uniform(key: Array, n: int) -> Array:
    """`jax.random.uniform(key, (n,))`; above four numbers by jax itself, whose one long loop is as good then."""
    if n > 4:
        return jax.random.uniform(key, (n,))
    words = jax.random.key_data(key)
    blocks = [_threefry(words[0], words[1], jnp.uint32(0), jnp.uint32(i)) for i in range(n)]
    bits = jnp.stack([first ^ second for first, second in blocks])
    return jax.lax.bitcast_convert_type((bits >> 9) | jnp.uint32(0x3F800000), jnp.float32) - 1.0


def _threefry(k0: Array, k1: Array, x0: Array, x1: Array) -> tuple[Array, Array]:
    """One block: 20 rounds, with the key added after every fourth."""
    keys = (k0, k1, k0 ^ k1 ^ jnp.uint32(0x1BD11BDA))
    x0, x1 = x0 + k0, x1 + k1
    for i in range(5):
        for rotation in _ROTATIONS[i % 2]:
            x0 = x0 + x1
            x1 = ((x1 << rotation) | (x1 >> (32 - rotation))) ^ x0
        x0, x1 = x0 + keys[(i + 1) % 3], x1 + keys[(i + 2) % 3] + jnp.uint32(i + 1)
    return x0, x1
