"""Statistics of given tokens, and a loss of them, as sums over parts of the vocabulary."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from divax.divergences import AbstractFDivergence, entropy
from divax.divergences import divergence as frozen_pytree
from divax.divergences.row_form import (
    AbstractRowForm,
    DivergenceForm,
    Mass,
    Part,
    mass,
    mean_logit,
    merged_mass,
    picked_logit,
    share,
    softened,
)
from divax.objectives.cross_entropy import cross_entropy_rows


class TokenStatistics(NamedTuple):
    """Per token, what losses of policies and preferences are made of, `[...]` each, in nats.

    Attributes:
        log_probs: of the labels under the model.
        entropies: of the model's distributions.
        divergences: D(reference, model) over the whole vocabulary; None without a reference.

    Example:
        >>> TokenStatistics._fields
        ('log_probs', 'entropies', 'divergences')
    """

    log_probs: jax.Array
    entropies: jax.Array
    divergences: jax.Array | None


class Reading(NamedTuple):
    """Of a row.

    Attributes:
        model: mass.
        label: the label's logit, summed over parts.
        met: whether it was met, 0 or 1.
        mean: mean logit of the model under itself.
        pair: the divergence's first reading, or None.
    """

    model: Mass
    label: jax.Array
    met: jax.Array
    mean: jax.Array
    pair: Any


@frozen_pytree
class TokenForm(AbstractRowForm):
    """A function of `TokenStatistics`, the rows' labels and more; sides (reference, model) or (model,).

    Attributes:
        divergence: to the reference; None without one.
        temperature: T, None for 1.
        loss: `(statistics, rows) -> outputs`, a pytree, its arrays held fixed; None for the statistics themselves.
        full: whether no logit is −inf.
    """

    divergence: AbstractFDivergence | None
    temperature: jax.Array | None
    loss: Callable[..., Any] | None
    full: bool = dataclasses.field(metadata={"static": True})

    @property
    def _inner(self) -> DivergenceForm:
        assert self.divergence is not None
        return DivergenceForm(div=self.divergence, temperature=self.temperature, full=self.full)

    def first(self, part: Part) -> Reading:
        """Everything but the divergence."""
        model = softened(part.logits[-1], self.temperature)
        total = mass(model)
        return Reading(
            total,
            *picked_logit(model, part.columns, part.rows[0]),
            mean_logit(model, total),
            None if self.divergence is None else self._inner.first(part),
        )

    def merge(self, one: Reading, other: Reading) -> Reading:
        """Sums add, means are averaged."""
        return Reading(
            merged_mass(one.model, other.model),
            one.label + other.label,
            one.met + other.met,
            one.mean + (other.mean - one.mean) * share(one.model, other.model),
            None if self.divergence is None else self._inner.merge(one.pair, other.pair),
        )

    def viewed(self, first: Reading, part: Part) -> Part:
        """As the divergence sees it."""
        return part if self.divergence is None else self._inner.viewed(first.pair, part)

    def values(self, first: Reading, part: Part) -> Any:
        """The divergence's."""
        return () if self.divergence is None else self._inner.values(first.pair, part)

    def slopes(self, first: Reading, part: Part, wanted: tuple[bool, ...]) -> Any:
        """The divergence's, and its values: the loss must be known before its gradient is."""
        return self._inner.slopes(first.pair, part, wanted), self._inner.values(first.pair, part)

    def known_slopes(self, first: Reading, wanted: tuple[bool, ...]) -> Any | None:
        """All there is without a divergence; with one and no loss, what the divergence knows."""
        if self.divergence is None:
            return (), ()
        known = self._inner.known_slopes(first.pair, wanted) if self.loss is None else None
        return None if known is None else (known, None)

    def _statistics(self, first: Reading, values: Any, rows: Any) -> TokenStatistics:
        picked = jnp.where((first.met > 0) | (rows[0] < 0), first.label, -jnp.inf)
        log = first.model.log
        between = (
            None if self.divergence is None else self._inner.outputs(first.pair, values, None)[0]
        )
        return TokenStatistics(picked - log, log - first.mean, between)

    def outputs(self, first: Reading, values: Any, rows: Any) -> tuple[Any, Any]:
        """The loss, and the statistics beside it; or the statistics."""
        statistics = self._statistics(first, values, rows)
        return (
            (statistics, None)
            if self.loss is None
            else (self.loss(statistics, rows[1]), statistics)
        )

    def gradient(
        self, first: Reading, slopes: Any, weights: Any, part: Part, wanted: tuple[bool, ...]
    ) -> tuple[jax.Array | None, ...]:
        """A·(one-hot − q) − B·q·(log q + H) + C·∂D, with the loss's derivatives A, B, C by the statistics."""
        inner, values = slopes
        weights = self._weights(first, values, weights, part.rows)
        terms, reference = [], None
        if self.divergence is not None and weights.divergences is not None:
            pair = self._inner.gradient(first.pair, inner, weights.divergences, part, wanted)
            reference = pair[0]
            terms = [] if pair[1] is None else [pair[1]]
        if wanted[-1]:
            terms += self._own_terms(first, weights, part)
        by = sum(terms[1:], start=terms[0]) if terms else None
        return (by,) if self.divergence is None else (reference, by)

    def _weights(self, first: Reading, values: Any, weights: Any, rows: Any) -> TokenStatistics:
        """The loss's derivatives by the statistics, None by those that it does not read."""
        if self.loss is None:
            return weights
        statistics, loss = self._statistics(first, values, rows), self.loss
        of = lambda statistics: loss(statistics, rows[1])  # noqa: E731
        leaves, tree = jax.tree.flatten(jax.vjp(of, statistics)[1](weights)[0])
        program = jax.make_jaxpr(of)(statistics).jaxpr
        read = [*program.outvars, *(x for step in program.eqns for x in step.invars)]
        return tree.unflatten(
            leaf if any(x is own for x in read) else None
            for leaf, own in zip(leaves, program.invars, strict=True)
        )

    def _own_terms(self, first: Reading, weights: TokenStatistics, part: Part) -> list[jax.Array]:
        """Σ weight·statistic by the model's logits, without the divergence."""
        log_q = softened(part.logits[-1], self.temperature) - first.model.log[:, None]
        q, terms = jnp.exp(log_q), []
        if weights.log_probs is not None:
            is_label = part.columns[None, :] == part.rows[0][:, None]
            terms.append(weights.log_probs[:, None] * (is_label.astype(q.dtype) - q))
        if weights.entropies is not None:
            entropy = (first.model.log - first.mean)[:, None]
            spread = q * jnp.where(q > 0, log_q + entropy, 0)
            terms.append(-weights.entropies[:, None] * spread)
        if self.temperature is None:
            return terms
        return [term / self.temperature.astype(q.dtype) for term in terms]


def statistics_of_logits(params: Any, logits: tuple[jax.Array, ...], rows: Any) -> TokenStatistics:
    """The statistics of a chunk's logits, for anything."""
    divergence, temperature, _ = params
    soft = [softened(one, temperature) for one in logits]
    between = None if divergence is None else divergence(*soft)
    return TokenStatistics(-cross_entropy_rows(soft[-1], rows[0]), entropy(soft[-1]), between)
