"""Rows a few at a time on a CPU, so that what is made of them stays in its cache and never exists for all rows."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# A megabyte of float32: with its temporaries that fits the second-level cache of a core.
_BLOCK = 2**18
# Below this nothing is gained, and a block of fewer elements is not worth a turn of a loop.
_SMALL = 2**20
_SHORTEST = 2**14


def by_blocks(fun: Callable[..., Any], div: Any, *arrays: jax.Array) -> Any:
    """fun(div, *arrays, full), where fun treats every row by itself.

    On a CPU, rows of many tokens are taken a megabyte at a time; a GPU or TPU takes all of them at once, as does everybody
    with few. In blocks the derivatives are computed again from the arrays rather than kept; in both forms they are of any
    order and mode.

    Args:
        fun: of rows `[..., V]` and the keyword `full`, whether all logits are `finite` (the first two arrays are
            they), to a pytree of `[..., *]`.
        div: what `fun` is made of; one with matrices, which may belong to rows, is not cut.
        arrays: `[..., V]` with the same leading axes.

    Returns:
        What `fun` returns for all rows.

    Example:
        >>> import jax.numpy as jnp
        >>> total = lambda div, t, s, full: jnp.sum(t - s, -1)
        >>> x = jnp.ones((64, 32768))
        >>> bool(jnp.all(by_blocks(total, None, x, 0 * x) == 32768))
        True
    """
    rows = block_rows(arrays[0].shape)
    if rows is None or _has_matrices(div):
        return fun(div, *arrays, full=False)
    at_once = functools.partial(fun, div, full=False)

    def in_blocks(*arrays: jax.Array) -> Any:
        return jax.lax.cond(finite(*arrays[:2]), *(cut(full) for full in (True, False)), *arrays)

    def cut(full: bool):
        of_block = jax.checkpoint(functools.partial(fun, full=full), prevent_cse=False)

        def walk(*arrays: jax.Array) -> Any:
            lead = arrays[0].shape[:-1]
            blocks = tuple(x.reshape(-1, rows, x.shape[-1]) for x in arrays)
            indices = jnp.arange(blocks[0].shape[0], dtype=jnp.int32)
            out = jax.lax.map(
                lambda one: of_block(_seemingly_new(div, one[0]), *one[1:]), (indices, *blocks)
            )
            return jax.tree.map(lambda x: x.reshape(*lead, *x.shape[2:]), out)

        return walk

    return jax.lax.platform_dependent(*arrays, cpu=in_blocks, default=at_once)


def _seemingly_new(div: Any, index: jax.Array) -> Any:
    """The same numbers, as if every block had its own: of what is the same in all, XLA keeps an array of a block's size."""
    return jax.tree.map(lambda leaf: jnp.where(index < 0, jnp.zeros_like(leaf), leaf), div)


def by_machine(
    here: Callable[..., Any], elsewhere: Callable[..., Any], div: Any, *arrays: jax.Array
) -> Any:
    """here(*arrays) on a CPU and for small arrays, elsewhere(*arrays) on a GPU or TPU; the same function in two ways.

    Which one is decided where the program is compiled, not by the machine that traces it. Rows of a large vocabulary are not
    small however few: `jax.vmap` shows one of many.

    Args:
        here: of arrays `[..., V]`.
        elsewhere: of the same to the same.
        div: what they are made of; one with matrices, which may belong to rows, is left to the first.
        arrays: of one shape.

    Returns:
        What both return.

    Example:
        >>> import jax.numpy as jnp
        >>> by_machine(lambda x: x + 1, lambda x: 1 + x, None, jnp.zeros(2)).tolist()
        [1.0, 1.0]
    """
    small = arrays[0].size < _SMALL and arrays[0].shape[-1] < _SHORTEST
    if small or _has_matrices(div):
        return here(*arrays)
    return jax.lax.platform_dependent(*arrays, cpu=here, default=elsewhere)


def _has_matrices(div: Any) -> bool:
    return any(jnp.ndim(leaf) > 1 for leaf in jax.tree.leaves(div))


def finite(target: jax.Array, model: jax.Array | float = 0.0) -> jax.Array:
    """Whether all logits and their differences are finite, in one reading: 0·x is NaN where x is not."""
    return jnp.sum(0 * (target - model)) == 0


def block_rows(shape: tuple[int, ...]) -> int | None:
    """How many of the rows `[..., V]` make a block, a divisor of their number; None where all are taken at once.

    Example:
        >>> block_rows((2048, 32768)), block_rows((4, 512, 131072)), block_rows((8, 97))
        (8, 2, None)
    """
    count, size = math.prod(shape[:-1]), shape[-1]
    if count * size < _SMALL:
        return None
    rows = next(r for r in range(max(1, min(count, _BLOCK // size)), 0, -1) if count % r == 0)
    return rows if rows < count and rows * size >= _SHORTEST else None
