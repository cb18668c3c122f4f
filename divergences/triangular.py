"""The triangular discrimination."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences.base import divergence
from divax.divergences.f_divergence import AbstractFDivergence, Limits
from divax.divergences.rows import Pair


@divergence
class Triangular(AbstractFDivergence):
    """Triangular discrimination (Vincze–Le Cam), Σ (p − q)²/(p + q), in [0, 2].

    Generator f(u) = (u − 1)²/(u + 1), curvature 1. With τ = tanh(½·log u) = (p − q)/(p + q) the summand is (p + q)·τ²,
    which overflows nowhere. Symmetric; its square root is a metric. Its link is bounded below by −3, so f-DPO with it
    is inexact.

    Called with logits `[..., V]`, returns `[...]`, float32, finite for any supports. Masking as in
    `AbstractDivergence.__call__`. Limits: f(0) = f′(∞) = 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> target, model = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
        >>> round(float(dv.Triangular()(target, model)), 6)
        0.133333

    Source: F. Topsøe, "Some Inequalities for Information Divergence and Related Measures of Discrimination" (2000), §1.
    """

    spec_name = "triangular"
    formula = "Σ (p − q)²/(p + q)"
    symmetric: ClassVar[bool] = True

    def summand(self, pair: Pair) -> jax.Array:
        """(p + q)·τ²."""
        return (pair.p + pair.q) * jnp.tanh(0.5 * pair.log_u) ** 2

    def target_slope(self, pair: Pair) -> jax.Array:
        """p·τ(2 − τ)."""
        tau = jnp.tanh(0.5 * pair.log_u)
        return pair.p * tau * (2 - tau)

    def model_slope(self, pair: Pair) -> jax.Array:
        """−q·τ(2 + τ)."""
        return self.target_slope(pair.swap())

    def weight(self, s: ArrayLike) -> jax.Array:
        """8u²/(u + 1)³ with u = e^{−s}."""
        s = jnp.asarray(s)
        return 8 * jax.nn.sigmoid(-s) ** 2 * jax.nn.sigmoid(s)

    def log_df_inverse(self, y: ArrayLike) -> jax.Array:
        """2·artanh(τ) with τ = 1 − √(1 − y)."""
        y = jnp.asarray(y)
        inside = (y > -3) & (y < 1)
        safe = jnp.where(inside, y, jnp.zeros_like(y))
        # y/(1 + √(1 − y)) is 1 − √(1 − y) without its cancellation near y = 0.
        value = 2 * jnp.arctanh(safe / (1 + jnp.sqrt(1 - safe)))
        return jnp.where(inside, value, jnp.where(y < 0, -jnp.inf, jnp.inf))

    def link_inverse(self, score: ArrayLike) -> jax.Array:
        """The same function, by symmetry."""
        return self.log_df_inverse(score)

    @property
    def limits(self) -> Limits:
        """Finite everywhere; the link stops at −3."""
        return Limits(1.0, 1.0, -3.0, -3.0)

    def dual(self) -> Triangular:
        """Itself."""
        return self
