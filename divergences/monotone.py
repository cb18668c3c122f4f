"""Roots and inverses of increasing functions, for generators whose derivative has no closed-form inverse."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

_BRACKET = 1e6
# Bisection alone would take 75 steps from the widest bracket to the spacing of float64; interpolation takes about ten.
_MOST_STEPS = 150


def invert_increasing(function: Callable[[jax.Array], jax.Array], y: jax.Array) -> jax.Array:
    """Solves function(x) = y elementwise for an increasing function.

    The root is bracketed in [−1e6, 1e6], found without derivatives and cannot be thrown off by overflow at the ends;
    both axes are searched on a logarithmic scale, on which exponentials are lines. One Newton step at the solution then
    polishes it and carries the derivatives with respect to y and to whatever `function` closes over (implicit function
    theorem, first order).

    Args:
        function: increasing, elementwise; ±inf at the ends is fine.
        y: values to invert, any shape.

    Returns:
        x of the shape of y; −inf or +inf where y is at or beyond the values at the ends of the bracket.
    """
    frozen = jax.lax.stop_gradient(y)
    aim = _shrink(frozen)
    ends = jnp.full_like(frozen, -_BRACKET), jnp.full_like(frozen, _BRACKET)
    too_low = frozen <= jax.lax.stop_gradient(function(ends[0]))
    too_high = frozen >= jax.lax.stop_gradient(function(ends[1]))
    inside = ~(too_low | too_high)

    def excess(at):
        return jnp.where(inside, _shrink(jax.lax.stop_gradient(function(_stretch(at)))) - aim, 0)

    found = _stretch(increasing_root(excess, _shrink(ends[0]), _shrink(ends[1])))
    x = jax.lax.stop_gradient(jnp.where(inside, found, 0))
    target = jnp.where(inside, y, jax.lax.stop_gradient(function(x)))
    value, slope = jax.jvp(function, (x,), (jnp.ones_like(x),))
    polished = x - (value - target) / jax.lax.stop_gradient(jnp.where(slope > 0, slope, jnp.inf))
    return jnp.where(inside, polished, jnp.where(too_low, -jnp.inf, jnp.inf))


class _Bracket(NamedTuple):
    """The newest point, the one across the root from it, and the one before, with the function there."""

    x: jax.Array
    f: jax.Array
    x_across: jax.Array
    f_across: jax.Array
    x_before: jax.Array
    f_before: jax.Array
    # Of the way to the point across, where the function is asked for next; zero when found.
    share: jax.Array
    steps: jax.Array


def increasing_root(
    function: Callable[[jax.Array], jax.Array], low: jax.Array, high: jax.Array
) -> jax.Array:
    """Where an increasing function is zero between low ≤ high, elementwise, to a few units of the last place.

    Chandrupatla's method: inverse quadratic interpolation where the last three points promise that it converges, and
    bisection elsewhere, so also wherever the function is infinite. An end is returned where the root lies beyond it.
    Not differentiated: pass what `stop_gradient` returns.

    Source: T. R. Chandrupatla, "A new hybrid quadratic/bisection algorithm for finding the zero of a nonlinear function
    without using derivatives" (Advances in Engineering Software 28, 1997), §2.
    """
    f_low, f_high = function(low), function(high)
    start = _Bracket(
        x=low,
        f=f_low,
        x_across=high,
        f_across=f_high,
        x_before=high,
        f_before=f_high,
        share=jnp.where((f_low < 0) & (f_high > 0), 0.5, jnp.zeros_like(low)),
        steps=jnp.int32(0),
    )

    def unfinished(bracket):
        return (bracket.steps < _MOST_STEPS) & jnp.any(bracket.share > 0)

    end = jax.lax.while_loop(unfinished, lambda bracket: _step(function, bracket), start)
    root = jnp.where(jnp.abs(end.f) < jnp.abs(end.f_across), end.x, end.x_across)
    return jnp.where(f_low >= 0, low, jnp.where(f_high <= 0, high, root))


def _step(function, old: _Bracket) -> _Bracket:
    x = old.x + old.share * (old.x_across - old.x)
    f = function(x)
    same = (f > 0) == (old.f > 0)
    new = old._replace(
        x=x,
        f=f,
        x_across=jnp.where(same, old.x_across, old.x),
        f_across=jnp.where(same, old.f_across, old.f),
        x_before=jnp.where(same, old.x, old.x_across),
        f_before=jnp.where(same, old.f, old.f_across),
        steps=old.steps + 1,
    )
    best = jnp.where(jnp.abs(new.f) < jnp.abs(new.f_across), new.x, new.x_across)
    info = jnp.finfo(x.dtype)
    least = (2 * info.eps * jnp.abs(best) + info.tiny) / jnp.abs(new.x_across - new.x)
    found = (least > 0.5) | (new.f == 0) | (new.f_across == 0)
    share = jnp.where(found, 0, jnp.clip(_interpolated(new), least, 1 - least))
    return new._replace(share=share)


def _interpolated(b: _Bracket) -> jax.Array:
    """The share of the way by the parabola through three points, if it is monotone between them; else one half."""
    xi = (b.x - b.x_across) / (b.x_before - b.x_across)
    phi = (b.f - b.f_across) / (b.f_before - b.f_across)
    monotone = (phi**2 < xi) & ((1 - phi) ** 2 < 1 - xi)  # false where anything is infinite
    first = b.f / (b.f_across - b.f) * b.f_before / (b.f_across - b.f_before)
    ratio = (b.x_before - b.x) / (b.x_across - b.x)
    second = ratio * b.f / (b.f_before - b.f) * b.f_across / (b.f_before - b.f_across)
    return jnp.where(monotone, first + second, 0.5)


def _shrink(x: jax.Array) -> jax.Array:
    return jnp.sign(x) * jnp.log1p(jnp.abs(x))


def _stretch(x: jax.Array) -> jax.Array:
    return jnp.sign(x) * jnp.expm1(jnp.abs(x))
