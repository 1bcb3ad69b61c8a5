"""Bounds of spaces and of angles, as the worlds here share them."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer


def limit(value: Any, nominal: float) -> float:
    """A physical constant as the bound of a space: rounded to float32, so that no float32 state lies beyond it.

    Spaces are static. Where the constant is traced or batched (inside a jitted program, in a sweep over it) the
    space shows the nominal value instead; the physics always uses the constant itself.
    """
    shown = nominal if isinstance(value, Tracer) or np.ndim(value) else value
    return float(np.float32(shown))


def wrapped_angle(angle: Array) -> Array:
    """The same angle in [-π, π], radians. An angle that is there already keeps all its bits."""
    return angle - 2 * math.pi * jnp.round(angle / (2 * math.pi))
