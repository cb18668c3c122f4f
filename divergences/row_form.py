"""Functions of rows of logits stated so that the vocabulary can be read in parts: sums that merge, then gradients."""

from __future__ import annotations

import abc
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from divax.divergences.algebra import FMixture
from divax.divergences.base import divergence
from divax.divergences.f_divergence import AbstractFDivergence, _edge, sided_slopes
from divax.divergences.jeffreys import Jeffreys
from divax.divergences.kl import ForwardKL, ReverseKL
from divax.divergences.logit_gradient import SlopeSums, centred, slope_sums
from divax.divergences.numerics import Scalar
from divax.divergences.rows import Pair, Rows, split_centred


class Part(NamedTuple):
    """A part of the vocabulary, of some rows.

    Attributes:
        logits: of each side, `[C, b]`; −inf in columns that do not belong to the part.
        columns: the tokens' ids, `[b]`, −1 where they do not belong to it.
        rows: what else is known of the rows, a pytree of `[C, ...]`.
        view: what a form makes of the logits once for values, slopes and gradients; None before.
    """

    logits: tuple[jax.Array, ...]
    columns: jax.Array
    rows: Any
    view: Any = None


class AbstractRowForm(abc.ABC):
    """A function of rows of logits and its gradient, from two readings of the vocabulary or three.

    The first gives what merges like a log-sum-exp. With it known, the second gives plain sums: of values, and of slopes
    that the softmax Jacobian needs. With both, the gradient of a part of the logits depends on that part alone; where
    the first reading tells the slopes' sums already, the values' are taken on the way of the gradient.
    """

    @abc.abstractmethod
    def first(self, part: Part) -> Any:
        """What `merge` merges, a pytree of `[C]`."""

    @abc.abstractmethod
    def merge(self, one: Any, other: Any) -> Any:
        """That of two parts together, in the vocabulary's order."""

    def viewed(self, first: Any, part: Part) -> Part:
        """The part with its view: made twice, it would be computed twice, for no compiler sees that both are equal."""
        return part

    @abc.abstractmethod
    def values(self, first: Any, part: Part) -> Any:
        """Sums for the outputs, a pytree of `[C]`."""

    @abc.abstractmethod
    def slopes(self, first: Any, part: Part, wanted: tuple[bool, ...]) -> Any:
        """Sums for the gradients by the sides that are wanted, a pytree of `[C, 1]`."""

    @abc.abstractmethod
    def known_slopes(self, first: Any, wanted: tuple[bool, ...]) -> Any | None:
        """`slopes` of the whole vocabulary from the first reading; None where that does not tell."""

    @abc.abstractmethod
    def outputs(self, first: Any, values: Any, rows: Any) -> tuple[Any, Any]:
        """The outputs and extras of the rows, pytrees of `[C]`."""

    @abc.abstractmethod
    def gradient(
        self, first: Any, slopes: Any, weights: Any, part: Part, wanted: tuple[bool, ...]
    ) -> tuple[jax.Array | None, ...]:
        """Σ weight·output by the part's logits of each side, `[C, b]`; weights are like the outputs."""


class Mass(NamedTuple):
    """Σ e^logit of a row as total·e^top, `[C]` each; top = −inf where nothing is possible."""

    top: jax.Array
    total: jax.Array

    @property
    def log(self) -> jax.Array:
        """Log Σ e^logit."""
        return self.top + jnp.log(jnp.where(self.total > 0, self.total, 1))


def mass(logits: jax.Array) -> Mass:
    """Of a part of a row."""
    top = jnp.max(logits, -1)
    return Mass(top, jnp.sum(jnp.exp(logits - _finite_top(top)[:, None]), -1))


def merged_mass(one: Mass, other: Mass) -> Mass:
    """Of both together."""
    top = jnp.maximum(one.top, other.top)
    shift = _finite_top(top)
    return Mass(
        top, one.total * jnp.exp(one.top - shift) + other.total * jnp.exp(other.top - shift)
    )


def _finite_top(top: jax.Array) -> jax.Array:
    return jnp.where(jnp.isinf(top), 0, top)


def share(one: Mass, other: Mass) -> jax.Array:
    """The part of `other` in both, for means; 0 where it is empty."""
    both = merged_mass(one, other)
    return jnp.where(
        other.total > 0, other.total * jnp.exp(other.top - _finite_top(both.top)) / both.total, 0
    )


def mean_logit(logits: jax.Array, of: Mass) -> jax.Array:
    """E under softmax of the part itself of the logit; 0 where nothing is possible."""
    shift = _finite_top(of.top)[:, None]
    weights = jnp.exp(logits - shift)
    total = jnp.sum(
        jnp.where(weights > 0, weights * jnp.where(weights > 0, logits - shift, 0), 0), -1
    )
    mean = total / jnp.where(of.total > 0, of.total, 1) + shift[:, 0]
    return jnp.where(of.total > 0, mean, 0)


def picked_logit(
    logits: jax.Array, columns: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Of a part, the label's logit, 0 where it is not there, and whether it is; columns as in `Part`, labels `[C]`."""
    places = jnp.arange(len(columns), dtype=columns.dtype)
    # Ids follow one another but for the −1 of columns that do not belong to the part.
    place = jnp.clip(labels - jnp.max(columns - places), 0, len(columns) - 1)
    met = (columns[place] == labels) & (labels >= 0)
    picked = jnp.take_along_axis(logits, place[:, None], 1)[:, 0]
    return jnp.where(met, picked, 0), met.astype(logits.dtype)


def centre_at(logits: jax.Array, mass: Mass) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Centred logits, log-sum and which are possible, as `split_centred` takes them."""
    possible, shift = logits > -jnp.inf, _finite_top(mass.top)[:, None]
    deepest = -1e150 if logits.dtype == jnp.float64 else -1e15
    centred = jnp.maximum(jnp.where(possible, logits, shift) - shift, deepest)
    return centred, jnp.log(jnp.where(mass.total > 0, mass.total, 1))[:, None], possible


def softened(logits: jax.Array, temperature: jax.Array | None) -> jax.Array:
    """Logits over T, impossible tokens as they are."""
    if temperature is None:
        return logits
    finite = jnp.isfinite(logits)
    return jnp.where(
        finite, jnp.where(finite, logits, 0) / temperature.astype(logits.dtype), logits
    )


class FirstReading(NamedTuple):
    """Of a pair of rows.

    Attributes:
        target: mass of e^target.
        model: of e^model.
        gap: E_q[target − model], `[C]`; None where nobody needs it.
    """

    target: Mass
    model: Mass
    gap: jax.Array | None


class FSums(NamedTuple):
    """Sums from which an f-divergence is made, `[C]` each.

    Attributes:
        inner: of the summand.
        p_only: target probability that the model rules out.
        q_only: model probability that the target rules out.
        p_alone: number of such tokens of the target.
        q_alone: of the model.
    """

    inner: jax.Array
    p_only: jax.Array
    q_only: jax.Array
    p_alone: jax.Array
    q_alone: jax.Array


def _offset(first: FirstReading) -> jax.Array:
    """Log u = (target − model) − offset, with one logarithm of a ratio near 1."""
    apart = first.target.top - first.model.top
    return apart + jnp.log(first.target.total / first.model.total)


@divergence
class DivergenceForm(AbstractRowForm):
    """An f-divergence of two rows, sides (target, model).

    Attributes:
        div: the f-divergence.
        temperature: T, None for 1.
        full: whether no logit is −inf: then the first reading tells the slopes of the two KLs, Jeffreys and their sums.
    """

    div: AbstractFDivergence
    temperature: jax.Array | None = None
    full: bool = dataclasses.field(default=False, metadata={"static": True})

    def first(self, part: Part) -> FirstReading:
        """Masses, and the mean gap if it tells something."""
        target, model = self._softened(part)
        q = mass(model)
        if not self._needs_gap:
            return FirstReading(mass(target), q, None)
        weights = jnp.exp(model - _finite_top(q.top)[:, None])
        gaps = jnp.where(weights > 0, jnp.where(weights > 0, target - model, 0) * weights, 0)
        gap = jnp.sum(gaps, -1) / jnp.where(q.total > 0, q.total, 1)
        return FirstReading(mass(target), q, gap)

    def merge(self, one: FirstReading, other: FirstReading) -> FirstReading:
        """Masses add, means are averaged."""
        gap = None
        if one.gap is not None and other.gap is not None:
            gap = one.gap + (other.gap - one.gap) * share(one.model, other.model)
        return FirstReading(
            merged_mass(one.target, other.target), merged_mass(one.model, other.model), gap
        )

    def viewed(self, first: FirstReading, part: Part) -> Part:
        """The part with its `rows_of`."""
        return part._replace(view=self.rows_of(first, part))

    def rows_of(self, first: FirstReading, part: Part) -> Rows:
        """The part, split by support."""
        if part.view is not None:
            return part.view
        if self.full:
            return self._full_rows_of(first, part)
        legal = (first.target.top > -jnp.inf) & (first.model.top > -jnp.inf)
        target, model = self._softened(part)
        return split_centred(
            centre_at(target, first.target), centre_at(model, first.model), legal[:, None]
        )

    def _full_rows_of(self, first: FirstReading, part: Part) -> Rows:
        """Without −inf but in columns that do not belong to the part, where everything is 0."""
        target, model = self._softened(part)
        counts = target > -jnp.inf
        log_p = (target - first.target.top[:, None]) - jnp.log(first.target.total)[:, None]
        log_q = (model - first.model.top[:, None]) - jnp.log(first.model.total)[:, None]
        log_u = jnp.where(counts, (target - model) - _offset(first)[:, None], 0)
        common = Pair(jnp.exp(log_p), jnp.exp(log_q), log_p, log_q, log_u)
        none, never = jnp.zeros_like(log_u), jnp.zeros(log_u.shape[:-1], bool)
        return Rows(common, common.p, common.q, none, none, never, never)

    def values(self, first: FirstReading, part: Part) -> FSums:
        """Σ q·f(u), and what lies outside the common support."""
        rows = self.rows_of(first, part)
        inner = jnp.sum(self.div.summand(rows.common), -1)
        if self.full:
            zero = jnp.zeros_like(inner)
            return FSums(inner, zero, zero, zero, zero)
        alone = (rows.p_only, rows.q_only, rows.has_p_only[:, None], rows.has_q_only[:, None])
        return FSums(inner, *(jnp.sum(one, -1, dtype=inner.dtype) for one in alone))

    def outputs(self, first: FirstReading, values: FSums, rows: Any) -> tuple[jax.Array, None]:
        """Σ q·f(u) + f(0)·q_only + f′(∞)·p_only."""
        below = _edge(self.div.f_at_zero, values.q_only[:, None], values.q_alone > 0)
        beyond = _edge(self.div.slope_at_infinity, values.p_only[:, None], values.p_alone > 0)
        return values.inner + below + beyond, None

    def _sloped(self, rows: Rows, wanted: tuple[bool, ...]):
        """(slope, probability) of each side that is wanted."""
        return sided_slopes(self.div, wanted, rows, self.full)

    def slopes(self, first: FirstReading, part: Part, wanted: tuple[bool, ...]) -> Any:
        """`SlopeSums` of each side that is wanted."""
        sides = self._sloped(self.rows_of(first, part), wanted)
        # Of the likeliest token, whatever rounding makes of it.
        most = [1.001 / one.total[:, None] for one in (first.target, first.model)]
        return tuple(
            None if side is None else slope_sums(*side, cancel=cancel, most=top)
            for side, cancel, top in zip(sides, self.div.slopes_cancel, most, strict=True)
        )

    def known_slopes(self, first: FirstReading, wanted: tuple[bool, ...]) -> Any | None:
        """Σ model_slope: 0 for KL(p‖q), KL(q‖p) itself for the other."""
        if not self._tells(wanted):
            return None
        offset = _offset(first)
        reverse = 0 if first.gap is None else offset - first.gap
        total = self._gap_weight * reverse + jnp.zeros_like(offset)
        return None, SlopeSums(total=total[:, None])

    def gradient(
        self,
        first: FirstReading,
        slopes: Any,
        weights: jax.Array,
        part: Part,
        wanted: tuple[bool, ...],
    ) -> tuple[jax.Array | None, ...]:
        """weight·(slope − probability·Σ slope)."""
        sides = self._sloped(self.rows_of(first, part), wanted)
        weights = self._weighed(weights)
        return tuple(
            None if side is None else weights[:, None] * centred(side[0], side[1], sums)
            for side, sums in zip(sides, slopes, strict=True)
        )

    def _weighed(self, weights: jax.Array) -> jax.Array:
        if self.temperature is None:
            return weights
        return weights / self.temperature.astype(weights.dtype)

    def _softened(self, part: Part) -> list[jax.Array]:
        return [softened(one, self.temperature) for one in part.logits]

    @property
    def _terms(self) -> tuple[tuple[Scalar, AbstractFDivergence], ...]:
        if isinstance(self.div, FMixture):
            return tuple(zip(self.div.weights, self.div.parts, strict=True))
        return ((1.0, self.div),)

    def _tells(self, wanted: tuple[bool, ...]) -> bool:
        known = all(isinstance(part, ForwardKL | ReverseKL | Jeffreys) for _, part in self._terms)
        return self.full and known and not wanted[0]

    @property
    def _needs_gap(self) -> bool:
        return self._tells((False, True)) and not all(
            isinstance(part, ForwardKL) for _, part in self._terms
        )

    @property
    def _gap_weight(self) -> Any:
        weights = [w for w, part in self._terms if not isinstance(part, ForwardKL)]
        return functools.reduce(lambda a, b: a + b, weights, 0.0)
