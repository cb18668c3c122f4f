"""A form of a chunk of tokens whose logits exist: values, and gradients multiplied on while they are in the cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from divax.divergences.linear_head import LinearLogits, times_inputs, times_weight
from divax.divergences.row_form import AbstractRowForm, Part
from divax.divergences.steps import Steps, added_up, zeros_of
from divax.divergences.vocabulary_shard import Shard


class Chunk(NamedTuple):
    """Some rows.

    Attributes:
        start: of the rows among all.
        sides: hidden states, silenced, and heads.
        rows: what else is known of them, a pytree of `[C, ...]`.
        counts: which ones count here, `[C]`.
        weights: of the outputs, a pytree of `[C]`, None where nothing is differentiated.
    """

    start: Any
    sides: list[LinearLogits]
    rows: Any
    counts: jax.Array
    weights: Any


class ChunkForm:
    """The form, the chunk's logits, and the parts of the vocabulary in which they are read, and multiplied.

    It lives while a walk is traced.
    """

    def __init__(
        self,
        form: AbstractRowForm,
        steps: tuple[Steps, Steps],
        shard: Shard,
        chunk: Chunk,
        wanted: list[bool],
    ):
        self.form, self.chunk, self.wanted = form, chunk, tuple(wanted)
        self.reading, self.multiplying = steps
        self.shard, self.raws = shard, tuple(side.raw() for side in chunk.sides)
        first = first_reading(form, self.reading, self.read)
        self.first = shard.merged(form.merge, first)

    def read(self, j: Any) -> Part:
        """The part, where it is read only."""
        return self.part(self.reading, j)[0]

    def viewed(self, j: Any) -> Part:
        """The same after the first reading."""
        return self.form.viewed(self.first, self.read(j))

    def part(self, steps: Steps, j: Any) -> tuple[Part, list[jax.Array]]:
        """The part, and its logits before the cap."""
        raws = [
            jax.lax.dynamic_slice_in_dim(raw, steps.start(j), steps.size, 1) for raw in self.raws
        ]
        capped = [side.capped(raw) for side, raw in zip(self.chunk.sides, raws, strict=True)]
        return make_part(steps, self.shard, j, capped, self.chunk.rows), raws

    def outputs(self, values: Any) -> tuple[Any, Any]:
        """The outputs and extras."""
        return self.form.outputs(self.first, values, self.chunk.rows)

    def evaluated(self) -> tuple[Any, Any]:
        """The same, of one more reading."""
        values = lambda j: self.form.values(self.first, self.viewed(j))  # noqa: E731
        return self.outputs(self.shard.summed(added_up(self.reading, values)))

    def differentiated(self, sums: tuple[LinearLogits, ...]) -> tuple[Any, Any, tuple]:
        """The same and the sides' gradients added to their sums, None where nobody asked."""
        form, first, wants = self.form, self.first, self.wanted
        slopes = form.known_slopes(first, wants)
        on_the_way = slopes is not None
        if on_the_way:
            values = zeros_of(lambda: form.values(first, self.viewed(0)))
        else:

            def both(j):
                part = self.viewed(j)
                return form.values(first, part), form.slopes(first, part, wants)

            values, slopes = self.shard.summed(added_up(self.reading, both))

        def pull(j, carry):
            values, sums = carry
            part, raws = self.part(self.multiplying, j)
            part = form.viewed(first, part)
            by = form.gradient(first, slopes, self.chunk.weights, part, wants)
            if on_the_way:
                values = jax.tree.map(jnp.add, values, form.values(first, part))
            return values, tuple(
                self._multiplied(j, part, *one)
                for one in zip(self.chunk.sides, raws, by, sums, strict=True)
            )

        values, sums = self.multiplying.fold(pull, (values, sums))
        return *self.outputs(self.shard.summed(values) if on_the_way else values), sums

    def _multiplied(self, j, part: Part, side: LinearLogits, raw, by, sums: LinearLogits):
        """The sums of a side with the products of the part's gradient by its capped logits."""
        if by is None:
            return sums
        # An infinite value may leave a NaN in a row that does not count.
        counts = self.chunk.counts[:, None] & (part.columns >= 0)[None, :]
        by = jnp.where(counts, side.uncapped(raw, by), 0)
        start = self.multiplying.start(j)
        columns = side.columns_at(start, self.multiplying.size)
        terms = list(zip(side.inputs, columns.weights, side.tied, strict=True))
        wides = [by.astype(jnp.promote_types(x.dtype, w.dtype)) for x, w, _ in terms]
        inputs = tuple(
            _add(
                total,
                self.chunk.start,
                0,
                lambda t, w=w, wide=wide, tied=tied: times_weight(wide, w, tied, t),
            )
            for total, (_, w, tied), wide in zip(sums.inputs, terms, wides, strict=True)
        )
        weights = tuple(
            _add(
                total,
                start,
                0 if tied else 1,
                lambda t, x=x, wide=wide, tied=tied: times_inputs(wide, x, tied, t),
            )
            for total, (x, _, tied), wide in zip(sums.weights, terms, wides, strict=True)
        )
        bias = _add(sums.bias, start, 0, lambda t: jnp.sum(by, 0).astype(t))
        return dataclasses.replace(sums, inputs=inputs, weights=weights, bias=bias)


def _add(total: jax.Array | None, start: Any, axis: int, product: Callable[[Any], jax.Array]):
    """The product added to a slice of the total, which is None where nobody asked for it."""
    if total is None:
        return None
    new = product(total.dtype)
    before = jax.lax.dynamic_slice_in_dim(total, start, new.shape[axis], axis)
    return jax.lax.dynamic_update_slice_in_dim(total, before + new, start, axis)


def make_part(vocabulary: Steps, shard: Shard, j: Any, logits: list[jax.Array], rows: Any) -> Part:
    """The part, without the columns that an earlier one has had, and without padding."""
    columns = shard.ids(vocabulary.start(j) + jnp.arange(vocabulary.size, dtype=jnp.int32))
    if vocabulary.total % vocabulary.size or shard.padded:
        counts = vocabulary.fresh(j) & (columns >= 0)
        columns = jnp.where(counts, columns, -1)
        logits = [jnp.where(counts[None, :], one, -jnp.inf) for one in logits]
    return Part(tuple(logits), columns, rows)


def first_reading(form: AbstractRowForm, vocabulary: Steps, part_of: Callable[[Any], Part]) -> Any:
    """The form's first reading of all parts."""
    if vocabulary.count == 1:
        return form.first(part_of(0))
    nothing = part_of(0)
    nothing = nothing._replace(
        logits=tuple(jnp.full_like(one[:, :1], -jnp.inf) for one in nothing.logits),
        columns=jnp.full_like(nothing.columns[:1], -1),
    )
    empty = form.first(nothing)
    return vocabulary.fold(lambda j, first: form.merge(first, form.first(part_of(j))), empty)
