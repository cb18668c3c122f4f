"""The Kullback–Leibler divergences, Jeffreys and their sums from one reading of the logits."""

from __future__ import annotations

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
    alone_flag,
    finite_top,
    indicator,
    reduced,
    undivided,
)
from divax.divergences.numerics import Scalar, expm1_excess

# The tokens whose mean log-ratio centres a row's: a byte-pair encoding has its most frequent merges after the bytes.
_SAMPLE = slice(256, 384)
# A log-ratio beyond this says that a token is masked by a large number, not how the models compare.
_COMPARABLE = 1e3
_FARTHEST = 1e15


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
        return tuple(sum(ws[1:], start=ws[0]) if ws else None for ws in (forward, reverse))
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


def from_one_reading(wanted, div, weights, target: jax.Array, model: jax.Array) -> Scalars:
    centre = jax.lax.stop_gradient(_centre(target, model))
    pairs = (target, model, centre), (model, target, -centre)
    parts = [
        None if weight is None else _kl_terms(*pair)
        for weight, pair in zip(weights, pairs, strict=True)
    ]
    sides = []
    for logits, own, other in ((target, *parts), (model, *parts[::-1])):
        mine = (None,) * 3 if own is None else own[:3]
        cross = None if other is None else other[3]
        sides.append(Side(logits, _Terms(jnp.ones_like(logits), *mine, cross)))
    flags = tuple(
        None if weight is None else alone_flag(own, other)
        for weight, (own, other, _) in zip(weights, pairs, strict=True)
    )
    return _finished(wanted, div, weights, reduced(Reading(tuple(sides), flags)), centre)


def _centre(target: jax.Array, model: jax.Array) -> jax.Array:
    """E_p[target − model] over a few tokens, 0 if they say nothing; any number would do, but the more precise the better."""
    few = _SAMPLE if target.shape[-1] >= _SAMPLE.stop else slice(0, 128)
    target, model = target[..., few], model[..., few]
    gap = target - model
    said = jnp.abs(gap) <= _COMPARABLE
    target = jnp.where(said, target, -jnp.inf)
    weight = jnp.where(said, jnp.exp(target - finite_top(jnp.max(target, -1, keepdims=True))), 0)
    total = jnp.sum(weight, -1)
    return jnp.sum(jnp.where(said, gap, 0) * weight, -1) / jnp.where(total > 0, total, 1)


def _kl_terms(own: jax.Array, other: jax.Array, centre: jax.Array) -> tuple[jax.Array, ...]:
    """Gap, excess and alone of `own`, cross of `other`, for each token.

    Where the side to which a term belongs has −inf, the term is finite, and its weight in any sum 0. The summand of a KL of unnormalised measures, p·(e^−x − 1 + x) ≥ 0, is relative to p = 1 for x > −1, else to
    p·e^−x = 1: so no exponential overflows, and none but the smaller of the two is ever taken.
    """
    # A +inf logit has its row to itself, and the log of its probability is 0.
    log_p, log_q = (jnp.where(z == jnp.inf, 0, z) for z in (own, other))
    x = log_p - log_q - centre[..., None]
    there, light = other != -jnp.inf, x > -1
    excess = jnp.where(there & light, expm1_excess(-jnp.where(light, x, 0)), 0)
    # 1 where this side has nothing.
    deep = jnp.clip(x, -_FARTHEST, -1)
    cross = jnp.where(there & ~light, 1 - jnp.exp(deep) * (1 - deep), 0)
    gap = jnp.where(there, jnp.clip(x, -_FARTHEST, _FARTHEST), 0)
    return gap, excess, indicator(~there, x), cross


class _KL(NamedTuple):
    """KL(own‖other) of each row, Σ p·log u over the common support, and own's mass outside it."""

    value: jax.Array
    slope: jax.Array
    alone: jax.Array


def _kl(own: Side, other: Side, centre: jax.Array, flag: jax.Array) -> _KL:
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
    alone = terms.alone / total
    slope = jnp.where(flag >= 2, mean - log_ratio * (1 - alone), value)
    saturated = (other.top == jnp.inf) & (flag >= 1)
    legal = (own.top != -jnp.inf) & (other.top != -jnp.inf)
    value = jnp.where((flag >= 2) | saturated, jnp.inf, jnp.maximum(value, 0))
    return _KL(jnp.where(legal, value, 0), jnp.where(saturated, 0, slope), alone)


def _log1p_excess(y: jax.Array) -> jax.Array:
    """Y − log(1 + y) ≥ 0 for |y| ≤ ½ to full relative accuracy, through log(1 + y) = 2·artanh(z), z = y/(2 + y)."""
    z = y / (2 + y)
    terms = 17 if y.dtype == jnp.float64 else 8
    series = jnp.zeros_like(z)
    for k in range(terms, 0, -1):
        series = series * z * z + 1 / (2 * k + 1)
    return 2 * z * z / (1 - z) - 2 * z * z * z * series


def _finished(wanted, div, weights, read: Reading, centre: jax.Array) -> Scalars:
    """Values and sums of slopes: Σ p·log u of KL(p‖q) by its own side, and by the other Σ (q − p)."""
    target, model = read.sides
    kls = [
        None if weight is None else _kl(*one)
        for weight, one in zip(
            weights,
            ((target, model, centre, read.flags[0]), (model, target, -centre, read.flags[1])),
            strict=True,
        )
    ]
    value, edges = jnp.zeros_like(centre), (div.slope_at_infinity, div.f_at_zero)
    sums = [jnp.zeros_like(centre), jnp.zeros_like(centre)]
    for side, (weight, kl) in enumerate(zip(weights, kls, strict=True)):
        if kl is not None:
            value += weight * jnp.where(weight == 0, 0, kl.value)
            sums[side] += weight * kl.slope
            # f(0) = 1 gives back what the other side has alone, if nothing else makes f(0) infinite.
            sums[1 - side] += weight * kl.alone
    if kls[0] is not None and kls[1] is not None:
        for side, (weight, edge) in enumerate(zip(weights[::-1], edges, strict=True)):
            sums[side] += (_finite(edge) - weight) * kls[side].alone
    slopes = tuple(
        undivided(total[..., None]) if want else None
        for total, want in zip(sums, wanted, strict=True)
    )
    tops = target.top, model.top
    return Scalars(tops, (target.sums.total, model.sums.total), value, slopes)
