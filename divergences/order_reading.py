"""Σ p^α·q^{1−α} and what is made of it, for any real α, from one reading of the logits.

With h = α and k = 1 − α ≤ ½ (otherwise p and q change places, which exchanges h and k), x = (t − a) − (s − b) the log-ratio less
a centre, P = e^(t − a), Q = e^(s − b) and T = P^h·Q^k = P·e^(−kx), three sums over a row suffice:

- Σ T;
- S = Σ P·(1 − e^(−kx))/k, which is Σ P·x at k = 0: Σ P − k·S = Σ T;
- A = Σ Q·F_α(x) with the generator F_α(x) = (e^(αx) − 1 − α(e^x − 1))/(α(α − 1)) ≥ 0.

Each summand is a bounded factor times one of P, Q and T, whose exponents are relative to their own maxima: nothing overflows,
for any α. Two rows of which one is much likelier than the centre says still have Σ T and S in full precision; two that are
close have A.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from divax.divergences.logit_reading import (
    Reading,
    Side,
    alone,
    centres,
    classes,
    farthest,
    finite_top,
    indicator,
    reduced,
)
from divax.divergences.numerics import Scalar, exprel, log1prel


# The logarithm of the largest factor by which sums relative to one maximum are taken for those relative to another.
_MOST = 80.0


class Order(NamedTuple):
    """An α oriented to α ≥ ½.

    Attributes:
        swapped: whether target and model changed places.
        high: α ≥ ½.
        low: 1 − α.
    """

    swapped: jax.Array
    high: jax.Array
    low: jax.Array


def oriented(alpha: Scalar, rest: Scalar, dtype: Any) -> Order:
    """From α and 1 − α."""
    alpha, rest = jnp.asarray(alpha, dtype), jnp.asarray(rest, dtype)
    swapped = alpha < rest
    return Order(swapped, jnp.where(swapped, rest, alpha), jnp.where(swapped, alpha, rest))


class Affinity(NamedTuple):
    """Of each row, in the order of (target, model); slopes are those of the α-divergence by its generator.

    Attributes:
        tops: the largest logits.
        totals: Σ e^(logit − top).
        value: the α-divergence, +inf where it is.
        log_z: log Σ p^α·q^{1−α} over the common support; −inf where there is none.
        slopes: Σ p·f′(u) and Σ q·(f(u) − u·f′(u)), with f′(∞) and f(0) per mass that the other side rules out where finite.
        renyi: log Σ p^α·q^{1−α}/(α − 1), the Rényi divergence without its infinite part.
        infinite: where the value is +inf because of supports.
        disjoint: where no token is possible under both.
        legal: where both sides have a possible token.
    """

    tops: tuple[jax.Array, jax.Array]
    totals: tuple[jax.Array, jax.Array]
    value: jax.Array
    log_z: jax.Array
    slopes: tuple[jax.Array, jax.Array]
    renyi: jax.Array
    infinite: jax.Array
    disjoint: jax.Array
    legal: jax.Array


def affinity_reading(
    alpha: Scalar,
    rest: Scalar,
    target: jax.Array,
    model: jax.Array,
    power: Scalar | None = None,
) -> Affinity:
    """Of rows `[..., V]`, for a number α and `rest` = 1 − α (given apart: a difference would lose its digits).

    Where the models are close, the relative error of the value is ε·(1 + (m − c)²/D): ε the precision's, m the mean log-ratio of
    the logits, c that of a few tokens. Elsewhere it is an absolute error of that size. Of several +inf logits in one row,
    the mean log-ratio counts. With a `power` c > 0, of softmax(c·logits).
    """
    order = oriented(alpha, rest, target.dtype)
    own = jnp.where(order.swapped, model, target)
    other = jnp.where(order.swapped, target, model)
    places = centres(target, model, lambda x: powered(x, power))
    places = tuple(jnp.where(order.swapped, *pair) for pair in (places[::-1], places))
    # Of the logits as they are.
    places = tuple(_round(place if power is None else place / power) for place in places)
    read = reduced(_tokens(order, own, other, places, power))
    found = _finished(order, read, tuple(_times(power, place) for place in places))
    back = lambda pair: tuple(  # noqa: E731
        jnp.where(order.swapped, *one) for one in (pair[::-1], pair)
    )
    return found._replace(
        tops=back(found.tops), totals=back(found.totals), slopes=back(found.slopes)
    )


# ---- tokens ----------------------------------------------------------------------------------------------------


class _Own(NamedTuple):
    """Σ P, its part of S, and its part of A if k > 0, else Σ P of tokens that take no part as they make the value infinite."""

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
    """X, computed as nobody else does, both centres moved by a number: XLA would write down what is used in several sums."""
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
    return jnp.where(rate == 0, z, -jnp.expm1(-rate * z) / _positive(rate))


def _above(h: jax.Array, k: jax.Array, z: jax.Array, edge: jax.Array) -> jax.Array:
    """(F_α(z) − edge)·e^(−z) for k ≥ 0."""
    return (jnp.exp(-z) * (1 - h * edge) - 1 + _bent(k, z)) / h


def _far_above(h: jax.Array, k: jax.Array, z: jax.Array, edge: jax.Array) -> jax.Array:
    """(F_α(z) − edge)·e^(−αz) for k ≤ 0."""
    return (jnp.exp((k - 1) * z) * (1 - h * edge) - jnp.exp(k * z) + _bent(k, z)) / h


def _below(h: jax.Array, k: jax.Array, z: jax.Array) -> jax.Array:
    """F_α(−z)."""
    return (1 - jnp.exp(-z) - jnp.exp(-jnp.minimum(h, 1) * z) * _bent(k, z)) / h


def generator_series(alpha: Scalar, x: jax.Array) -> jax.Array:
    """F_α(x) = Σ_{k≥2} x^k/k!·(1 + α + … + α^{k−2}) for |x| < 1, |αx| < 1; no singularity at α = 0 or 1.

    The coefficient of x^k is at most (k − 1)·max(1, |α|)^{k−2}/k!, so the first term left out is below 2·12/13! = 4e-9 of
    the leading one in float32, 1e-18 in double.
    """
    terms = 19 if x.dtype == jnp.float64 else 10
    sums, coefficients, factorial = jnp.ones((), x.dtype), [], 2.0
    for k in range(3, terms + 3):
        coefficients.append(sums / factorial)
        sums, factorial = 1 + alpha * sums, factorial * k
    total = jnp.zeros_like(x)
    for one in coefficients[::-1]:
        total = total * x + one
    return total * x * x


# ---- rows ------------------------------------------------------------------------------------------------------


class _Row(NamedTuple):
    """A row's sums, the logarithms of their weights, and ρ = log P̂/Q̂, P̂ = Σ P and so on: log u = x − ρ.

    Attributes:
        own: of P; its top is that of the logits.
        other: of Q; likewise.
        tilted: of T.
        places: what the tops of P, Q and T are relative to the centres.
        rho: ρ.
        ratio: the log-ratio of the tokens that are +inf.
        marked: where there are some.
        inside: the part of P̂ that takes part.
    """

    own: Side
    other: Side
    tilted: Side
    places: tuple[jax.Array, ...]
    rho: jax.Array
    ratio: jax.Array
    marked: jax.Array
    inside: jax.Array

    def both(self, of_own: jax.Array, of_tilted: jax.Array, place: jax.Array) -> jax.Array:
        """A sum of which P has a part, and T."""
        return of_own * _power(self.places[0] - place) + of_tilted * _power(self.places[2] - place)


def _row(order: Order, read: Reading, centres) -> _Row:
    own, other, tilted = read.target, read.model, read.extra
    assert tilted is not None
    places = [finite_top(side.top) - c for side, c in zip((own, other), centres, strict=True)]
    totals = [_positive(side.sums.total) for side in (own, other)]
    rho = places[0] - places[1] + jnp.log(totals[0] / totals[1])
    saturated = [side.top == jnp.inf for side in (own, other)]
    ratio = jnp.where(saturated[0], own.sums.mean / totals[0], other.sums.rest / totals[1])
    inside = jnp.maximum(totals[0] - jnp.where(order.low > 0, 0, own.sums.rest), 0) / totals[0]
    found = saturated[1] & ~saturated[0] & (order.low <= 0)
    inside = jnp.where(found, jnp.exp(jnp.minimum(ratio - rho, 0)), inside)
    places = (*places, jnp.where(tilted.top == -jnp.inf, 0, tilted.top))
    return _Row(own, other, tilted, places, rho, ratio, saturated[0] | saturated[1], inside)


def _finished(order: Order, read: Reading, centres) -> Affinity:
    """From W = Σ p·(u^−k − 1)/(−k) over what is inside, which is α·D where that is all: D = (Z − 1)/(α(α − 1))."""
    h, k, row = order.high, order.low, _row(order, read, centres)
    own, other = row.own, row.other
    disjoint = (row.tilted.top == -jnp.inf) | row.marked & (
        jnp.abs(row.ratio) >= farthest(row.ratio)
    )
    log_z, slope = _apart(order, row, disjoint)
    close, precise = _together(order, row)
    slope, less = jnp.where(close, precise, slope), 1 - row.inside
    z = -k * slope - less
    near = jnp.abs(z) < 0.5
    log_z = jnp.where(near, jnp.log1p(jnp.where(near, z, 0)), log_z)
    renyi = jnp.where(k == 0, slope / _positive(row.inside), log_z / jnp.where(k == 0, 1, -k))
    exact = (less == 0) & near
    renyi = jnp.where(exact, slope * log1prel(jnp.where(exact, z, 0)), renyi)
    legal = (own.top != -jnp.inf) & (other.top != -jnp.inf)
    infinite = alone(read.seen, (own.top, other.top))[0] & (k <= 0) & legal
    return Affinity(
        tops=(own.top, other.top),
        totals=(own.sums.total, other.sums.total),
        value=jnp.where(infinite, jnp.inf, jnp.where(legal, jnp.maximum(slope / h, 0), 0)),
        log_z=jnp.where(legal, jnp.where(disjoint, -jnp.inf, log_z), 0),
        slopes=(jnp.where(legal, slope, 0), jnp.where(legal, (k * slope + less) / h, 0)),
        renyi=jnp.where(legal, jnp.where(order.swapped, -log_z / h, renyi), 0),
        infinite=infinite,
        disjoint=disjoint & legal,
        legal=legal,
    )


def _apart(order: Order, row: _Row, disjoint: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log Z and W from log Z = kρ + log(1 − k·S/P̂), or from Σ T where that cancels; from one log-ratio where +inf decides."""
    h, k = order.high, order.low
    rate = jnp.where(k == 0, 1, k)
    inside = _positive(row.inside * row.own.sums.total)
    mean = row.both(row.own.sums.mean, row.tilted.sums.mean, row.places[0]) / inside
    log_t = jnp.log(_positive(row.tilted.sums.total)) - jnp.log(inside)
    log_t += row.places[2] - row.places[0]
    # The logarithm loses 1/(1 − k·S/P̂) units, the difference of the maxima some 10 + |ρ|.
    small = (1 - k * mean) * (10 + jnp.abs(row.rho)) > 1
    small &= row.places[2] - row.places[0] < _MOST
    through = jnp.where(small, k * mean, 0)
    per_rate = row.rho + jnp.where(small, -mean * log1prel(-through), log_t / rate)
    per_rate = jnp.where(row.marked, row.rho - row.ratio, per_rate)
    log_z = jnp.where(disjoint & (k > 0), -jnp.inf, k * per_rate)
    other_alone = (row.other.top == jnp.inf) & (row.own.top != jnp.inf) & (k > 0)
    log_z = jnp.where(other_alone, h * (row.ratio - row.rho), log_z)
    per_rate = jnp.where(other_alone, log_z / rate, per_rate)
    first = jnp.abs(log_z) < 1
    near = -jnp.where(first, per_rate, 0) * exprel(jnp.where(first, log_z, 0))
    slope = row.inside * jnp.where(first, near, -jnp.expm1(log_z) / rate)
    return log_z + jnp.log(_positive(row.inside)), slope


def _together(order: Order, row: _Row) -> tuple[jax.Array, jax.Array]:
    """Where the models are close, and W there.

    D = E_q[F_α(log u)] = (P̂/Q̂)^{−α}·(A/Q̂ − F_α(ρ)) with P̂/Q̂ − 1 = (S − α·A)/Q̂: second-order terms alone.
    """
    h, own, other, tilted = order.high, row.own.sums, row.other.sums, row.tilted.sums
    of_own = jnp.where(order.low > 0, own.rest, 0)
    excess = (row.both(of_own, tilted.rest, row.places[1]) + other.rest) / _positive(other.total)
    mean = row.both(own.mean, tilted.mean, row.places[1]) / _positive(other.total)
    ahead = mean - h * excess
    close = (excess < 1) & (jnp.maximum(h, 1) * jnp.abs(ahead) < 0.5)
    close &= ~row.marked & (row.inside == 1)
    rho = jnp.log1p(jnp.where(close, ahead, 0))
    value = jnp.exp(-h * rho) * (jnp.where(close, excess, 0) - generator_series(h, rho))
    return close, h * jnp.maximum(value, 0)


def _positive(x: jax.Array) -> jax.Array:
    return jnp.where(x > 0, x, 1)


def _power(exponent: jax.Array) -> jax.Array:
    return jnp.exp(jnp.minimum(exponent, _MOST))
