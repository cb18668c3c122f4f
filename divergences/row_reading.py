"""Divergences outside the f-family of given logits in the fewest readings, for machines on which reading takes the time.

What `row_reduce` is for f-divergences; passes over an array [N, V], read or written, as XLA compiles it ahead of time for
H200 (`divax bench --only P5`):

| | value | with its gradient |
|---|---|---|
| Rényi, Bhattacharyya, and of escorts: gamma, Cauchy–Schwarz, Hölder | 2 | 5 |
| log-variance, geometric Jensen–Shannon | 2 | 5 |
| alpha–beta, beta; any other whose value and slopes are sums of what a token has | 4 | 7 |

Nothing of the logits' size is kept in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from divax.divergences.escort import Escorts, escorts
from divax.divergences.geometric_js import GeometricJS
from divax.divergences.kept_rule import differentiated_as
from divax.divergences.kl_reading import from_one_reading
from divax.divergences.log_variance import LogVariance
from divax.divergences.logit_gradient import SlopeSums, bounded, centred, slope_sums
from divax.divergences.logit_reading import Reading, Side, classes, reduced, undivided
from divax.divergences.numerics import Scalar
from divax.divergences.order_reading import affinity_reading, powered
from divax.divergences.renyi import Affinity, affinity, renyi_slopes_at
from divax.divergences.row_reduce import placed, rows_at
from divax.divergences.row_wise import AbstractRowDivergence, scaled
from divax.divergences.rows import Rows, split_rows
from divax.divergences.variance_reading import variance_reading


class RowScalars(NamedTuple):
    """All that the value and the gradients of a pair of rows need of other tokens than their own.

    Attributes:
        tops: the largest logits, target's and model's, `[...]`.
        totals: Σ e^(logit − top).
        value: the divergence.
        of: what its slopes are made of beside p and q (`Affinity`, `Moments`); None where they say it themselves.
        slopes: Σ slope of each side, None where nobody asked.
    """

    tops: tuple[jax.Array, jax.Array]
    totals: tuple[jax.Array, jax.Array]
    value: jax.Array
    of: Any
    slopes: tuple[SlopeSums | None, ...]


def reduced_rows(div: AbstractRowDivergence, target: jax.Array, model: jax.Array) -> jax.Array:
    """D of each row, `[..., V]` to `[...]`."""
    form = escorts(div)
    if form is not None:
        return _of_escorts((False, False), form, target, model).value
    return _of_any((False, False), div, target, model).value


def reduced_rows_tangent(
    moving: Sequence[bool],
    div: AbstractRowDivergence,
    target: jax.Array,
    model: jax.Array,
    *dots: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """D of each row and its derivative along the dots of the logits that move.

    Precision of the value as of `affinity_reading`, where that is what it is made of. A row with a +inf logit has gradient 0
    by that side, and as with `reduced_tangent` an approximate one by the other, where geometric Jensen–Shannon is +inf.
    """
    form, tangent = escorts(div), jax.checkpoint(_tangent, prevent_cse=False)
    if form is None:
        scalars = _of_any(tuple(moving), div, target, model)
        return scalars.value, tangent(div, scalars, target, model, dots)
    scalars = _of_escorts(tuple(moving), form, target, model)
    return scalars.value, tangent(form, scalars, *_powered(form, target, model), dots)


def _powered(form: Escorts, *logits: jax.Array) -> tuple[jax.Array, ...]:
    """The logits of the escorts."""
    return tuple(powered(x, form.power) for x in logits)


def _tangent(div, scalars: RowScalars, target: jax.Array, model: jax.Array, dots: Sequence[Any]):
    """Σ gradient·dot over the sides that have slopes."""
    places = jax.lax.optimization_barrier(scalars)
    rows, dots = rows_at(places.tops, places.totals, target, model), list(dots)
    tangent = jnp.zeros(target.shape[:-1], target.dtype)
    of_side = zip(_slopes(div, rows, places.of), (rows.p, rows.q), strict=True)
    for (slope, probability), sums, top in zip(of_side, places.slopes, places.tops, strict=True):
        if sums is not None:
            gradient = centred(bounded(slope), probability, sums)
            tangent += jnp.sum(jnp.where(top[..., None] == jnp.inf, 0, gradient) * dots.pop(0), -1)
    return tangent


def _slopes(div, rows, of: Any) -> tuple[jax.Array, jax.Array]:
    if isinstance(div, Escorts):
        slopes = renyi_slopes_at(of, rows, div.order, div.rest)
        factor = _steepness(div)
        return factor * slopes[0], factor * slopes[1]
    if isinstance(div, LogVariance) and of is not None:
        return div.slopes_at(of, rows)
    if isinstance(div, GeometricJS) and of is not None:
        return div.slopes_at(of.log_z, rows)
    return div.slopes(rows)


def _steepness(form: Escorts) -> Scalar:
    return form.factor if form.power is None else form.factor * form.power


# ---- Rényi divergences of escorts ------------------------------------------------------------------------------


def _plain_escorts(wanted, form: Escorts, target: jax.Array, model: jax.Array) -> RowScalars:
    target, model = _powered(form, target, model)
    rows = split_rows(target, model)
    of = affinity(rows, form.order, form.rest)
    infinite = of.disjoint | rows.has_p_only & (jnp.asarray(form.rest) <= 0)
    return _escorted(wanted, form, *_places(target, model), of, infinite)


@differentiated_as(_plain_escorts)
def _of_escorts(
    wanted: tuple[bool, ...], form: Escorts, target: jax.Array, model: jax.Array
) -> RowScalars:
    found = affinity_reading(form.order, form.rest, target, model, form.power)
    rest = jnp.asarray(form.rest, target.dtype)
    infinite = found.disjoint | found.infinite & (rest <= 0)
    of = Affinity(jnp.where(found.disjoint, 0, found.log_z), found.renyi, found.disjoint)
    return _escorted(wanted, form, found.tops, found.totals, of, infinite)


def _escorted(wanted, form: Escorts, tops, totals, of: Affinity, infinite) -> RowScalars:
    """The slopes of a row add up to 0, except of disjoint ones."""
    value = jnp.where(infinite, jnp.inf, jnp.maximum(jnp.where(infinite, 0, of.divergence), 0))
    rest = jnp.asarray(form.rest, value.dtype)
    ends = form.order / jnp.where(rest > 0, rest, 1), jnp.ones_like(rest)
    slopes = tuple(
        undivided(jnp.where(of.disjoint, _steepness(form) * end, 0)[..., None]) if want else None
        for want, end in zip(wanted, ends, strict=True)
    )
    return RowScalars(tops, totals, scaled(form.factor, value), of, slopes)


def _places(target: jax.Array, model: jax.Array):
    """Maxima, and sums of exponentials."""
    tops = jnp.max(target, -1), jnp.max(model, -1)
    centred_at = lambda x, top: placed(x, top, jnp.ones_like(top))[0]  # noqa: E731
    total = lambda x, top: jnp.sum(jnp.exp(centred_at(x, top)), -1)  # noqa: E731
    return tops, (total(target, tops[0]), total(model, tops[1]))


# ---- any other -------------------------------------------------------------------------------------------------


def _plain_any(wanted, div, target: jax.Array, model: jax.Array) -> RowScalars:
    rows = split_rows(target, model)
    sides = zip(div.slopes(rows), (rows.p, rows.q), wanted, strict=True)
    slopes = tuple(
        undivided(slope_sums(bounded(slope), mass, cancel=True).total) if want else None
        for slope, mass, want in sides
    )
    of = None
    if isinstance(div, LogVariance):
        of = div.moments(rows)
    if isinstance(div, GeometricJS):
        of = affinity(rows, div.target_weight, 1 - div.target_weight)
    return RowScalars(*_places(target, model), div.value(rows), of, slopes)


@differentiated_as(_plain_any)
def _of_any(
    wanted: tuple[bool, ...], div: AbstractRowDivergence, target: jax.Array, model: jax.Array
) -> RowScalars:
    if isinstance(div, LogVariance):
        # Slopes of a row add up to 0.
        nothing = undivided(jnp.zeros_like(target, shape=(*target.shape[:-1], 1)))
        slopes = tuple(nothing if want else None for want in wanted)
        tops, totals, value, of = variance_reading(div, target, model)
        return RowScalars(tops, totals, value, of, slopes)
    if isinstance(div, GeometricJS):
        return _geometric(wanted, div, target, model)
    sides = [Side(x, (jnp.ones_like(x),)) for x in (target, model)]
    one, other, *_ = reduced(Reading(sides[0], sides[1], classes(target, model)))
    tops, totals = (one.top, other.top), (one.sums[0], other.sums[0])
    value = div.value(_again(0.0, tops, totals, target, model))
    slopes = None, None
    if any(wanted):
        slopes = tuple(
            undivided(jnp.sum(bounded(slope), -1, keepdims=True)) if want else None
            for slope, want in zip(
                div.slopes(_again(1.0, tops, totals, target, model)), wanted, strict=True
            )
        )
    return RowScalars(tops, totals, value, None, slopes)


def _geometric(wanted, div: GeometricJS, target: jax.Array, model: jax.Array) -> RowScalars:
    """w(1 − w)·J + log Z, whose slopes add up to those of the first term and, by sides, w·P₀ and (1 − w)·Q₀.

    P₀ and Q₀ are the masses that the other side rules out: w and 1 − w are to J what f′(∞) and f(0) are to others.
    """
    w = div.target_weight
    both = (w * (1 - w),) * 2
    jeffreys = from_one_reading(wanted, both, (w, 1 - w), target, model)
    of = affinity_reading(w, 1 - w, target, model)
    log_z = jnp.where(of.disjoint, 0, of.log_z)
    slopes = tuple(
        one and undivided(jnp.where(of.disjoint[..., None], 0, one.total))
        for one in jeffreys.slopes
    )
    return RowScalars(
        of.tops,
        of.totals,
        jnp.maximum(jeffreys.value + log_z, 0),
        Affinity(log_z, of.renyi, of.disjoint),
        slopes,
    )


def _again(by: float, tops, totals, target: jax.Array, model: jax.Array) -> Rows:
    """Rows, computed as nobody else does: XLA would write down what value and slopes share."""
    shift = [jnp.where(jnp.isinf(top), 0, by).astype(top.dtype) for top in tops]
    tops = tuple(top + one for top, one in zip(tops, shift, strict=True))
    totals = tuple(total * jnp.exp(-one) for total, one in zip(totals, shift, strict=True))
    return rows_at(*jax.lax.optimization_barrier((tops, totals)), target, model)
