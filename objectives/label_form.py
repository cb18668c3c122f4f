"""Cross-entropy on labels as sums over parts of the vocabulary, and whether the label is the likeliest token."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from divax.divergences import divergence as frozen_pytree
from divax.divergences.most_likely import most_likely
from divax.divergences.row_form import AbstractRowForm, Mass, Part, mass, merged_mass


class Best(NamedTuple):
    """The likeliest token of a row, `[C]` each.

    Attributes:
        logit: its logit.
        token: its id.
    """

    logit: jax.Array
    token: jax.Array


def best_of(logits: jax.Array, columns: jax.Array) -> Best:
    """Of a part of the vocabulary."""
    return Best(jnp.max(logits, -1), columns[most_likely(logits)])


def better(one: Best, other: Best) -> Best:
    """Of two the better, of equals the first."""
    return jax.tree.map(lambda x, y: jnp.where(other.logit > one.logit, y, x), one, other)


class Reading(NamedTuple):
    """Of a row.

    Attributes:
        model: mass.
        label: the label's logit, summed over parts.
        met: whether it was met, 0 or 1.
        best: the likeliest token.
    """

    model: Mass
    label: jax.Array
    met: jax.Array
    best: Best


@frozen_pytree
class LabelForm(AbstractRowForm):
    """−log softmax(s)_y, one side, rows the labels; beside it, whether the label is the likeliest token."""

    def first(self, part: Part) -> Reading:
        """Everything."""
        (logits,) = part.logits
        label = _is_label(part)
        return Reading(
            mass(logits),
            jnp.sum(jnp.where(label, logits, 0), -1),
            jnp.sum(label, -1, dtype=logits.dtype),
            best_of(logits, part.columns),
        )

    def merge(self, one: Reading, other: Reading) -> Reading:
        """Sums add."""
        return Reading(
            merged_mass(one.model, other.model),
            one.label + other.label,
            one.met + other.met,
            better(one.best, other.best),
        )

    def values(self, first: Reading, part: Part) -> tuple[()]:
        """None are missing."""
        return ()

    def slopes(self, first: Reading, part: Part, wanted: tuple[bool, ...]) -> tuple[()]:
        """Likewise."""
        return ()

    def known_slopes(self, first: Reading, wanted: tuple[bool, ...]) -> tuple[()]:
        """Likewise."""
        return ()

    def outputs(self, first: Reading, values: Any, rows: jax.Array) -> tuple[jax.Array, dict]:
        """The loss; +inf where the label is not in the vocabulary."""
        picked = jnp.where((first.met > 0) | (rows < 0), first.label, -jnp.inf)
        accurate = (first.best.token == rows).astype(picked.dtype)
        return first.model.log - picked, {"accuracy": accurate}

    def gradient(
        self, first: Reading, slopes: Any, weights: Any, part: Part, wanted: tuple[bool, ...]
    ) -> tuple[jax.Array | None, ...]:
        """Softmax − one-hot."""
        (logits,) = part.logits
        probs = jnp.exp(logits - first.model.log[:, None])
        return (weights[:, None] * (probs - _is_label(part).astype(probs.dtype)),)


def _is_label(part: Part) -> jax.Array:
    return (part.columns[None, :] == part.rows[:, None]) & (part.columns >= 0)[None, :]
