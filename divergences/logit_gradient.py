"""What the closed-form derivatives of every row-wise divergence share."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero


class SlopeSums(NamedTuple):
    """What `centred` needs of a whole row; sums, so they add up over parts of the vocabulary.

    Attributes:
        rest_slope: Σ slope over all but the likeliest atoms, `[..., 1]`.
        rest: Σ probability over the same.
        top_slope: Σ slope over the likeliest atoms.
        tops: their number.
    """

    rest_slope: jax.Array
    rest: jax.Array
    top_slope: jax.Array
    tops: jax.Array


def slope_sums(slope: jax.Array, probability: jax.Array, top: jax.Array) -> SlopeSums:
    """The sums over the last axis."""
    return SlopeSums(
        rest_slope=jnp.sum(jnp.where(top, 0, slope), -1, keepdims=True),
        rest=jnp.sum(jnp.where(top, 0, probability), -1, keepdims=True),
        top_slope=jnp.sum(jnp.where(top, slope, 0), -1, keepdims=True),
        tops=jnp.sum(top, -1, keepdims=True),
    )


def centred(
    slope: jax.Array, probability: jax.Array, top: jax.Array, sums: SlopeSums | None = None
) -> jax.Array:
    """∂D/∂logits = slope − probability·Σ slope, the softmax Jacobian in closed form.

    At a single likeliest atom of probability near one, slope − probability·Σ slope cancels: with rest sums R over the
    other atoms it is slope·(1 − probability) − probability·R(slope), and 1 − probability = R(probability) is exact.
    For a part of the vocabulary, `sums` are those of all of it.
    """
    sums = slope_sums(slope, probability, top) if sums is None else sums
    gradient = slope - probability * (sums.rest_slope + sums.top_slope)
    near_one = slope * sums.rest - probability * sums.rest_slope
    return jnp.where(top & (sums.tops == 1), near_one, gradient)


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
