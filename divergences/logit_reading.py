"""Many sums over rows of logits in one reduction, and what they are for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from divax.divergences.logit_gradient import SlopeSums

# The tokens whose mean log-ratio centres a row's: a byte-pair encoding has its most frequent merges after the bytes.
_SAMPLE = slice(256, 320)
# A log-ratio beyond this says that a token is masked by a large number, not how the models compare.
_COMPARABLE = 1e3
_PART = 4096
_Read = TypeVar("_Read")


class Scalars(NamedTuple):
    """All that the value and the gradients of a pair of rows need of other tokens than their own.

    Attributes:
        tops: the largest logits, target's and model's, `[...]`; with the totals they place the probabilities.
        totals: Σ e^(logit − top).
        value: the divergence.
        slopes: `SlopeSums` of each side, None where nobody asked.
    """

    tops: tuple[jax.Array, jax.Array]
    totals: tuple[jax.Array, jax.Array]
    value: jax.Array
    slopes: tuple[SlopeSums | None, ...]


class Side(NamedTuple):
    """Sums over a row with weights e^(logit − top); of a single token, whose top is its logit, the terms themselves."""

    top: jax.Array
    sums: Any


class Reading(NamedTuple):
    """Sums of the target's and of the model's side, and the `classes` of tokens seen, of a token or of a row.

    `extra` is a third side, with weights of its own, where something needs one.
    """

    target: Side
    model: Side
    seen: jax.Array
    extra: Side | None = None


def merged(one: Reading, other: Reading) -> Reading:
    """Of two parts of a row."""
    target, model = merged_side(one.target, other.target), merged_side(one.model, other.model)
    extra = None
    if one.extra is not None and other.extra is not None:
        extra = merged_side(one.extra, other.extra)
    return Reading(target, model, one.seen | other.seen, extra)


def reduced(tokens: _Read, merge: Callable[[_Read, _Read], _Read] = merged) -> _Read:
    """Of whole rows, from readings of tokens and how two of them merge; every `Side` has a top of its own."""
    side = lambda x: isinstance(x, Side)  # noqa: E731
    zero = lambda x: jnp.zeros((), x.dtype)  # noqa: E731

    def nothing(x: Any) -> Any:
        if not side(x):
            return zero(x)
        return Side(jnp.full((), -jnp.inf, x.top.dtype), jax.tree.map(zero, x.sums))

    start = jax.tree.map(nothing, tokens, is_leaf=side)
    *lead, size = jax.tree.leaves(tokens)[0].shape
    parts, last = _parts(size), len(lead)

    def whole(tokens: _Read) -> _Read:
        return jax.lax.reduce(tokens, start, merge, (last,))

    def cut(tokens: _Read) -> _Read:
        pieces = jax.tree.map(lambda x: x.reshape(*lead, parts, -1), tokens)
        return whole(jax.lax.reduce(pieces, start, merge, (last + 1,)))

    if parts == 1:
        return whole(tokens)
    # A TPU would write down what is cut.
    return jax.lax.platform_dependent(tokens, cuda=cut, rocm=cut, default=whole)


def _parts(size: int) -> int:
    """Equal parts of a row, of at most 4096 tokens and not much less; 1 where its length has no such divisor.

    XLA cuts longer rows by itself for a GPU, into parts so short that all their sums take a twentieth of the logits.
    """
    least = -(-size // _PART)
    return next((n for n in range(least, 4 * least + 1) if size % n == 0), 1)


def merged_side(one: Side, other: Side) -> Side:
    """Sums relative to the larger top, with one exponential."""
    ahead = jnp.where(one.top == other.top, 0, one.top - other.top)
    less = jnp.exp(-jnp.abs(ahead))
    here, there = jnp.where(ahead < 0, less, 1), jnp.where(ahead < 0, 1, less)
    add = lambda x, y: here * x + there * y  # noqa: E731
    return Side(jnp.maximum(one.top, other.top), jax.tree.map(add, one.sums, other.sums))


def centres(
    target: jax.Array, model: jax.Array, scaled: Callable[[jax.Array], jax.Array] = lambda x: x
) -> tuple[jax.Array, jax.Array]:
    """Two numbers near the logits whose difference is E_p[target − model] over a few tokens, 0 if these say nothing.

    The logits are `scaled` before. Any numbers would do, but the closer they come to the mean of the whole row, the more
    precise.
    """
    few = _SAMPLE if target.shape[-1] >= _SAMPLE.stop else slice(0, 64)
    # Without the barrier a TPU takes these tokens from a copy of all logits.
    target, model = jax.lax.optimization_barrier((target[..., few], model[..., few]))
    target, model = scaled(target), scaled(model)
    gap = target - model
    said = jnp.abs(gap) <= _COMPARABLE
    top = finite_top(jnp.max(jnp.where(said, target, -jnp.inf), -1))
    weight = jnp.where(said, jnp.exp(jnp.where(said, target, 0) - top[..., None]), 0)
    total = jnp.sum(weight, -1)
    mean = jnp.sum(jnp.where(said, gap, 0) * weight, -1) / jnp.where(total > 0, total, 1)
    return top, top - mean


def apart(places: _Read, key: Any) -> _Read:
    """The same centres, for a reading that is told by its numbers: XLA would write down what two have in common."""
    return jax.lax.optimization_barrier((places, key))[0]


def classes(target: jax.Array, model: jax.Array) -> jax.Array:
    """Of each token, one of nine bits: whether its logits are −inf, finite or +inf, the target's and the model's."""
    kinds = [jnp.where(x == -jnp.inf, 0, jnp.where(x == jnp.inf, 2, 1)) for x in (target, model)]
    # A GPU writes down what it found in parts of a row: two bytes of it.
    return jnp.left_shift(1, 3 * kinds[0] + kinds[1]).astype(jnp.uint16)


def alone(seen: jax.Array, tops: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    """Whether target and model have tokens that the other rules out, from the classes seen in a row and its tops.

    A finite logit is possible unless another one is +inf.
    """
    legal = (tops[0] != -jnp.inf) & (tops[1] != -jnp.inf)
    found = [jnp.zeros_like(legal), jnp.zeros_like(legal)]
    saturated = [top == jnp.inf for top in tops]
    possible = [[False, ~one, one] for one in saturated]
    for target in range(3):
        for model in range(3):
            here = (seen & (1 << (3 * target + model))) != 0
            p, q = possible[0][target], possible[1][model]
            found[0] |= here & legal & p & jnp.logical_not(q)
            found[1] |= here & legal & q & jnp.logical_not(p)
    return found[0], found[1]


def undivided(total: jax.Array) -> SlopeSums:
    """Sums of a row whose likeliest atom is not told apart."""
    return SlopeSums(total)


def finite_top(top: jax.Array) -> jax.Array:
    """0 instead of an infinite maximum, to subtract."""
    return jnp.where(jnp.isinf(top), 0, top)


def farthest(logits: jax.Array) -> float:
    """How far below its maximum a finite logit is allowed to be; beyond, differences or their squares overflow."""
    return 1e150 if logits.dtype == jnp.float64 else 1e15


def indicator(condition: jax.Array, like: jax.Array) -> jax.Array:
    """1 or 0."""
    return condition.astype(like.dtype)
