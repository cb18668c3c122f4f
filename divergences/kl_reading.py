"""The Kullback–Leibler divergences, Jeffreys and their sums from one reading of the logits."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from divax.divergences.algebra import FMixture
from divax.divergences.f_divergence import AbstractFDivergence, _finite
from divax.divergences.jeffreys import Jeffreys
from divax.divergences.kl import ForwardKL, ReverseKL
from divax.divergences.logit_reading import (
    Reading,
    Scalars,
    Side,
    alone,
    apart,
    centres,
    classes,
    farthest,
    finite_top,
    indicator,
    reduced,
    undivided,
)
from divax.divergences.numerics import Scalar, expm1_excess


def kl_weights(div: AbstractFDivergence) -> tuple[Scalar | None, Scalar | None] | None:
    """(a, b) of a·KL(p‖q) + b·KL(q‖p), None for what is not there; None for other divergences."""
    if isinstance(div, FMixture):
        forward, reverse = [], []
        for weight, part in zip(div.weights, div.parts, strict=True):
            of_part = kl_weights(part)
            if of_part is None:
                return None
            for one, into in zip(of_part, (forward, reverse), strict=True):
                into += [] if one is None else [weight * one]
        total = lambda ws: sum(ws[1:], start=ws[0]) if ws else None  # noqa: E731
        return total(forward), total(reverse)
    known = {ForwardKL: (1.0, None), ReverseKL: (None, 1.0), Jeffreys: (1.0, 1.0)}
    return known.get(type(div))


class _Terms(NamedTuple):
    """Of one side, with r = p·e^x the other side's weight over a common factor, x = −(log-ratio − centre).

    Attributes:
        total: Σ p.
        gap: Σ p·(log-ratio − centre) over the common support, if KL(this‖other) is wanted; likewise the next two.
        excess: its part of Σ (r − p + p·(log-ratio − centre)), tokens whose r is not much more than p.
        alone: Σ p where the other side has nothing.
        cross: the rest of the *other* KL's excess, tokens that weigh more here.
    """

    total: jax.Array
    gap: jax.Array | None
    excess: jax.Array | None
    alone: jax.Array | None
    cross: jax.Array | None


def from_one_reading(
    wanted: tuple[bool, ...],
    weights: tuple[Scalar | None, ...],
    edges: tuple[Scalar, Scalar],
    target: jax.Array,
    model: jax.Array,
) -> Scalars:
    """Value, and sums of slopes of the wanted sides, of a divergence with these `kl_weights`, f′(∞) and f(0)."""
    # The same sums for whatever weights.
    places = apart(centres(target, model), tuple(float(one is not None) for one in weights))
    pairs = (target, model, places), (model, target, places[::-1])
    parts = [
        None if weight is None else _kl_terms(*pair)
        for weight, pair in zip(weights, pairs, strict=True)
    ]
    sides = []
    for logits, own, other in ((target, *parts), (model, *parts[::-1])):
        mine = (None,) * 3 if own is None else own[:3]
        cross = None if other is None else other[3]
        sides.append(Side(logits, _Terms(jnp.ones_like(logits), *mine, cross)))
    read = reduced(Reading(*sides, classes(target, model)))
    return _finished(wanted, weights, edges, read, places[0] - places[1])


def _kl_terms(
    own: jax.Array, other: jax.Array, places: tuple[jax.Array, ...]
) -> tuple[jax.Array, ...]:
    """Gap, excess and alone of `own`, cross of `other`, for each token.

    The summand of a KL of unnormalised measures, p·f(x) with f(x) = e^−x − 1 + x ≥ 0, is p·f(max(x, −1)) + r·g(min(x, −1)),
    r = p·e^−x and g(x) = 1 − e^(1+x)·(1 − (1 + x)/e) ≥ 0: no exponential overflows, and where p is 0, g is 1. Where the
    side to which a term belongs has −inf, its weight in any sum is 0, so there it only has to be finite.
    """
    a, b = (centre[..., None] for centre in places)
    # Two expressions for one number, for XLA shares it among all its users only if it is as short as the first one. That is
    # no number where a logit is +inf: such a row is known by its gap alone, in which the log of its probability is 0.
    x, far = (own - a) - (other - b), farthest(own)
    finite = (jnp.where(own == jnp.inf, 0, own) - a) - (jnp.where(other == jnp.inf, 0, other) - b)
    beyond, lowest = jnp.clip(x, -far, -1) + 1, jnp.finfo(other.dtype).min
    excess = jnp.where(other != -jnp.inf, expm1_excess(-jnp.maximum(x, -1)), 0)
    cross = jnp.where(other > -jnp.inf, 1 - jnp.exp(beyond) * (1 - beyond / math.e), 0)
    gap = jnp.where(other >= lowest, jnp.clip(finite, -far, far), 0)
    return gap, excess, indicator(other < lowest, x), cross


class _KL(NamedTuple):
    """KL(own‖other) of each row, Σ p·log u over the common support, and own's mass outside it."""

    value: jax.Array
    slope: jax.Array
    alone: jax.Array


def _kl(own: Side, other: Side, centre: jax.Array, beyond: jax.Array) -> _KL:
    """From centred sums.

    With μ = E_p[x] and A = E_p[e^−x − 1 + x], Z_other/Z_own = e^−centre·(1 + A − μ), hence
    KL = μ + log(1 + A − μ) = A − (y − log(1 + y)), y = A − μ: second-order terms alone, where μ − log(Z_own/Z_other) has
    first-order ones that cancel.
    """
    terms, total = own.sums, jnp.where(own.sums.total > 0, own.sums.total, 1)
    ahead = finite_top(own.top) - finite_top(other.top) - centre
    mean = terms.gap / total
    log_ratio = ahead + jnp.log(total / jnp.where(other.sums.total > 0, other.sums.total, 1))
    excess = (terms.excess + other.sums.cross * jnp.exp(jnp.minimum(-ahead, 60))) / total
    y = excess - mean
    close = (excess < 1) & (jnp.abs(y) < 0.5) & (own.top < jnp.inf) & (other.top < jnp.inf)
    value = jnp.where(close, excess - _log1p_excess(jnp.where(close, y, 0)), mean - log_ratio)
    outside = terms.alone / total
    saturated = (own.top == jnp.inf) | (other.top == jnp.inf)
    finite = jnp.where(saturated, 0, mean - log_ratio * (1 - outside))
    legal = (own.top != -jnp.inf) & (other.top != -jnp.inf)
    slope = jnp.where(beyond, finite, value)
    value = jnp.where(beyond, jnp.inf, jnp.where(legal, jnp.maximum(value, 0), 0))
    return _KL(value, slope, outside)


def _log1p_excess(y: jax.Array) -> jax.Array:
    """Y − log(1 + y) ≥ 0 for |y| ≤ ½ to full relative accuracy, through log(1 + y) = 2·artanh(z), z = y/(2 + y)."""
    z = y / (2 + y)
    terms = 17 if y.dtype == jnp.float64 else 8
    series = jnp.zeros_like(z)
    for k in range(terms, 0, -1):
        series = series * z * z + 1 / (2 * k + 1)
    return 2 * z * z / (1 - z) - 2 * z * z * z * series


def _finished(wanted, weights, edges, read: Reading, centre: jax.Array) -> Scalars:
    """Values and sums of slopes: Σ p·log u of KL(p‖q) by its own side, and by the other Σ (q − p)."""
    target, model = read.target, read.model
    beyond = alone(read.seen, (target.top, model.top))
    pairs = (target, model, centre, beyond[0]), (model, target, -centre, beyond[1])
    kls = [
        None if weight is None else _kl(*pair) for weight, pair in zip(weights, pairs, strict=True)
    ]
    value = jnp.zeros_like(centre)
    sums = [jnp.zeros_like(centre), jnp.zeros_like(centre)]
    for side, (weight, kl) in enumerate(zip(weights, kls, strict=True)):
        if kl is not None:
            value += weight * jnp.where(weight == 0, 0, kl.value)
            sums[side] += weight * kl.slope
            # f(0) = 1 gives back what the other side has alone, if nothing else makes f(0) infinite.
            sums[1 - side] += weight * kl.alone
    for side, (weight, edge, kl) in enumerate(zip(weights[::-1], edges, kls, strict=True)):
        if kl is not None and weight is not None:
            sums[side] += (_finite(edge) - weight) * kl.alone
    slopes = tuple(
        undivided(total[..., None]) if want else None
        for total, want in zip(sums, wanted, strict=True)
    )
    tops = target.top, model.top
    return Scalars(tops, (target.sums.total, model.sums.total), value, slopes)
