"""The skewed χ² divergence: between Pearson's and Neyman's, bounded in between."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences.base import check_range, divergence
from divax.divergences.f_divergence import AbstractFDivergence, Limits
from divax.divergences.numerics import (
    Scalar,
    capped,
    choose,
    exprel,
    is_traced,
    log1p_or_minus_inf,
    log1prel,
    mixture_log_ratios,
)
from divax.divergences.rows import Pair


@divergence
class SkewChi2(AbstractFDivergence):
    """Skewed χ², Σ (p − q)²/m with m = a·p + (1 − a)·q: forward χ² at a = 0, reverse at 1, twice the triangular at ½.

    Generator f(u) = (u − 1)²/v with v = a·u + 1 − a; curvature 2. The skew a is the weight of the *target* in the
    mixture; it may be traced and may reach both ends. Inside (0, 1) it is bounded by 1/(a(1 − a)).

    Called with logits `[..., V]`, returns `[...]`, float32. Masking as in `AbstractDivergence.__call__`. Limits:
    f(0) = 1/(1 − a), f′(∞) = 1/a, +inf at the ends. A skew outside [0, 1] is a ValueError.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> target, model = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
        >>> [round(float(dv.SkewChi2(skew=skew)(target, model)), 6) for skew in (0.0, 0.5, 1.0)]
        [0.333333, 0.266667, 0.25]

    Source: L. Györfi, I. Vajda, "A Class of Modified Pearson and Neyman Statistics" (2001), eq. 4.
    """

    spec_name = "skew_chi2"
    formula = "Σ (p − q)²/(a p + (1−a) q)"

    skew: Scalar = 0.5

    def __post_init__(self):
        check_range(self, "skew", 0, 1, ends="closed")

    def summand(self, pair: Pair) -> jax.Array:
        """(larger mass)·(larger/m)·(1 − smaller/larger)²: nothing cancels or overflows before the product does."""
        log_pm, log_qm = mixture_log_ratios(self.skew, pair.log_u)
        above = pair.log_u > 0
        exponent = jnp.where(above, pair.log_p + log_pm, pair.log_q + log_qm)
        return jnp.exp(exponent) * jnp.expm1(jnp.where(above, -pair.log_u, pair.log_u)) ** 2

    def target_slope(self, pair: Pair) -> jax.Array:
        """p·δ·(1 + q/m) with δ = (p − q)/m."""
        log_pm, log_qm = mixture_log_ratios(self.skew, pair.log_u)
        above = pair.log_u > 0
        # |p·δ| is p·(p/m)·(1 − q/p) above and p·(q/m)·(1 − p/q) below.
        exponent = pair.log_p + jnp.where(above, log_pm, log_qm)
        gap = jnp.expm1(jnp.where(above, -pair.log_u, pair.log_u))
        size = jnp.exp(capped(exponent)) + jnp.exp(capped(exponent + log_qm))
        return jnp.where(above, -gap, gap) * size

    def model_slope(self, pair: Pair) -> jax.Array:
        """−q·δ·(1 + p/m)."""
        return SkewChi2(skew=1 - self.skew).target_slope(pair.swap())

    def weight(self, s: ArrayLike) -> jax.Array:
        """2·p²·q/m³ at p = e^{−s}, q = 1."""
        log_pm, log_qm = mixture_log_ratios(self.skew, -jnp.asarray(s))
        return 2 * jnp.exp(2 * log_pm + log_qm)

    def log_df_inverse(self, y: ArrayLike) -> jax.Array:
        """log(1 + ((1 − a·y)^{−½} − 1)/a), which at a = 0 is log(1 + y/2)."""
        y = jnp.asarray(y)
        inside = self.skew * y < 1
        safe = jnp.where(inside, y, 0)
        rate = 0.5 * log1prel(-self.skew * safe)
        value = log1p_or_minus_inf(safe * rate * exprel(self.skew * safe * rate))
        return jnp.where(inside, value, jnp.inf)

    def link_inverse(self, score: ArrayLike) -> jax.Array:
        """The inverse of the dual's derivative."""
        return SkewChi2(skew=1 - self.skew).log_df_inverse(score)

    @property
    def symmetric(self) -> bool:  # type: ignore[override]
        """Only at a = ½."""
        return not is_traced(self.skew) and bool(self.skew == 0.5)

    @property
    def limits(self) -> Limits:
        """Finite inside (0, 1)."""
        a, b = self.skew, 1 - self.skew
        return Limits(
            _over(1.0, b, math.inf),
            _over(1.0, a, math.inf),
            _over(-(1 + b), b * b, -math.inf),
            _over(-(1 + a), a * a, -math.inf),
        )

    def dual(self) -> SkewChi2:
        """The weight of the other side."""
        return SkewChi2(skew=1 - self.skew)


def _over(numerator, denominator, at_zero):
    positive = denominator > 0
    return choose(positive, numerator / choose(positive, denominator, 1.0), at_zero)
