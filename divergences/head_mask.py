"""The likeliest tokens that hold a given mass, found without sorting them."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from divax.divergences.numerics import Scalar
from divax.divergences.row_blocks import by_blocks
from divax.divergences.rows import log_softmax


def head_mask(
    target: jax.Array, head_mass: Scalar, *, crossing_token_in_head: bool = True
) -> jax.Array:
    """The smallest set of the target's likeliest tokens whose mass reaches `head_mass`.

    Non-negative floats are ordered as their bits are, so bisection over the bits finds the probability of the token that
    crosses the mass exactly: one sum over the vocabulary per bit, where sorting takes many times as long.

    Args:
        target: logits `[..., V]`.
        head_mass: mass to reach, in (0, 1); a number or a traced scalar.
        crossing_token_in_head: False leaves out the token that crosses the mass (but never the likeliest one), as the
            reference code of AKL does.

    Returns:
        Boolean `[..., V]`. Ties are broken by token id. No gradient flows.

    Example:
        >>> head_mask(jnp.log(jnp.array([0.45, 0.3, 0.15, 0.1])), 0.5).tolist()
        [True, True, False, False]
    """
    mass = jnp.asarray(head_mass).astype(target.dtype)

    def of_rows(div: None, target: jax.Array, full: bool) -> jax.Array:
        return _head(jnp.exp(log_softmax(target)), mass, crossing_token_in_head)

    return by_blocks(of_rows, None, jax.lax.stop_gradient(target))


def _head(p: jax.Array, head_mass: jax.Array, crossing_token_in_head: bool) -> jax.Array:
    crossing, above = _crossing(p, head_mass)
    tied, likelier = p == crossing, p > crossing
    extra = 0 if crossing_token_in_head else 1
    # The tie of rank j has the mass above + j·crossing before it, and one more token's through it.
    alone = taken(jnp.zeros_like(crossing), above, crossing, head_mass, extra) & tied

    def by_rank() -> jax.Array:
        rank = (jnp.cumsum(tied, -1) - 1).astype(p.dtype)
        return taken(rank, above, crossing, head_mass, extra) & tied

    several = jnp.any(jnp.sum(tied, -1) > 1)
    return likelier | jax.lax.cond(several, by_rank, lambda: alone)


def taken(rank, above, crossing, head_mass, extra: int):
    """Whether the tie of this rank is in the head: the mass before it, or with an `extra` token through it, tells."""
    mass = above + (rank + extra) * crossing
    if not extra:
        return mass < head_mass
    return (mass <= head_mass) | ((rank == 0) & (above == 0))


def _crossing(p: jax.Array, head_mass: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The smallest v with Σ p·[p > v] < head_mass, and that sum, `[..., 1]` each."""
    bits = jnp.int64 if p.dtype == jnp.float64 else jnp.int32
    to_float = functools.partial(jax.lax.bitcast_convert_type, new_dtype=p.dtype)
    to_bits = functools.partial(jax.lax.bitcast_convert_type, new_dtype=bits)
    highest = to_bits(jnp.max(p, -1, keepdims=True))
    # The tokens up to the crossing one hold more than 1 − head_mass, so it has more than an equal share of that.
    least = jnp.maximum(1 - head_mass, 0) / (2 * p.shape[-1])
    start = jnp.minimum(to_bits(least), highest) - 1

    def mass_above(bound):
        return jnp.sum(jnp.where(p > to_float(bound), p, 0), -1, keepdims=True)

    def unfinished(bounds):
        low, high = bounds
        return jnp.any(high - low > 1)

    def halve(bounds):
        low, high = bounds  # the answer is in (low, high]
        middle = low + (high - low) // 2
        enough = mass_above(middle) < head_mass
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    _, found = jax.lax.while_loop(unfinished, halve, (start, highest))
    return to_float(found), mass_above(found)
