"""The Cauchy–Schwarz divergence of any number of distributions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences.numerics import difference, expm1_excess
from divax.divergences.row_wise import log_sum


def generalized_cauchy_schwarz(*logits: ArrayLike) -> jax.Array:
    """−log[Σ_v Π_k p_k(v) / Π_k (Σ_v p_k(v)^K)^{1/K}] of K ≥ 2 distributions; K = 2 is the Cauchy–Schwarz divergence.

    Zero exactly when all are equal, by Hölder's inequality; symmetric in its arguments; unchanged when any p_k is
    multiplied by a constant, so the logits need no normaliser. The gradient by the k-th logits is
    softmax(K·t_k) − softmax(Σ t_k), in closed form.

    Args:
        *logits: at least two arrays `[..., V]` of one vocabulary that broadcast against each other, any float dtype.

    Returns:
        `[...]`, nats, float32 (float64 if an input is). Tokens that any distribution rules out (−inf) add nothing to the
        product; +inf where no token is common to all; 0 for a row in which one has no possible token. Gradients are
        never NaN.

    Raises:
        ValueError: fewer than two distributions, or shapes that do not broadcast to one vocabulary.
        TypeError: logits that are not floating point.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
        >>> round(float(dv.generalized_cauchy_schwarz(p, q)), 6), round(float(dv.generalized_cauchy_schwarz(p, q, q)), 6)
        (0.111572, 0.149934)

    Source: the generalised Cauchy–Schwarz divergence of multi-view and multi-source learning; for K = 2, R. Jenssen et
    al., "The Cauchy–Schwarz Divergence and Parzen Windowing" (2006), eq. 1; the inequality is Hölder's for K functions.
    """
    arrays = [jnp.asarray(one) for one in logits]
    if len(arrays) < 2:
        raise ValueError(
            f"generalized_cauchy_schwarz needs at least 2 distributions, got {len(arrays)}"
        )
    for k, one in enumerate(arrays):
        if not jnp.issubdtype(one.dtype, jnp.floating):
            raise TypeError(f"logits {k} must be floating point, got {one.dtype}")
        if one.ndim == 0 or one.shape[-1] != arrays[0].shape[-1]:
            raise ValueError(
                f"logits {k} have shape {one.shape}, but the first {arrays[0].shape}: all need one vocabulary"
            )
    dtype = jnp.float64 if any(one.dtype == jnp.float64 for one in arrays) else jnp.float32
    shape = jnp.broadcast_shapes(*(one.shape for one in arrays))
    return _divergence(jnp.stack([jnp.broadcast_to(one.astype(dtype), shape) for one in arrays]))


def _parts(logits: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Log of the K-th escorts e_k, of their geometric mean, its log-sum, and which atoms are common; `[K, ..., V]`."""
    top = jnp.max(logits, -1, keepdims=True)
    shift = jax.lax.stop_gradient(jnp.where(jnp.isfinite(top), top, 0))
    powered = len(logits) * jnp.where(logits > -jnp.inf, logits - shift, 0)
    powered = jnp.where(logits > -jnp.inf, powered, -jnp.inf)
    total = log_sum(powered)
    log_e = powered - jnp.where(total > -jnp.inf, total, 0)
    common = jnp.all(log_e > -jnp.inf, 0)
    mean = jnp.mean(jnp.where(common[None], log_e, 0), 0)
    log_g = jnp.where(common, mean, -jnp.inf)
    return log_e, log_g, _log_affinity(log_e, log_g, common), common


def _log_affinity(log_e: jax.Array, log_g: jax.Array, common: jax.Array) -> jax.Array:
    """Log Σ g, with 1 − Σ g = Σ (arithmetic − geometric mean of the e_k) near 1: each term is a sum of e^δ − 1 − δ ≥ 0."""
    gap = jnp.where(common[None], log_e - jnp.where(common, log_g, 0)[None], 0)
    inside = jnp.where(common, jnp.exp(log_g) * jnp.mean(expm1_excess(gap), 0), 0)
    outside = jnp.where(common, 0, jnp.mean(jnp.exp(log_e), 0))
    deficit = jnp.sum(inside + outside, -1, keepdims=True)
    near = deficit < 0.5
    return jnp.where(near, jnp.log1p(-jnp.where(near, deficit, 0)), log_sum(log_g))


@jax.custom_jvp
def _divergence(logits: jax.Array) -> jax.Array:
    log_e, _, log_z, _ = _parts(logits)
    empty = jnp.any(jnp.all(log_e == -jnp.inf, -1), 0)
    return jnp.where(empty, 0, jnp.abs(log_z[..., 0]))


@_divergence.defjvp
def _divergence_jvp(primals, tangents):
    (logits,), (dot,) = primals, tangents
    log_e, log_g, log_z, common = _parts(logits)
    log_z = jnp.where(log_z > -jnp.inf, log_z, 0)
    log_r = log_g - log_z
    ratio = jnp.where(common[None], log_e - jnp.where(common, log_r, 0)[None], 0)
    e = jnp.exp(log_e)
    slope = jnp.where(
        common[None], difference(e, jnp.broadcast_to(jnp.exp(log_r)[None], e.shape), ratio), e
    )
    any_common = jnp.any(common, -1, keepdims=True)
    empty = jnp.any(jnp.all(log_e == -jnp.inf, -1, keepdims=True), 0)
    slope = jnp.where((any_common & ~empty)[None], slope, 0)
    # A slope of zero at an impossible token meets a tangent that is nobody's: −inf logits do not move.
    return _divergence(logits), jnp.sum(jnp.where(slope == 0, 0, slope * dot), (0, -1))
