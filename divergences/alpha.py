"""Amari's α-divergence, with α traced."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences.base import divergence
from divax.divergences.f_divergence import AbstractFDivergence, Limits
from divax.divergences.numerics import Scalar, capped, choose, is_traced, log1prel, scaled_expm1
from divax.divergences.rows import Pair

# Applied to |x| and |αx|: the coefficient of x^k is then at most about (k − 1)/k!, which leaves out 2e-17 with 19 terms
# and 5e-9 with the 11 of float32.
_SERIES_BELOW = 1.0
_SERIES_TERMS, _SERIES_TERMS_FLOAT32 = 19, 11


def _series(alpha: Scalar, x: jax.Array) -> jax.Array:
    """F_α(x) = Σ_{k≥2} x^k/k!·(1 + α + … + α^{k−2}), the generator at u = e^x; no singularity at α = 0 or 1."""
    terms = _SERIES_TERMS if x.dtype == jnp.float64 else _SERIES_TERMS_FLOAT32
    coefficients = [1.0]
    for _ in range(terms - 1):
        coefficients.append(1 + alpha * coefficients[-1])
    total = jnp.zeros_like(x)
    for k in range(terms + 1, 1, -1):
        total = total * x + coefficients[k - 2] / math.factorial(k)
    return x * x * total


@divergence
class Alpha(AbstractFDivergence):
    """Amari's α-divergence, (Σ p^α·q^{1−α} − 1)/(α(α − 1)).

    Generator f(u) = (u^α − 1 − α(u − 1))/(α(α − 1)), curvature 1 for every α. α = 1 is KL(p‖q), 0 is KL(q‖p), ½ is 4·H²,
    2 is half the forward χ², −1 half the reverse; α is a number or a traced array and passes through 0 and 1 without
    a jump. Cressie–Read's λ is α − 1; the f-DPO paper's α is 1 − α of this one.

    Called with logits `[..., V]`, returns `[...]` in nats, float32. Masking as in `AbstractDivergence.__call__`. Limits:
    f(0) = 1/α for α > 0 and ∞ otherwise; f′(∞) = 1/(1 − α) for α < 1 and ∞ otherwise.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> target, model = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
        >>> sweep = jax.vmap(lambda alpha: dv.Alpha(alpha=alpha)(target, model))
        >>> [round(float(value), 6) for value in sweep(jnp.array([0.0, 0.5, 1.0]))]
        [0.130812, 0.136297, 0.143841]

    Source: S. Amari, "Differential-Geometrical Methods in Statistics" (1985), §3.5; in distillation, D. Wang et al.,
    "AlphaNet: Improved Training of Supernets with Alpha-Divergence", arXiv:2102.07954, §3.
    """

    spec_name = "alpha"
    formula = "(Σ p^α q^(1−α) − 1)/(α(α−1))"

    alpha: Scalar = 0.5

    def summand(self, pair: Pair) -> jax.Array:
        """q·F_α(log u): away from u = 1 from the slope that does not cancel, p·f′ for α ≥ ½ and q·g below."""
        x = pair.log_u
        small = (jnp.abs(x) < _SERIES_BELOW) & (jnp.abs(self.alpha * x) < _SERIES_BELOW)
        near = pair.q * _series(self.alpha, jnp.where(small, x, jnp.zeros_like(x)))
        upper, apart, power = self.alpha >= 0.5, pair.p - pair.q, pair.log_power(self.alpha)
        # p·(u^{α−1} − 1)/(α − 1) or, for the other half, q·(u^α − 1)/α: one exponential.
        slope = scaled_expm1(
            jnp.where(upper, pair.p, pair.q), power, self.alpha - jnp.where(upper, 1.0, 0.0), x
        )
        far = jnp.where(upper, slope - apart, apart - slope)
        far = far / jnp.where(upper, self.alpha, 1 - self.alpha)
        return jnp.where(small, near, far)

    def target_slope(self, pair: Pair) -> jax.Array:
        """p·(u^{α−1} − 1)/(α − 1)."""
        return scaled_expm1(pair.p, capped(pair.log_power(self.alpha)), self.alpha - 1, pair.log_u)

    def model_slope(self, pair: Pair) -> jax.Array:
        """−q·(u^α − 1)/α."""
        return -scaled_expm1(pair.q, capped(pair.log_power(self.alpha)), self.alpha, pair.log_u)

    def weight(self, s: ArrayLike) -> jax.Array:
        """e^{−αs}."""
        return jnp.exp(-self.alpha * jnp.asarray(s))

    def log_df_inverse(self, y: ArrayLike) -> jax.Array:
        """log(1 + (α − 1)y)/(α − 1)."""
        return _shifted_log(self.alpha - 1, jnp.asarray(y))

    def link_inverse(self, score: ArrayLike) -> jax.Array:
        """−log(1 − α·score)/α."""
        return _shifted_log(-self.alpha, jnp.asarray(score))

    @property
    def symmetric(self) -> bool:  # type: ignore[override]
        """Only at α = ½."""
        return not is_traced(self.alpha) and bool(self.alpha == 0.5)

    @property
    def limits(self) -> Limits:
        """Power laws: the signs of α and of 1 − α decide."""
        alpha = self.alpha
        return Limits(
            _reciprocal_if_positive(alpha),
            _reciprocal_if_positive(1 - alpha),
            choose(alpha <= 1, -math.inf, -1 / choose(alpha > 1, alpha - 1, 1.0)),
            choose(alpha >= 0, -math.inf, 1 / choose(alpha < 0, alpha, -1.0)),
        )

    def dual(self) -> Alpha:
        """1 − α."""
        return Alpha(alpha=1 - self.alpha)


def _shifted_log(rate: Scalar, y: jax.Array) -> jax.Array:
    """log(1 + rate·y)/rate, y at rate 0; where 1 + rate·y ≤ 0 the limit on that side, −inf for rate > 0 and +inf below."""
    inside = rate * y > -1
    value = y * log1prel(jnp.where(inside, rate * y, jnp.zeros_like(y)))
    return jnp.where(inside, value, jnp.where(rate > 0, -jnp.inf, jnp.inf))


def _reciprocal_if_positive(x):
    return choose(x > 0, 1 / choose(x > 0, x, 1.0), math.inf)
