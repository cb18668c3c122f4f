"""The head's share of Σ |p − q| where reading the logits takes the time: no array of their size, and few readings.

Every reading of the target's logits adds up the mass above seven levels of each row, so that the level of the token that
crosses the mass is known to three bits more: eight readings in single precision, eighteen in double, each of one array. The
last one reads both, and adds up |p − q| of likelier tokens, and of those on that level by parts of the vocabulary: of the
part in which the head ends, its few tokens are looked at.
"""

from __future__ import annotations

import math
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from divax.divergences.head_mask import taken
from divax.divergences.logit_reading import (
    Reading,
    Side,
    classes,
    finite_top,
    indicator,
    merged_side,
    reduced,
)
from divax.divergences.numerics import Scalar

# Tokens of a part: some square root of a vocabulary, and whole registers of a TPU.
_PART = 512
_STEPS = 8


class _Row(NamedTuple):
    """Largest logit and Σ e^(logit − top), `[...]`."""

    top: jax.Array
    total: jax.Array


class _Level(NamedTuple):
    """Where the head ends: low ≤ top − logit < high there, and the mass above, `[..., 1]` each."""

    low: jax.Array
    high: jax.Array
    above: jax.Array


class _Sums(NamedTuple):
    """Of a token, or of many: |p − q|, that of tokens above the level, that of tokens on it, and the latter's number."""

    gap: jax.Array
    above: jax.Array
    on: jax.Array
    count: jax.Array


def head_share(
    target: jax.Array, model: jax.Array, head_mass: Scalar, *, crossing_token_in_head: bool
) -> jax.Array:
    """Σ |p − q| over the `head_mask` over that of all tokens, ½ for equal rows, of logits `[..., V]`; no gradient flows.

    Logits less than 1e-6 apart are ties, of which the smaller token id comes first.
    """
    mass = jax.lax.stop_gradient(jnp.asarray(head_mass)).astype(target.dtype)
    sides = [Side(x, (jnp.ones_like(x),)) for x in (target, model)]
    read = reduced(Reading(*sides, classes(target, model)))
    rows = tuple(_Row(side.top, side.sums[0]) for side in (read.target, read.model))
    level = _level(target, rows[0], mass)
    crossing = jnp.exp(-level.low) / _positive(rows[0].total)[..., None]
    extra = 0 if crossing_token_in_head else 1
    inside = lambda rank: taken(rank, level.above, crossing, mass, extra)  # noqa: E731
    sums = _by_parts((rows, level), target, model)
    after, some = jnp.cumsum(sums.count, -1), sums.count > 0
    whole = some & inside(after - 1)
    ends = some & inside(after - sums.count) & ~whole
    head = jnp.sum(sums.above + jnp.where(whole, sums.on, 0), -1)
    part = jnp.argmax(ends, -1, keepdims=True)
    terms = _of_part(part, (rows, level), target, model)
    rank = jnp.take_along_axis(after - sums.count, part, -1) + jnp.cumsum(terms.count, -1) - 1
    first = jnp.any(ends, -1, keepdims=True) & (terms.count > 0) & inside(rank)
    head += jnp.sum(jnp.where(first, terms.on, 0), -1)
    total = jnp.sum(sums.gap, -1)
    return jnp.where(total > 0, head / _positive(total), 0.5)


def _level(target: jax.Array, row: _Row, mass: jax.Array) -> _Level:
    """In readings of the target's logits, each of which makes the level an eighth as wide."""
    precision = jnp.finfo(target.dtype)
    # Tokens further down hold less than half of 1 − mass.
    far = jnp.log(2 * target.shape[-1] / jnp.maximum(1 - mass, precision.eps))
    low = jnp.zeros_like(row.top)[..., None]
    level = _Level(low, low + far, low)
    steps = jnp.arange(1, _STEPS, dtype=target.dtype) / _STEPS
    steps = steps.reshape((1,) * (target.ndim - 1) + (-1,))
    for _ in range(math.ceil((precision.nmant + 1) / math.log2(_STEPS))):
        bounds = level.low + (level.high - level.low) * steps
        found = _mass_above(_below(row.top, bounds), target) / _positive(row.total)[..., None]
        less = found < mass
        most = lambda x, least, less=less: jnp.max(  # noqa: E731
            jnp.where(less, x, least), -1, keepdims=True
        )
        high = jnp.min(jnp.where(less, level.high, bounds), -1, keepdims=True)
        level = _Level(most(bounds, level.low), high, most(found, level.above))
    return level


def _mass_above(bounds: jax.Array, target: jax.Array) -> jax.Array:
    """Σ e^(logit − top) of logits above each of the bounds: merged with one exponential, which no sum has to itself."""
    bounds = [bounds[..., i : i + 1] for i in range(bounds.shape[-1])]
    side = reduced(
        Side(target, [indicator(target > bound, target) for bound in bounds]), merged_side
    )
    return jnp.stack(side.sums, -1)


def _below(top: jax.Array, depth: jax.Array) -> jax.Array:
    """The logit this far below the top."""
    return _anchor(top)[..., None] - depth


def _anchor(top: jax.Array) -> jax.Array:
    """The top, if that is finite; beside a +inf logit nothing else is near it."""
    return jnp.where(top == jnp.inf, jnp.finfo(top.dtype).max, finite_top(top))


def _probability(logits: jax.Array, row: _Row) -> jax.Array:
    place = jnp.minimum(logits - _anchor(row.top)[..., None], 0)
    return jnp.exp(place - jnp.log(_positive(row.total))[..., None])


def _by_parts(known, target: jax.Array, model: jax.Array) -> _Sums:
    """Sums over parts of the vocabulary, `[..., parts]`; the last one may be short."""
    *lead, size = target.shape
    whole = size // _PART * _PART
    cut = [x[..., :whole].reshape(*lead, -1, _PART) for x in (target, model)]
    parts = _added(jax.tree.map(lambda x: x[..., None], known), *cut)
    if whole == size:
        return parts
    rest = _added(known, target[..., whole:], model[..., whole:])
    return _Sums(*(jnp.append(x, y[..., None], -1) for x, y in zip(parts, rest, strict=True)))


def _of_part(part: jax.Array, known, target: jax.Array, model: jax.Array) -> _Sums:
    """Of each token of one part, `[..., 512]`; beyond the vocabulary none is counted."""
    token = part * _PART + jnp.arange(_PART).reshape((1,) * (target.ndim - 1) + (_PART,))
    inside = jnp.minimum(token, target.shape[-1] - 1)
    terms = _terms(known, *(jnp.take_along_axis(x, inside, -1) for x in (target, model)))
    return terms._replace(count=jnp.where(token == inside, terms.count, 0))


def _added(known, target: jax.Array, model: jax.Array) -> _Sums:
    """Over the last axis in one reading, every sum from what it computes by itself: XLA would write down what they share."""
    terms = [
        _terms(jax.lax.optimization_barrier((known, i))[0], target, model)[i] for i in range(4)
    ]
    zeros = [jnp.zeros((), x.dtype) for x in terms]
    add = lambda one, other: list(map(operator.add, one, other))  # noqa: E731
    return _Sums(*jax.lax.reduce(terms, zeros, add, (target.ndim - 1,)))


def _terms(known: tuple[tuple[_Row, ...], _Level], target: jax.Array, model: jax.Array) -> _Sums:
    rows, level = known
    p, q = (_probability(*pair) for pair in zip((target, model), rows, strict=True))
    gap = jnp.abs(p - q)
    above = target > _below(rows[0].top, level.low)
    on = ~above & (target > _below(rows[0].top, level.high))
    return _Sums(gap, jnp.where(above, gap, 0), jnp.where(on, gap, 0), indicator(on, gap))


def _positive(total: jax.Array) -> jax.Array:
    return jnp.where(total > 0, total, 1)
