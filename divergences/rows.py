"""From two rows of logits to the quantities that every row-wise divergence is written in."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from divax.divergences.numerics import Scalar, capped


class Pair(NamedTuple):
    """Two positive measures on the same atoms, with their log-ratio; every field has the same shape.

    Impossible atoms carry p = q = 0, log p = log q = −inf and log u = 0, so that any formula written as
    `exp(log_p + c * log_u)`, `p * h(log_u)` or `q * h(log_u)` is exactly zero there, derivatives included.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> one = jnp.asarray(0.0)  # log 1
        >>> pair = dv.Pair(p=jnp.exp(one), q=jnp.exp(one), log_p=one, log_q=one, log_u=one - one)
        >>> float(dv.ForwardKL().summand(pair))
        0.0

    Attributes:
        p: target masses.
        q: model masses.
        log_p: their logarithms.
        log_q: likewise.
        log_u: log(p/q), from a difference of logits (never log_p − log_q, which rounds twice).
    """

    p: jax.Array
    q: jax.Array
    log_p: jax.Array
    log_q: jax.Array
    log_u: jax.Array

    def log_power(self, alpha: Scalar) -> jax.Array:
        """log(p^α·q^{1−α}), from the larger of the two masses, whose exponent then rounds least."""
        from_p = self.log_p + (alpha - 1) * self.log_u
        return jnp.where(self.log_u > 0, from_p, self.log_q + alpha * self.log_u)

    def swap(self) -> Pair:
        """The same pair with target and model exchanged."""
        return Pair(self.q, self.p, self.log_q, self.log_p, -self.log_u)


def pair_at(log_p: jax.Array, log_q: jax.Array) -> Pair:
    """A pair of finite log-masses that need not sum to one (for evaluating generators pointwise)."""
    return Pair(jnp.exp(capped(log_p)), jnp.exp(capped(log_q)), log_p, log_q, log_p - log_q)


class Rows(NamedTuple):
    """Rows of two categorical distributions, split by support.

    Attributes:
        common: the atoms possible under both.
        p: all target probabilities.
        q: all model probabilities.
        p_only: target probability of atoms that the model rules out, zero elsewhere.
        q_only: model probability of atoms that the target rules out, zero elsewhere.
        has_p_only: whether a row has such an atom (its probability may have underflowed to zero).
        has_q_only: likewise.
        most: the largest target and model probability of each row, `[..., 1]`; None where nobody knows.
        relative: all probabilities over these; None likewise.
    """

    common: Pair
    p: jax.Array
    q: jax.Array
    p_only: jax.Array
    q_only: jax.Array
    has_p_only: jax.Array
    has_q_only: jax.Array
    most: tuple[jax.Array, jax.Array] | None = None
    relative: tuple[jax.Array, jax.Array] | None = None


def _centre(logits: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Logits minus their maximum, log of the sum of exponentials of that, and which are possible.

    A +inf logit makes its row one-hot (uniform over ties). A row without a possible token gets log-sum 0. NaN stays NaN.
    Nothing is further below the maximum than 1e15 (1e150 in double), far beyond where its exponential is 0: the
    difference from the most negative float, with which many mask, may overflow, and its square does.
    """
    deepest = _deepest(logits.dtype)
    top = jnp.max(logits, axis=-1, keepdims=True)
    one_hot = jnp.where(logits == jnp.inf, 0.0, -jnp.inf).astype(logits.dtype)
    logits = jnp.where(top == jnp.inf, one_hot, logits)
    possible = logits != -jnp.inf
    shift = jax.lax.stop_gradient(jnp.where(jnp.isinf(top), jnp.zeros_like(top), top))
    centred = jnp.maximum(jnp.where(possible, logits, shift) - shift, deepest)
    total = jnp.sum(jnp.where(possible, jnp.exp(centred), 0), axis=-1, keepdims=True)
    return centred, jnp.log(jnp.where(total == 0, jnp.ones_like(total), total)), possible


def log_softmax(logits: jax.Array) -> jax.Array:
    """Log-probabilities over the last axis, safe to differentiate whatever is impossible.

    Args:
        logits: `[..., V]`, float32 or float64. −inf logits stay −inf, also in a row of nothing else; a +inf logit makes its
            row one-hot.

    Returns:
        `[..., V]`, normalised: exp sums to one in every row that has a possible token.

    Example:
        >>> import jax.numpy as jnp
        >>> log_softmax(jnp.array([0.0, -jnp.inf])).tolist()
        [0.0, -inf]
    """
    centred, log_total, possible = _centre(logits)
    return jnp.where(possible, centred - log_total, -jnp.inf)


def split_rows(target: jax.Array, model: jax.Array, *, full: bool = False) -> Rows:
    """Normalises two rows of logits and splits them by support; with less work where it is known to be full.

    The log-ratio is (t − s) − (log Z_t − log Z_s) with the maxima removed first. The error of log Z is common to a whole
    row and drops out of Σ p − Σ q = 0 to first order, so only the rounding of t − s remains: this is what keeps
    D(p, q) accurate when p ≈ q.

    A row in which either side has no possible token is not a pair of distributions; it contributes zero everywhere.
    """
    if full:
        return _full_rows(target, model)
    target_side, model_side = _centre(target), _centre(model)
    legal = [jnp.any(possible, -1, keepdims=True) for _, _, possible in (target_side, model_side)]
    return split_centred(target_side, model_side, legal[0] & legal[1])


def _full_rows(target: jax.Array, model: jax.Array) -> Rows:
    """`split_rows` of finite logits, with one exponential per logit."""
    (t, e_t), (s, e_s) = (_exponentials(x) for x in (target, model))
    zt, zs = (jnp.sum(e, -1, keepdims=True) for e in (e_t, e_s))
    # One logarithm of the ratio, near 1, and not the difference of two, which are near log V.
    log_u = (t - s) - jnp.log(zt / zs)
    common = Pair(e_t * (1 / zt), e_s * (1 / zs), t - jnp.log(zt), s - jnp.log(zs), log_u)
    none, never = jnp.zeros_like(t), jnp.zeros(t.shape[:-1], bool)
    most, relative = (1 / zt, 1 / zs), (e_t, e_s)
    return Rows(common, common.p, common.q, none, none, never, never, most, relative)


def _exponentials(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    top = jax.lax.stop_gradient(jnp.max(logits, -1, keepdims=True))
    centred = jnp.maximum(logits - top, _deepest(logits.dtype))
    return centred, jnp.exp(centred)


def _deepest(dtype: jnp.dtype) -> float:
    return -1e150 if dtype == jnp.float64 else -1e15


def split_centred(
    target: tuple[jax.Array, jax.Array, jax.Array],
    model: tuple[jax.Array, jax.Array, jax.Array],
    legal: jax.Array,
) -> Rows:
    """Rows, or a part of the vocabulary of them, from centred logits, log-sums of exponentials and which are possible.

    What a row needs from all of its tokens is in the log-sums and in `legal`, both `[..., 1]`.
    """
    (t, log_zt, t_possible), (s, log_zs, s_possible) = target, model
    both = t_possible & s_possible & legal
    minus_inf = jnp.full_like(t, -jnp.inf)
    log_p = jnp.where(both, t - log_zt, minus_inf)
    log_q = jnp.where(both, s - log_zs, minus_inf)
    log_u = jnp.where(both, (t - s) - (log_zt - log_zs), 0)
    common = Pair(jnp.exp(log_p), jnp.exp(log_q), log_p, log_q, log_u)
    p_alone, q_alone = t_possible & ~s_possible & legal, s_possible & ~t_possible & legal
    p_only = jnp.where(p_alone, jnp.exp(t - log_zt), 0)
    q_only = jnp.where(q_alone, jnp.exp(s - log_zs), 0)
    return Rows(
        common=common,
        p=common.p + p_only,
        q=common.q + q_only,
        p_only=p_only,
        q_only=q_only,
        has_p_only=jnp.any(p_alone, -1),
        has_q_only=jnp.any(q_alone, -1),
    )
