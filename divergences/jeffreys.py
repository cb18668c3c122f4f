"""The Jeffreys divergence: both KLs, added."""

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


@divergence
class Jeffreys(AbstractFDivergence):
    """Jeffreys divergence, KL(p‖q) + KL(q‖p) = Σ (p − q)·log(p/q) (twice what TFP calls Jeffreys).

    Generator f(u) = (u − 1)·log u. Symmetric; +inf on any mismatch of supports. Called with logits `[..., V]`, returns
    `[...]` in nats, float32. Masking as in `AbstractDivergence.__call__`. Limits: f(0) = f′(∞) = ∞.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> target, model = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
        >>> round(float(dv.Jeffreys()(target, model)), 6)
        0.274653

    Source: H. Jeffreys, "An Invariant Form for the Prior Probability in Estimation Problems" (1946).
    """

    spec_name = "jeffreys"
    formula = "Σ (p − q) log(p/q)"
    symmetric: ClassVar[bool] = True

    def summand(self, pair: Pair) -> jax.Array:
        """(p − q)·log(p/q)."""
        return difference(pair.p, pair.q, pair.log_u) * pair.log_u

    def target_slope(self, pair: Pair) -> jax.Array:
        """p·log u + p − q."""
        return pair.p * pair.log_u + difference(pair.p, pair.q, pair.log_u)

    def model_slope(self, pair: Pair) -> jax.Array:
        """Q − p − q·log u."""
        return self.target_slope(pair.swap())

    def weight(self, s: ArrayLike) -> jax.Array:
        """1 + e^{−s}."""
        return 1 + jnp.exp(-jnp.asarray(s))

    def log_df_inverse(self, y: ArrayLike) -> jax.Array:
        """The root x of x + 1 − e^{−x} = y (a Lambert W, found numerically)."""
        y = jnp.asarray(y)
        return invert_increasing(lambda x: x - jnp.expm1(-x), y)

    def link_inverse(self, score: ArrayLike) -> jax.Array:
        """The same root: a symmetric generator's link is f′(e^s)."""
        return self.log_df_inverse(score)

    @property
    def limits(self) -> Limits:
        """Infinite on any mismatch."""
        return Limits(math.inf, math.inf, -math.inf, -math.inf)

    def dual(self) -> Jeffreys:
        """Itself."""
        return self
