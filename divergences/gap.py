"""The difference p − q of two rows of logits, to full relative accuracy, with its exact derivative."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from divax.divergences.numerics import difference
from divax.divergences.rows import split_rows


def probability_gap(target: jax.Array, model: jax.Array) -> jax.Array:
    """P − q of each atom: what every quadratic or transport distance between two distributions is a function of.

    Args:
        target: logits `[..., V]` of one float dtype, −inf allowed.
        model: likewise.

    Returns:
        `[..., V]`; 0 in a row in which either side has no possible token. Derivatives are p(dt − ⟨p, dt⟩) and
        −q(ds − ⟨q, ds⟩), never NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> probability_gap(jnp.zeros(2), jnp.array([0.0, -jnp.inf])).tolist()
        [-0.5, 0.5]
    """
    return _gap(target, model)


@jax.custom_jvp
def _gap(target: jax.Array, model: jax.Array) -> jax.Array:
    rows = split_rows(target, model)
    common = difference(rows.common.p, rows.common.q, rows.common.log_u)
    gap = common + rows.p_only - rows.q_only
    # The rounding δ of log Z_p − log Z_q is common to a row and adds δ·p to the gap, which cumulative sums would
    # collect; the exact gap sums to 0, so that the sum of this one is δ.
    return gap - 0.5 * (rows.p + rows.q) * jnp.sum(gap, -1, keepdims=True)


@_gap.defjvp
def _gap_jvp(primals, tangents):
    rows = split_rows(*primals)
    target_dot, model_dot = tangents
    return _gap(*primals), _softmax_dot(rows.p, target_dot) - _softmax_dot(rows.q, model_dot)


def _softmax_dot(probability: jax.Array, dot: jax.Array) -> jax.Array:
    return probability * (dot - jnp.sum(probability * dot, -1, keepdims=True))


def magnitude(x: jax.Array) -> jax.Array:
    """|x| with derivative sign(x), 0 at 0 (where JAX takes +1)."""
    return x * jax.lax.stop_gradient(jnp.sign(x))
