"""Any function of two rows, a few rows at a time on a CPU, with its gradients from the same pass."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from divax.divergences.logit_gradient import instantiate, is_zero
from divax.divergences.row_blocks import blockwise, by_blocks, by_machine

RowFunction = Callable[[Any, jax.Array, jax.Array], jax.Array]
"""Of what it is made of and two arrays `[..., V]`, to `[...]`; treats every row by itself."""


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def row_values(fun: RowFunction, div: Any, target: jax.Array, model: jax.Array) -> jax.Array:
    """fun(div, target, model), without arrays of all rows but the gradients that are asked for.

    For divergences that are made of others and have no closed form of their own: what `fun` says of derivatives holds,
    and on a CPU the gradients of a few rows are computed together with their values (`by_blocks`).

    Args:
        fun: of `div` and rows `[..., V]` of both sides to `[...]`; a function of a module, for it is a key of JAX's caches.
        div: a pytree, in which `fun` may be differentiated too.
        target: logits `[..., V]`.
        model: likewise.

    Returns:
        `[...]`, with derivatives of every order and mode.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> def gap(weight, t, s):
        ...     return weight * jnp.sum((t - s) ** 2, -1)
        >>> t, s = jnp.ones((3, 2)), jnp.zeros((3, 2))
        >>> jax.grad(lambda s: row_values(gap, 2.0, t, s).sum())(s).tolist()[0]
        [-4.0, -4.0]
    """
    return by_blocks(functools.partial(_value, fun), div, target, model)


def _value(fun: RowFunction, div: Any, target: jax.Array, model: jax.Array, *, full: bool):
    del full  # What `fun` is made of finds it out.
    return fun(div, target, model)


@functools.partial(row_values.defjvp, symbolic_zeros=True)
def _row_values_jvp(fun, primals, tangents):
    div, target, model = primals
    moving = tuple(not isinstance(dot, SymbolicZero) for dot in tangents[1:])
    dots = [dot for dot, moves in zip(tangents[1:], moving, strict=True) if moves]

    def here(target, model, *dots):
        both = functools.partial(_value_and_gradients, fun, moving)
        value, gradients = blockwise(both, div, target, model)
        terms = [jnp.sum(g * dot, -1) for g, dot in zip(gradients, dots, strict=True)]
        return value, sum(terms, start=jnp.zeros_like(value))

    def elsewhere(target, model, *dots):
        of_moving, sides = _of_moving(fun, moving, div, target, model)
        return jax.jvp(of_moving, sides, dots)

    if dots:
        value, tangent = by_machine(here, elsewhere, div, target, model, *dots)
    else:
        value, tangent = row_values(fun, div, target, model), 0.0
    leaves = jax.tree.leaves(tangents[0], is_leaf=is_zero)
    if not all(isinstance(dot, SymbolicZero) for dot in leaves):
        div_dot = jax.tree.map(instantiate, tangents[0], is_leaf=is_zero)
        tangent += by_blocks(
            functools.partial(_parameter_tangent, fun, div_dot), div, target, model
        )
    return value, tangent


def _value_and_gradients(fun, moving, div, target, model, *, full):
    """Rows do not mix, hence the gradients of each row's value are those of the sum."""
    del full
    of_moving, sides = _of_moving(fun, moving, div, target, model)
    value, pull = jax.vjp(of_moving, *sides)
    return value, pull(jnp.ones_like(value))


def _of_moving(fun, moving, div, target, model):
    """The function of the sides that move, and these."""
    both = (target, model)

    def of_moving(*sides):
        rest = iter(sides)
        return fun(div, *(next(rest) if m else x for x, m in zip(both, moving, strict=True)))

    return of_moving, tuple(x for x, m in zip(both, moving, strict=True) if m)


def _parameter_tangent(fun, div_dot, div, target, model, *, full):
    del full
    return jax.jvp(lambda d: fun(d, target, model), (div,), (div_dot,))[1]
