"""The total variation distance."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences.base import divergence
from divax.divergences.f_divergence import AbstractFDivergence, Limits
from divax.divergences.numerics import difference
from divax.divergences.rows import Pair


@divergence
class TotalVariation(AbstractFDivergence):
    """Total variation, ½ Σ |p − q|, in [0, 1].

    Generator f(u) = ½|u − 1|, with a kink at 1: the subgradient used there is 0, it has no curvature (`normalized` is a
    ValueError) and the factor that undoes a temperature is T, not T². f′ is a step, so its inverse is u = 1 on the
    open interval (−½, ½). Symmetric; a metric.

    Called with logits `[..., V]`, returns `[...]`, float32, finite for any supports. Masking as in
    `AbstractDivergence.__call__`. Limits: f(0) = f′(∞) = ½.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> target, model = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
        >>> round(float(dv.TotalVariation()(target, model)), 6)
        0.25

    Source: I. Csiszár, P. Shields, "Information Theory and Statistics: A Tutorial" (2004), §4; in distillation, Y. Wen et
    al., "f-Divergence Minimization for Sequence-Level Knowledge Distillation", arXiv:2307.15190, §3.
    """

    spec_name = "total_variation"
    formula = "½ Σ |p − q|"
    symmetric: ClassVar[bool] = True
    smooth: ClassVar[bool] = False

    def summand(self, pair: Pair) -> jax.Array:
        """½|p − q|."""
        return 0.5 * jnp.abs(difference(pair.p, pair.q, pair.log_u))

    def target_slope(self, pair: Pair) -> jax.Array:
        """½·p·sign(u − 1)."""
        return 0.5 * pair.p * jnp.sign(pair.log_u)

    def model_slope(self, pair: Pair) -> jax.Array:
        """−½·q·sign(u − 1)."""
        return -0.5 * pair.q * jnp.sign(pair.log_u)

    def weight(self, s: ArrayLike) -> jax.Array:
        """0 almost everywhere."""
        return jnp.zeros_like(jnp.asarray(s))

    def log_df_inverse(self, y: ArrayLike) -> jax.Array:
        """0 inside (−½, ½); −inf below and +inf above."""
        y = jnp.asarray(y)
        return jnp.where(y <= -0.5, -jnp.inf, jnp.where(y >= 0.5, jnp.inf, jnp.zeros_like(y)))

    def link_inverse(self, score: ArrayLike) -> jax.Array:
        """The same step, by symmetry."""
        return self.log_df_inverse(score)

    def conjugate(self, y: ArrayLike) -> jax.Array:
        """max(y, −½) for y ≤ ½, +inf above: the supremum sits at the kink, where f′ has no value to invert."""
        y = jnp.asarray(y)
        return jnp.where(y > 0.5, jnp.inf, jnp.maximum(y, -0.5))

    @property
    def limits(self) -> Limits:
        """Everything is ±½."""
        return Limits(0.5, 0.5, -0.5, -0.5)

    def dual(self) -> TotalVariation:
        """Itself."""
        return self
