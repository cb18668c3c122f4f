"""A full f-divergence from nothing but a convex function."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from divax.divergences.algebra import FDual
from divax.divergences.base import divergence
from divax.divergences.f_divergence import AbstractFDivergence, Limits
from divax.divergences.monotone import invert_increasing
from divax.divergences.numerics import excess_over_square, exprel
from divax.divergences.rows import Pair, pair_at

# Near u = 1 the generator is replaced by its Taylor polynomial in u − 1 to this order. At |u − 1| = 0.03 the first term
# left out is about 0.03^6 of the leading one, while f(u) − f(1) − f′(1)(u − 1) keeps 1e-4 relative in float32.
_ORDER = 7
_SERIES_BELOW = 0.03
# f is evaluated at u and 1/u up to e^28, whose cube is inside float32; beyond, f(u)/u is continued by its tangent in log u.
_LOG_U_MAX = 28.0


def from_generator(
    f: Callable[[jax.Array], jax.Array],
    *,
    name: str,
    f_at_zero: float | None = None,
    slope_at_infinity: float | None = None,
    smooth: bool = True,
) -> AbstractFDivergence:
    """An f-divergence Σ q·f(p/q) from its generator alone, with every part of the contract.

    The generator is brought to standard form, f(u) − f(1) − f′(1)(u − 1), which changes no divergence of normalised
    distributions. Derivatives come from autodiff, cancellation near u = 1 from a Taylor expansion made by nested
    autodiff, the inverses from bisection with implicit differentiation.

    Args:
        f: convex, JAX-traceable, elementwise on u > 0 for arrays of any shape, without overflow for u from e^−28 to
            e^28; beyond, where one side is a trillion times likelier, values follow its tangent in log u.
        name: a label for tables and messages.
        f_at_zero: lim f(u) as u → 0 in *your* normalisation, possibly `math.inf`; estimated from f when not given.
        slope_at_infinity: lim f(u)/u as u → ∞ in your normalisation; estimated when not given.
        smooth: False if f has a kink at u = 1.

    Returns:
        A divergence whose gradients, link, conjugate, inverses, limits and flags all work.

    Raises:
        ValueError: f is not finite at 1, is not convex there, or is not elementwise.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> mine = dv.from_generator(lambda u: u * jnp.log(u), name="mine")
        >>> target, model = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
        >>> round(float(mine(target, model)), 6), mine.slope_at_infinity
        (0.143841, inf)

    Source: I. Csiszár, P. Shields, "Information Theory and Statistics: A Tutorial" (2004), §4.
    """
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        if jnp.shape(f(jnp.ones((2, 3)))) != (2, 3):
            raise ValueError(
                f"{name}: the generator must be elementwise, array in and array of that shape out"
            )
        taylor = _taylor(f)
        if not np.all(np.isfinite(taylor)):
            raise ValueError(
                f"{name}: the generator or a derivative is not finite at u = 1: {taylor}"
            )
        if taylor[2] < 0:
            raise ValueError(f"{name}: f''(1) = {2 * taylor[2]:g} < 0, the generator is not convex")
        constant, slope = float(taylor[0]), float(taylor[1])
        zero = _limit(f, -20) if f_at_zero is None else f_at_zero
        infinity = (
            _limit(lambda u: f(u) / u, +20) if slope_at_infinity is None else slope_at_infinity
        )
        df_zero = _limit(_derivative(f), -20)
        g = (
            (lambda u: _integrated_weight(f, -jnp.log(u)))
            if smooth
            else (lambda u: f(u) - u * _derivative(f)(u))
        )
        floor = _limit(g, +6) if smooth else _limit(g, +6) - constant + slope
    standard = Limits(
        f_at_zero=zero - constant + slope,
        slope_at_infinity=infinity - slope,
        df_at_zero=df_zero - slope,
        link_floor=floor,
    )
    return Generator(
        function=f,
        label=name,
        taylor=(0.0, 0.0, *map(float, taylor[2:])),
        at_one=(constant, slope),
        edge=standard,
        smooth=smooth,
    )


@divergence
class Generator(AbstractFDivergence):
    """An f-divergence made by `from_generator`, which says what it promises.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> mine = dv.from_generator(lambda u: (jnp.sqrt(u) - 1) ** 2, name="mine")
        >>> mine.name, bool(mine.admissible), bool(mine.bounded)
        ('mine', True, True)
    """

    spec_name = "generator"
    formula = "Σ q f(p/q)"

    known_exceptions: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("limits", "one_sided_tokens"), "f itself is asked for u from e^−28 to e^28 only"
    )

    function: Callable[[jax.Array], jax.Array] = dataclasses.field(metadata={"static": True})
    label: str = dataclasses.field(metadata={"static": True})
    taylor: tuple[float, ...] = dataclasses.field(metadata={"static": True})
    at_one: tuple[float, float] = dataclasses.field(metadata={"static": True})
    edge: Limits = dataclasses.field(metadata={"static": True})
    smooth: bool = dataclasses.field(default=True, metadata={"static": True})  # type: ignore[misc]

    def summand(self, pair: Pair) -> jax.Array:
        """q·f(u), by the Taylor polynomial near u = 1."""
        taylor = np.asarray(self.taylor[::-1])
        return self._by_regions(pair, pair.q, taylor, self._perspective)

    def target_slope(self, pair: Pair) -> jax.Array:
        """p·f′(u)."""
        d_taylor = np.polyder(np.asarray(self.taylor[::-1]))
        far = lambda pair, log_u: pair.p * self._standard(_bounded_exp(log_u))[1]  # noqa: E731
        # At u = 1 of a kink the subgradient is 0, as for total variation.
        slope = self._by_regions(pair, pair.p, d_taylor, far)
        return slope if self.smooth else jnp.where(pair.log_u == 0, 0, slope)

    def model_slope(self, pair: Pair) -> jax.Array:
        """q·(f(u) − u·f′(u))."""
        taylor = np.asarray(self.taylor[::-1])
        g_taylor = np.polysub(taylor, np.polymul(np.polyder(taylor), [1.0, 1.0]))

        def far(pair: Pair, log_u: jax.Array) -> jax.Array:
            by_target = pair.p * self._standard(_bounded_exp(log_u))[1]
            return self._perspective(pair, log_u) - by_target

        slope = self._by_regions(pair, pair.q, g_taylor, far)
        return slope if self.smooth else jnp.where(pair.log_u == 0, 0, slope)

    def _by_regions(
        self,
        pair: Pair,
        mass: jax.Array,
        taylor: np.ndarray,
        far: Callable[[Pair, jax.Array], jax.Array],
    ) -> jax.Array:
        """Mass times a polynomial in u − 1 near u = 1, and what `far` makes of the pair elsewhere."""
        if not self.smooth:
            return far(pair, pair.log_u)
        near = jnp.abs(pair.log_u) < _SERIES_BELOW
        x = jnp.where(near, pair.log_u, jnp.zeros_like(pair.log_u))
        x = x + x * x * excess_over_square(x)
        elsewhere = far(pair, jnp.where(near, jnp.ones_like(pair.log_u), pair.log_u))
        return jnp.where(near, mass * _polynomial(taylor, x), elsewhere)

    def _standard(self, u: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The generator in standard form and its derivative."""
        constant, slope = self.at_one
        value, derivative = jax.jvp(self.function, (u,), (jnp.ones_like(u),))
        return value - constant - slope * (u - 1), derivative - slope

    def _perspective(self, pair: Pair, log_u: jax.Array) -> jax.Array:
        """q·f(p/q) away from u = 1, for large u as p·f(u)/u: q may underflow while p does not."""
        u = _bounded_exp(log_u)
        value, derivative = self._standard(u)
        if not math.isinf(self.edge.slope_at_infinity):
            # Then p·f(u)/u is negligible where q underflows, unless u is out of bounds.
            mass = jnp.where(log_u > _LOG_U_MAX, pair.p * math.exp(-_LOG_U_MAX), pair.q)
            return mass * value
        above, rate = log_u > 0, derivative - value / u  # d(f/u)/d log u
        further = jnp.maximum(log_u - _LOG_U_MAX, 0)
        scaled = jnp.where(above, pair.p / u, pair.q) * value
        return scaled + jnp.where(above, pair.p * rate * further, 0)

    def link(self, s: ArrayLike) -> jax.Array:
        """∫₀ˢ weight, by quadrature: f(u) − u·f′(u) loses all its digits to cancellation for large u."""
        if not self.smooth:
            return super().link(s)
        s = jnp.asarray(s)
        bounded = jnp.clip(s, _lowest_s(s.dtype), _LOG_U_MAX)
        growth = self._growth(s.dtype)
        tail = (
            self.weight(bounded)
            * (s - bounded)
            * exprel(jnp.where(s < bounded, growth * (s - bounded), 0))
        )
        ends = jnp.where(s > 0, self.edge.f_at_zero, self.edge.link_floor)
        return jnp.where(jnp.isinf(s), ends, _integrated_weight(self.function, bounded) + tail)

    def weight(self, s: ArrayLike) -> jax.Array:
        """u²f″(u) at u = e^{−s}, continued as the power of u that it is turning into where autodiff of f loses f″."""
        s = jnp.asarray(s)
        lowest = _lowest_s(s.dtype)
        inside = _weight(self.function, jnp.clip(s, lowest, _LOG_U_MAX))
        return inside * jnp.exp(jnp.where(s < lowest, self._growth(s.dtype) * (s - lowest), 0))

    def _growth(self, dtype: Any) -> jax.Array:
        """D log weight/ds at the lowest s, over one unit."""
        at = jnp.asarray([_lowest_s(dtype), _lowest_s(dtype) + 1.0], dtype)
        low, high = jnp.log(jnp.maximum(_weight(self.function, at), jnp.finfo(dtype).tiny))
        return high - low

    def log_df_inverse(self, y: ArrayLike) -> jax.Array:
        """Numerical."""
        y = jnp.asarray(y)
        return invert_increasing(lambda x: self.target_slope(pair_at(jnp.zeros_like(x), -x)), y)

    def link_inverse(self, score: ArrayLike) -> jax.Array:
        """Numerical."""
        score = jnp.asarray(score)
        return invert_increasing(self.link, score)

    @property
    def limits(self) -> Limits:
        """Given by the user, or extrapolated from f at powers of e."""
        return self.edge

    @property
    def name(self) -> str:
        """The user's label."""
        return self.label

    def dual(self) -> FDual:
        """u·f(1/u)."""
        return FDual(inner=self)


def _polynomial(coefficients: np.ndarray, x: jax.Array) -> jax.Array:
    """Highest power first; numbers, not an array, of which a compiler would keep one of x's size for each."""
    total = jnp.zeros_like(x)
    for coefficient in coefficients:
        total = total * x + float(coefficient)
    return total


def _bounded_exp(log_u: jax.Array) -> jax.Array:
    """U, where f can be asked for it."""
    return jnp.exp(jnp.clip(log_u, -_LOG_U_MAX, _LOG_U_MAX))


def _derivative(f: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    return lambda u: jax.jvp(f, (u,), (jnp.ones_like(u),))[1]


def _weight(f: Callable[[jax.Array], jax.Array], s: jax.Array) -> jax.Array:
    u = jnp.exp(-s)
    return u * u * _derivative(_derivative(f))(u)


# Composite Gauss–Legendre: 8 panels of 16 nodes integrate e^x over a panel of width 10 to 1e-12 relative.
_PANELS = 8
_NODES, _NODE_WEIGHTS = np.polynomial.legendre.leggauss(16)
_FRACTIONS = ((np.arange(_PANELS)[:, None] + 0.5 * (_NODES + 1)) / _PANELS).ravel()
_FRACTION_WEIGHTS = np.tile(0.5 * _NODE_WEIGHTS / _PANELS, _PANELS)


def _integrated_weight(f: Callable[[jax.Array], jax.Array], s: jax.Array) -> jax.Array:
    """∫₀ˢ u²f″(u) ds at u = e^{−s}, which is g(e^{−s}) = f(u) − u·f′(u) in standard form."""
    leading = (1,) * s.ndim
    points = s[..., None] * jnp.asarray(_FRACTIONS, s.dtype).reshape((*leading, -1))
    values = _weight(f, points) * jnp.asarray(_FRACTION_WEIGHTS, s.dtype).reshape((*leading, -1))
    return s * jnp.sum(values, -1)


def _taylor(f: Callable[[jax.Array], jax.Array]) -> np.ndarray:
    """Coefficients of f in powers of u − 1, lowest first."""
    coefficients, derivative = [], f
    for k in range(_ORDER):
        coefficients.append(float(derivative(jnp.asarray(1.0))) / math.factorial(k))
        derivative = _derivative(derivative)
    return np.asarray(coefficients)


def _lowest_s(dtype: Any) -> float:
    """Where to stop trusting u²f″(u): differences of order one inside f cost f″ a factor of u in digits."""
    return -14.0 if dtype == jnp.float64 else -6.0


def _limit(f: Callable[[jax.Array], jax.Array], step: float) -> float:
    """Limit of f as log u → ±∞, from three points: increments that shrink tenfold converge, others diverge."""
    a, b, c = (float(f(jnp.exp(jnp.asarray(step * k)))) for k in (1.0, 2.0, 3.0))
    if abs(c - b) <= 1e-9 * max(1.0, abs(c)):
        return c
    if not math.isfinite(c) or abs(c - b) > 0.1 * abs(b - a):
        return math.copysign(math.inf, c - b)
    return c - (c - b) ** 2 / ((c - b) - (b - a))  # Aitken's extrapolation
