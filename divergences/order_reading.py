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

import functools
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
    excess: jax.Array


def _tokens(order: Order, own: jax.Array, other: jax.Array, places, power) -> Reading:
    """What each token adds to the sums, relative to P, Q or T of its own; finite also where that weight is 0.

    Where the other side rules the token out, x = +inf; that counts only for k > 0.
    """
    h, k = order.high, order.low
    far, one, falls = farthest(own), jnp.ones_like(own), k < 0
    sign, threshold = jnp.where(falls, -1, 1).astype(own.dtype), 1 / jnp.maximum(h, 1)
    most = jnp.where(k > 0, jnp.inf, jnp.finfo(own.dtype).max)
    above = lambda x: jnp.where(x <= most, jnp.clip(x, 0, far), 0)  # noqa: E731
    level = lambda x, place: _times(power, _level(x, place))  # noqa: E731
    count = itertools.count()
    ratio = lambda: _times(power, _ratio(own, other, places, next(count)))  # noqa: E731
    mean = lambda sign: sign * _bent(k, above(sign * ratio()))  # noqa: E731
    gap = jnp.clip(level(own, places[0]) - level(other, places[1]), -far, far)
    x = ratio()
    alone = indicator((own != -jnp.inf) & (other == -jnp.inf), own)
    up = lambda x, formula: jnp.where(x() < threshold, 0, formula(x()))  # noqa: E731
    reach = lambda: above(ratio())  # noqa: E731
    excess = up(reach, functools.partial(_above, h, jnp.maximum(k, 0)))
    sums = _Own(
        one,
        jnp.where(own == jnp.inf, gap, mean(sign)),
        jnp.where(k > 0, excess, alone),
    )
    close = generator_series(h, _within(ratio(), threshold))
    below = _below(h, k, jnp.clip(-ratio(), 0, far))
    rest = jnp.where(ratio() <= -threshold, below, jnp.where(ratio() < threshold, close, 0))
    excess = up(reach, functools.partial(_far_above, h, jnp.minimum(k, 0)))
    tilted = _Tilted(one, mean(-sign), jnp.where(k > 0, 0, excess))
    top = _times(power, own - places[0][..., None]) - k * jnp.clip(ratio(), -far, far)
    return Reading(
        Side(powered(own, power), sums),
        Side(powered(other, power), _Other(one, jnp.where(other == jnp.inf, gap, rest))),
        classes(own, other),
        Side(jnp.where(other == -jnp.inf, -jnp.inf, top), tilted),
    )


def _within(x: jax.Array, most: jax.Array) -> jax.Array:
    """X where |x| < most, 0 elsewhere."""
    return jnp.where(jnp.abs(x) < most, x, 0)


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
    return jax.lax.reduce_precision(jnp.round(place * 2**16) / 2**16, 11 if place.dtype == jnp.float64 else 8, 20)


def _level(logits: jax.Array, place: jax.Array) -> jax.Array:
    """A logit less its centre; of +inf, the log of whose weight is 0, only that."""
    return jnp.where(logits == jnp.inf, 0, logits) - place[..., None]


def _bent(k: jax.Array, z: jax.Array) -> jax.Array:
    """(1 − e^(−|k|z))/|k|."""
    rate = jnp.abs(k)
    return jnp.where(rate == 0, z, -jnp.expm1(-rate * z) / _positive(rate))


def _above(h: jax.Array, k: jax.Array, z: jax.Array) -> jax.Array:
    """F_α(z)·e^(−z) for k ≥ 0."""
    return (jnp.exp(-z) - 1 + _bent(k, z)) / h


def _far_above(h: jax.Array, k: jax.Array, z: jax.Array) -> jax.Array:
    """F_α(z)·e^(−αz) for k < 0."""
    return (jnp.exp((k - 1) * z) - jnp.exp(k * z) + _bent(k, z)) / h


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


def _finished(order: Order, read: Reading, places) -> Affinity:
    """Of a row, with P̂ = Σ P and so on: log u = x − ρ, ρ = log P̂/Q̂.

    D = E_q[F_α(log u)] = (P̂/Q̂)^{−α}·(A/Q̂ − F_α(ρ)) where P̂/Q̂ − 1 = (S − α·A)/Q̂ is small: second-order terms alone. Elsewhere,
    log Z = kρ + log(1 − k·S/P̂), from Σ T where that cancels, and D = (Z − 1)/(α(α − 1)).
    """
    h, k = order.high, order.low
    own, other, tilted = read.target, read.model, read.extra
    tops = tuple(
        finite_top(side.top) - place for side, place in zip((own, other), places, strict=True)
    )
    top = jnp.where(tilted.top == -jnp.inf, 0, tilted.top)
    disjoint = tilted.top == -jnp.inf
    outside, above = jnp.where(k > 0, 0, own.sums.rest), jnp.where(k > 0, own.sums.rest, 0)
    inside = jnp.maximum(own.sums.total - outside, 0)
    some = _positive(inside)
    ahead = tops[0] - tops[1]
    rho = ahead + jnp.log(_positive(own.sums.total) / _positive(other.sums.total))
    both = lambda of_own, of_tilted, place: (  # noqa: E731
        of_own * _power(tops[0] - place) + of_tilted * _power(top - place)
    )
    mean = both(own.sums.mean, tilted.sums.mean, tops[0]) / some
    log_t = top + jnp.log(_positive(tilted.sums.total)) - tops[0] - jnp.log(some)
    # What follows is λ/k, λ the logarithm of Σ p^α·q^k over what is inside, relative to that.
    # The logarithm loses 1/(1 − k·S/P̂) units, the difference of the maxima some 10 + |ρ|.
    small = ((1 - k * mean) * (10 + jnp.abs(rho)) > 1) & (top - tops[0] < 80)
    through = jnp.where(small, k * mean, 0)
    per_rate = rho + jnp.where(small, -mean * log1prel(-through), log_t / jnp.where(k == 0, 1, k))
    mark = (own.top == jnp.inf) | (other.top == jnp.inf)
    ratio = jnp.where(
        own.top == jnp.inf,
        own.sums.mean / _positive(own.sums.total),
        other.sums.rest / _positive(other.sums.total),
    )
    per_rate = jnp.where(mark, rho - ratio, per_rate)
    lam = jnp.where(disjoint & (k > 0), -jnp.inf, k * per_rate)
    alike = own.top == other.top
    lam = jnp.where((other.top == jnp.inf) & ~alike & (k > 0), h * (ratio - rho), lam)
    first = jnp.abs(lam) < 1
    share = jnp.where(inside > 0, inside / _positive(own.sums.total), 0)
    found = jnp.exp(jnp.minimum(ratio - rho, 0))
    share = jnp.where((other.top == jnp.inf) & ~alike & (k <= 0), found, share)
    slope = share * jnp.where(
        first,
        -jnp.where(first, lam / jnp.where(k == 0, 1, k) + jnp.where(k == 0, per_rate, 0), 0)
        * exprel(jnp.where(first, lam, 0)),
        -jnp.expm1(lam) / jnp.where(k == 0, 1, k),
    )
    weight = _positive(other.sums.total)
    excess = (both(above, tilted.sums.excess, tops[1]) + other.sums.rest) / weight
    tilt = both(own.sums.mean, tilted.sums.mean, tops[1]) / weight - h * excess
    close = (excess < 1) & (jnp.maximum(h, 1) * jnp.abs(tilt) < 0.5) & ~mark & (share == 1)
    rest = jnp.log1p(jnp.where(close, tilt, 0))
    precise = jnp.exp(-h * rest) * (jnp.where(close, excess, 0) - generator_series(h, rest))
    precise = jnp.maximum(precise, 0)
    slope = jnp.where(close, h * precise, slope)
    less = 1 - share
    z = -k * slope - less
    log_z = jnp.where(
        jnp.abs(z) < 0.5,
        jnp.log1p(jnp.where(jnp.abs(z) < 0.5, z, 0)),
        lam + jnp.log(_positive(share)),
    )
    rate = jnp.where(k == 0, 1, -k)
    renyi = jnp.where(k == 0, slope / _positive(share), log_z / rate)
    exact = (share == 1) & (jnp.abs(z) < 0.5)
    renyi = jnp.where(exact, slope * log1prel(jnp.where(exact, -k * slope, 0)), renyi)
    renyi = jnp.where(order.swapped, -log_z / h, renyi)
    disjoint |= mark & (jnp.abs(ratio) >= farthest(ratio))
    legal = (own.top != -jnp.inf) & (other.top != -jnp.inf)
    infinite = alone(read.seen, (own.top, other.top))[0] & (k <= 0) & legal
    value = jnp.where(infinite, jnp.inf, jnp.where(legal, jnp.maximum(slope / h, 0), 0))
    slopes = jnp.where(legal, slope, 0), jnp.where(legal, (k * slope + less) / h, 0)
    return Affinity(
        (own.top, other.top),
        (own.sums.total, other.sums.total),
        value,
        jnp.where(legal, jnp.where(disjoint, -jnp.inf, log_z), 0),
        slopes,
        jnp.where(legal, renyi, 0),
        infinite,
        disjoint & legal,
        legal,
    )


def _positive(x: jax.Array) -> jax.Array:
    return jnp.where(x > 0, x, 1)


def _power(exponent: jax.Array) -> jax.Array:
    return jnp.exp(jnp.minimum(exponent, 80.0))
