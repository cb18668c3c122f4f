"""Many sums over rows of logits in one reduction, and what they are for."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from divax.divergences.logit_gradient import SlopeSums


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
    """Sums of the target's and of the model's side, and the `classes` of tokens seen, of a token or of a row."""

    target: Side
    model: Side
    seen: jax.Array


def reduced(tokens: Reading) -> Reading:
    """Of whole rows."""
    zeros = jax.tree.map(lambda x: jnp.zeros((), x.dtype), tokens)
    lowest = lambda side: Side(jnp.full_like(side.top, -jnp.inf), side.sums)  # noqa: E731
    nothing = Reading(lowest(zeros.target), lowest(zeros.model), zeros.seen)
    return jax.lax.reduce(tokens, nothing, _merged, (tokens.seen.ndim - 1,))


def _merged(one: Reading, other: Reading) -> Reading:
    target, model = _merged_side(one.target, other.target), _merged_side(one.model, other.model)
    return Reading(target, model, one.seen | other.seen)


def _merged_side(one: Side, other: Side) -> Side:
    """Sums relative to the larger top, with one exponential."""
    ahead = jnp.where(one.top == other.top, 0, one.top - other.top)
    less = jnp.exp(-jnp.abs(ahead))
    here, there = jnp.where(ahead < 0, less, 1), jnp.where(ahead < 0, 1, less)
    add = lambda x, y: here * x + there * y  # noqa: E731
    return Side(jnp.maximum(one.top, other.top), jax.tree.map(add, one.sums, other.sums))


def classes(target: jax.Array, model: jax.Array) -> jax.Array:
    """Of each token, one of nine bits: whether its logits are −inf, finite or +inf, the target's and the model's."""
    kinds = [jnp.where(x == -jnp.inf, 0, jnp.where(x == jnp.inf, 2, 1)) for x in (target, model)]
    return jnp.left_shift(1, 3 * kinds[0] + kinds[1]).astype(jnp.int32)


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
