"""The divergence of the larger of both ratios: total variation above, reverse χ² below."""

from __future__ import annotations

import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences.algebra import FDual
from divax.divergences.base import divergence
from divax.divergences.f_divergence import AbstractFDivergence, Limits
from divax.divergences.numerics import capped, difference
from divax.divergences.rows import Pair


@divergence
class Log1pAbs(AbstractFDivergence):
    """TFP's `log1p_abs`, Σ q·max(p/q, q/p) − 1, with the generator f(u) = u^{sign(u − 1)} − 1 = e^{|log u|} − 1.

    f(u) = f(1/u), but the divergence is *not* symmetric in its arguments, for u·f(1/u) is not f. A kink at u = 1 and no
    curvature: it behaves as total variation there. Where the model has too much mass it grows like the reverse χ², q²/p.

    Called with logits `[..., V]`, returns `[...]`, float32. Masking as in `AbstractDivergence.__call__`; +inf where the
    target rules out a model token. Limits: f(0) = ∞, f′(∞) = 1. The derivative at the kink is 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> target, model = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
        >>> round(float(dv.Log1pAbs()(target, model)), 6)
        0.625

    Source: TensorFlow Probability, `tfp.vi.log1p_abs`.
    """

    spec_name = "log1p_abs"
    formula = "Σ q max(p/q, q/p) − 1"
    smooth: ClassVar[bool] = False

    def summand(self, pair: Pair) -> jax.Array:
        """P − q for p > q, (q/p)(q − p) otherwise, the latter as q·(q/p)·(1 − p/q)."""
        above = pair.log_u > 0
        x = jnp.where(above, 0, pair.log_u)
        below = jnp.exp(jnp.where(above, 0, pair.log_q - x)) * -jnp.expm1(x)
        return jnp.where(above, difference(pair.p, pair.q, pair.log_u), below)

    def target_slope(self, pair: Pair) -> jax.Array:
        """P for p > q, −q²/p for p < q."""
        below = jnp.exp(capped(pair.log_q - jnp.minimum(pair.log_u, 0)))
        return self._sides(pair.log_u, pair.p, -below)

    def model_slope(self, pair: Pair) -> jax.Array:
        """−q for p > q, 2q²/p − q for p < q."""
        below = jnp.exp(capped(pair.log_q - jnp.minimum(pair.log_u, 0)))
        return self._sides(pair.log_u, -pair.q, 2 * below - pair.q)

    def weight(self, s: ArrayLike) -> jax.Array:
        """2e^s for s > 0, 0 for s < 0 (almost everywhere: the kink at 0 has no density)."""
        s = jnp.asarray(s)
        return jnp.where(s > 0, 2 * jnp.exp(jnp.maximum(s, 0)), 0)

    def log_df_inverse(self, y: ArrayLike) -> jax.Array:
        """−½·log(−y) for y < −1, 0 inside [−1, 1), +inf from 1."""
        y = jnp.asarray(y)
        low = -0.5 * jnp.log(jnp.maximum(-y, 1))
        return jnp.where(y >= 1, jnp.inf, jnp.where(y < -1, low, 0))

    def link_inverse(self, score: ArrayLike) -> jax.Array:
        """log(½(1 + score)) for a score > 1, 0 inside (−1, 1], −inf from −1 down."""
        score = jnp.asarray(score)
        high = jnp.log(0.5 * (1 + jnp.maximum(score, 1)))
        return jnp.where(score <= -1, -jnp.inf, jnp.where(score > 1, high, 0))

    def conjugate(self, y: ArrayLike) -> jax.Array:
        """1 − 2√−y for y ≤ −1, y up to 1 and +inf above: between the two the supremum sits at the kink."""
        y = jnp.asarray(y)
        value = jnp.where(y < -1, 1 - 2 * jnp.sqrt(jnp.maximum(-y, 1)), y)
        return jnp.where(y > 1, jnp.inf, value)

    @staticmethod
    def _sides(log_u: jax.Array, above: jax.Array, below: jax.Array) -> jax.Array:
        return jnp.where(log_u > 0, above, jnp.where(log_u < 0, below, 0))

    @property
    def limits(self) -> Limits:
        """Infinite where the target rules a model token out; the link stops at −1."""
        return Limits(math.inf, 1.0, -math.inf, -1.0)

    def dual(self) -> AbstractFDivergence:
        """Σ p·max(p/q, q/p) − 1."""
        return FDual(inner=self)
