"""Any function of rows of logits and its gradients, a chunk of tokens at a time, from hidden states and heads."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from divax.divergences.linear_head import LinearLogits, contract
from divax.divergences.row_form import AbstractRowForm, Part
from divax.divergences.vocabulary_shard import WHOLE, Shard


class Operands(NamedTuple):
    """All arrays that a walk reads.

    Attributes:
        params: of the function, any pytree; may be differentiated.
        sides: hidden states and heads of the models, N rows each.
        rows: what else the function reads, a pytree of `[N, ...]`, held fixed.
        live: boolean `[N]`; other rows may hold anything, and give whatever the function makes of zero logits.
    """

    params: Any
    sides: tuple[LinearLogits, ...]
    rows: Any
    live: jax.Array


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a walk does and in which steps; static.

    Attributes:
        of_logits: `(params, logits of each side [C, V], rows) -> (outputs, extras)`, pytrees of `[C]`; only the outputs are
            differentiated.
        form: the same function of the params as an `AbstractRowForm`, if it has one.
        chunk: tokens at a time.
        vocab_chunk: tokens of the vocabulary at a time, in a form or where a gradient of a head is added up.
        vocab_size: of the function; heads may have more columns.
        shard: which part of the vocabulary that is, where devices share it.
    """

    of_logits: Callable[[Any, tuple[jax.Array, ...], Any], tuple[Any, Any]]
    form: Callable[[Any], AbstractRowForm] | None
    chunk: int
    vocab_chunk: int
    vocab_size: int
    shard: Shard = WHOLE


class Walked(NamedTuple):
    """What a walk brings home.

    Attributes:
        outputs: pytree of `[N]`.
        extras: likewise.
        gradients: for every leaf of `(params, sides)`, an array, or None where nobody asked.
    """

    outputs: Any
    extras: Any
    gradients: list[jax.Array | None]


@dataclasses.dataclass(frozen=True)
class Steps:
    """Equal steps over `total` items; the last one starts early enough to end with the items.

    Nothing is padded, and nothing needs a program of its own for a rest: what the last step has in common with the
    one before is not `fresh` in it, and counts once. Steps of equal size leave little of that.

    Attributes:
        total: items.
        size: of a step.
        count: of steps.
    """

    total: int
    size: int
    count: int

    def start(self, index: jax.Array | int) -> jax.Array | int:
        """Of step `index`."""
        if self.count == 1:
            return 0
        return jnp.minimum(index * self.size, self.total - self.size)

    def fresh(self, index: jax.Array | int) -> jax.Array:
        """Boolean `[size]`: items that no step before has seen."""
        if self.total % self.size == 0:
            return jnp.ones(self.size, bool)
        return self.start(index) + jnp.arange(self.size, dtype=jnp.int32) >= index * self.size

    def fold(self, body: Callable[[Any, Any], Any], carry: Any) -> Any:
        """`body(index, carry)` for every step; without a loop where there is one.

        Not `fori_loop`: of that, differentiation takes out what does not vary, and keeps it for all steps at once.
        """
        if self.count == 1:
            return body(0, carry)
        step = lambda state: (state[0] + 1, body(*state))  # noqa: E731
        more = lambda state: state[0] < self.count  # noqa: E731
        return jax.lax.while_loop(more, step, (jnp.int32(0), carry))[1]


def steps_of(total: int, size: int, multiple: int = 1) -> Steps:
    """Equal steps of at most `size`, rounded up to a multiple where they are longer than that."""
    size = max(1, min(size, total))
    count = -(-total // size)
    even = -(-total // count)
    even = even if even < multiple else min(-(-even // multiple) * multiple, total)
    return Steps(total, even, -(-total // even))


def walk_tokens(
    plan: Plan, operands: Operands, cotangents: Any = None, wanted: tuple[bool, ...] = ()
) -> Walked:
    """The function of every row, and the gradients of Σ cotangent·output by the leaves of `(params, sides)` that are wanted.

    One chunk's logits exist at a time, and while they do, everything is taken from them: a product with each head
    for the value, one more for each gradient, none computed twice. A form reads them in parts of the vocabulary, and
    leaves the gradient in their place; any other function has some temporaries of their size.

    Args:
        plan: what to do.
        operands: of what.
        cotangents: like the outputs, `[N]` each; not read where no gradient is wanted.
        wanted: for each leaf of `(params, sides)`, whether its gradient is; none if empty.

    Returns:
        Outputs, extras and gradients. Gradients are float32 or better, whatever the operands are.
    """
    leaves, tree = jax.tree.flatten((operands.params, operands.sides))
    wanted = wanted or (False,) * len(leaves)
    flags = jax.tree.unflatten(tree, wanted)
    steps = steps_of(operands.live.shape[0], plan.chunk)
    empty = jax.eval_shape(lambda o: _of_chunk(plan, o, 0, steps, None, flags)[:2], operands)
    of_chunk = _of_chunk if plan.form is None or beyond_logits(flags) else form_of_chunk
    kept = jax.tree.map(lambda one: jnp.zeros((steps.total,), one.dtype), empty)
    dtype = working_dtype(operands)
    sums = [
        jnp.zeros(leaf.shape, dtype) if want else None
        for leaf, want in zip(leaves, wanted, strict=True)
    ]

    def body(index, carry):
        kept, sums = carry
        start = steps.start(index)
        outputs, extras, pulled = of_chunk(plan, operands, index, steps, cotangents, flags)
        put = lambda all_rows, some: jax.lax.dynamic_update_slice_in_dim(all_rows, some, start, 0)  # noqa: E731
        kept = jax.tree.map(put, kept, (outputs, extras))
        return kept, _accumulate(plan, start, pulled, sums)

    (outputs, extras), sums = steps.fold(body, (kept, sums))
    return Walked(outputs, extras, sums)


def working_dtype(operands: Operands) -> Any:
    """Of outputs and gradients: float32, or float64 if an operand is."""
    double = any(side.dtype == jnp.float64 for side in operands.sides)
    return jnp.float64 if double else jnp.float32


def beyond_logits(flags: Any) -> bool:
    """Whether a gradient is wanted that a form does not know: by params or caps."""
    params, sides = flags
    return any(jax.tree.leaves(params)) or any(bool(side.softcap) for side in sides)


class _Pulled(NamedTuple):
    """Gradients of one chunk by what the function is made of, None where nobody asked.

    Attributes:
        params: flat.
        logits: of each side, before its cap, `[C, columns]`.
        caps: of each side.
        sides: the chunk's rows of each side, silenced.
    """

    params: Sequence[jax.Array | None]
    logits: Sequence[jax.Array | None]
    caps: Sequence[jax.Array | None]
    sides: list[LinearLogits]


class _Chunk(NamedTuple):
    """Some rows: their sides, silenced, what else is known of them, and which ones count here, `[C]`."""

    sides: list[LinearLogits]
    rows: Any
    counts: jax.Array
    weights: Any


def _chunk(operands: Operands, index, steps: Steps, cotangents: Any) -> _Chunk:
    start = steps.start(index)
    slice_ = lambda x: jax.lax.dynamic_slice_in_dim(x, start, steps.size)  # noqa: E731
    live = slice_(operands.live)
    counts, dtype = live & steps.fresh(index), working_dtype(operands)
    return _Chunk(
        [side.rows_at(start, steps.size, live) for side in operands.sides],
        jax.tree.map(slice_, operands.rows),
        counts,
        jax.tree.map(lambda one: jnp.where(counts, slice_(one), 0).astype(dtype), cotangents),
    )


def wanted_sides(flags: Any) -> list[bool]:
    """Whether a side's logits are differentiated."""
    return [any([*side.inputs, *side.weights, bool(side.bias)]) for side in flags[1]]


def _of_chunk(plan: Plan, operands: Operands, index, steps: Steps, cotangents, flags):
    sides, rows, counts, weights = _chunk(operands, index, steps, cotangents)
    shard, size = plan.shard, plan.shard.vocab_size or plan.vocab_size
    rows, weights = shard.own_rows((rows, weights))
    params, structure = jax.tree.flatten(operands.params)
    caps = [side.softcap for side in sides]
    wants = (
        jax.tree.leaves(flags[0]),
        wanted_sides(flags),
        [bool(side.softcap) for side in flags[1]],
    )
    parts = (params, [shard.whole_rows(side.raw()) for side in sides], caps)

    def of(moving):
        params, logits, caps = _merged(moving, parts, wants)
        finished = tuple(
            dataclasses.replace(side, softcap=cap).capped(raw)[:, :size]
            for side, raw, cap in zip(sides, logits, caps, strict=True)
        )
        return plan.of_logits(jax.tree.unflatten(structure, params), finished, rows)

    if cotangents is None or not any(flag for group in wants for flag in group):
        return *shard.all_rows(of(_split(parts, wants)), counts.size), None
    outputs, pull, extras = jax.vjp(of, _split(parts, wants), has_aux=True)
    by_params, by_logits, by_caps = pull(weights)[0]
    # An infinite value may leave a NaN in a row that does not count.
    by_logits = [
        None if z is None else jnp.where(counts[:, None], shard.own_columns(z, counts.size), 0)
        for z in by_logits
    ]
    outputs, extras = shard.all_rows((outputs, extras), counts.size)
    return outputs, extras, _Pulled(by_params, by_logits, by_caps, sides)


def _split(parts, wants):
    """What is differentiated, None elsewhere."""
    return tuple(
        [one if want else None for one, want in zip(group, flags, strict=True)]
        for group, flags in zip(parts, wants, strict=True)
    )


def _merged(moving, parts, wants) -> Any:
    return tuple(
        [new if want else old for new, old, want in zip(*group, strict=True)]
        for group in zip(moving, parts, wants, strict=True)
    )


def form_of_chunk(plan: Plan, operands: Operands, index, steps: Steps, cotangents, flags):
    """`_of_chunk` of a form: the logits are read in parts, and their gradient takes their place."""
    assert plan.form is not None
    form, wanted = plan.form(operands.params), wanted_sides(flags)
    sides, rows, counts, weights = _chunk(operands, index, steps, cotangents)
    raws = tuple(side.raw() for side in sides)
    vocabulary = steps_of(plan.vocab_size, plan.vocab_chunk, multiple=128)
    part_of = functools.partial(_part_of, vocabulary, plan.shard, sides, rows)
    first = plan.shard.merged(
        form.merge, first_reading(form, vocabulary, lambda j: part_of(raws, j))
    )
    if cotangents is None or not any(wanted):
        values = added_up(vocabulary, lambda j: form.values(first, part_of(raws, j)))
        return *form.outputs(first, plan.shard.summed(values), rows), None
    wants = tuple(wanted)
    part_at = lambda raws, j: (part := part_of(raws, j), form.values(first, part))  # noqa: E731
    slopes, values = form.known_slopes(first, wants), zeros_of(lambda: part_at(raws, 0)[1])
    known = slopes is not None
    if not known:

        def both(j):
            part, some = part_at(raws, j)
            return some, form.slopes(first, part, wants)

        values, slopes = plan.shard.summed(added_up(vocabulary, both))

    def pull(j, carry):
        raws, values = carry
        part, some = part_at(raws, j)
        by = form.gradient(first, slopes, weights, part, wants)
        values = jax.tree.map(jnp.add, values, some) if known else values
        cells = counts[:, None]
        if plan.shard.padded:
            cells = cells & (part.columns >= 0)[None, :]
        put = functools.partial(_replaced, vocabulary, j, cells)
        return tuple(map(put, sides, raws, by)), values

    pulled, values = vocabulary.fold(pull, (raws, values))
    by_logits = [
        raw.at[:, plan.vocab_size :].set(0) if want else None
        for raw, want in zip(pulled, wants, strict=True)
    ]
    nothing = [None] * len(jax.tree.leaves(operands.params))
    values = plan.shard.summed(values) if known else values
    outputs, extras = form.outputs(first, values, rows)
    return outputs, extras, _Pulled(nothing, by_logits, [None] * len(sides), sides)


def _part_of(vocabulary: Steps, shard: Shard, sides, rows, raws, j) -> Part:
    start = vocabulary.start(j)
    logits = [
        side.capped(jax.lax.dynamic_slice_in_dim(raw, start, vocabulary.size, 1))
        for side, raw in zip(sides, raws, strict=True)
    ]
    return make_part(vocabulary, shard, j, logits, rows)


def make_part(vocabulary: Steps, shard: Shard, j: Any, logits: list[jax.Array], rows: Any) -> Part:
    """The part, without the columns that an earlier one has had, and without padding."""
    columns = shard.ids(vocabulary.start(j) + jnp.arange(vocabulary.size, dtype=jnp.int32))
    if vocabulary.total % vocabulary.size or shard.padded:
        counts = vocabulary.fresh(j) & (columns >= 0)
        columns = jnp.where(counts, columns, -1)
        logits = [jnp.where(counts[None, :], one, -jnp.inf) for one in logits]
    return Part(tuple(logits), columns, rows)


def _replaced(
    vocabulary: Steps,
    j: Any,
    cells: jax.Array,
    side: LinearLogits,
    raw: jax.Array,
    by: jax.Array | None,
) -> jax.Array:
    """The gradient by the capped logits, pulled back through the cap, in place of the part's logits."""
    if by is None:
        return raw
    start = vocabulary.start(j)
    before = jax.lax.dynamic_slice_in_dim(raw, start, vocabulary.size, 1)
    # An infinite value may leave a NaN in a cell that does not count.
    by = side.uncapped(before, jnp.where(cells, by, 0))
    if vocabulary.total % vocabulary.size:
        by = jnp.where(vocabulary.fresh(j)[None, :], by, before)
    return jax.lax.dynamic_update_slice_in_dim(raw, by, start, 1)


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


def added_up(vocabulary: Steps, of: Callable[[Any], Any]) -> Any:
    """Σ over the parts."""
    if vocabulary.count == 1:
        return of(0)
    return vocabulary.fold(
        lambda j, sums: jax.tree.map(jnp.add, sums, of(j)), zeros_of(lambda: of(0))
    )


def zeros_of(of: Callable[[], Any]) -> Any:
    """Zeros like what a function would return."""
    return jax.tree.map(lambda one: jnp.zeros(one.shape, one.dtype), jax.eval_shape(of))


def _accumulate(plan: Plan, start, pulled: _Pulled | None, sums: list) -> list:
    """The chunk's gradients added to the sums, both in the order of the leaves of `(params, sides)`."""
    if pulled is None:
        return sums
    rest = list(sums)
    added = [_plus(rest.pop(0), by) for by in pulled.params]
    for side, by, by_cap in zip(pulled.sides, pulled.logits, pulled.caps, strict=True):
        terms = list(zip(side.inputs, side.weights, side.tied, strict=True))
        wides = [
            None if by is None else by.astype(jnp.promote_types(x.dtype, w.dtype))
            for x, w, _ in terms
        ]
        for (_, w, tied), wide in zip(terms, wides, strict=True):
            added.append(_add_rows(rest.pop(0), start, wide, w, tied))
        for (x, _, tied), wide in zip(terms, wides, strict=True):
            total = rest.pop(0)
            added.append(
                total
                if total is None or wide is None
                else add_outer(total, x, wide, tied, plan.vocab_chunk)
            )
        if side.bias is not None:
            added.append(_plus(rest.pop(0), None if by is None else jnp.sum(by, 0)))
        if side.softcap is not None:
            added.append(_plus(rest.pop(0), by_cap))
    return added


def _plus(total: jax.Array | None, new: jax.Array | None) -> jax.Array | None:
    if total is None or new is None:
        return total
    return total + new.astype(total.dtype)


def _add_rows(total: jax.Array | None, start, by: jax.Array | None, w: jax.Array, tied: bool):
    """The gradient by the inputs, by·wᵀ, at the chunk's rows."""
    if total is None or by is None:
        return total
    rows = contract(by, w, 1, 0 if tied else 1, total.dtype)
    before = jax.lax.dynamic_slice_in_dim(total, start, rows.shape[0])
    return jax.lax.dynamic_update_slice_in_dim(total, before + rows, start, 0)


def add_outer(total: jax.Array, x: jax.Array, by: jax.Array, tied: bool, size: int) -> jax.Array:
    """Total + xᵀ·by, in place, some columns at a time: no second array of the head's size is needed for the product."""
    axis = 0 if tied else 1
    steps = steps_of(by.shape[1], size, multiple=128)

    def body(index, total):
        start, fresh = steps.start(index), steps.fresh(index)
        part = jax.lax.dynamic_slice_in_dim(by, start, steps.size, 1)
        part = part if by.shape[1] % steps.size == 0 else jnp.where(fresh[None, :], part, 0)
        left, right = (part, x) if tied else (x, part)
        product = contract(left, right, 0, 0, total.dtype)
        before = jax.lax.dynamic_slice_in_dim(total, start, steps.size, axis)
        return jax.lax.dynamic_update_slice_in_dim(total, before + product, start, axis)

    return steps.fold(body, total)
