"""The modified-GAN divergence: reverse KL less the pull of the midpoint."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences.algebra import FDual
from divax.divergences.base import divergence
from divax.divergences.f_divergence import AbstractFDivergence, Limits
from divax.divergences.monotone import invert_increasing
from divax.divergences.numerics import bregman, difference, mixture_log_ratios
from divax.divergences.rows import Pair


@divergence
class ModifiedGAN(AbstractFDivergence):
    """Modified-GAN divergence, KL(q‖p) − KL(q‖m) with m = (p + q)/2: what a non-saturating generator minimises.

    Generator f(u) = log((1 + u)/(2u)) + ½(u − 1), curvature ¾ (TFP's `modified_gan` in standard form, that is less its
    value log 2 at u = 1). Its link is bounded below by −log 2 − ½, so f-DPO with it is inexact.

    Called with logits `[..., V]`, returns `[...]` in nats, float32. Masking as in `AbstractDivergence.__call__`; +inf
    where the target rules out a model token. Limits: f(0) = ∞, f′(∞) = ½.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> target, model = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
        >>> round(float(dv.ModifiedGAN()(target, model)), 6)
        0.095437

    Source: M. Arjovsky, L. Bottou, "Towards Principled Methods for Training Generative Adversarial Networks",
    arXiv:1701.04862, thm. 2.5 (whose KL − 2·JS is twice it, up to its constant).
    """

    spec_name = "modified_gan"
    formula = "KL(q‖p) − KL(q‖m), m = (p + q)/2"

    def summand(self, pair: Pair) -> jax.Array:
        """The Bregman summands of both KLs; near equality the second is a quarter of the first, so little cancels."""
        m = 0.5 * (pair.p + pair.q)
        log_qm = mixture_log_ratios(0.5, pair.log_u)[1]
        return jnp.maximum(bregman(pair.q, pair.p, -pair.log_u) - bregman(pair.q, m, log_qm), 0)

    def target_slope(self, pair: Pair) -> jax.Array:
        """½(p − q)(1 + q/(p + q))."""
        gap = difference(pair.p, pair.q, pair.log_u)
        return 0.5 * gap * (1 + jax.nn.sigmoid(-pair.log_u))

    def model_slope(self, pair: Pair) -> jax.Array:
        """−q·(log(p/m) + ½(p − q)/(p + q))."""
        log_pm = mixture_log_ratios(0.5, pair.log_u)[0]
        return -pair.q * (log_pm + 0.5 * jnp.tanh(0.5 * pair.log_u))

    def weight(self, s: ArrayLike) -> jax.Array:
        """1 − (p/(p + q))²."""
        s = jnp.asarray(s)
        return jax.nn.sigmoid(s) * (1 + jax.nn.sigmoid(-s))

    def log_df_inverse(self, y: ArrayLike) -> jax.Array:
        """The positive root of u² + u = 2/(1 − 2y)."""
        y = jnp.asarray(y)
        inside = y < 0.5
        rest = 1 - 2 * jnp.where(inside, y, 0)
        root = jnp.sqrt(1 + 8 / rest)
        near = jnp.log1p(jnp.where(y > -1, 4 * (1 - rest) / (rest * (root + 3)), 0))
        far = jnp.log(4 / rest) - jnp.log1p(root)
        return jnp.where(inside, jnp.where(y > -1, near, far), jnp.inf)

    def link_inverse(self, score: ArrayLike) -> jax.Array:
        """Numerical."""
        return invert_increasing(
            lambda s: -mixture_log_ratios(0.5, -s)[0] + 0.5 * jnp.tanh(0.5 * s),
            jnp.asarray(score),
        )

    @property
    def limits(self) -> Limits:
        """Infinite where the target rules a model token out; the link stops at −log 2 − ½."""
        return Limits(math.inf, 0.5, -math.inf, -math.log(2) - 0.5)

    def dual(self) -> AbstractFDivergence:
        """KL(p‖q) − KL(p‖m)."""
        return FDual(inner=self)
