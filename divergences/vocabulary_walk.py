"""A form of rows of logits and its gradients, a chunk of tokens and of the vocabulary at a time, from hidden states."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from divax.divergences.chunk_form import make_part
from divax.divergences.linear_head import LinearLogits, times_inputs, times_weight
from divax.divergences.row_form import AbstractRowForm, Part
from divax.divergences.steps import steps_of
from divax.divergences.token_walk import (
    Operands,
    Plan,
    Walked,
    beyond_logits,
    walk_tokens,
    wanted_sides,
    working_dtype,
)

# On a CPU, where computing logits again costs more than all but the products: tokens at a time, in which these are fast
# and what is made of a part stays in the last cache; and bytes of logits that may be kept instead, of how many tokens.
_TOKENS = 1024
_KEPT, _FEWEST, _MOST = 112 * 2**20, 96, 128


def walk_vocabulary(
    plan: Plan, operands: Operands, cotangents: Any = None, wanted: tuple[bool, ...] = ()
) -> Walked:
    """`walk_tokens` with no more than `[chunk, vocab_chunk]` logits at a time, which are computed again for each reading.

    The vocabulary is the outer loop, so that each part of a head is read, and each part of its gradient written, once
    per reading, and added up in float32 whatever the head's own precision. Where the plan has no form, or a gradient by
    params or caps is wanted, it is `walk_tokens`; likewise for two sides on a CPU where nobody chose the steps and
    112 MiB hold the logits of enough tokens.
    """
    leaves, tree = jax.tree.flatten((operands.params, operands.sides))
    flags = jax.tree.unflatten(tree, wanted or (False,) * len(leaves))
    if plan.form is None or beyond_logits(flags):
        return walk_tokens(plan, operands, cotangents, wanted)
    if kept := _kept_tokens(plan, operands):
        plan = dataclasses.replace(plan, chunk=kept)
        return walk_tokens(plan, operands, cotangents, wanted)
    grid = _Grid(plan, operands, plan.form(operands.params))
    first = grid.first_reading()
    wants = tuple(wanted_sides(flags))
    if cotangents is None or not any(wants):
        values = grid.added_up(first, lambda form, first, part: form.values(first, part))
        outputs, extras = grid.form.outputs(first, values, operands.rows)
        return Walked(outputs, extras, [None] * len(leaves))
    slopes, values = grid.form.known_slopes(first, wants), None
    if slopes is None:
        both = lambda form, first, part: (form.values(first, part), form.slopes(first, part, wants))  # noqa: E731
        values, slopes = grid.added_up(first, both)
    values, gradients = _pull(grid, first, slopes, values, cotangents, flags)
    outputs, extras = grid.form.outputs(first, values, operands.rows)
    nothing = [None] * len(jax.tree.leaves(operands.params))
    return Walked(outputs, extras, [*nothing, *gradients])


def _free_on_cpu(plan: Plan) -> bool:
    """Whether the steps are this walk's to choose."""
    return not plan.given and jax.default_backend() == "cpu"


def _kept_tokens(plan: Plan, operands: Operands) -> int:
    """Tokens at a time whose logits are kept; 0 where none are.

    Of two sides that saves two products of six or more, though those of so few tokens are slower; of one, too little.
    """
    tokens = min(_KEPT // (8 * plan.vocab_size), _MOST)
    worth = len(operands.sides) > 1 and tokens >= _FEWEST
    return tokens if worth and _free_on_cpu(plan) else 0


class _Grid:
    """The cells of tokens × vocabulary, and loops over them; lives while a walk is traced."""

    def __init__(self, plan: Plan, operands: Operands, form: AbstractRowForm):
        self.operands, self.form, self.shard = operands, form, plan.shard
        chunk = _TOKENS if _free_on_cpu(plan) else plan.chunk
        self.tokens = steps_of(operands.live.shape[0], chunk)
        self.vocabulary = steps_of(plan.vocab_size, plan.vocab_chunk, multiple=128)

    def columns(self, j) -> list[LinearLogits]:
        """Every side's part of the head."""
        start, size = self.vocabulary.start(j), self.vocabulary.size
        return [side.columns_at(start, size) for side in self.operands.sides]

    def at(self, i, tree: Any) -> Any:
        """The chunk's rows of arrays `[N, ...]`."""
        start, size = self.tokens.start(i), self.tokens.size
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size), tree)

    def put(self, i, tree: Any, new: Any) -> Any:
        """The chunk's rows replaced, but for those that an earlier chunk has had."""
        start, fresh = self.tokens.start(i), self.tokens.fresh(i)

        def put(x, some):
            if self.tokens.total % self.tokens.size:
                counts = fresh.reshape(-1, *(1,) * (some.ndim - 1))
                some = jnp.where(counts, some, jax.lax.dynamic_slice_in_dim(x, start, len(some)))
            return jax.lax.dynamic_update_slice_in_dim(x, some, start, 0)

        return jax.tree.map(put, tree, new)

    def cell(self, i, j, columns: list[LinearLogits]) -> tuple[Part, list[LinearLogits], list]:
        """The part, its sides and their raw logits."""
        live = self.at(i, self.operands.live)
        sides = [side.rows_at(self.tokens.start(i), self.tokens.size, live) for side in columns]
        raws = [side.raw() for side in sides]
        capped = [side.capped(raw) for side, raw in zip(sides, raws, strict=True)]
        rows = self.at(i, self.operands.rows)
        return make_part(self.vocabulary, self.shard, j, capped, rows), sides, raws

    def each(self, of: Callable[[Any, Part, Any], Any], carry: Any) -> Any:
        """The carry as `of(index, part, chunk's carry)` leaves it in every cell, for a carry of `[N, ...]`."""

        def over_vocabulary(j, carry):
            columns = self.columns(j)

            def over_tokens(i, carry):
                part = self.cell(i, j, columns)[0]
                return self.put(i, carry, of(i, part, self.at(i, carry)))

            return self.tokens.fold(over_tokens, carry)

        return self.vocabulary.fold(over_vocabulary, carry)

    def _chunk_part(self) -> Part:
        return self.cell(0, 0, self.columns(0))[0]

    def first_reading(self) -> Any:
        """The form's first reading of every row."""
        count, sides = self.tokens.total, len(self.operands.sides)
        dtype = working_dtype(self.operands)
        empty = Part(
            (jnp.full((count, 1), -jnp.inf, dtype),) * sides,
            jnp.full(1, -1, jnp.int32),
            self.operands.rows,
        )
        merge = lambda i, part, first: self.form.merge(first, self.form.first(part))  # noqa: E731
        return self.shard.merged(self.form.merge, self.each(merge, self.form.first(empty)))

    def added_up(self, first: Any, of: Callable[..., Any]) -> Any:
        """Σ over the vocabulary of `of(form, first, part)`, for every row."""

        def add(i, part, sums):
            here = self.at(i, first)
            return jax.tree.map(jnp.add, sums, of(self.form, here, self.form.viewed(here, part)))

        zeros = self.zeros(lambda: of(self.form, self.at(0, first), self._chunk_part()))
        return self.shard.summed(self.each(add, zeros))

    def zeros(self, of: Callable[[], Any]) -> Any:
        """Zeros `[N, ...]` for what a function returns of a chunk."""
        widen = lambda x: jnp.zeros((self.tokens.total, *x.shape[1:]), x.dtype)  # noqa: E731
        return jax.tree.map(widen, jax.eval_shape(of))


def _pull(grid: _Grid, first: Any, slopes: Any, values: Any, cotangents: Any, flags: Any):
    """The values, taken on the way where they are None, and the gradients in the order of the sides' leaves."""
    known = values is None
    if known:
        values = grid.zeros(lambda: grid.form.values(grid.at(0, first), grid._chunk_part()))
    sides, wanted = grid.operands.sides, tuple(wanted_sides(flags))
    inputs = list(map(_input_zeros, sides, flags[1]))
    heads = [_head_zeros(side, flag, None) for side, flag in zip(sides, flags[1], strict=True)]

    def over_vocabulary(j, carry):
        values, inputs, heads = carry
        columns = grid.columns(j)
        parts = [
            _head_zeros(side, flag, side.dtype)
            for side, flag in zip(columns, flags[1], strict=True)
        ]

        def over_tokens(i, carry):
            values, inputs, parts = carry
            part, some, raws = grid.cell(i, j, columns)
            here = grid.at(i, first)
            part = grid.form.viewed(here, part)
            if known:
                more = grid.form.values(here, part)
                values = grid.put(i, values, jax.tree.map(jnp.add, grid.at(i, values), more))
            by = _by_raw(grid, i, here, slopes, cotangents, wanted, part, some, raws)
            inputs = [_add_inputs(grid, i, *one) for one in zip(inputs, some, by, strict=True)]
            parts = [_add_head(*one) for one in zip(parts, some, by, strict=True)]
            return values, inputs, parts

        values, inputs, parts = grid.tokens.fold(over_tokens, (values, inputs, parts))
        heads = [
            _write_head(grid, j, side, *one) for side, *one in zip(sides, heads, parts, strict=True)
        ]
        return values, inputs, heads

    values, inputs, heads = grid.vocabulary.fold(over_vocabulary, (values, inputs, heads))
    leaves = map(_in_order, sides, inputs, heads)
    return grid.shard.summed(values) if known else values, [
        leaf for group in leaves for leaf in group
    ]


def _in_order(side: LinearLogits, inputs: list, head: tuple[list, Any]) -> list:
    """Gradients in the order of a side's leaves."""
    weights, bias = head
    bias = [] if side.bias is None else [bias]
    return [*inputs, *weights, *bias, *([] if side.softcap is None else [None])]


def _input_zeros(side: LinearLogits, flag: Any) -> list:
    """Zeros for the gradients of the inputs that are wanted."""
    zeros = lambda x: jnp.zeros(x.shape, side.dtype)  # noqa: E731
    return [zeros(x) if want else None for x, want in zip(side.inputs, flag.inputs, strict=True)]


def _head_zeros(side: LinearLogits, flag: Any, dtype: Any) -> tuple[list, Any]:
    """Zeros for the gradients of a head that are wanted, in its own precision where `dtype` is None."""
    weights = [
        jnp.zeros(w.shape, dtype or w.dtype) if want else None
        for w, want in zip(side.weights, flag.weights, strict=True)
    ]
    if side.bias is None or not flag.bias:
        return weights, None
    return weights, jnp.zeros(side.bias.shape, dtype or side.bias.dtype)


def _by_raw(grid: _Grid, i, first, slopes, cotangents, wanted, part, sides, raws) -> list:
    """Gradients of a cell by the raw logits, zeros in rows and columns that do not count here."""
    counts, dtype = (
        grid.at(i, grid.operands.live) & grid.tokens.fresh(i),
        working_dtype(grid.operands),
    )
    weights = jax.tree.map(lambda x: jnp.where(counts, x, 0).astype(dtype), grid.at(i, cotangents))
    by = grid.form.gradient(first, grid.at(i, slopes), weights, part, wanted)
    counts = counts[:, None] & (part.columns >= 0)[None, :]
    return [
        None if one is None else jnp.where(counts, side.uncapped(raw, one), 0)
        for side, raw, one in zip(sides, raws, by, strict=True)
    ]


def _add_inputs(grid: _Grid, i, totals: list, side: LinearLogits, by: jax.Array | None) -> list:
    added, start = [], grid.tokens.start(i)
    for total, x, w, tied in zip(totals, side.inputs, side.weights, side.tied, strict=True):
        if total is not None and by is not None:
            narrow = by.astype(jnp.promote_types(x.dtype, w.dtype))
            rows = times_weight(narrow, w, tied, total.dtype)
            before = jax.lax.dynamic_slice_in_dim(total, start, len(rows))
            total = jax.lax.dynamic_update_slice_in_dim(total, before + rows, start, 0)
        added.append(total)
    return added


def _add_head(totals: tuple[list, Any], side: LinearLogits, by: jax.Array | None):
    weights, bias = totals
    if by is None:
        return totals
    added = []
    for total, x, w, tied in zip(weights, side.inputs, side.weights, side.tied, strict=True):
        if total is not None:
            narrow = by.astype(jnp.promote_types(x.dtype, w.dtype))
            total = total + times_inputs(narrow, x, tied, total.dtype)
        added.append(total)
    return added, None if bias is None else bias + jnp.sum(by, 0)


def _write_head(grid: _Grid, j, side: LinearLogits, totals, parts):
    """A part of the head's gradient, added where it overlaps with the part before (whose columns are 0 in this one)."""
    start, (weights, bias), (new_weights, new_bias) = grid.vocabulary.start(j), totals, parts

    def write(total, new, axis):
        if total is None:
            return None
        before = jax.lax.dynamic_slice_in_dim(total, start, new.shape[axis], axis)
        return jax.lax.dynamic_update_slice_in_dim(
            total, before + new.astype(total.dtype), start, axis
        )

    axes = [0 if tied else 1 for tied in side.tied]
    written = [write(*one) for one in zip(weights, new_weights, axes, strict=True)]
    return written, write(bias, new_bias, 0)
