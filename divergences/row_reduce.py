"""f-divergences of given logits in the fewest readings, for machines on which reading them is what takes the time.

A GPU or TPU computes a hundred times faster than it reads logits of a large vocabulary, and XLA reads them again for every
reduction that needs another's result: for a maximum, for a sum of exponentials, for each mean. Here one reduction gives
all of them: logits merge in pairs, like a log-sum-exp, in any order. Passes over an array [N, V], read or written, as XLA
compiles it ahead of time for H200 and TPU v5p and v6e (`divax bench --only P5`):

| | value | with its gradient |
|---|---|---|
| forward and reverse KL, Jeffreys; α, χ², Hellinger; their sums: one reading, then the gradient | 2 | 5 |
| every other f-divergence: one more reading, for the value or the slope's sum | 4 | 7 |

Nothing of the logits' size is kept in between. A hand-written kernel that holds rows of both models on the chip would
take five passes for every one of them, which is no reason for one: see docs/performance.md.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from divax.divergences.algebra import FMixture
from divax.divergences.alpha import Alpha
from divax.divergences.chi2 import ForwardChi2, ReverseChi2
from divax.divergences.f_divergence import AbstractFDivergence, _edge, _finite, sided_slopes
from divax.divergences.hellinger import SquaredHellinger
from divax.divergences.kept_rule import differentiated_as
from divax.divergences.kl_reading import from_one_reading, kl_weights
from divax.divergences.logit_gradient import bounded, centred, slope_sums
from divax.divergences.logit_reading import (
    Reading,
    Scalars,
    Side,
    alone,
    classes,
    farthest,
    finite_top,
    reduced,
    undivided,
)
from divax.divergences.numerics import Scalar
from divax.divergences.order_reading import affinity_reading
from divax.divergences.rows import Rows, split_centred, split_rows


def reduced_value(div: AbstractFDivergence, target: jax.Array, model: jax.Array) -> jax.Array:
    """D of each row, `[..., V]` to `[...]`, from one reading or two."""
    return _scalars((False, False), div, target, model).value


def reduced_tangent(
    moving: Sequence[bool],
    div: AbstractFDivergence,
    target: jax.Array,
    model: jax.Array,
    *dots: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """D of each row and its derivative along the dots of the logits that move.

    The value of the KLs has a relative error ε·(1 + (m − c)²/D), ε the precision's, m the mean log-ratio of the logits and c
    that of a few tokens. A row with a +inf logit has gradient 0 by that side; by the other side, that of a KL's finite part
    which is +inf there is approximate.
    """
    scalars = _scalars(tuple(moving), div, target, model)
    # Computed again in a backward pass: what is kept is the logits, which are there anyway, and the scalars.
    tangent = jax.checkpoint(_tangent, prevent_cse=False)
    return scalars.value, tangent(div, scalars, target, model, dots)


def _tangent(div, scalars: Scalars, target: jax.Array, model: jax.Array, dots: Sequence[jax.Array]):
    """Σ gradient·dot over the sides that have slopes."""
    # Behind a barrier nothing equals what an earlier reading computed: XLA would write that down to save its repetition.
    tops, totals, slopes = jax.lax.optimization_barrier(
        (scalars.tops, scalars.totals, scalars.slopes)
    )
    rows, dots = rows_at(tops, totals, target, model), list(dots)
    tangent = jnp.zeros(target.shape[:-1], target.dtype)
    sides = zip(_sloped(div, rows, slopes), slopes, tops, strict=True)
    for side, sums, top in sides:
        if side is not None:
            gradient = jnp.where(top[..., None] == jnp.inf, 0, centred(*side, sums))
            tangent += jnp.sum(gradient * dots.pop(0), -1)
    return tangent


def rows_at(tops, totals, target: jax.Array, model: jax.Array) -> Rows:
    """`split_rows` with what it needs of whole rows known."""
    legal = ((tops[0] != -jnp.inf) & (tops[1] != -jnp.inf))[..., None]
    sides = placed(target, tops[0], totals[0]), placed(model, tops[1], totals[1])
    return split_centred(*sides, legal)


def placed(logits: jax.Array, top: jax.Array, total: jax.Array):
    """Logits minus their maximum, log of the sum of exponentials of that, and which are possible, as for `split_rows`."""
    top, total, deepest = top[..., None], total[..., None], farthest(logits)
    # Where the top is +inf, nothing below it is possible.
    least = jnp.where(top == jnp.inf, jnp.inf, -jnp.inf).astype(logits.dtype)
    possible = (logits != -jnp.inf) & ~(logits < least)
    placed = jnp.where(possible, jnp.clip(logits - finite_top(top), -deepest, 0), 0)
    return placed, jnp.log(jnp.where(total > 0, total, 1)), possible


def _sloped(div: AbstractFDivergence, rows: Rows, wanted: Sequence[Any]) -> list:
    """(slope, probability) of each side that is wanted (neither None nor False)."""
    return sided_slopes(div, wanted, rows, False)


def _plain(wanted: tuple[bool, ...], div: Any, target: jax.Array, model: jax.Array) -> Scalars:
    """`_scalars` by separate reductions, for JAX to differentiate: second derivatives need not be fast."""
    tops = jnp.max(target, -1), jnp.max(model, -1)
    centred_at = lambda x, top: placed(x, top, jnp.ones_like(top))[0]  # noqa: E731
    total = lambda x, top: jnp.sum(jnp.exp(centred_at(x, top)), -1)  # noqa: E731
    totals = total(target, tops[0]), total(model, tops[1])
    rows = split_rows(target, model)
    sums = [None if side is None else slope_sums(*side) for side in _sloped(div, rows, wanted)]
    sums = [None if one is None else undivided(one.total) for one in sums]
    value = jnp.sum(div.summand(rows.common), -1)
    value += _edge(div.f_at_zero, rows.q_only, rows.has_q_only)
    value += _edge(div.slope_at_infinity, rows.p_only, rows.has_p_only)
    return Scalars(tops, totals, value, tuple(sums))


@differentiated_as(_plain)
def _scalars(wanted: tuple[bool, ...], div: Any, target: jax.Array, model: jax.Array) -> Scalars:
    """With slopes of the wanted sides."""
    parts = _one_reading(div)
    if parts is None:
        return _from_two(wanted, div, target, model)
    found = [part(wanted, target, model) for part in parts]
    # XLA makes one reading of all, as they read the same.
    add = lambda *terms: functools.reduce(operator.add, terms)  # noqa: E731
    slopes = jax.tree.map(add, *(one.slopes for one in found))
    return found[0]._replace(value=add(*(one.value for one in found)), slopes=slopes)


def _one_reading(div: AbstractFDivergence) -> list[Callable[..., Scalars]] | None:
    """What gives the scalars of the parts of a sum; None where one of them takes two readings."""
    weights, multiple = kl_weights(div), alpha_multiple(div)
    if weights is not None:
        edges = div.slope_at_infinity, div.f_at_zero
        return [lambda wanted, *logits: from_one_reading(wanted, weights, edges, *logits)]
    if multiple is not None:
        return [lambda wanted, *logits: _from_affinity(wanted, multiple, *logits)]
    if not isinstance(div, FMixture) or len(div.parts) < 2:
        return None
    terms = zip(div.weights, div.parts, strict=True)
    parts = [_one_reading(FMixture(weights=(one,), parts=(part,))) for one, part in terms]
    return None if None in parts else [one for part in parts if part for one in part]


# ---- the α-family ----------------------------------------------------------------------------------------------


class AlphaMultiple(NamedTuple):
    """factor·`Alpha(alpha)`."""

    factor: Scalar
    alpha: Scalar


def alpha_multiple(div: AbstractFDivergence) -> AlphaMultiple | None:
    """Of the members of the family; None for other divergences."""
    if isinstance(div, FMixture) and len(div.parts) == 1:
        inner = alpha_multiple(div.parts[0])
        return inner and AlphaMultiple(div.weights[0] * inner.factor, inner.alpha)
    if isinstance(div, Alpha):
        return AlphaMultiple(1.0, div.alpha) if jnp.ndim(div.alpha) == 0 else None
    known = {SquaredHellinger: (0.25, 0.5), ForwardChi2: (2.0, 2.0), ReverseChi2: (2.0, -1.0)}
    of = known.get(type(div))
    return of and AlphaMultiple(*of)


def _from_affinity(
    wanted: tuple[bool, ...], div: AlphaMultiple, target: jax.Array, model: jax.Array
) -> Scalars:
    factor, alpha = div
    of = affinity_reading(alpha, 1 - alpha, target, model)
    slopes = tuple(
        undivided(bounded(factor * total)[..., None]) if want else None
        for total, want in zip(of.slopes, wanted, strict=True)
    )
    value = jnp.where(factor == 0, 0, factor * jnp.where(factor == 0, 0, of.value))
    return Scalars(of.tops, of.totals, value, slopes)


# ---- two readings ----------------------------------------------------------------------------------------------


def _from_two(wanted: tuple[bool, ...], div: Any, target: jax.Array, model: jax.Array) -> Scalars:
    sides = [Side(x, (jnp.ones_like(x),)) for x in (target, model)]
    one, other, seen, _ = reduced(Reading(*sides, classes(target, model)))
    tops, totals = (one.top, other.top), (one.sums[0], other.sums[0])
    places = jax.lax.optimization_barrier((tops, totals))
    rows = rows_at(*places, target, model)
    below, beyond = _finite(div.f_at_zero), _finite(div.slope_at_infinity)
    terms = div.summand(rows.common) + below * rows.q_only + beyond * rows.p_only
    value = jnp.sum(terms, -1)
    rows = rows_at(*jax.lax.optimization_barrier(places), target, model)
    slopes = [None if side is None else jnp.sum(side[0], -1) for side in _sloped(div, rows, wanted)]
    limits = div.slope_at_infinity, div.f_at_zero
    for limit, is_alone in zip(limits, alone(seen, tops), strict=True):
        value = jnp.where((limit == jnp.inf) & is_alone, jnp.inf, value)
    slopes = tuple(None if one is None else undivided(one[..., None]) for one in slopes)
    return Scalars(tops, totals, value, slopes)
