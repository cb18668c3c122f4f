"""What the closed-form derivatives of every row-wise divergence share."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

# An atom this likely is alone in being so, and slope − probability·Σ slope cancels there; below, that loses under two bits.
_DOMINANT = 0.6


class SlopeSums(NamedTuple):
    """What `centred` needs of a whole row; sums, so they add up over parts of the vocabulary.

    Attributes:
        total: Σ slope, `[..., 1]`.
        rest_slope: Σ slope over all but a dominant atom; None where nothing cancels.
        rest: Σ probability over the same.
    """

    total: jax.Array
    rest_slope: jax.Array | None = None
    rest: jax.Array | None = None


def slope_sums(
    slope: jax.Array,
    probability: jax.Array,
    *,
    cancel: bool = False,
    most: jax.Array | None = None,
    relative: jax.Array | None = None,
) -> SlopeSums:
    """The sums over the last axis.

    Args:
        slope: of every atom.
        probability: likewise.
        cancel: whether the slopes add up to 0 by themselves, as p − q do: the total is then enough.
        most: the largest probability of each row; if none dominates, nobody's rest is added up.
        relative: all probabilities over these, if somebody has them: what they are made of is there anyway.
    """
    total = jnp.sum(slope, -1, keepdims=True)
    if cancel:
        return SlopeSums(total)
    if most is None:
        return SlopeSums(total, *_rests(slope, probability))
    unused = lambda *_: (jnp.zeros_like(total),) * 2  # noqa: E731
    dominated = jnp.any(most > _DOMINANT)
    if relative is None:
        return SlopeSums(total, *jax.lax.cond(dominated, _rests, unused, slope, probability))
    rests = lambda slope, relative, most: _rests(slope, relative * most)  # noqa: E731
    return SlopeSums(total, *jax.lax.cond(dominated, rests, unused, slope, relative, most))


def _rests(slope: jax.Array, probability: jax.Array) -> tuple[jax.Array, jax.Array]:
    dominant = probability > _DOMINANT
    rest = lambda x: jnp.sum(jnp.where(dominant, 0, x), -1, keepdims=True)  # noqa: E731
    return rest(slope), rest(probability)


def centred(slope: jax.Array, probability: jax.Array, sums: SlopeSums | None = None) -> jax.Array:
    """∂D/∂logits = slope − probability·Σ slope, the softmax Jacobian in closed form.

    At an atom of probability near one, slope − probability·Σ slope cancels: with rest sums R over the other atoms it is
    slope·(1 − probability) − probability·R(slope), and 1 − probability = R(probability) is exact. For a part of the
    vocabulary, `sums` are those of all of it.
    """
    sums = slope_sums(slope, probability) if sums is None else sums
    gradient = slope - probability * sums.total
    if sums.rest_slope is None or sums.rest is None:
        return gradient
    near_one = slope * sums.rest - probability * sums.rest_slope
    return jnp.where(probability > _DOMINANT, near_one, gradient)


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
