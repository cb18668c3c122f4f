"""Cancellation-free elementary functions, each with the bound that justifies it.

Every function here is elementwise, accepts float32 or float64 (tracers included), never returns NaN for the arguments it
documents, and is safe to differentiate twice: the branch that is not selected is evaluated at a harmless argument
("double where"), because `0 * inf` in the cotangent of an unselected branch is NaN.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

Scalar = float | jax.Array
"""A hyper-parameter: a Python number, or a (possibly traced) rank-0 array."""

# Below this |x| the Taylor series is used. Of 19 terms the first one left out is 2/21! = 4e-20 of the leading one; above it
# expm1(x) − x amplifies the error of expm1 by less than 3, while at |x| = 0.3 it would do so by 7, and compilers' float32
# expm1 is only good to 6 units in the last place there.
_SERIES_BELOW = 1.0
_EXCESS = tuple(1 / math.factorial(k) for k in range(2, 21))
# In float32 eight coefficients do, where the series would take ten: the integral from 0 of the polynomial that meets the
# derivative in the seven Chebyshev nodes of [−1, 1]. It is off by 2e-8 of the value at most, a third of float32's rounding,
# and by 3e-7 of the derivative.
_EXCESS_FLOAT32 = (
    *(1 / 2, 1 / 6, 0.04166678924446434, 0.008333341667059005, 0.0013883991551739215),
    *(0.00019837273555413942, 2.545225821596403e-05, 2.812654628264601e-06),
)
# artanh(z)/z in powers of z² ≤ 1/9: its series, 1e-17 of which is left out, and five coefficients found likewise (at four
# nodes), off by 1e-8.
_ARTANH = tuple(1 / (2 * k + 1) for k in range(17))
_ARTANH_FLOAT32 = (
    *(1.0, 0.3333326482462693, 0.2000983050633645),
    *(0.13996404764373255, 0.14087328630716478),
)

# exp of this is finite in float32 with room for a factor of 10; larger arguments are treated in logarithms.
EXP_MAX = 85.0


def is_traced(*values: object) -> bool:
    """True when any of the values is a tracer, whose truth value Python cannot ask for."""
    return any(isinstance(value, jax.core.Tracer) for value in values)


def choose(condition, when_true, when_false):
    """`where` for hyper-parameters: NumPy for concrete numbers, so that flags stay Python-checkable inside `jit`."""
    if is_traced(condition, when_true, when_false):
        return jnp.where(condition, when_true, when_false)
    # A Python number, not a NumPy scalar: those are strongly typed and would widen float32 under x64.
    return np.where(condition, when_true, when_false).item()


def capped(exponent: jax.Array) -> jax.Array:
    """The exponent cut where e^x is about to overflow (85 in float32, 700 in double).

    For gradients: an infinite slope, cut only after the exponential, would have an infinite derivative times zero.
    """
    return jnp.minimum(exponent, 700.0 if exponent.dtype == jnp.float64 else EXP_MAX)


def excess_over_square(x: jax.Array) -> jax.Array:
    """(e^x − 1 − x)/x² for |x| < 1, by a polynomial: no exponential, and nothing cancels."""
    return _polynomial(_EXCESS if x.dtype == jnp.float64 else _EXCESS_FLOAT32, x)


def _polynomial(coefficients: tuple[float, ...], x: jax.Array) -> jax.Array:
    """That of the constant first, by Horner's rule."""
    total = jnp.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * x + coefficient
    return total


def expm1_excess(x: jax.Array) -> jax.Array:
    """e^x − 1 − x ≥ 0, to full relative accuracy; +inf where it overflows."""
    small = jnp.abs(x) < _SERIES_BELOW
    near = jnp.where(small, x, jnp.zeros_like(x))
    far = jnp.where(small, jnp.ones_like(x), x)
    return jnp.where(small, near * near * excess_over_square(near), jnp.expm1(far) - far)


def exprel(x: jax.Array) -> jax.Array:
    """(e^x − 1)/x, continuous at 0 where it is 1."""
    zero = x == 0
    safe = jnp.where(zero, jnp.ones_like(x), x)
    # 1 + x/2 and not 1 at the removable point, so that the derivative there is right as well.
    return jnp.where(zero, 1.0 + 0.5 * x, jnp.expm1(safe) / safe)


def log1prel(x: jax.Array) -> jax.Array:
    """log(1 + x)/x, continuous at 0 where it is 1; +inf at and below x = −1, where the logarithm diverges."""
    zero = x == 0
    inside = x > -1
    safe = jnp.where(zero | ~inside, jnp.ones_like(x), x)
    value = jnp.where(zero, 1.0 - 0.5 * x, jnp.log1p(safe) / safe)
    return jnp.where(inside, value, jnp.inf)


def log1p_or_minus_inf(x: jax.Array) -> jax.Array:
    """log(1 + x), and −inf (not NaN) for x ≤ −1."""
    inside = x > -1
    return jnp.where(inside, jnp.log1p(jnp.where(inside, x, jnp.zeros_like(x))), -jnp.inf)


def scaled_expm1(mass: jax.Array, log_scaled: jax.Array, rate: Scalar, x: jax.Array) -> jax.Array:
    """mass·(e^{rate·x} − 1)/rate, equal to mass·x at rate = 0, given log_scaled = log(mass·e^{rate·x}).

    The exponential is taken of the product's logarithm, so it overflows only if the product does: e^x alone leaves
    float32 at x = 88.7 while p·e^x may be far smaller than one.
    """
    y = rate * x
    near = jnp.abs(y) < _SERIES_BELOW
    d = jnp.where(near, y, jnp.zeros_like(y))
    by_series = mass * (d + d * d * excess_over_square(d))
    safe = jnp.where(near, jnp.zeros_like(y), log_scaled)
    scaled = jnp.where(near, by_series, jnp.exp(safe) - mass)
    zero = rate == 0
    # 1 + y/2 and not 1 at the removable point, so that the derivative there is right as well.
    return jnp.where(zero, mass * x * (1 + 0.5 * y), scaled / jnp.where(zero, 1, rate))


def _log1p_below_one(y: jax.Array) -> jax.Array:
    """log(1 + y) for −1/2 ≤ y ≤ 1, to full relative accuracy, as 2·artanh z with z = y/(2 + y), |z| ≤ 1/3.

    It takes a third of the time of a compiler's log1p, which is two logarithms.
    """
    z = y / (2 + y)
    return 2 * z * _polynomial(_ARTANH if y.dtype == jnp.float64 else _ARTANH_FLOAT32, z * z)


def difference(p: jax.Array, q: jax.Array, log_u: jax.Array) -> jax.Array:
    """P − q from log u = log(p/q), to full relative accuracy even where p ≈ q.

    For |log u| < 1 it is q·(u − 1), u − 1 = log u + (log u)²·S by series; beyond, one is e times the other or more, and
    their difference loses nothing. No exponential is taken besides those in p and q.
    """
    near = jnp.abs(log_u) < _SERIES_BELOW
    x = jnp.where(near, log_u, jnp.zeros_like(log_u))
    return jnp.where(near, q * (x + x * x * excess_over_square(x)), p - q)


def bregman(p: jax.Array, q: jax.Array, log_u: jax.Array) -> jax.Array:
    """p·log(p/q) − p + q ≥ 0, the summand of KL(p‖q), to full relative accuracy.

    The naive sum Σ p·log(p/q) has relative error 0.5 at V = 32768 for logits that differ by 1e-3; every summand here is
    non-negative and rounded once. For d = log u, |d| < 1, it is p·(e^{−d} − 1 + d) by series; beyond, the terms as they
    are cancel by less than a factor of (p·|d| + p + q)/summand < 7.
    """
    near = jnp.abs(log_u) < _SERIES_BELOW
    x = jnp.where(near, -log_u, jnp.zeros_like(log_u))
    return jnp.where(near, p * (x * x * excess_over_square(x)), (q - p) + p * log_u)


def mixture_log_ratios(weight: Scalar, log_u: jax.Array) -> tuple[jax.Array, jax.Array]:
    """log(p/m) and log(q/m) for m = weight·p + (1 − weight)·q, from log u = log(p/q).

    Let w = min(weight, 1 − weight) and x = ±log u, the log-ratio of the light component to the heavy one. Then
    log(m/heavy) = ℓ = log(1 + w(e^x − 1)), whose argument is at least 1/2, so nothing cancels, and
    log(light/m) = x − ℓ. Where w·e^x > 1 the light component dominates m; there log(m/light) =
    L = log(w + (1 − w)e^{−x}) is evaluated directly and ℓ = x + L. Both are accurate for every weight in [0, 1],
    ends included, so the weight may be a traced schedule.
    """
    heavy_is_p = weight > 0.5
    w = jnp.where(heavy_is_p, 1 - weight, weight).astype(log_u.dtype)
    x = jnp.where(heavy_is_p, -log_u, log_u)
    log_w = jnp.where(w > 0, jnp.log(jnp.where(w > 0, w, 1)), -1e9)
    dominated = log_w + x > 0
    # One exponential for both: e^x, or e^{−x}/w where the light component dominates.
    exponential = jnp.exp(capped(jnp.where(dominated, -x - log_w, x)))
    near = jnp.abs(x) < _SERIES_BELOW
    d = jnp.where(near, x, jnp.zeros_like(x))
    e_x_minus_one = jnp.where(near, d + d * d * excess_over_square(d), exponential - 1)
    # Where it does, log(w + (1 − w)e^{−x}) = log w + log(1 + y), at most log 3/4 (x > log 2 here): nothing cancels.
    y = jnp.where(dominated, (1 - w) * exponential, w * e_x_minus_one)
    log_1p = _log1p_below_one(y)
    log = log_w + log_1p
    heavy = -jnp.where(dominated, x + log, log_1p)
    light = jnp.where(dominated, -log, x - log_1p)
    return jnp.where(heavy_is_p, heavy, light), jnp.where(heavy_is_p, light, heavy)
