"""Σ p^α·q^{1−α} and what is made of it, for any real α, from one reading of the logits.

With h = α and k = 1 − α ≤ ½ (otherwise p and q change places, which exchanges h and k), x = (t − a) − (s − b) the log-ratio
less a centre, P = e^(t − a), Q = e^(s − b) and T = P^h·Q^k = P·e^(−kx), three sums over a row suffice:

- Σ T;
- S = Σ P·(1 − e^(−kx))/k, which is Σ P·x at k = 0: Σ P − k·S = Σ T;
- A = Σ Q·F_α(x) with the generator F_α(x) = (e^(αx) − 1 − α(e^x − 1))/(α(α − 1)) ≥ 0.

Each summand is a bounded factor times one of P, Q and T, whose exponents are relative to their own maxima: nothing
overflows, for any α. A row of which one side is much larger than the centre says still has Σ T and S in full precision; two
rows that are close have A.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from divax.divergences.affinity_row import Affinity, Order, finished, generator_series, positive
from divax.divergences.logit_reading import (
    Reading,
    Side,
    apart,
    centres,
    classes,
    farthest,
    indicator,
    reduced,
)
from divax.divergences.numerics import Scalar


def oriented(alpha: Scalar, rest: Scalar, dtype: Any) -> Order:
    """From α and 1 − α."""
    alpha, rest = jnp.asarray(alpha, dtype), jnp.asarray(rest, dtype)
    swapped = alpha < rest
    return Order(swapped, jnp.where(swapped, rest, alpha), jnp.where(swapped, alpha, rest))


def affinity_reading(
    alpha: Scalar,
    rest: Scalar,
    target: jax.Array,
    model: jax.Array,
    power: Scalar | None = None,
) -> Affinity:
    """Of rows `[..., V]`, for a number α and `rest` = 1 − α (given apart: a difference would lose its digits).

    The value has an error of some ε·(D + (m − c)²): ε the precision's, m the mean log-ratio of the logits, c that of a few
    tokens. Of several +inf logits in one row, the mean log-ratio counts. With a `power`, of softmax(power·logits).
    """
    order = oriented(alpha, rest, target.dtype)
    own = jnp.where(order.swapped, model, target)
    other = jnp.where(order.swapped, target, model)
    places = centres(target, model, lambda x: powered(x, power))
    places = tuple(jnp.where(order.swapped, *pair) for pair in (places[::-1], places))
    # Of the logits as they are.
    places = tuple(_round(place if power is None else place / power) for place in places)
    read = reduced(_tokens(order, own, other, apart(places, (alpha, rest)), power))
    found = finished(order, read, tuple(_times(power, place) for place in places))
    back = lambda pair: tuple(  # noqa: E731
        jnp.where(order.swapped, *one) for one in (pair[::-1], pair)
    )
    return found._replace(
        tops=back(found.tops), totals=back(found.totals), slopes=back(found.slopes)
    )


# ---- tokens ----------------------------------------------------------------------------------------------------


class _Own(NamedTuple):
    """Σ P, its part of S, and its part of A if k > 0, else Σ P of tokens that make the value infinite and take no part."""

    total: jax.Array
    mean: jax.Array
    rest: jax.Array


class _Other(NamedTuple):
    """Σ Q, and its part of A, or the log-ratio where Q is +inf."""

    total: jax.Array
    rest: jax.Array


class _Tilted(NamedTuple):
    """Σ T and its parts of S and, for k ≤ 0, of A."""

    total: jax.Array
    mean: jax.Array
    rest: jax.Array


def _tokens(order: Order, own: jax.Array, other: jax.Array, places, power) -> Reading:
    """What each token adds to the sums, relative to P, Q or T of its own; finite also where that weight is 0.

    A belongs to Q up to some x = b, and what is more than Q·F_α(b) to the larger of P and T, so that it matters little by
    which copy of x the sides tell that. Where the other side rules the token out, x = +inf; that counts only for k > 0.
    """
    h, k = order.high, order.low
    far, one, bound = farthest(own), jnp.ones_like(own), 1 / jnp.maximum(h, 1)
    sign, edge = jnp.where(k < 0, -1, 1).astype(own.dtype), generator_series(h, bound)
    most = jnp.where(k > 0, jnp.inf, jnp.finfo(own.dtype).max)
    copies = itertools.count()
    ratio = lambda: _times(power, _ratio(own, other, places, next(copies)))  # noqa: E731
    above = lambda x: jnp.where(x <= most, jnp.clip(x, 0, far), 0)  # noqa: E731
    mean = lambda sign: sign * _bent(k, above(sign * ratio()))  # noqa: E731
    more = lambda formula, k: jnp.where(  # noqa: E731
        above(ratio()) <= bound, 0, formula(h, k, above(ratio()), edge)
    )
    level = lambda x, place: _times(power, _level(x, place))  # noqa: E731
    gap = jnp.clip(level(own, places[0]) - level(other, places[1]), -far, far)
    alone = indicator((own != -jnp.inf) & (other == -jnp.inf), own)
    rest = jnp.where(k > 0, more(_above, jnp.maximum(k, 0)), alone)
    of_own = _Own(one, jnp.where(own == jnp.inf, gap, mean(sign)), rest)
    close = generator_series(h, jnp.clip(ratio(), -bound, bound))
    below = _below(h, k, jnp.clip(-ratio(), 0, far))
    # Only where Q is 0 is x not a number.
    rest = jnp.where(ratio() <= -bound, below, jnp.where(ratio() < jnp.inf, close, 0))
    of_other = _Other(one, jnp.where(other == jnp.inf, gap, rest))
    rest = jnp.where(k > 0, 0, more(_far_above, jnp.minimum(k, 0)))
    top = _times(power, own - places[0][..., None]) - k * jnp.clip(ratio(), -far, far)
    return Reading(
        Side(powered(own, power), of_own),
        Side(powered(other, power), of_other),
        classes(own, other),
        Side(jnp.where(other == -jnp.inf, -jnp.inf, top), _Tilted(one, mean(-sign), rest)),
    )


def _ratio(own: jax.Array, other: jax.Array, places, by: float) -> jax.Array:
    """X, computed as nobody else does, both centres moved by a bit: XLA would write down what several sums use."""
    by /= 64
    return (own - (places[0] + by)[..., None]) - (other - (places[1] + by)[..., None])


def powered(logits: jax.Array, power: Scalar | None) -> jax.Array:
    """power·logits; finite ones stay so."""
    if power is None:
        return logits
    most = jnp.finfo(logits.dtype).max
    return jnp.where(jnp.isfinite(logits), jnp.clip(power * logits, -most, most), logits)


def _times(power: Scalar | None, x: jax.Array) -> jax.Array:
    return x if power is None else power * x


def _round(place: jax.Array) -> jax.Array:
    """A number near, to which small binary fractions are added exactly."""
    return jax.lax.reduce_precision(
        jnp.round(place * 2**16) / 2**16, 11 if place.dtype == jnp.float64 else 8, 20
    )


def _level(logits: jax.Array, place: jax.Array) -> jax.Array:
    """A logit less its centre; of +inf, the log of whose weight is 0, only that."""
    return jnp.where(logits == jnp.inf, 0, logits) - place[..., None]


def _bent(k: jax.Array, z: jax.Array) -> jax.Array:
    """(1 − e^(−|k|z))/|k|."""
    rate = jnp.abs(k)
    return jnp.where(rate == 0, z, -jnp.expm1(-rate * z) / positive(rate))


def _above(h: jax.Array, k: jax.Array, z: jax.Array, edge: jax.Array) -> jax.Array:
    """(F_α(z) − edge)·e^(−z) for k ≥ 0."""
    return (jnp.exp(-z) * (1 - h * edge) - 1 + _bent(k, z)) / h


def _far_above(h: jax.Array, k: jax.Array, z: jax.Array, edge: jax.Array) -> jax.Array:
    """(F_α(z) − edge)·e^(−αz) for k ≤ 0."""
    return (jnp.exp((k - 1) * z) * (1 - h * edge) - jnp.exp(k * z) + _bent(k, z)) / h


def _below(h: jax.Array, k: jax.Array, z: jax.Array) -> jax.Array:
    """F_α(−z)."""
    return (1 - jnp.exp(-z) - jnp.exp(-jnp.minimum(h, 1) * z) * _bent(k, z)) / h
