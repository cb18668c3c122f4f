"""Σ p^α·q^{1−α} of a row and what is made of it, from the sums of `order_reading`."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from divax.divergences.logit_reading import Reading, Side, alone, farthest, finite_top
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
    totals = [positive(side.sums.total) for side in (own, other)]
    rho = places[0] - places[1] + jnp.log(totals[0] / totals[1])
    saturated = [side.top == jnp.inf for side in (own, other)]
    ratio = jnp.where(saturated[0], own.sums.mean / totals[0], other.sums.rest / totals[1])
    inside = jnp.maximum(totals[0] - jnp.where(order.low > 0, 0, own.sums.rest), 0) / totals[0]
    found = saturated[1] & ~saturated[0] & (order.low <= 0)
    inside = jnp.where(found, jnp.exp(jnp.minimum(ratio - rho, 0)), inside)
    places = (*places, jnp.where(tilted.top == -jnp.inf, 0, tilted.top))
    return _Row(own, other, tilted, places, rho, ratio, saturated[0] | saturated[1], inside)


def finished(order: Order, read: Reading, centres) -> Affinity:
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
    renyi = jnp.where(k == 0, slope / positive(row.inside), log_z / jnp.where(k == 0, 1, -k))
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
    """Log Z and W: log Z = kρ + log(1 − k·S/P̂), or from Σ T where that cancels; from one log-ratio where +inf decides."""
    h, k = order.high, order.low
    rate = jnp.where(k == 0, 1, k)
    inside = positive(row.inside * row.own.sums.total)
    mean = row.both(row.own.sums.mean, row.tilted.sums.mean, row.places[0]) / inside
    log_t = jnp.log(positive(row.tilted.sums.total)) - jnp.log(inside)
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
    return log_z + jnp.log(positive(row.inside)), slope


def _together(order: Order, row: _Row) -> tuple[jax.Array, jax.Array]:
    """Where the models are close, and W there.

    D = E_q[F_α(log u)] = (P̂/Q̂)^{−α}·(A/Q̂ − F_α(ρ)) with P̂/Q̂ − 1 = (S − α·A)/Q̂: second-order terms alone.
    """
    h, own, other, tilted = order.high, row.own.sums, row.other.sums, row.tilted.sums
    of_own = jnp.where(order.low > 0, own.rest, 0)
    excess = (row.both(of_own, tilted.rest, row.places[1]) + other.rest) / positive(other.total)
    mean = row.both(own.mean, tilted.mean, row.places[1]) / positive(other.total)
    ahead = mean - h * excess
    close = (excess < 1) & (jnp.maximum(h, 1) * jnp.abs(ahead) < 0.5)
    close &= ~row.marked & (row.inside == 1)
    rho = jnp.log1p(jnp.where(close, ahead, 0))
    value = jnp.exp(-h * rho) * (jnp.where(close, excess, 0) - generator_series(h, rho))
    return close, h * jnp.maximum(value, 0)


def positive(x: jax.Array) -> jax.Array:
    """X, 1 instead of 0 and below: to divide by, or take the logarithm of."""
    return jnp.where(x > 0, x, 1)


def _power(exponent: jax.Array) -> jax.Array:
    return jnp.exp(jnp.minimum(exponent, _MOST))
