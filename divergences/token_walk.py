"""Any function of rows of logits and its gradients, a chunk of tokens at a time, from hidden states and heads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from divax.divergences.chunk_form import Chunk, ChunkForm
from divax.divergences.linear_head import LinearLogits, times_inputs, times_weight
from divax.divergences.row_form import AbstractRowForm
from divax.divergences.steps import Steps, steps_of
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
        reading_chunk: likewise, where a form reads logits and multiplies nothing.
        vocab_size: of the function; heads may have more columns.
        given: whether a caller chose the steps; else a walk may take those that suit it.
        shard: which part of the vocabulary that is, where devices share it.
    """

    of_logits: Callable[[Any, tuple[jax.Array, ...], Any], tuple[Any, Any]]
    form: Callable[[Any], AbstractRowForm] | None
    chunk: int
    vocab_chunk: int
    reading_chunk: int
    vocab_size: int
    given: bool = False
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


def walk_tokens(
    plan: Plan, operands: Operands, cotangents: Any = None, wanted: tuple[bool, ...] = ()
) -> Walked:
    """The function of every row, and the gradients of Σ cotangent·output by the leaves of `(params, sides)` that are wanted.

    One chunk's logits exist at a time, and while they do, everything is taken from them: a product with each head
    for the value, one more for each gradient, none computed twice. A form reads them in parts of the vocabulary, and
    each part's gradient is multiplied on at once; any other function has some temporaries of their size.

    Args:
        plan: what to do.
        operands: of what.
        cotangents: like the outputs, `[N]` each, None for zeros; not read where no gradient is wanted.
        wanted: for each leaf of `(params, sides)`, whether its gradient is; none if empty.

    Returns:
        Outputs, extras and gradients. Gradients are float32 or better, whatever the operands are.
    """
    leaves, tree = jax.tree.flatten((operands.params, operands.sides))
    wanted = wanted or (False,) * len(leaves)
    flags = jax.tree.unflatten(tree, wanted)
    steps = steps_of(operands.live.shape[0], plan.chunk)
    empty = jax.eval_shape(
        lambda o: _of_chunk(plan, o, _chunk(o, 0, steps, None), flags)[:2], operands
    )
    kept = jax.tree.map(lambda one: jnp.zeros((steps.total,), one.dtype), empty)
    dtype, with_form = working_dtype(operands), plan.form is not None and not beyond_logits(flags)
    sums = tree.unflatten(
        jnp.zeros(leaf.shape, dtype) if want else None
        for leaf, want in zip(leaves, wanted, strict=True)
    )

    def body(index, carry):
        kept, sums = carry
        chunk = _chunk(operands, index, steps, cotangents)
        if with_form:
            outputs, extras, sums = _form_of_chunk(plan, operands, chunk, flags, sums)
        else:
            outputs, extras, pulled = _of_chunk(plan, operands, chunk, flags)
            flat = _accumulate(plan, chunk.start, pulled, tree.flatten_up_to(sums))
            sums = tree.unflatten(flat)
        put = lambda all_rows, some: jax.lax.dynamic_update_slice_in_dim(  # noqa: E731
            all_rows, some, chunk.start, 0
        )
        return jax.tree.map(put, kept, (outputs, extras)), sums

    (outputs, extras), sums = steps.fold(body, (kept, sums))
    return Walked(outputs, extras, tree.flatten_up_to(sums))


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


def _chunk(operands: Operands, index, steps: Steps, cotangents: Any) -> Chunk:
    start = steps.start(index)
    slice_ = lambda x: jax.lax.dynamic_slice_in_dim(x, start, steps.size)  # noqa: E731
    live = slice_(operands.live)
    counts, dtype = live & steps.fresh(index), working_dtype(operands)
    return Chunk(
        start,
        [side.rows_at(start, steps.size, live) for side in operands.sides],
        jax.tree.map(slice_, operands.rows),
        counts,
        jax.tree.map(lambda one: jnp.where(counts, slice_(one), 0).astype(dtype), cotangents),
    )


def wanted_sides(flags: Any) -> list[bool]:
    """Whether a side's logits are differentiated."""
    return [any([*side.inputs, *side.weights, bool(side.bias)]) for side in flags[1]]


def _form_of_chunk(plan: Plan, operands: Operands, chunk: Chunk, flags: Any, sums: Any):
    """Outputs, extras and the sums with what a form adds to them."""
    assert plan.form is not None
    reading, multiplying = (
        steps_of(plan.vocab_size, size, multiple=128)
        for size in (plan.reading_chunk, plan.vocab_chunk)
    )
    wanted = wanted_sides(flags)
    form = ChunkForm(plan.form(operands.params), (reading, multiplying), plan.shard, chunk, wanted)
    if chunk.weights is None or not any(wanted):
        return *form.evaluated(), sums
    outputs, extras, by_sides = form.differentiated(sums[1])
    return outputs, extras, (sums[0], by_sides)


def _of_chunk(plan: Plan, operands: Operands, chunk: Chunk, flags: Any):
    """Outputs, extras and gradients of any function, from all of the chunk's logits at once."""
    _, sides, rows, counts, weights = chunk
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

    if weights is None or not any(flag for group in wants for flag in group):
        return *shard.all_rows(of(_split(parts, wants)), counts.size), None
    outputs, pull, extras = jax.vjp(of, _split(parts, wants), has_aux=True)
    by_params, by_logits, by_caps = pull(_filled(outputs, weights))[0]
    # An infinite value may leave a NaN in a row that does not count.
    by_logits = [
        None if z is None else jnp.where(counts[:, None], shard.own_columns(z, counts.size), 0)
        for z in by_logits
    ]
    outputs, extras = shard.all_rows((outputs, extras), counts.size)
    return outputs, extras, _Pulled(by_params, by_logits, by_caps, sides)


def _filled(outputs: Any, weights: Any) -> Any:
    """The weights, with zeros for outputs that have none."""
    fill = lambda output, weight: (  # noqa: E731
        jnp.zeros_like(output) if weight is None and output is not None else weight
    )
    return jax.tree.map(fill, outputs, weights, is_leaf=lambda x: x is None)


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
    rows = times_weight(by, w, tied, total.dtype)
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
        product = times_inputs(part, x, tied, total.dtype)
        before = jax.lax.dynamic_slice_in_dim(total, start, steps.size, axis)
        return jax.lax.dynamic_update_slice_in_dim(total, before + product, start, axis)

    return steps.fold(body, total)
