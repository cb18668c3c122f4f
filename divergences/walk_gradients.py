"""Walks that JAX can differentiate: sums, gradients formed on the way, and rows, whose gradients take a second walk."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero

from divax.divergences.logit_gradient import instantiate, is_zero
from divax.divergences.token_walk import Operands, Plan, Walked

Walk = Callable[..., Walked]
"""`walk_tokens`, or another way to the same."""


class OneShot(NamedTuple):
    """What `one_shot` returns.

    Attributes:
        total: Σ weight·output, a scalar; the one thing here that has a gradient.
        outputs: `[N]`.
        extras: pytree of `[N]`.
    """

    total: jax.Array
    outputs: jax.Array
    extras: Any


def one_shot(walk: Walk, plan: Plan, operands: Operands, weights: jax.Array) -> OneShot:
    """Σ weight·output, its gradients formed during the walk, while the logits are there.

    The weights must therefore be known before it: whoever weighs the outputs afterwards gets no gradient. Gradients
    by params, inputs, weights, biases and caps of the heads, and by the weights of the rows; each only if asked for, and
    all in one walk. Any order and mode: what is kept for the backward pass are the gradients themselves.
    """
    params = jax.tree.map(jnp.asarray, operands.params)
    return OneShot(*_one_shot(walk, plan, operands._replace(params=params), weights))


def weighted_sum(weights: jax.Array, outputs: jax.Array) -> jax.Array:
    """Σ weight·output, where a weight of 0 silences whatever the output is."""
    weights = weights.astype(outputs.dtype)
    return jnp.sum(jnp.where(weights != 0, weights * jnp.where(weights != 0, outputs, 0), 0))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _one_shot(walk, plan, operands, weights):
    outputs, extras, _ = walk(plan, operands)
    return weighted_sum(weights, outputs), outputs, extras


@functools.partial(_one_shot.defjvp, symbolic_zeros=True)
def _one_shot_jvp(walk, plan, primals, tangents):
    operands, weights = primals
    dots, weights_dot = tangents
    leaves = jax.tree.leaves((dots.params, dots.sides), is_leaf=is_zero)
    wanted = tuple(not isinstance(dot, SymbolicZero) for dot in leaves)
    outputs, extras, gradients = walk(
        plan, operands, weights.astype(jnp.result_type(float)), wanted
    )
    out = weighted_sum(weights, outputs), outputs, extras
    tangent = jnp.zeros_like(out[0])
    for gradient, dot in zip(gradients, leaves, strict=True):
        if gradient is not None:
            tangent += jnp.sum(gradient * dot.astype(gradient.dtype)).astype(tangent.dtype)
    if not isinstance(weights_dot, SymbolicZero):
        finite = jnp.where(jnp.isfinite(outputs), outputs, 0)
        tangent += jnp.sum(finite * weights_dot.astype(outputs.dtype))
    return out, (tangent, *jax.tree.map(_no_tangent, out[1:]))


def _no_tangent(x: jax.Array):
    if jnp.issubdtype(x.dtype, jnp.inexact):
        return jnp.zeros_like(x)
    return jnp.zeros(x.shape, jax.dtypes.float0)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Wanted:
    """Flags that pass through a backward pass without becoming arrays."""

    flags: tuple[bool, ...]


def two_phase(walk: Walk, plan: Plan, operands: Operands) -> Any:
    """The outputs of every row, `[N]` each, to be used in any way: their gradients take a second walk, which knows the way.

    Nothing of the first walk is kept but its operands. Where only the inputs are differentiated, and that through the
    first output alone, one walk is enough: a row's gradient is a multiple of what the walk keeps of it, `[N, H]`.
    Reverse mode only; forward mode is a TypeError.
    """
    params = jax.tree.map(jnp.asarray, operands.params)
    try:
        return _two_phase(walk, plan, operands._replace(params=params))
    except TypeError as error:
        # JAX's own words do not say what to do instead.
        if "forward-mode" not in str(error):
            raise
        raise TypeError(
            "rows from hidden states have derivatives in reverse mode only: for forward mode and second derivatives"
            " pass implementation='reference'"
        ) from None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _two_phase(walk, plan, operands):
    return walk(plan, operands)[0]


def _two_phase_forward(walk, plan, operands):
    leaves = jax.tree.leaves((operands.params, operands.sides), is_leaf=_is_primal)
    wanted = _Wanted(tuple(leaf.perturbed for leaf in leaves))
    operands = jax.tree.map(lambda leaf: leaf.value, operands, is_leaf=_is_primal)
    if not _only_inputs(operands, wanted):
        return walk(plan, operands)[0], (operands, wanted, None)
    outputs, tree = jax.tree.flatten(jax.eval_shape(lambda o: walk(plan, o)[0], operands))
    ones = tree.unflatten([jnp.ones(outputs[0].shape), *[None] * (len(outputs) - 1)])
    # Where the backward pass has no use for these gradients, the compiler takes them out again.
    outputs, _, by_first = walk(plan, operands, ones, wanted.flags)
    return outputs, (operands, wanted, by_first)


def _only_inputs(operands: Operands, wanted: _Wanted) -> bool:
    """Whether nothing but inputs of the sides is differentiated, so that every gradient belongs to one row."""
    tree = jax.tree.structure((operands.params, operands.sides))
    params, sides = jax.tree.unflatten(tree, wanted.flags)
    heads = [(side.weights, side.bias, side.softcap) for side in sides]
    return not any(jax.tree.leaves((params, heads)))


def _two_phase_backward(walk, plan, kept, cotangents):
    operands, wanted, by_first = kept
    known = jax.tree.map(lambda one: None if is_zero(one) else one, cotangents, is_leaf=is_zero)
    if not jax.tree.leaves(known):
        known = jax.tree.map(instantiate, cotangents, is_leaf=is_zero)
    first, *rest = jax.tree.leaves(known, is_leaf=lambda x: x is None)
    if by_first is not None and first is not None and all(one is None for one in rest):
        first = jnp.where(operands.live, first, 0)
        gradients = [None if one is None else first[:, None] * one for one in by_first]
    else:
        gradients = walk(plan, operands, known, wanted.flags)[2]
    leaves, tree = jax.tree.flatten((operands.params, operands.sides))
    gradients = [
        None if gradient is None else gradient.astype(leaf.dtype)
        for gradient, leaf in zip(gradients, leaves, strict=True)
    ]
    params, sides = jax.tree.unflatten(tree, gradients)
    return (operands._replace(params=params, sides=sides, rows=None, live=None),)


_two_phase.defvjp(_two_phase_forward, _two_phase_backward, symbolic_zeros=True)


def _is_primal(x: object) -> bool:
    return isinstance(x, CustomVJPPrimal)
