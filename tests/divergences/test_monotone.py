"""Roots and inverses of increasing functions: against closed forms, over hundreds of orders of magnitude."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divax.divergences import monotone

# Each with its inverse in NumPy: a line, powers of slope 0 and ∞ at the root, saturation, exponentials that overflow.
FUNCTIONS = {
    "line": (lambda x: 3 * x - 2, lambda y: (y + 2) / 3),
    "cubic": (lambda x: x**3, np.cbrt),
    "root": (jnp.cbrt, lambda y: y**3),
    "saturating": (jnp.tanh, np.arctanh),
    "exponential": (jnp.expm1, np.log1p),
    "two scales": (jnp.sinh, np.arcsinh),
    "logarithm": (
        lambda x: jnp.sign(x) * jnp.log1p(jnp.abs(x)),
        lambda y: np.sign(y) * np.expm1(abs(y)),
    ),
}
VALUES = np.array([-0.999, -0.5, -1e-3, -1e-9, 0.0, 1e-9, 1e-3, 0.5, 0.999])


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_inverses(name, dtype, x64):
    """At the spacing of the dtype, not of the bracket, which is two million wide: x or function(x) is right to it."""
    function, inverse = FUNCTIONS[name]
    values = VALUES.astype(dtype)
    x = monotone.invert_increasing(function, jnp.asarray(values))
    assert x.dtype == dtype
    close = {"rtol": 8 * np.finfo(dtype).eps, "atol": 1e-30}
    exact = inverse(values.astype(np.float64))
    right = np.isclose(x, exact, **close) | np.isclose(function(x), values, **close)
    assert right.all(), values[~right]


def test_beyond_the_ends():
    """What no argument reaches is infinite."""
    x = monotone.invert_increasing(jnp.tanh, jnp.array([-2.0, -1.0, 1.0, 2.0]))
    np.testing.assert_array_equal(x, [-np.inf, -np.inf, np.inf, np.inf])


def test_derivatives_by_what_the_function_closes_over(x64):
    """Of sinh(a x) = y: x = asinh(y)/a, reverse and forward."""

    def inverse(a, y):
        return monotone.invert_increasing(lambda x: jnp.sinh(a * x), y)

    y, a = np.array([-3.0, 0.1, 40.0]), 0.7
    for derivative in (jax.jacrev, jax.jacfwd):
        by_a, by_y = derivative(inverse, (0, 1))(a, y)
        np.testing.assert_allclose(by_a, -np.arcsinh(y) / a**2, rtol=1e-12)
        np.testing.assert_allclose(by_y, np.diag(1 / (a * np.hypot(1, y))), rtol=1e-12, atol=1e-15)


def test_roots_where_the_function_is_infinite_or_a_step(x64):
    """Bisection takes over; beyond an end, that end."""
    low, high = jnp.full(4, -10.0), jnp.full(4, 300.0)
    poles = jnp.array([0.0, 1e-3, 100.0, 299.0])
    wall = monotone.increasing_root(
        lambda x: jnp.where(x < poles, -jnp.inf, jnp.where(x > poles, jnp.inf, 0)), low, high
    )
    step = monotone.increasing_root(lambda x: jnp.where(x < poles, -1.0, 1.0), low, high)
    np.testing.assert_allclose(wall, poles, rtol=1e-14, atol=1e-40)
    np.testing.assert_allclose(step, poles, rtol=1e-14, atol=1e-40)
    ends = monotone.increasing_root(
        lambda x: x - jnp.array([-11.0, -10.0, 300.0, 301.0]), low, high
    )
    np.testing.assert_array_equal(ends, [-10, -10, 300, 300])


def test_how_often_the_function_is_asked():
    """A dozen times, not the eighty of bisection."""
    asked = []

    def function(x):
        jax.debug.callback(lambda _: asked.append(1), jnp.max(x))
        return jnp.expm1(x) - 3

    found = monotone.increasing_root(function, jnp.float32(-14), jnp.float32(14))
    jax.effects_barrier()
    np.testing.assert_allclose(found, np.log(4), rtol=1e-6)
    assert len(asked) <= 16
