"""Every product is rounded by itself, whatever the compiler puts beside it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from polyak.envs.rounding import separately_rounded

jax.config.update("jax_numpy_rank_promotion", "raise")

A = np.float32(1 + 2.0**-12)
C = np.float32(-(1 + 2.0**-11))
# A² = 1 + 2⁻¹¹ + 2⁻²⁴ rounds to 1 + 2⁻¹¹, so A² + C is 0 in two roundings, and 2⁻²⁴ in a fused multiply-add.
FORMS = {
    "mul": lambda a, b, c: a * b + c,
    "integer_pow": lambda a, b, c: (a * (b / b)) ** 2 + c,
    "square": lambda a, b, c: jnp.square(a) + c,
    "within a jitted function": lambda a, b, c: jax.jit(lambda x, y: x * y)(a, b) + c,
    "subtracted": lambda a, b, c: -c - a * b,
}


@pytest.mark.parametrize("form", FORMS)
def test_a_product_is_rounded_before_the_sum(form: str) -> None:
    def program(t: jax.Array, a: jax.Array, c: jax.Array) -> jax.Array:
        return jax.vmap(lambda t, a, c: separately_rounded(FORMS[form], t >> 31, a, a, c))(t, a, c)

    for n in (1, 3, 16):
        found = jax.jit(program)(jnp.zeros(n, jnp.int32), jnp.full(n, A), jnp.full(n, C))
        assert_array_equal(found, np.zeros(n, np.float32))


def test_values_trees_and_types_are_kept() -> None:
    def function(tree: dict[str, jax.Array], key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        noise = jax.random.normal(key, (3,))
        return tree["x"] * 2.0 + noise, {"n": tree["n"] * 3, "flag": tree["x"] > 0}

    tree, key = {"x": jnp.array([-1.5, 0.0, jnp.inf]), "n": jnp.int32(7)}, jax.random.key(0)
    plain, counts = function(tree, key)
    found, found_counts = jax.jit(lambda zero: separately_rounded(function, zero, tree, key))(jnp.int32(0))
    np.testing.assert_allclose(found, plain, rtol=1e-6, err_msg="normal draws, compiled and not")
    assert found.dtype == jnp.float32
    assert int(found_counts["n"]) == 21
    assert found_counts["n"].dtype == jnp.int32
    assert_array_equal(found_counts["flag"], counts["flag"])
