"""The Kullback–Leibler divergences in both directions."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences.base import divergence
from divax.divergences.f_divergence import AbstractFDivergence, Limits
from divax.divergences.numerics import bregman, difference, log1p_or_minus_inf
from divax.divergences.rows import Pair


@divergence
class ForwardKL(AbstractFDivergence):
    """Forward KL, KL(p‖q) = Σ p·log(p/q): mode covering; what maximum likelihood and Hinton's distillation minimise.

    Generator f(u) = u·log u − u + 1. Gradient with respect to the model's logits: q − p. Called with logits `[..., V]`,
    returns `[...]` in nats, float32. Masking as in `AbstractDivergence.__call__`; +inf where the model rules out a
    token that the target has. Limits: f(0) = 1, f′(∞) = ∞.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> target, model = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
        >>> round(float(dv.ForwardKL()(target, model)), 6)
        0.143841

    Source: S. Kullback, R. A. Leibler, "On Information and Sufficiency" (1951), eq. 2.4; as a distillation loss,
    G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, §2.
    """

    spec_name = "forward_kl"
    formula = "Σ p log(p/q)"
    slopes_cancel = (False, True)

    def summand(self, pair: Pair) -> jax.Array:
        """p·log(p/q) − p + q."""
        return bregman(pair.p, pair.q, pair.log_u)

    def target_slope(self, pair: Pair) -> jax.Array:
        """p·log u."""
        return pair.p * pair.log_u

    def model_slope(self, pair: Pair) -> jax.Array:
        """Q − p."""
        return difference(pair.q, pair.p, -pair.log_u)

    def weight(self, s: ArrayLike) -> jax.Array:
        """e^{−s}."""
        return jnp.exp(-jnp.asarray(s))

    def log_df_inverse(self, y: ArrayLike) -> jax.Array:
        """Y."""
        return jnp.asarray(y)

    def link_inverse(self, score: ArrayLike) -> jax.Array:
        """−log(1 − score)."""
        return -log1p_or_minus_inf(-jnp.asarray(score))

    @property
    def limits(self) -> Limits:
        """Infinite where the model rules a target token out."""
        return Limits(1.0, math.inf, -math.inf, -math.inf)

    def dual(self) -> ReverseKL:
        """KL(q‖p)."""
        return ReverseKL()


@divergence
class ReverseKL(AbstractFDivergence):
    """Reverse KL, KL(q‖p) = Σ q·log(q/p): mode seeking; the regulariser of RLHF and DPO, MiniLLM's distillation loss.

    Generator f(u) = −log u + u − 1; its link is log(model/target) itself. Called with logits `[..., V]`, returns
    `[...]` in nats, float32. Masking as in `AbstractDivergence.__call__`; +inf where the model has a token that the
    target rules out. Limits: f(0) = ∞, f′(∞) = 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> target, model = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
        >>> round(float(dv.ReverseKL()(target, model)), 6)
        0.130812

    Source: Y. Gu, L. Dong, F. Wei, M. Huang, "MiniLLM: On-Policy Distillation of Large Language Models",
    arXiv:2306.08543, eq. 1.
    """

    spec_name = "reverse_kl"
    formula = "Σ q log(q/p)"
    slopes_cancel = (True, False)

    def summand(self, pair: Pair) -> jax.Array:
        """q·log(q/p) − q + p."""
        return bregman(pair.q, pair.p, -pair.log_u)

    def target_slope(self, pair: Pair) -> jax.Array:
        """P − q."""
        return difference(pair.p, pair.q, pair.log_u)

    def model_slope(self, pair: Pair) -> jax.Array:
        """−q·log u."""
        return -pair.q * pair.log_u

    def weight(self, s: ArrayLike) -> jax.Array:
        """1."""
        return jnp.ones_like(jnp.asarray(s))

    def log_df_inverse(self, y: ArrayLike) -> jax.Array:
        """−log(1 − y)."""
        return -log1p_or_minus_inf(-jnp.asarray(y))

    def link_inverse(self, score: ArrayLike) -> jax.Array:
        """The score itself."""
        return jnp.asarray(score)

    @property
    def limits(self) -> Limits:
        """Infinite where the target rules a model token out."""
        return Limits(math.inf, 1.0, -math.inf, -math.inf)

    def dual(self) -> ForwardKL:
        """KL(p‖q)."""
        return ForwardKL()
