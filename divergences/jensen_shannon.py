"""Jensen–Shannon divergences: weighted, and normalised so that both KLs are its ends."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences.base import check_range, divergence
from divax.divergences.f_divergence import AbstractFDivergence, Limits
from divax.divergences.numerics import (
    Scalar,
    bregman,
    choose,
    difference,
    exprel,
    is_traced,
    log1p_or_minus_inf,
    mixture_log_ratios,
)
from divax.divergences.rows import Pair


def _xlogx(x):
    """x·log x, 0 at 0, for concrete and traced hyper-parameters."""
    return x * _log(choose(x > 0, x, 1.0))


def _log(x):
    return jnp.log(x) if is_traced(x) else math.log(x)


@divergence
class JensenShannon(AbstractFDivergence):
    """Jensen–Shannon divergence, w·KL(p‖m) + (1 − w)·KL(q‖m) with m = w·p + (1 − w)·q.

    Generator f(u) = w·u·log u − v·log v with v = w·u + 1 − w. The weight w = `target_weight` multiplies the *target*, as
    β does in GKD and TRL. w = ½ is the textbook JS in [0, log 2], symmetric; TFP's is twice it. At both ends the
    divergence vanishes like w(1 − w): a sweep over w silently sweeps the learning rate, and no end is a KL.
    `InterpolatedJS` is the normalised form, which is continuous and has both KLs as its ends.

    Called with logits `[..., V]`, returns `[...]` in nats, float32, finite for any supports. Masking as in
    `AbstractDivergence.__call__`. Limits: f(0) = −(1 − w)·log(1 − w), f′(∞) = −w·log w. A weight outside (0, 1) is a
    ValueError.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> target, model = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
        >>> round(float(dv.JensenShannon()(target, model)), 6)
        0.033822

    Source: J. Lin, "Divergence Measures Based on the Shannon Entropy" (1991), eq. 4.1; in distillation, R. Agarwal et
    al., "On-Policy Distillation of Language Models" (GKD), arXiv:2306.13649, §2.
    """

    spec_name = "jensen_shannon"
    formula = "w KL(p‖m) + (1−w) KL(q‖m), m = w p + (1−w) q"

    target_weight: Scalar = 0.5

    def __post_init__(self):
        check_range(self, "target_weight", 0, 1, ends="open")

    def summand(self, pair: Pair) -> jax.Array:
        """w·p·log(p/m) + (1 − w)·q·log(q/m), each in Bregman form."""
        w = self.target_weight
        m = w * pair.p + (1 - w) * pair.q
        log_pm, log_qm = mixture_log_ratios(w, pair.log_u)
        return w * bregman(pair.p, m, log_pm) + (1 - w) * bregman(pair.q, m, log_qm)

    def target_slope(self, pair: Pair) -> jax.Array:
        """w·p·log(p/m)."""
        return self.target_weight * pair.p * mixture_log_ratios(self.target_weight, pair.log_u)[0]

    def model_slope(self, pair: Pair) -> jax.Array:
        """(1 − w)·q·log(q/m)."""
        return (
            (1 - self.target_weight)
            * pair.q
            * mixture_log_ratios(self.target_weight, pair.log_u)[1]
        )

    def weight(self, s: ArrayLike) -> jax.Array:
        """w(1 − w)·p/m."""
        w = self.target_weight
        return w * (1 - w) * jnp.exp(mixture_log_ratios(w, -jnp.asarray(s))[0])

    def log_df_inverse(self, y: ArrayLike) -> jax.Array:
        """−log(1 + (e^{−y/w} − 1)/(1 − w))."""
        w = self.target_weight
        return -log1p_or_minus_inf(jnp.expm1(-jnp.asarray(y) / w) / (1 - w))

    def link_inverse(self, score: ArrayLike) -> jax.Array:
        """−log(1 + (e^{−score/(1−w)} − 1)/w)."""
        return JensenShannon(target_weight=1 - self.target_weight).log_df_inverse(score)

    @property
    def symmetric(self) -> bool:  # type: ignore[override]
        """Only at w = ½."""
        return not is_traced(self.target_weight) and bool(self.target_weight == 0.5)

    @property
    def limits(self) -> Limits:
        """Finite on every mismatch; the link is unbounded below."""
        w = self.target_weight
        return Limits(-_xlogx(1 - w), -_xlogx(w), -math.inf, -math.inf)

    def dual(self) -> JensenShannon:
        """The same mixture with the weights exchanged."""
        return JensenShannon(target_weight=1 - self.target_weight)


@divergence
class InterpolatedJS(AbstractFDivergence):
    """Jensen–Shannon divided by β(1 − β): KL(p‖m)/(1 − β) + KL(q‖m)/β with m = β·p + (1 − β)·q.

    The β that does what GKD's users expect: KL(p‖q) at β = 0, 4·JS at ½, KL(q‖p) at 1, continuous in between, with
    curvature f″(1) = 1 throughout, so that a schedule over β leaves the learning rate alone. β may be traced and may
    reach both ends inside one compilation.

    Called with logits `[..., V]`, returns `[...]` in nats, float32. Masking as in `AbstractDivergence.__call__`. Limits:
    f(0) = −log(1 − β)/β and f′(∞) = −log(β)/(1 − β), +inf at the ends where the KL's is. β outside [0, 1] is a
    ValueError.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> target, model = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
        >>> [round(float(dv.InterpolatedJS(beta=beta)(target, model)), 6) for beta in (0.0, 0.5, 1.0)]
        [0.143841, 0.135288, 0.130812]

    Source: the mixture of R. Agarwal et al., "On-Policy Distillation of Language Models" (GKD), arXiv:2306.13649, §2;
    the normalisation is ours: GKD's β·(1 − β)-fold value tends to 0, not to a KL, at both ends.
    """

    spec_name = "interpolated_js"
    formula = "KL(p‖m)/(1−β) + KL(q‖m)/β, m = β p + (1−β) q"

    beta: Scalar = 0.5

    def __post_init__(self):
        check_range(self, "beta", 0, 1, ends="closed")

    def summand(self, pair: Pair) -> jax.Array:
        """Both Bregman summands over the *other* weight; the one whose weight vanishes tends to 0."""
        m = self.beta * pair.p + (1 - self.beta) * pair.q
        log_pm, log_qm = mixture_log_ratios(self.beta, pair.log_u)
        from_target = _ratio_or(bregman(pair.p, m, log_pm), 1 - self.beta, jnp.zeros_like(m))
        from_model = _ratio_or(bregman(pair.q, m, log_qm), self.beta, jnp.zeros_like(m))
        return from_target + from_model

    def target_slope(self, pair: Pair) -> jax.Array:
        """p·log(p/m)/(1 − β), which tends to p − q at β = 1."""
        log_pm, _ = mixture_log_ratios(self.beta, pair.log_u)
        return _ratio_or(pair.p * log_pm, 1 - self.beta, difference(pair.p, pair.q, pair.log_u))

    def model_slope(self, pair: Pair) -> jax.Array:
        """q·log(q/m)/β, which tends to q − p at β = 0."""
        return InterpolatedJS(beta=1 - self.beta).target_slope(pair.swap())

    def weight(self, s: ArrayLike) -> jax.Array:
        """p/m."""
        return jnp.exp(mixture_log_ratios(self.beta, -jnp.asarray(s))[0])

    def log_df_inverse(self, y: ArrayLike) -> jax.Array:
        """−log(1 − (1 − e^{−(1−β)y})/(1 − β))."""
        y = jnp.asarray(y)
        return -log1p_or_minus_inf(-y * exprel(-(1 - self.beta) * y))

    def link_inverse(self, score: ArrayLike) -> jax.Array:
        """−log(1 − (1 − e^{−β·score})/β)."""
        return InterpolatedJS(beta=1 - self.beta).log_df_inverse(score)

    @property
    def symmetric(self) -> bool:  # type: ignore[override]
        """Only at β = ½."""
        return not is_traced(self.beta) and bool(self.beta == 0.5)

    @property
    def limits(self) -> Limits:
        """Finite on every mismatch inside (0, 1); the KL's at the ends."""
        return Limits(
            _minus_log_over(1 - self.beta, self.beta),
            _minus_log_over(self.beta, 1 - self.beta),
            -math.inf,
            -math.inf,
        )

    def dual(self) -> InterpolatedJS:
        """β and 1 − β exchanged."""
        return InterpolatedJS(beta=1 - self.beta)


def _ratio_or(numerator: jax.Array, denominator: Scalar, at_zero: jax.Array) -> jax.Array:
    zero = denominator == 0
    return jnp.where(zero, at_zero, numerator / jnp.where(zero, 1, denominator))


def _minus_log_over(x, other):
    """−log(x)/other with x + other = 1: +inf at x = 0 and 1 at x = 1."""
    inside = (x > 0) & (other > 0)
    value = -_log(choose(inside, x, 0.5)) / choose(inside, other, 0.5)
    return choose(x > 0, choose(other > 0, value, 1.0), math.inf)
