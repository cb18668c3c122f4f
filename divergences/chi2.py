"""The χ² divergences in both directions."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences.base import divergence
from divax.divergences.f_divergence import AbstractFDivergence, Limits
from divax.divergences.numerics import capped, log1p_or_minus_inf, scaled_expm1
from divax.divergences.rows import Pair


def _summand(pair: Pair) -> jax.Array:
    """(p − q)²/q: q·expm1(x)² up to u = e, and p·e^x·expm1(−x)² beyond, where e^x alone could overflow."""
    below = pair.log_u < 1
    near = jnp.expm1(jnp.where(below, pair.log_u, jnp.zeros_like(pair.log_u)))
    far = jnp.where(below, jnp.ones_like(pair.log_u), pair.log_u)
    log_p = jnp.where(below, jnp.zeros_like(pair.log_p), pair.log_p)
    return jnp.where(below, pair.q * near * near, jnp.exp(log_p + far) * jnp.expm1(-far) ** 2)


@divergence
class ForwardChi2(AbstractFDivergence):
    """Forward χ², Σ (p − q)²/q: the literature's Pearson χ²(p‖q).

    Generator f(u) = (u − 1)², curvature 2; twice `Alpha(alpha=2)`. Its logit gradient is q − p²/q up to centring and
    explodes on a confidently wrong model; where the value leaves float32 it is +inf and the gradient is cut at 1e30.

    Called with logits `[..., V]`, returns `[...]`, float32. Masking as in `AbstractDivergence.__call__`; +inf where the
    model rules out a target token. Limits: f(0) = 1, f′(∞) = ∞.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> target, model = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
        >>> round(float(dv.ForwardChi2()(target, model)), 6)
        0.333333

    Source: K. Pearson, "On the Criterion that a Given System of Deviations…" (1900); F. Nielsen, R. Nock, "On the Chi
    Square and Higher-Order Chi Distances for Approximating f-Divergences", arXiv:1309.3029, §1.
    """

    spec_name = "forward_chi2"
    formula = "Σ (p − q)²/q"

    def summand(self, pair: Pair) -> jax.Array:
        """(p − q)²/q."""
        return _summand(pair)

    def target_slope(self, pair: Pair) -> jax.Array:
        """2(p²/q − p)."""
        return 2 * scaled_expm1(pair.p, capped(pair.log_power(2.0)), 1.0, pair.log_u)

    def model_slope(self, pair: Pair) -> jax.Array:
        """Q − p²/q."""
        return -2 * scaled_expm1(pair.q, capped(pair.log_power(2.0)), 2.0, pair.log_u)

    def weight(self, s: ArrayLike) -> jax.Array:
        """2e^{−2s}."""
        return 2 * jnp.exp(-2 * jnp.asarray(s))

    def log_df_inverse(self, y: ArrayLike) -> jax.Array:
        """log(1 + y/2)."""
        return log1p_or_minus_inf(jnp.asarray(y) / 2)

    def link_inverse(self, score: ArrayLike) -> jax.Array:
        """−½·log(1 − score)."""
        return -0.5 * log1p_or_minus_inf(-jnp.asarray(score))

    @property
    def limits(self) -> Limits:
        """Infinite where the model rules a target token out."""
        return Limits(1.0, math.inf, -2.0, -math.inf)

    def dual(self) -> ReverseChi2:
        """Σ (p − q)²/p."""
        return ReverseChi2()


@divergence
class ReverseChi2(AbstractFDivergence):
    """Reverse χ², Σ (p − q)²/p: Neyman's χ²(p‖q), that is Pearson's χ²(q‖p), the penalty of χ²-regularised RLHF.

    Generator f(u) = (u − 1)²/u, curvature 2; twice `Alpha(alpha=-1)`. Its link 2(model/target − 1) is bounded below,
    so f-DPO with it alone is inexact (`admissible` is False); χPO adds the reverse KL.

    Called with logits `[..., V]`, returns `[...]`, float32. Masking as in `AbstractDivergence.__call__`; +inf where the
    target rules out a model token. Limits: f(0) = ∞, f′(∞) = 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> target, model = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
        >>> round(float(dv.ReverseChi2()(target, model)), 6)
        0.25

    Source: F. Nielsen, R. Nock, "On the Chi Square and Higher-Order Chi Distances for Approximating f-Divergences",
    arXiv:1309.3029, §1; A. Huang et al., "Correcting the Mythos of KL-Regularization" (χPO), arXiv:2407.13399, §3.
    """

    spec_name = "reverse_chi2"
    formula = "Σ (p − q)²/p"

    def summand(self, pair: Pair) -> jax.Array:
        """(p − q)²/p."""
        return _summand(pair.swap())

    def target_slope(self, pair: Pair) -> jax.Array:
        """P − q²/p."""
        return -2 * scaled_expm1(pair.p, capped(pair.log_power(-1.0)), 2.0, -pair.log_u)

    def model_slope(self, pair: Pair) -> jax.Array:
        """2(q²/p − q)."""
        return 2 * scaled_expm1(pair.q, capped(pair.log_power(-1.0)), 1.0, -pair.log_u)

    def weight(self, s: ArrayLike) -> jax.Array:
        """2e^s."""
        return 2 * jnp.exp(jnp.asarray(s))

    def log_df_inverse(self, y: ArrayLike) -> jax.Array:
        """−½·log(1 − y)."""
        return -0.5 * log1p_or_minus_inf(-jnp.asarray(y))

    def link_inverse(self, score: ArrayLike) -> jax.Array:
        """log(1 + score/2)."""
        return log1p_or_minus_inf(jnp.asarray(score) / 2)

    @property
    def limits(self) -> Limits:
        """Infinite where the target rules a model token out; the link stops at −2."""
        return Limits(math.inf, 1.0, -math.inf, -2.0)

    def dual(self) -> ForwardChi2:
        """Σ (p − q)²/q."""
        return ForwardChi2()
