"""The log-variance divergence from one reading of the logits.

Parts of a row have a mass W = Σ r, a mean and a sum of squares about it, M. Two of them, with means δ apart and of masses V
and W, have together M₁ + M₂ + δ²·V·W/(V + W): nothing cancels, in whatever order they come.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from divax.divergences.log_variance import LogVariance, Moments
from divax.divergences.logit_reading import (
    Reading,
    Side,
    alone,
    centres,
    classes,
    farthest,
    finite_top,
    merged,
    reduced,
)


class _Spread(NamedTuple):
    """Of the log-ratio under the reference on the common support: mass, mean, sum of squares about it."""

    mass: jax.Array
    mean: jax.Array
    squares: jax.Array


class Variance(NamedTuple):
    """What one reading gives: `tops` and `totals` as of `RowScalars`, the value, and what the slopes are made of."""

    tops: tuple[jax.Array, jax.Array]
    totals: tuple[jax.Array, jax.Array]
    value: jax.Array
    moments: Moments


def variance_reading(div: LogVariance, target: jax.Array, model: jax.Array) -> Variance:
    """Of rows `[..., V]`. Of rows with a +inf logit whose value is +inf, the slopes are 0."""
    common = (target != -jnp.inf) & (model != -jnp.inf)
    logits = {"model": model, "target": target}.get(div.reference, jnp.zeros_like(model))
    ones, far = jnp.ones_like(model), farthest(target)
    # All possible tokens of a row with +inf logits are alike.
    target_, model_ = (jnp.where(x == jnp.inf, 0, x) for x in (target, model))
    # The difference first, exact of close models; less what a few tokens say of its mean, or that would round all sums.
    centre = jnp.subtract(*centres(target, model))
    gap = jnp.where(common, jnp.clip(target_ - model_ - centre[..., None], -far, far), 0)
    spread = _Spread(ones, gap, jnp.zeros_like(gap))
    sides = Side(target, (ones,)), Side(model, (ones,))
    reference = Side(jnp.where(common, logits, -jnp.inf), spread)
    read, reference = reduced((Reading(*sides, classes(target, model)), reference), _merged)
    return _finished(div, read, reference, centre)


def _merged(one: tuple[Reading, Side], other: tuple[Reading, Side]) -> tuple[Reading, Side]:
    (read, a), (more, b) = one, other
    ahead = jnp.where(a.top == b.top, 0, a.top - b.top)
    less = jnp.exp(-jnp.abs(ahead))
    here, there = jnp.where(ahead < 0, less, 1), jnp.where(ahead < 0, 1, less)
    V, W = here * a.sums.mass, there * b.sums.mass
    share, apart = W / jnp.where(V + W > 0, V + W, 1), b.sums.mean - a.sums.mean
    squares = here * a.sums.squares + there * b.sums.squares + V * share * apart * apart
    spread = _Spread(V + W, a.sums.mean + share * apart, squares)
    return merged(read, more), Side(jnp.maximum(a.top, b.top), spread)


def _finished(div: LogVariance, read: Reading, reference: Side, centre: jax.Array) -> Variance:
    tops, totals = (read.target.top, read.model.top), (read.target.sums[0], read.model.sums[0])
    saturated = [top == jnp.inf for top in tops]
    infinite = jnp.zeros_like(saturated[0])
    limits = div.infinite_at.model_zero, div.infinite_at.target_zero
    for limit, is_alone in zip(limits, alone(read.seen, tops), strict=True):
        infinite |= is_alone & limit
    # Where both have +inf logits, or one has and nothing is common, the log-ratios of other tokens were read too.
    undefined = saturated[0] & saturated[1] | infinite & (saturated[0] | saturated[1])
    mass, mean, squares = reference.sums
    value = jnp.where(undefined, 0, squares / jnp.where(mass > 0, mass, 1))
    value = jnp.where(infinite, jnp.inf, value)
    log = lambda x: jnp.log(jnp.where(x > 0, x, 1))  # noqa: E731
    mean += centre - (finite_top(tops[0]) - finite_top(tops[1]))
    mean -= log(totals[0]) - log(totals[1])
    log_mass, own = log(mass), {"target": 0, "model": 1}.get(div.reference)
    if own is not None:
        log_mass += finite_top(reference.top) - finite_top(tops[own]) - log(totals[own])
    return Variance(tops, totals, value, Moments(jnp.where(undefined, jnp.inf, log_mass), mean))
