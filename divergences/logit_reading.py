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
    """Sums of the target's and of the model's side, and maxima, of a token or of a row."""

    sides: tuple[Side, ...]
    flags: Any


def reduced(tokens: Reading) -> Reading:
    """Of whole rows."""
    zeros = jax.tree.map(lambda x: jnp.zeros((), x.dtype), tokens)
    sides = tuple(Side(jnp.full_like(side.top, -jnp.inf), side.sums) for side in zeros.sides)
    return jax.lax.reduce(tokens, Reading(sides, zeros.flags), _merged, (_last(tokens),))


def _merged(one: Reading, other: Reading) -> Reading:
    sides = tuple(map(_merged_side, one.sides, other.sides))
    return Reading(sides, jax.tree.map(jnp.maximum, one.flags, other.flags))


def _merged_side(one: Side, other: Side) -> Side:
    """Sums relative to the larger top, with one exponential."""
    ahead = jnp.where(one.top == other.top, 0, one.top - other.top)
    less = jnp.exp(-jnp.abs(ahead))
    here, there = jnp.where(ahead < 0, less, 1), jnp.where(ahead < 0, 1, less)
    add = lambda x, y: here * x + there * y  # noqa: E731
    return Side(jnp.maximum(one.top, other.top), jax.tree.map(add, one.sums, other.sums))


def alone_flag(own: jax.Array, other: jax.Array) -> jax.Array:
    """For each token, 2 where the other side has nothing, 1 where it has something finite, else 0; to be maximised."""
    something = jnp.where(other == -jnp.inf, 2.0, jnp.where(other == jnp.inf, 0.0, 1.0))
    return jnp.where(own == -jnp.inf, 0, something.astype(own.dtype))


def are_alone(tops: tuple[jax.Array, ...], flags: Any) -> tuple[jax.Array, ...]:
    """Whether target and model have tokens that the other side rules out, if only by a +inf elsewhere."""
    legal = (tops[0] != -jnp.inf) & (tops[1] != -jnp.inf)
    others = tops[::-1]
    return tuple(
        legal & ((flag >= 2) | ((flag >= 1) & (other == jnp.inf)))
        for flag, other in zip(flags, others, strict=True)
    )


def undivided(total: jax.Array) -> SlopeSums:
    """Sums of a row whose likeliest atom is not told apart."""
    return SlopeSums(total)


def finite_top(top: jax.Array) -> jax.Array:
    return jnp.where(jnp.isinf(top), 0, top)


def indicator(condition: jax.Array, like: jax.Array) -> jax.Array:
    return condition.astype(like.dtype)


def added_up(terms: Any) -> Any:
    """Sums over the last axis, all in one reduction."""
    zeros = jax.tree.map(lambda x: jnp.zeros((), x.dtype), terms)
    add = lambda one, other: jax.tree.map(jnp.add, one, other)  # noqa: E731
    return jax.lax.reduce(terms, zeros, add, (_last(terms),))


def _last(tree: Any) -> int:
    return jax.tree.leaves(tree)[0].ndim - 1
