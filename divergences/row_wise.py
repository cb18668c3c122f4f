"""What a divergence outside the f-family states: its value and its two slopes, once; derivatives follow in closed form."""

from __future__ import annotations

import abc
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from divax.divergences.base import AbstractDivergence
from divax.divergences.logit_gradient import bounded, centred, instantiate, is_zero
from divax.divergences.numerics import Scalar, is_traced
from divax.divergences.row_blocks import by_blocks, by_machine
from divax.divergences.rows import Rows, split_rows


class AbstractRowDivergence(AbstractDivergence):
    """A divergence of two rows of probabilities that is no sum of q·f(p/q).

    A member states three things about a pair of rows split by support: its value, and the derivatives of its value by
    log p and by log q (each up to a multiple of p and of q, which the softmax removes). The gradients with respect to the
    logits are then p·(slope/p − ⟨1, slope⟩) and likewise for q, in closed form, for `grad`, `jvp`, `vmap` and
    Hessian-vector products alike; derivatives by the hyper-parameters are those of the value.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> @dv.divergence
        ... class SquaredDistance(dv.AbstractRowDivergence):
        ...     spec_name, formula, infinite_at = "squared_distance", "Σ (p − q)²", dv.InfiniteAt(False, False)
        ...     def value(self, rows):
        ...         return jnp.sum((rows.p - rows.q) ** 2, -1)
        ...     def slopes(self, rows):
        ...         return 2 * rows.p * (rows.p - rows.q), 2 * rows.q * (rows.q - rows.p)
        >>> target, model = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
        >>> jax.grad(SquaredDistance(), argnums=1)(target, model).round(6).tolist()
        [-0.1875, 0.1875]
    """

    @abc.abstractmethod
    def value(self, rows: Rows) -> jax.Array:
        """The divergence of each row, `[...]`, at least 0 and exactly 0 for equal rows."""

    @abc.abstractmethod
    def slopes(self, rows: Rows) -> tuple[jax.Array, jax.Array]:
        """∂value/∂log p and ∂value/∂log q, `[..., V]` each; finite, also in rows whose value is +inf."""

    @property
    def curvature(self) -> Any:
        """The c in T²·D(softmax(t/T), softmax(s/T)) → c/2 · Var(t − s), T → ∞; None if it depends on the vocabulary."""
        return None

    def rows(self, target: jax.Array, model: jax.Array) -> jax.Array:
        """The value, with closed-form derivatives of every order and mode."""
        return _rows(self, target, model)

    def normalized(self) -> AbstractDivergence:
        """This divergence divided by its curvature."""
        if self.curvature is None or (not is_traced(self.curvature) and not self.curvature > 0):
            return super().normalized()
        return (1 / self.curvature) * self


@jax.custom_jvp
def _rows(div: AbstractRowDivergence, target: jax.Array, model: jax.Array) -> jax.Array:
    from divax.divergences.row_reading import reduced_rows

    here = functools.partial(by_blocks, _value, div)
    return by_machine(here, functools.partial(reduced_rows, div), div, target, model)


def _value(div, target, model, *, full):
    return div.value(split_rows(target, model, full=full))


@functools.partial(_rows.defjvp, symbolic_zeros=True)
def _rows_jvp(primals, tangents):
    div, target, model = primals
    moving = [not isinstance(dot, SymbolicZero) for dot in tangents[1:]]
    dots = [dot for dot, moves in zip(tangents[1:], moving, strict=True) if moves]
    div_dot = None
    if not all(
        isinstance(dot, SymbolicZero) for dot in jax.tree.leaves(tangents[0], is_leaf=is_zero)
    ):
        div_dot = jax.tree.map(instantiate, tangents[0], is_leaf=is_zero)
    tangent = functools.partial(_tangent, div_dot, moving)
    if div_dot is not None:
        return _rows(div, target, model), by_blocks(tangent, div, target, model, *dots)
    from divax.divergences.row_reading import reduced_rows_tangent

    def here(target, model, *dots):
        value = by_blocks(_value, div, target, model)
        return value, by_blocks(tangent, div, target, model, *dots)

    elsewhere = functools.partial(reduced_rows_tangent, moving, div)
    return by_machine(here, elsewhere, div, target, model, *dots)


def _tangent(div_dot, moving, div, target, model, *dots, full):
    """The derivative of each row; of the logits of the sides that move there is a dot each."""
    rows, dots = split_rows(target, model, full=full), list(dots)
    tangent = jnp.zeros(target.shape[:-1], target.dtype)
    by_target, by_model = (bounded(slope) for slope in div.slopes(rows))
    if moving[0]:
        tangent += jnp.sum(centred(by_target, rows.p) * dots.pop(0), -1)
    if moving[1]:
        tangent += jnp.sum(centred(by_model, rows.q) * dots.pop(0), -1)
    if div_dot is not None:
        value, by_parameters = jax.jvp(lambda d: d.value(rows), (div,), (div_dot,))
        # Where the value is +inf it stays so for nearby parameters, and ∞ − ∞ must not leave a NaN.
        tangent += jnp.where(jnp.isfinite(value), by_parameters, 0)
    return tangent


def log_sum(exponents: jax.Array) -> jax.Array:
    """Log Σ e^x over the last axis, kept, safe to differentiate; −inf for a row of nothing but −inf."""
    top = jax.lax.stop_gradient(jnp.max(exponents, -1, keepdims=True))
    shift = jnp.where(jnp.isfinite(top), top, 0)
    possible = exponents > -jnp.inf
    centred = jnp.where(possible, exponents, shift) - shift
    total = jnp.sum(jnp.where(possible, jnp.exp(centred), 0), -1, keepdims=True)
    return jnp.where(total > 0, jnp.log(jnp.where(total > 0, total, 1)) + shift, -jnp.inf)


def scaled(factor: Scalar, value: jax.Array) -> jax.Array:
    """factor·value for a factor ≥ 0, +inf where the value is.

    Gradients of an infinite value, those of its finite part, have the factor too; by the factor it has none, as that would
    be 0·∞.
    """
    finite, held = jnp.isfinite(value), jax.lax.stop_gradient(jnp.asarray(factor, value.dtype))
    product = jnp.where(finite | (held > 0), held, 1) * value
    return product + (factor - held) * jnp.where(finite, value, 0)
