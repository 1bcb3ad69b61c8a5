"""Products that are rounded before they are added to, so that a world has the same bits in every program.

XLA's CPU compiler may turn a·b + c into one fused multiply-add, which rounds once instead of twice, and does so
wherever it happens to put both into one loop (openxla/xla#41579; no flag turns it off in jaxlib 0.12). So the same
physics had other last bits stepped by itself than inside a scan: in 3 of 48 combinations of classic world, 1 to 5
environments and policy (jaxlib 0.12.0.1, AVX-512), which a chaotic world turns into another episode. With the flag
`--xla_cpu_max_isa=AVX`, an instruction set without fused multiply-adds, the worlds did not differ.

`separately_rounded` puts between every product and what uses it an operation that the compiler can't see through, an
exclusive or with an integer that is 0 but not known to be: one instruction a product, and no value is changed.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend import core

_PRODUCTS = frozenset({"mul", "integer_pow", "square"})
_INLINED = frozenset({"jit", "pjit"})


def separately_rounded(function: Callable[..., Any], zero: Array, *args: Any) -> Any:
    """`function(*args)` with every floating-point product rounded by itself.

    Args:
        function: traceable. Functions jitted within it are treated too; loops, branches and functions with their own
            derivative rules are run as they are.
        zero: int32 scalar that is 0, computed from traced data in a way that doesn't show it.
        args: pytrees of arrays.
    """
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    results = _run(closed.jaxpr, closed.consts, jax.tree.leaves(args), zero)
    return jax.tree.unflatten(jax.tree.structure(shapes), results)


def _run(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], zero: Array) -> list[Any]:
    values: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for equation in jaxpr.eqns:
        primitive, given = equation.primitive, [read(atom) for atom in equation.invars]
        if primitive.name in _INLINED:
            inner = equation.params["jaxpr"]
            results = _run(inner.jaxpr, inner.consts, given, zero)
        else:
            bound: Any = primitive.get_bind_params(equation.params)
            # jax up to 0.11 returns (functions, parameters), 0.12 the parameters alone.
            functions, parameters = bound if isinstance(bound, tuple) else ((), bound)
            result = primitive.bind(*functions, *given, **parameters)
            results = list(result) if primitive.multiple_results else [result]
        if primitive.name in _PRODUCTS:
            results = [_veiled(result, zero) for result in results]
        values.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _veiled(x: Array, zero: Array) -> Array:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    word = jnp.dtype(f"int{8 * x.dtype.itemsize}")
    bits = lax.bitcast_convert_type(x, word) ^ jnp.broadcast_to(zero.astype(word), x.shape)
    return lax.bitcast_convert_type(bits, x.dtype)
