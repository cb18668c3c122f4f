"""What the closed-form derivatives of every row-wise divergence share."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero


def centred(slope: jax.Array, probability: jax.Array, top: jax.Array) -> jax.Array:
    """∂D/∂logits = slope − probability·Σ slope, the softmax Jacobian in closed form.

    At a single likeliest atom of probability near one, slope − probability·Σ slope cancels: with rest sums R over the
    other atoms it is slope·(1 − probability) − probability·R(slope), and 1 − probability = R(probability) is exact.
    """
    rest_slope = jnp.sum(jnp.where(top, 0, slope), -1, keepdims=True)
    rest = jnp.sum(jnp.where(top, 0, probability), -1, keepdims=True)
    top_slope = jnp.sum(jnp.where(top, slope, 0), -1, keepdims=True)
    single = jnp.sum(top, -1, keepdims=True) == 1
    gradient = slope - probability * (rest_slope + top_slope)
    return jnp.where(top & single, slope * rest - probability * rest_slope, gradient)


def bounded(slope: jax.Array) -> jax.Array:
    """Slopes cut at ±1e30 (±1e250 in double): only a divergence that overflows gets there, and inf − inf is NaN."""
    cut = 1e250 if slope.dtype == jnp.float64 else 1e30
    return jnp.clip(slope, -cut, cut)


def is_zero(x: object) -> bool:
    """Whether a tangent is known to be zero, so that nothing need be computed for it."""
    return isinstance(x, SymbolicZero)


def instantiate(dot: Any) -> Any:
    """The tangent as an array, zeros included."""
    return jnp.zeros(dot.aval.shape, dot.aval.dtype) if is_zero(dot) else dot
