"""`distillation` as sums over parts of the vocabulary: divergence, cross-entropy and metrics in the same readings."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from divax.divergences import AbstractFDivergence
from divax.divergences import divergence as frozen_pytree
from divax.divergences.row_form import (
    AbstractRowForm,
    DivergenceForm,
    FirstReading,
    Mass,
    Part,
    mass,
    mean_logit,
    merged_mass,
    picked_logit,
    share,
    softened,
)
from divax.objectives.label_form import Best, best_of, better
from divax.objectives.logit_rows import weigh


class Reading(NamedTuple):
    """Of a teacher and a student row.

    Attributes:
        pair: the divergence's first reading.
        hard: mass of the student's logits as they are.
        label: sum of the label's logit, `[C]`; and whether it was met.
        met: likewise, 0 or 1.
        means: mean softened logit of teacher and student, each under itself.
        best: most likely token of teacher and student.
    """

    pair: FirstReading
    hard: Mass
    label: jax.Array
    met: jax.Array
    means: tuple[jax.Array, jax.Array]
    best: tuple[Best, Best]


@frozen_pytree
class DistillationForm(AbstractRowForm):
    """w·T²·D + (1 − w)·cross-entropy, sides (teacher, student), rows the labels or None.

    Attributes:
        divergence: D.
        temperature: T, None for 1.
        weight: w.
        scale_by_t2: whether D is multiplied by T².
        full: whether no logit is −inf.
    """

    divergence: AbstractFDivergence
    temperature: jax.Array | None
    weight: jax.Array
    scale_by_t2: bool = dataclasses.field(metadata={"static": True})
    full: bool = dataclasses.field(metadata={"static": True})

    @property
    def _inner(self) -> DivergenceForm:
        return DivergenceForm(div=self.divergence, temperature=self.temperature, full=self.full)

    @property
    def _factor(self) -> jax.Array:
        if self.temperature is None or not self.scale_by_t2:
            return self.weight
        return self.weight * self.temperature**2

    def first(self, part: Part) -> Reading:
        """All but the divergence's value is told by the first reading."""
        pair, student = self._inner.first(part), part.logits[1]
        label, met = jnp.zeros_like(pair.model.top), jnp.zeros_like(pair.model.top)
        if part.rows is not None:
            label, met = picked_logit(student, part.columns, part.rows)
        soft = [softened(one, self.temperature) for one in part.logits]
        masses = (pair.target, pair.model)
        means = tuple(mean_logit(*one) for one in zip(soft, masses, strict=True))
        best = tuple(best_of(one, part.columns) for one in part.logits)
        hard = pair.model if self.temperature is None else mass(student)
        return Reading(pair, hard, label, met, means, best)  # type: ignore[arg-type]

    def merge(self, one: Reading, other: Reading) -> Reading:
        """Sums add, means are averaged, of two best tokens the first wins ties."""
        pairs = ((one.pair.target, other.pair.target), (one.pair.model, other.pair.model))
        means = tuple(
            a + (b - a) * share(*masses)
            for a, b, masses in zip(one.means, other.means, pairs, strict=True)
        )
        best = tuple(better(*pair) for pair in zip(one.best, other.best, strict=True))
        return Reading(
            self._inner.merge(one.pair, other.pair),
            merged_mass(one.hard, other.hard),
            one.label + other.label,
            one.met + other.met,
            means,  # type: ignore[arg-type]
            best,  # type: ignore[arg-type]
        )

    def viewed(self, first: Reading, part: Part) -> Part:
        """As the divergence sees it."""
        return self._inner.viewed(first.pair, part)

    def values(self, first: Reading, part: Part) -> Any:
        """The divergence's."""
        return self._inner.values(first.pair, part)

    def slopes(self, first: Reading, part: Part, wanted: tuple[bool, ...]) -> Any:
        """The divergence's."""
        return self._inner.slopes(first.pair, part, wanted)

    def known_slopes(self, first: Reading, wanted: tuple[bool, ...]) -> Any | None:
        """The divergence's."""
        return self._inner.known_slopes(first.pair, wanted)

    def outputs(self, first: Reading, values: Any, rows: Any) -> tuple[jax.Array, dict]:
        """The loss, and the metrics of every row."""
        distill = self._inner.outputs(first.pair, values, None)[0]
        loss = weigh(self._factor.astype(distill.dtype), distill)
        entropies = [
            side.log - mean
            for side, mean in zip((first.pair.target, first.pair.model), first.means, strict=True)
        ]
        extras = {
            "distill": distill,
            "teacher_entropy": entropies[0],
            "student_entropy": entropies[1],
            "agreement": (first.best[0].token == first.best[1].token).astype(distill.dtype),
        }
        if rows is not None:
            picked = jnp.where((first.met > 0) | (rows < 0), first.label, -jnp.inf)
            extras["cross_entropy"] = hard = first.hard.log - picked
            loss = loss + weigh((1 - self.weight).astype(hard.dtype), hard)
        return loss, extras

    def gradient(
        self, first: Reading, slopes: Any, weights: Any, part: Part, wanted: tuple[bool, ...]
    ) -> tuple[jax.Array | None, ...]:
        """w·T²·∂D + (1 − w)·(softmax − one-hot)."""
        teacher, student = self._inner.gradient(
            first.pair, slopes, weights * self._factor.astype(weights.dtype), part, wanted
        )
        if student is None or part.rows is None:
            return teacher, student
        logits = part.logits[1]
        probs = jnp.exp(logits - first.hard.log[:, None])
        is_label = part.columns[None, :] == part.rows[:, None]
        hard = (weights * (1 - self.weight).astype(weights.dtype))[:, None] * (
            probs - is_label.astype(probs.dtype)
        )
        return teacher, student + hard
