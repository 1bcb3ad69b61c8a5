"""Our keys are jax's, bit for bit: alone, vmapped and in a loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from polyak import keys

pytestmark = pytest.mark.reuses_keys

MANY = jax.vmap(jax.random.key)(jnp.arange(50, dtype=jnp.uint32) * jnp.uint32(987654321))


def words(key):
    return np.asarray(jax.random.key_data(key))


@pytest.mark.parametrize("data", [0, 1, 7, 2**24, 2**31 - 1])
def test_fold_in_is_jaxs(data):
    ours, theirs = (
        jax.jit(jax.vmap(lambda k, f=f: f(k, jnp.int32(data))))(MANY) for f in (keys.fold_in, jax.random.fold_in)
    )
    assert (words(ours) == words(theirs)).all()
    assert (words(keys.fold_in(MANY[3], data)) == words(jax.random.fold_in(MANY[3], data))).all()


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 9])
def test_split_and_uniform_are_jaxs(n):
    for key in (MANY[0], MANY[7]):
        assert (np.stack([words(part) for part in keys.parted(key, n)]) == words(jax.random.split(key, n))).all()
        assert (np.asarray(keys.uniform(key, n)) == np.asarray(jax.random.uniform(key, (n,)))).all()
    ours = jax.jit(jax.vmap(lambda k: keys.uniform(k, n)))(MANY)
    assert (np.asarray(ours) == np.asarray(jax.vmap(lambda k: jax.random.uniform(k, (n,)))(MANY))).all()


def test_a_negative_count_wraps_as_jaxs_does():
    data = jnp.int32(-5)
    assert (words(keys.fold_in(MANY[1], data)) == words(jax.random.fold_in(MANY[1], data))).all()
