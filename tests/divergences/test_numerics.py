"""The elementwise functions that nothing cancels in, against fifty digits."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from divax.divergences.numerics import _log1p_below_one, excess_over_square, expm1_excess

# Of x: function, derivative, where it holds.
KNOWN = {
    "excess_over_square": (
        excess_over_square,
        lambda x: (mpmath.expm1(x) - x) / x**2,
        lambda x: (x * mpmath.expm1(x) - 2 * (mpmath.expm1(x) - x)) / x**3,
        (-1, 1),
    ),
    "expm1_excess": (
        expm1_excess,
        lambda x: mpmath.expm1(x) - x,
        mpmath.expm1,
        (-40, 80),
    ),
    "log1p_below_one": (
        _log1p_below_one,
        mpmath.log1p,
        lambda x: 1 / (1 + x),
        (-0.5, 1),
    ),
}


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize(
    ("dtype", "values", "slopes"), [(np.float32, 3e-7, 1e-6), (float, 1e-15, 1e-14)]
)
def test_values_and_derivatives(name, dtype, values, slopes):
    """To a few units of the last place; derivatives of the polynomials lose a little at the ends."""
    function, value, slope, (low, high) = KNOWN[name]
    with jax.enable_x64(dtype is float), mpmath.workdps(50):
        ends = [low, high, -1e-6, 1e-6, -1, 1, -0.99999, 0.99999]
        x = np.concatenate([ends, np.random.default_rng(0).uniform(low, high, 400)])
        x = x[(x >= low) & (x <= high)].astype(dtype)
        found, rate = jax.vmap(jax.value_and_grad(function))(jnp.asarray(x))
        for oracle, got, tolerance in ((value, found, values), (slope, rate, slopes)):
            exact = np.array([float(oracle(mpmath.mpf(float(one)))) for one in x])
            np.testing.assert_allclose(got, exact, rtol=tolerance)
