"""f-divergences mixed with weights that every row has of its own."""

from __future__ import annotations

import abc
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from divax.divergences.base import AbstractDivergence
from divax.divergences.f_divergence import AbstractFDivergence, _value_of, sided_gradients
from divax.divergences.logit_gradient import instantiate, is_zero
from divax.divergences.row_blocks import by_blocks, by_machine
from divax.divergences.row_wise import scaled
from divax.divergences.rows import split_rows


class AbstractRowMixture(AbstractDivergence):
    """Σ wᵢ(p, q)·Dᵢ(p‖q): f-divergences whose weights depend on the row, and pass no gradient to its logits.

    A member states its components and the weights. On a CPU the components share the probabilities of a few rows, and the
    gradients come from the pass of the values; elsewhere each is computed by itself. A component of weight 0 adds nothing,
    even where it is infinite. Derivatives by hyper-parameters go through components and weights.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> @dv.divergence
        ... class Larger(dv.AbstractRowMixture):
        ...     spec_name, formula, infinite_at = "larger", "max(KL(p‖q), KL(q‖p))", dv.InfiniteAt(True, True)
        ...     components = (dv.ForwardKL(), dv.ReverseKL())
        ...     def row_weights(self, target, model, values):
        ...         return values[0] >= values[1], values[0] < values[1]
        >>> target, model = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
        >>> round(float(Larger()(target, model)), 6)  # KL(p‖q); the other is 0.130812
        0.143841
    """

    @property
    @abc.abstractmethod
    def components(self) -> tuple[AbstractFDivergence, ...]:
        """The divergences."""

    @abc.abstractmethod
    def row_weights(
        self, target: jax.Array, model: jax.Array, values: Sequence[jax.Array]
    ) -> tuple[jax.Array, ...]:
        """Of each component, `[...]`, from logits `[..., V]` and the components' values `[...]`."""

    def rows(self, target: jax.Array, model: jax.Array) -> jax.Array:
        """The mixture, with derivatives of every order and mode."""
        return _rows(self, target, model)


@jax.custom_jvp
def _rows(div: AbstractRowMixture, target: jax.Array, model: jax.Array) -> jax.Array:
    here = functools.partial(by_blocks, _value, div)
    return by_machine(here, functools.partial(_by_components, div), div, target, model)


@functools.partial(_rows.defjvp, symbolic_zeros=True)
def _rows_jvp(primals, tangents):
    div, target, model = primals
    moving = tuple(not isinstance(dot, SymbolicZero) for dot in tangents[1:])
    dots = [dot for dot, moves in zip(tangents[1:], moving, strict=True) if moves]

    def here(target, model, *dots):
        both = functools.partial(_value_and_gradients, moving)
        value, gradients = by_blocks(both, div, target, model)
        terms = [jnp.sum(g * dot, -1) for g, dot in zip(gradients, dots, strict=True)]
        return value, sum(terms, start=jnp.zeros_like(value))

    def elsewhere(target, model, *dots):
        of_moving, sides = _of_moving(moving, div, target, model)
        return jax.jvp(of_moving, sides, dots)

    leaves = jax.tree.leaves(tangents[0], is_leaf=is_zero)
    if all(isinstance(dot, SymbolicZero) for dot in leaves):
        return by_machine(here, elsewhere, div, target, model, *dots)
    value, tangent = here(target, model, *dots)
    div_dot = jax.tree.map(instantiate, tangents[0], is_leaf=is_zero)
    by_parameters = functools.partial(_parameter_tangent, div_dot)
    return value, tangent + by_blocks(by_parameters, div, target, model)


def _mixed(div: AbstractRowMixture, target, model, values: Sequence[jax.Array]):
    """Σ weight·value, and the weights."""
    held = jax.lax.stop_gradient((target, model, tuple(values)))
    weights = [jnp.asarray(w, values[0].dtype) for w in div.row_weights(*held)]
    terms = [jnp.where(w == 0, 0, scaled(w, v)) for w, v in zip(weights, values, strict=True)]
    return sum(terms[1:], start=terms[0]), weights


def _by_components(div: AbstractRowMixture, target: jax.Array, model: jax.Array) -> jax.Array:
    return _mixed(div, target, model, [one.rows(target, model) for one in div.components])[0]


def _value(div: AbstractRowMixture, target: jax.Array, model: jax.Array, *, full: bool):
    rows = split_rows(target, model, full=full)
    return _mixed(div, target, model, [_value_of(one, rows, full) for one in div.components])[0]


def _value_and_gradients(moving, div, target, model, *, full):
    """Of each row; gradients by the logits of the sides that move, from the same exponentials."""
    rows = split_rows(target, model, full=full)
    value, weights = _mixed(
        div, target, model, [_value_of(one, rows, full) for one in div.components]
    )
    gradients: list[Any] = [0.0, 0.0]
    for weight, one in zip(weights, div.components, strict=True):
        for side, gradient in enumerate(sided_gradients(one, moving, rows, full)):
            if gradient is not None:
                gradients[side] += weight[..., None] * gradient
    return value, [g for g, moves in zip(gradients, moving, strict=True) if moves]


def _of_moving(moving, div, target, model):
    """The divergence as a function of the sides that move, and these."""
    both = (target, model)

    def of_moving(*sides):
        rest = iter(sides)
        return _by_components(
            div, *(next(rest) if m else x for x, m in zip(both, moving, strict=True))
        )

    return of_moving, tuple(x for x, m in zip(both, moving, strict=True) if m)


def _parameter_tangent(div_dot, div, target, model, *, full):
    del full  # Every component finds it out.
    return jax.jvp(lambda d: _by_components(d, target, model), (div,), (div_dot,))[1]
