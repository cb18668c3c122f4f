"""Divergence frontiers and MAUVE: the trade-off between what a model misses and what it invents, as a curve and its area."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences.numerics import Scalar
from divax.divergences.skew_kl import SkewForwardKL


class Frontier(NamedTuple):
    """The two errors of a model at each mixture of target and model.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> dv.divergence_frontier(jnp.zeros(4), jnp.ones(4), weights=jnp.array([0.5])).target_error.tolist()
        [0.0]

    Attributes:
        weights: λ of each point, the share of the target in r = λ·p + (1 − λ)·q, `[n]`.
        target_error: KL(p‖r), what the model misses (type II), `[..., n]`.
        model_error: KL(q‖r), what the model invents (type I), `[..., n]`.
    """

    weights: jax.Array
    target_error: jax.Array
    model_error: jax.Array


def divergence_frontier(target: ArrayLike, model: ArrayLike, *, weights: ArrayLike) -> Frontier:
    """KL(p‖r) and KL(q‖r) for mixtures r = λ·p + (1 − λ)·q: the Pareto frontier of the two errors.

    Both are summed cancellation-free, so close histograms keep their digits (1.5e-12 for 1.8e-13 is what the naive sum
    gives).

    Args:
        target: logits (or logarithms of counts) of the target's histogram, `[..., V]`; −inf is an empty bucket.
        model: logits of the model's histogram, `[..., V]`.
        weights: λ, `[n]`, in [0, 1]; the target error is infinite at λ = 0 where the model has an empty bucket that the
            target does not, and the model error likewise at λ = 1.

    Returns:
        The curve; as λ grows the target error falls from KL(p‖q) to 0 and the model error rises from 0 to KL(q‖p).

    Example:
        >>> import jax.numpy as jnp
        >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
        >>> curve = divergence_frontier(p, q, weights=jnp.array([0.0, 1.0]))
        >>> [round(float(x), 6) for x in (*curve.target_error, *curve.model_error)]  # KL(p‖q), 0; 0, KL(q‖p)
        [0.143841, 0.0, 0.0, 0.130812]

    Source: K. Pillutla et al., "MAUVE: Measuring the Gap Between Neural Text and Human Text using Divergence Frontiers",
    arXiv:2102.01454, eq. 1; J. Djolonga et al., "Precision-Recall Curves Using Information Divergence Frontiers",
    arXiv:1905.10768.
    """
    weights = jnp.asarray(weights)

    def point(weight: jax.Array) -> tuple[jax.Array, jax.Array]:
        # KL(p ‖ λp + (1 − λ)q) is the skewed KL of weight λ, and KL(q ‖ r) that of the swapped pair at 1 − λ.
        target_error = SkewForwardKL(skew=weight)(target, model)
        return target_error, SkewForwardKL(skew=1 - weight)(model, target)

    target_error, model_error = jax.vmap(point, out_axes=-1)(weights)
    return Frontier(weights, target_error, model_error)


def frontier_area(curve: Frontier, *, scale: Scalar = 5.0) -> jax.Array:
    """Area under (e^{−c·KL(q‖r)}, e^{−c·KL(p‖r)}), ends (1, 0) and (0, 1) joined on, by trapezoids.

    Along increasing λ the abscissa falls and the ordinate rises, so no sorting is needed. The reference implementation
    averages the areas by x and by y; they are equal, since their difference telescopes to Σ (x_i y_i − x_{i+1} y_{i+1})
    = 0 between those ends.

    Args:
        curve: from `divergence_frontier`, its weights in increasing order.
        scale: c > 0.

    Returns:
        `[...]` in [0, 1].

    Example:
        >>> import jax.numpy as jnp
        >>> curve = divergence_frontier(jnp.zeros(3), jnp.zeros(3), weights=jnp.array([0.5]))
        >>> float(frontier_area(curve))
        1.0

    Source: K. Pillutla et al., arXiv:2102.01454, eq. 2.
    """
    x = jnp.exp(-scale * curve.model_error)
    y = jnp.exp(-scale * curve.target_error)
    first, last = jnp.ones_like(x[..., :1]), jnp.zeros_like(x[..., :1])
    x = jnp.concatenate([first, x, last], axis=-1)
    y = jnp.concatenate([last, y, first], axis=-1)
    return 0.5 * jnp.sum((y[..., 1:] + y[..., :-1]) * (x[..., :-1] - x[..., 1:]), -1)


def mauve(
    target: ArrayLike, model: ArrayLike, *, scale: Scalar = 5.0, points: int = 25
) -> jax.Array:
    """MAUVE of two histograms: the area under their divergence frontier, 1 for equal ones, near 0 for disjoint ones.

    A similarity and not a divergence. The histograms are the caller's: counts of the clusters (n/10 of them) into which a
    k-means of both samples' embeddings falls; `smoothed_log_counts` makes them logits.

    Args:
        target: logits of the target's histogram, `[..., V]`; −inf is an empty bucket.
        model: logits of the model's histogram, `[..., V]`.
        scale: c of the exponential, 5 in the reference implementation.
        points: mixture weights, evenly spaced in [1e-6, 1 − 1e-6].

    Returns:
        `[...]` in (0, 1], float32 (float64 if an input is).

    Raises:
        ValueError: fewer than one point.

    Example:
        >>> import jax.numpy as jnp
        >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
        >>> float(mauve(p, p)), bool(mauve(p, q) < 0.95)
        (1.0, True)

    Source: K. Pillutla et al., "MAUVE Scores for Generative Models: Theory and Practice", arXiv:2212.14578, §3.
    """
    if points < 1:
        raise ValueError(f"points={points} must be at least 1")
    weights = jnp.linspace(1e-6, 1 - 1e-6, points)
    return frontier_area(divergence_frontier(target, model, weights=weights), scale=scale)


def smoothed_log_counts(counts: ArrayLike, *, smoothing: Scalar = 0.5) -> jax.Array:
    """Log-probabilities of a histogram with add-½ (Krichevsky–Trofimov) smoothing, log((n_v + ½)/(n + V/2)).

    Args:
        counts: `[..., V]`, integers or floats, at least 0.
        smoothing: what is added to every count; 0 is the plain histogram.

    Returns:
        `[..., V]`, float32 (float64 if the counts are).

    Example:
        >>> import jax.numpy as jnp
        >>> jnp.exp(smoothed_log_counts(jnp.array([0, 3]))).tolist()
        [0.125, 0.875]

    Source: K. Pillutla et al., arXiv:2212.14578, §4.2 (MAUVE-KT).
    """
    counts = jnp.asarray(counts)
    dtype = jnp.float64 if counts.dtype == jnp.float64 else jnp.float32
    added = counts.astype(dtype) + jnp.asarray(smoothing).astype(dtype)
    total = jnp.sum(added, -1, keepdims=True)
    possible = added > 0
    return jnp.where(possible, jnp.log(jnp.where(possible, added, 1) / total), -jnp.inf)
