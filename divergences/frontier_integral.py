"""The frontier integral: the area under the divergence frontier of precision and recall, in closed form."""

from __future__ import annotations

import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences.base import divergence
from divax.divergences.f_divergence import AbstractFDivergence, Limits
from divax.divergences.monotone import invert_increasing
from divax.divergences.numerics import expm1_excess, exprel
from divax.divergences.rows import Pair

# (sinh x − x)·6/x³ = Σ 6·x^{2k}/(2k + 3)!: at |x| = 2 the first term left out is 6·4^13/29! = 5e-23.
_SERIES_BELOW = 2.0
_SINH_TERMS = 13
# Σ_k (2^{k−1} − 2)·x^{k−3}/k!, k ≥ 3: at |x| = 1 the first term left out is 2^23/24! = 1e-17.
_SLOPE_TERMS = 24


def _sinh_excess(x: jax.Array) -> jax.Array:
    """(sinh x − x)/x³ for |x| < 2."""
    square, series = x * x, jnp.zeros_like(x)
    for k in reversed(range(_SINH_TERMS)):
        series = series * square + 1.0 / math.factorial(2 * k + 3)
    return series


def _slope(x: jax.Array) -> jax.Array:
    """f′ at u = e^x, ½ − (u − 1 − x)/(u − 1)²; the numerator of the difference starts at x³/3."""
    small = jnp.abs(x) < 1
    near, series = jnp.where(small, x, 0), jnp.zeros_like(x)
    for k in reversed(range(3, _SLOPE_TERMS)):
        series = series * near + (2.0 ** (k - 1) - 2) / math.factorial(k)
    far = jnp.where(small, 1, x)
    below = jnp.where(far < 0, far, -1)  # u < 1
    above = jnp.exp(-jnp.where(far > 0, far, 1))  # 1/u for u > 1
    far_below = 0.5 - expm1_excess(below) / jnp.expm1(below) ** 2
    log_u = jnp.where(far > 0, far, 1)
    far_above = 0.5 - above * (1 - above - log_u * above) / (1 - above) ** 2
    return jnp.where(
        small, near * series / exprel(near) ** 2, jnp.where(far > 0, far_above, far_below)
    )


@divergence
class FrontierIntegral(AbstractFDivergence):
    """Frontier integral, 2·∫₀¹ [λ·KL(p‖r_λ) + (1 − λ)·KL(q‖r_λ)] dλ with r_λ = λ·p + (1 − λ)·q, in [0, 1].

    Generator f(u) = (u + 1)/2 − u·log u/(u − 1), that is Σ √(p·q)·(cosh h − h/sinh h) with h = ½·log(p/q); curvature ⅓.
    Symmetric; between 4/3·JS and JS/log 2. The summand is a series near p = q, where the direct formula loses every digit.

    Called with logits `[..., V]`, returns `[...]`, float32, finite for any supports. Masking as in
    `AbstractDivergence.__call__`. Limits: f(0) = f′(∞) = ½.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> target, model = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
        >>> round(float(dv.FrontierIntegral()(target, model)), 6)
        0.045229

    Source: L. Liu et al., "Divergence Frontiers for Generative Models: Sample Complexity, Quantization Effects, and
    Frontier Integrals", arXiv:2106.07898, def. 2 and prop. 3.
    """

    spec_name = "frontier_integral"
    formula = "2 ∫ [λ KL(p‖r) + (1−λ) KL(q‖r)] dλ, r = λ p + (1−λ) q"
    symmetric: ClassVar[bool] = True

    def summand(self, pair: Pair) -> jax.Array:
        """½√(p·q)·(sinh d − d)/sinh(d/2), d = log u; far from 0 it is ½(p + q) − q·d/(1 − e^{−d}) and cancels little."""
        small = jnp.abs(pair.log_u) < _SERIES_BELOW
        near = jnp.where(small, pair.log_u, 0)
        half = 0.5 * near
        # sinh h = e^{−h}·h·exprel(2h).
        over_sinh = jnp.exp(half) / exprel(near)
        root = jnp.exp(pair.log_power(0.5))
        close = root * near * near * _sinh_excess(near) * over_sinh
        far = jnp.where(small, 1, pair.log_u)
        larger = jnp.where(far > 0, pair.q, pair.p) / exprel(-jnp.abs(far))
        return jnp.where(small, close, 0.5 * (pair.p + pair.q) - larger)

    def target_slope(self, pair: Pair) -> jax.Array:
        """p·f′(u)."""
        return pair.p * _slope(pair.log_u)

    def model_slope(self, pair: Pair) -> jax.Array:
        """q·f′(1/u), by symmetry."""
        return self.target_slope(pair.swap())

    def weight(self, s: ArrayLike) -> jax.Array:
        """√u·(sinh x − x)/(4·sinh³(x/2)) at x = log u = −s."""
        x = -jnp.asarray(s)
        small = jnp.abs(x) < 1
        near = jnp.where(small, x, 0)
        # x³/(4·sinh³(x/2)) = 2·e^{3x/2}/exprel(x)³.
        close = 2 * jnp.exp(2 * near) * _sinh_excess(near) / exprel(near) ** 3
        far = jnp.where(small, 1, jnp.abs(x))
        v = jnp.exp(-far)
        tail = (1 - v * v - 2 * far * v) / (1 - v) ** 3
        return jnp.where(small, close, tail * jnp.exp(jnp.where(small, 0, jnp.minimum(x, 0))))

    def log_df_inverse(self, y: ArrayLike) -> jax.Array:
        """Numerical."""
        return invert_increasing(_slope, jnp.asarray(y))

    def link_inverse(self, score: ArrayLike) -> jax.Array:
        """The same root, by symmetry."""
        return self.log_df_inverse(score)

    @property
    def limits(self) -> Limits:
        """Finite on every mismatch; the link is unbounded below."""
        return Limits(0.5, 0.5, -math.inf, -math.inf)

    def dual(self) -> FrontierIntegral:
        """Itself."""
        return self
