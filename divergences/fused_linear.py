"""Divergences from hidden states and heads: the logits of all tokens never exist together."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences.base import AbstractDivergence, divergence
from divax.divergences.coarse import TopKCache, coarsen_cached
from divax.divergences.f_divergence import AbstractFDivergence
from divax.divergences.linear_head import LinearHead, LinearLogits, linear_logits
from divax.divergences.numerics import Scalar
from divax.divergences.row_form import DivergenceForm, softened
from divax.divergences.token_walk import Operands, Plan, walk_tokens
from divax.divergences.vocabulary_sharding import ShardedWalk, VocabularySharding
from divax.divergences.vocabulary_walk import walk_vocabulary
from divax.divergences.walk_gradients import Walk, one_shot, two_phase, weighted_sum

Implementation = Literal["reference", "fast", "lean"]
"""How: all logits at once, a chunk of tokens at a time, or a chunk of tokens and of the vocabulary at a time."""


@divergence
class FusedSum:
    """What `fused_linear` returns; the mean is `total / max(count, 1)`, and sums over batches add up.

    Attributes:
        total: Σ mask·D, a scalar in nats.
        count: Σ mask.

    Example:
        >>> from divax import divergences as dv
        >>> dv.FusedSum(total=6.0, count=2.0)
        FusedSum(total=6.0, count=2.0)
    """

    total: jax.Array
    count: jax.Array


def fused_linear(
    div: AbstractDivergence,
    *,
    model_hidden: ArrayLike,
    model_head: ArrayLike | LinearHead,
    target_hidden: ArrayLike | None = None,
    target_head: ArrayLike | LinearHead | None = None,
    target: TopKCache | None = None,
    mask: ArrayLike | None = None,
    temperature: Scalar = 1.0,
    vocab_size: int | None = None,
    chunk: int | None = None,
    vocab_chunk: int | None = None,
    implementation: Implementation | None = None,
    sharding: VocabularySharding | None = None,
) -> FusedSum:
    r"""Sum over tokens of a divergence between two models, from their hidden states.

    .. math:: \sum_n m_n\, D(\mathrm{softmax}(t_n/T),\, \mathrm{softmax}(s_n/T)),
        \qquad t = h_t W_t,\quad s = h_s W_s

    Every divergence, mixture, wrapper and generator of your own, equal to the same from logits in value and gradients. The
    gradients are formed in the forward pass, while a chunk's logits are there: three products with the model's head and
    one with the target's, where recomputing the logits in a backward pass (`jax.checkpoint`) takes four and two. This is
    legal for a sum alone, whose weights are known beforehand: whoever needs rows, to weigh them afterwards, calls
    `fused_linear_rows`. What nobody differentiates costs nothing: a frozen head saves its product, evaluation all three.

    Args:
        div: any divergence; its parameters may be traced, and differentiated.
        model_hidden: `[..., H]`, the states before the model's head, any floating dtype.
        model_head: `[H, V]`, or a `LinearHead` with a bias, a soft cap, an adapter, or a tied embedding `[V, H]`.
        target_hidden: `[..., H']`, leading axes as the model's.
        target_head: likewise. Gradients flow to the target's side too unless it is stopped or not asked for.
        target: instead of the two, a teacher's `TopKCache` of such rows, stored at this temperature: then D is taken of
            the kept tokens and one bucket, as by `coarsen_cached`. It gets no gradient.
        mask: weights `[...]`; where 0, neither value nor gradient depends on the row, even if it holds NaN.
        temperature: T > 0, by which both sides' logits are divided after any cap; no factor T² is applied.
        vocab_size: the tokenizer's size, where the two heads are padded to different multiples; other columns are
            left out, without a copy of the head.
        chunk: tokens at a time. Default: 64 to 384 on a CPU, 1024 to 4096 elsewhere, fewer for large vocabularies.
        vocab_chunk: tokens of the vocabulary at a time. Default 8192, 2048 on a CPU, where "lean" takes 1024 tokens
            if neither is given.
        implementation: "reference" has all logits at once. "fast" has `[chunk, V]` at a time. "lean" has
            `[chunk, vocab_chunk]`, computing the logits again for their gradient: of f-divergences only (twice for the two
            KLs, Jeffreys and their mixtures, three times for others); for the rest, for caches and for derivatives by
            parameters it is "fast" with the same chunk. On a CPU, where no chunk is given, it is "fast" with up to 128
            tokens as long as 112 MiB hold the logits of 96 (V up to 152917). Default: "reference" up to 4 million
            logits, where memory is no matter; "lean" from V = 524288 on, where a chunk's logits are; "fast" between.
        sharding: where the heads are spread over devices by their vocabulary, which then walk together, each over its
            own columns. Chunks are counted on a device.

    Returns:
        Total and count, float32 (float64 if an input is). Arithmetic is in that precision also for bfloat16 inputs, whose
        gradients are summed in it over all tokens; only each factor ∂D/∂logits of a matrix product is rounded to bfloat16.
        Forward mode and second derivatives are exact as well; the latter keep what "fast" does not, so take "reference".

    Raises:
        ValueError: shapes, vocabularies, chunks or `implementation` that make no sense, a missing target or two.
        TypeError: arrays that are not floating point.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> keys = jax.random.split(jax.random.key(0), 4)
        >>> shapes = {"model_hidden": (6, 4), "model_head": (4, 9), "target_hidden": (6, 5), "target_head": (5, 9)}
        >>> arrays = {name: jax.random.normal(key, shapes[name]) for name, key in zip(shapes, keys)}
        >>> div = 0.7 * dv.ForwardKL() + 0.3 * dv.ReverseKL()
        >>> fused = dv.fused_linear(div, **arrays, chunk=2, implementation="fast")
        >>> t = arrays["target_hidden"] @ arrays["target_head"]
        >>> rows = div(t, arrays["model_hidden"] @ arrays["model_head"])
        >>> bool(jnp.allclose(fused.total, rows.sum(), rtol=1e-5)), float(fused.count)
        (True, 6.0)

    Source: gradients in the forward pass of chunks: P. Hsu et al., "Liger Kernel: Efficient Triton Kernels for LLM
    Training", arXiv:2410.10989; chunks of the vocabulary: E. Wijmans et al., "Cut Your Losses in Large-Vocabulary
    Language Models", arXiv:2411.09009.
    """
    sides = _sides(model_hidden, model_head, target_hidden, target_head, target, mask)
    plan, operands, walk = _problem(
        div, sides, temperature, vocab_size, (chunk, vocab_chunk), implementation, sharding
    )
    count = jnp.sum(sides.weights)
    if walk is None:
        total = weighted_sum(sides.weights, dense_outputs(plan, operands))
    else:
        total = one_shot(walk, plan, operands, sides.weights).total
    return FusedSum(total=total, count=count.astype(total.dtype))


def fused_linear_rows(
    div: AbstractDivergence,
    *,
    model_hidden: ArrayLike,
    model_head: ArrayLike | LinearHead,
    target_hidden: ArrayLike | None = None,
    target_head: ArrayLike | LinearHead | None = None,
    target: TopKCache | None = None,
    mask: ArrayLike | None = None,
    temperature: Scalar = 1.0,
    vocab_size: int | None = None,
    chunk: int | None = None,
    vocab_chunk: int | None = None,
    implementation: Implementation | None = None,
    sharding: VocabularySharding | None = None,
) -> jax.Array:
    """A divergence between two models at every token, from their hidden states, to be used in any way.

    What is done with the rows decides their gradients, so these take a second walk, in the backward pass: one more
    product with each head than `fused_linear`, which is the one to take where the weights of the rows are known. Nothing
    is kept between the two but the arguments. Behind frozen heads one walk is enough: the gradient by a row's states is
    a multiple of what the first walk keeps of it.

    Args:
        div: as in `fused_linear`, like everything else but the mask.
        model_hidden: `[..., H]`.
        model_head: `[H, V]` or a `LinearHead`.
        target_hidden: `[..., H']`.
        target_head: likewise.
        target: a `TopKCache` instead of the two.
        mask: boolean `[...]` (or weights, of which only zero matters): rows that are 0 and have no gradient.
        temperature: T.
        vocab_size: of the tokenizer.
        chunk: tokens at a time.
        vocab_chunk: tokens of the vocabulary at a time.
        implementation: as in `fused_linear`.
        sharding: likewise.

    Returns:
        `[...]`, float32 (float64 if an input is). Reverse mode only: forward mode and second derivatives are a TypeError,
        except with "reference".

    Raises:
        ValueError: as `fused_linear`.
        TypeError: likewise; and a derivative that is not of first order and reverse mode.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> states, head = jnp.eye(3), jnp.eye(3)
        >>> rows = dv.fused_linear_rows(
        ...     dv.ReverseKL(), model_hidden=states, model_head=head, target_hidden=2 * states, target_head=head
        ... )
        >>> [round(float(row), 4) for row in rows]
        [0.112, 0.112, 0.112]
    """
    sides = _sides(model_hidden, model_head, target_hidden, target_head, target, mask)
    plan, operands, walk = _problem(
        div, sides, temperature, vocab_size, (chunk, vocab_chunk), implementation, sharding
    )
    rows = dense_outputs(plan, operands) if walk is None else two_phase(walk, plan, operands)
    return jnp.where(sides.weights != 0, rows, 0).reshape(jnp.shape(model_hidden)[:-1])


def dense_outputs(plan: Plan, operands: Operands) -> Any:
    """The outputs of all rows from all logits: the reference of every walk."""
    count = operands.live.shape[0]
    sides = [side.rows_at(0, count, operands.live) for side in operands.sides]
    logits = tuple(side.capped(side.raw())[:, : plan.vocab_size] for side in sides)
    return plan.of_logits(operands.params, logits, operands.rows)[0]


class _Sides(NamedTuple):
    """Who is compared.

    Attributes:
        models: the target, if it is live, and the model.
        cache: of the target, if it is not.
        weights: `[N]`.
    """

    models: tuple[LinearLogits, ...]
    cache: TopKCache | None
    weights: jax.Array


def _sides(model_hidden, model_head, target_hidden, target_head, target, mask) -> _Sides:
    model_hidden = jnp.asarray(model_hidden)
    lead = model_hidden.shape[:-1]
    weights = jnp.ones(lead, bool) if mask is None else jnp.asarray(mask)
    if weights.shape != lead:
        raise ValueError(
            f"mask must be {lead}, one weight per row of model_hidden, got {weights.shape}"
        )
    weights = weights.reshape(-1).astype(jnp.result_type(float))
    live = weights != 0
    model = linear_logits(model_hidden, model_head, "model_hidden", "model_head", live)
    if target is not None:
        if target_hidden is not None or target_head is not None:
            raise ValueError(
                "target is a cache: leave out target_hidden and target_head, or the cache"
            )
        if target.ids.shape[:-1] != lead:
            raise ValueError(
                f"the cache's rows {target.ids.shape[:-1]} must be model_hidden's, {lead}"
            )
        return _Sides(
            (model,),
            jax.tree.map(lambda x: _live_rows(jnp.asarray(x), live, len(lead)), target),
            weights,
        )
    if target_hidden is None or target_head is None:
        raise ValueError(
            "a target is missing: pass target_hidden and target_head, or a TopKCache as target"
        )
    target_hidden = jnp.asarray(target_hidden)
    if target_hidden.shape[:-1] != lead:
        raise ValueError(
            f"target_hidden {target_hidden.shape} and model_hidden {model_hidden.shape} must agree in every axis but"
            " the last: run both models on the same tokens"
        )
    other = linear_logits(target_hidden, target_head, "target_hidden", "target_head", live)
    return _Sides((other, model), None, weights)


def _live_rows(x: jax.Array, live: jax.Array, axes: int) -> jax.Array:
    """An array of a cache as `[N, ...]`, with zeros wherever the row does not count."""
    rows = x.reshape(-1, *x.shape[axes:])
    return jnp.where(live.reshape(-1, *(1,) * (rows.ndim - 1)), rows, jnp.zeros((), x.dtype))


def _problem(
    div: Any,
    sides: _Sides,
    temperature: Scalar,
    vocab_size: int | None,
    chunks: tuple[int | None, int | None],
    implementation: Implementation | None,
    sharding: VocabularySharding | None,
) -> tuple[Plan, Operands, Walk | None]:
    """The plan, its operands, and the walk; None for the reference."""
    _check(div, temperature)
    size = common_vocabulary(sides.models, vocab_size)
    count = sides.weights.shape[0]
    full = all(side.bias is None for side in sides.models)
    form = _form(div, full=full) if sides.cache is None else None
    of_logits = of_pair if sides.cache is None else of_cache
    plan = make_plan(of_logits, form, size, *chunks)
    plain = isinstance(temperature, int | float) and temperature == 1
    params = (_as_pytree(div), None if plain else jnp.asarray(temperature))
    operands = Operands(params, sides.models, sides.cache, sides.weights != 0)
    return plan, operands, chosen_walk(implementation, count, size, sharding)


def chosen_walk(
    implementation: Implementation | None,
    count: int,
    vocab_size: int,
    sharding: VocabularySharding | None,
) -> Walk | None:
    """What walks; None for the reference.

    Raises:
        ValueError: an implementation that is none.
    """
    check_implementation(implementation)
    devices = 1 if sharding is None else sharding.devices
    how = implementation or default_implementation(count, vocab_size // devices)
    if sharding is not None and implementation is None and how == "reference":
        how = "fast"
    if how == "reference" or not count:
        return None
    walk = walk_vocabulary if how == "lean" else walk_tokens
    return walk if sharding is None else ShardedWalk(walk, sharding)


def default_implementation(count: int, vocab_size: int) -> Implementation:
    """By the number of logits, and by that of one token where few tokens are too many."""
    if count * vocab_size <= 2**22:
        return "reference"
    return "lean" if vocab_size >= 2**19 else "fast"


def make_plan(
    of_logits: Any, form: Any, vocab_size: int, chunk: int | None, vocab_chunk: int | None
) -> Plan:
    """A plan, its steps chosen by the machine where nobody has."""
    for name, value in (("chunk", chunk), ("vocab_chunk", vocab_chunk)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    given = chunk is not None or vocab_chunk is not None
    cpu = jax.default_backend() == "cpu"
    # On a CPU such a part of a head, and its gradient, is multiplied in cache.
    vocab_chunk = vocab_chunk or (2048 if cpu else 8192)
    chunk = chunk or default_chunk(vocab_size)
    # A megabyte at a time: what is made of it stays in a core's cache, where that is what takes the time.
    reading = min(max(2**18 // chunk, 128), vocab_chunk) if cpu else vocab_chunk
    return Plan(of_logits, form, chunk, vocab_chunk, reading, vocab_size, given)


def default_chunk(vocab_size: int) -> int:
    """Tokens whose logits exist at a time."""
    # A CPU wants a chunk's logits near its caches; others want matrix products that read the heads seldom. The budget is
    # bytes of two models' logits in float32.
    cpu = jax.default_backend() == "cpu"
    least, most, budget = (64, 384, 180 * 10**6) if cpu else (1024, 4096, 2**30)
    return min(max(budget // (8 * vocab_size), least), most)


def common_vocabulary(sides: tuple[LinearLogits, ...], vocab_size: int | None) -> int:
    """The number of tokens that all heads share.

    Raises:
        ValueError: it is not said where they differ, or exceeds one of them.
    """
    sizes = [side.vocab_size for side in sides]
    if vocab_size is None:
        if len(set(sizes)) > 1:
            raise ValueError(
                f"target_head and model_head have vocabularies of {sizes[0]} and {sizes[1]}: if one tokenizer is padded"
                " differently, pass vocab_size=<the tokenizer's size>"
            )
        return sizes[-1]
    if not 1 <= vocab_size <= min(sizes):
        raise ValueError(
            f"vocab_size={vocab_size} must lie between 1 and the smaller head's {min(sizes)}"
        )
    return vocab_size


def of_pair(params: Any, logits: tuple[jax.Array, ...], rows: Any) -> tuple[jax.Array, None]:
    """D of the softened rows."""
    div, temperature = params
    target, model = (softened(one, temperature) for one in logits)
    return div(target, model), None


def of_cache(params: Any, logits: tuple[jax.Array, ...], rows: Any) -> tuple[jax.Array, None]:
    """D of the kept tokens and their bucket."""
    div, temperature = params
    coarse = coarsen_cached(jax.lax.stop_gradient(rows), softened(logits[0], temperature))
    return div(coarse.target, coarse.model), None


def _form(div: Any, *, full: bool) -> Any:
    """A function from params to the divergence's form, None where it has none."""
    if not isinstance(div, AbstractFDivergence):
        return None
    return functools.partial(_form_of_params, full)


def _form_of_params(full: bool, params: Any) -> DivergenceForm:
    div, temperature = params
    return DivergenceForm(div=div, temperature=temperature, full=full)


def _as_pytree(div: Any) -> Any:
    """The divergence; a plain function has no numbers inside, and becomes a pytree of none."""
    return div if dataclasses.is_dataclass(div) else jax.tree_util.Partial(div)


def _check(div: Any, temperature: Scalar) -> None:
    if isinstance(div, type | str) or not callable(div):
        raise TypeError(f"div must be a divergence such as ForwardKL(), got {div!r}")
    if isinstance(temperature, int | float) and not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}")


def check_implementation(implementation: object) -> None:
    """Refuses what is no `Implementation`.

    Raises:
        ValueError: it is none.
    """
    if implementation not in (None, *get_args(Implementation)):
        names = ", ".join(map(repr, get_args(Implementation)))
        raise ValueError(f"implementation={implementation!r} is none of {names}, or None")
