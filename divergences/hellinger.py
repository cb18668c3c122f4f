"""The squared Hellinger distance."""

from __future__ import annotations

import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences.base import divergence
from divax.divergences.f_divergence import AbstractFDivergence, Limits
from divax.divergences.numerics import capped, log1p_or_minus_inf, scaled_expm1
from divax.divergences.rows import Pair


@divergence
class SquaredHellinger(AbstractFDivergence):
    """Squared Hellinger distance, H² = 1 − Σ √(p·q) = ½ Σ (√p − √q)², in [0, 1] (half of TFP's).

    Generator f(u) = ½(√u − 1)², curvature ¼; ¼ of `Alpha(alpha=0.5)`. Symmetric; its square root is a metric.

    Called with logits `[..., V]`, returns `[...]`, float32, finite for any supports. Masking as in
    `AbstractDivergence.__call__`. Limits: f(0) = f′(∞) = ½.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> target, model = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
        >>> round(float(dv.SquaredHellinger()(target, model)), 6)
        0.034074

    Source: E. Hellinger, "Neue Begründung der Theorie quadratischer Formen von unendlichvielen Veränderlichen" (1909);
    I. Csiszár, P. Shields, "Information Theory and Statistics: A Tutorial" (2004), §4.
    """

    spec_name = "squared_hellinger"
    formula = "1 − Σ √(p q)"
    symmetric: ClassVar[bool] = True

    def summand(self, pair: Pair) -> jax.Array:
        """½(√p − √q)²."""
        larger = jnp.where(pair.log_u > 0, pair.p, pair.q)
        return 0.5 * larger * jnp.expm1(-0.5 * jnp.abs(pair.log_u)) ** 2

    def target_slope(self, pair: Pair) -> jax.Array:
        """½(p − √(p·q))."""
        return 0.25 * scaled_expm1(pair.p, capped(pair.log_power(0.5)), -0.5, pair.log_u)

    def model_slope(self, pair: Pair) -> jax.Array:
        """½(q − √(p·q))."""
        return self.target_slope(pair.swap())

    def weight(self, s: ArrayLike) -> jax.Array:
        """¼e^{−s/2}."""
        return 0.25 * jnp.exp(-0.5 * jnp.asarray(s))

    def log_df_inverse(self, y: ArrayLike) -> jax.Array:
        """−2·log(1 − 2y)."""
        return -2 * log1p_or_minus_inf(-2 * jnp.asarray(y))

    def link_inverse(self, score: ArrayLike) -> jax.Array:
        """The same function, by symmetry."""
        return self.log_df_inverse(score)

    @property
    def limits(self) -> Limits:
        """Finite on every mismatch; the link is unbounded below."""
        return Limits(0.5, 0.5, -math.inf, -math.inf)

    def dual(self) -> SquaredHellinger:
        """Itself."""
        return self
