"""The arithmetic–geometric mean divergence: both KLs from the midpoint."""

from __future__ import annotations

import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences.base import divergence
from divax.divergences.f_divergence import AbstractFDivergence, Limits
from divax.divergences.monotone import invert_increasing
from divax.divergences.numerics import difference
from divax.divergences.rows import Pair


def _log_cosh(h: jax.Array) -> jax.Array:
    """Log cosh h, as ½·log(1 + sinh²h) for |h| < 1 and |h| − log 2 + log(1 + e^{−2|h|}) beyond."""
    small = jnp.abs(h) < 1
    near = 0.5 * jnp.log1p(jnp.sinh(jnp.where(small, h, 0)) ** 2)
    far = jnp.abs(jnp.where(small, 1, h))
    return jnp.where(small, near, far - math.log(2) + jnp.log1p(jnp.exp(-2 * far)))


@divergence
class ArithmeticGeometric(AbstractFDivergence):
    """Arithmetic–geometric mean divergence, KL(m‖p) + KL(m‖q) with m = (p + q)/2, on TFP's scale.

    Generator f(u) = (1 + u)·log((1 + u)/(2√u)), that is Σ (p + q)·log cosh(½·log(p/q)); curvature ½. With Jensen–Shannon
    JS + ½·AG = ¼·Jeffreys. Symmetric; +inf on any mismatch of supports.

    Called with logits `[..., V]`, returns `[...]` in nats, float32. Masking as in `AbstractDivergence.__call__`. Limits:
    f(0) = f′(∞) = ∞.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> target, model = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
        >>> round(float(dv.ArithmeticGeometric()(target, model)), 6)
        0.069682

    Source: I. J. Taneja, "New Developments in Generalized Information Measures" (1995), §5; the scale is that of
    TensorFlow Probability's `arithmetic_geometric`.
    """

    spec_name = "arithmetic_geometric"
    formula = "KL(m‖p) + KL(m‖q), m = (p + q)/2"
    symmetric: ClassVar[bool] = True

    def summand(self, pair: Pair) -> jax.Array:
        """(p + q)·log cosh(½·log u)."""
        return (pair.p + pair.q) * _log_cosh(0.5 * pair.log_u)

    def target_slope(self, pair: Pair) -> jax.Array:
        """p·log cosh(½·log u) + ½(p − q)."""
        gap = difference(pair.p, pair.q, pair.log_u)
        return pair.p * _log_cosh(0.5 * pair.log_u) + 0.5 * gap

    def model_slope(self, pair: Pair) -> jax.Array:
        """q·log cosh(½·log u) + ½(q − p)."""
        return self.target_slope(pair.swap())

    def weight(self, s: ArrayLike) -> jax.Array:
        """½(1 + u²)/(1 + u) at u = e^{−s}."""
        s = jnp.asarray(s)
        return 0.5 * (jax.nn.sigmoid(s) + jnp.exp(-s) * jax.nn.sigmoid(-s))

    def log_df_inverse(self, y: ArrayLike) -> jax.Array:
        """The root x of log cosh(x/2) + ½(1 − e^{−x}) = y, found numerically."""
        y = jnp.asarray(y)
        return invert_increasing(lambda x: _log_cosh(0.5 * x) - 0.5 * jnp.expm1(-x), y)

    def link_inverse(self, score: ArrayLike) -> jax.Array:
        """The same root, by symmetry."""
        return self.log_df_inverse(score)

    @property
    def limits(self) -> Limits:
        """Infinite on any mismatch."""
        return Limits(math.inf, math.inf, -math.inf, -math.inf)

    def dual(self) -> ArithmeticGeometric:
        """Itself."""
        return self
