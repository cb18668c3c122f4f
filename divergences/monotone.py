"""Inverse of an increasing function, for generators whose derivative has no closed-form inverse."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

_BRACKET = 1e6
_BISECTIONS = 90  # 2e6 / 2^90 is far below the spacing of float64 at any x that matters


def invert_increasing(function: Callable[[jax.Array], jax.Array], y: jax.Array) -> jax.Array:
    """Solves function(x) = y elementwise for an increasing function.

    Bisection on [−1e6, 1e6] finds x without derivatives and cannot be thrown off by overflow at the ends; one Newton
    step at the solution then polishes it and carries the derivatives with respect to y and to whatever `function`
    closes over (implicit function theorem, first order).

    Args:
        function: increasing, elementwise; ±inf at the ends is fine.
        y: values to invert, any shape.

    Returns:
        x of the shape of y; −inf or +inf where y is at or beyond the values at the ends of the bracket.
    """
    frozen = jax.lax.stop_gradient(y)

    def halve(_, bracket):
        low, high = bracket
        middle = 0.5 * (low + high)
        above = jax.lax.stop_gradient(function(middle)) > frozen
        return jnp.where(above, low, middle), jnp.where(above, middle, high)

    ends = jnp.full_like(frozen, -_BRACKET), jnp.full_like(frozen, _BRACKET)
    too_low = frozen <= jax.lax.stop_gradient(function(ends[0]))
    too_high = frozen >= jax.lax.stop_gradient(function(ends[1]))
    low, high = jax.lax.fori_loop(0, _BISECTIONS, halve, ends)
    inside = ~(too_low | too_high)
    x = jax.lax.stop_gradient(jnp.where(inside, 0.5 * (low + high), jnp.zeros_like(low)))
    target = jnp.where(inside, y, jax.lax.stop_gradient(function(x)))
    value, slope = jax.jvp(function, (x,), (jnp.ones_like(x),))
    polished = x - (value - target) / jax.lax.stop_gradient(jnp.where(slope > 0, slope, jnp.inf))
    return jnp.where(inside, polished, jnp.where(too_low, -jnp.inf, jnp.inf))
