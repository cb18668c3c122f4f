"""The skewed divergence: any member against a mixture of target and model."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences.algebra import FDual
from divax.divergences.base import AbstractDivergence, InfiniteAt, check_range, divergence
from divax.divergences.f_divergence import AbstractFDivergence, Limits
from divax.divergences.monotone import invert_increasing
from divax.divergences.numerics import Scalar, choose, is_traced, mixture_log_ratios
from divax.divergences.rows import Pair, log_softmax, pair_at, split_rows


def skewed(div: AbstractDivergence, skew: Scalar = 0.1) -> AbstractDivergence:
    """D(p, a·p + (1 − a)·q): a divergence that never sees the model without some of the target in it.

    Args:
        div: any divergence.
        skew: a in [0, 1), the weight of the *target* in the mixture; a number or a traced scalar.

    Returns:
        An `FSkewed` if D is an f-divergence, else a `Skewed`. To put the mixture on the target's side, skew the dual:
        `skewed(D.dual(), a).dual()` is D(b·p + a·q, q) with b = 1 − a.

    Raises:
        ValueError: a skew outside [0, 1).

    Example:
        >>> from divax import divergences as dv
        >>> skewed(dv.ReverseChi2(), 0.2).name, bool(skewed(dv.ForwardChi2(), 0.2).bounded)
        ('skewed(reverse_chi2, skew=0.2)', True)

    Source: L. Lee, "On the Effectiveness of the Skew Divergence for Statistical Language Analysis" (2001), eq. 2; J. Ko et
    al., "DistiLLM: Towards Streamlined Distillation for Large Language Models", arXiv:2402.03898, §3.1.
    """
    if isinstance(div, AbstractFDivergence):
        return FSkewed(inner=div, skew=skew)
    return Skewed(inner=div, skew=skew)


def _name(inner: AbstractDivergence, skew: Scalar) -> str:
    return f"skewed({inner.name}, skew={'…' if is_traced(skew) else f'{float(skew):.12g}'})"


@divergence
class FSkewed(AbstractFDivergence):
    """The f-divergence D_f(p ‖ m), m = a·p + (1 − a)·q; made by `skewed`.

    Generator v·f(u/v) with v = a·u + 1 − a, curvature (1 − a)²·f″(1). For a > 0 its value per unit of target mass that the
    model rules out is a·f(1/a), always finite. Called with logits `[..., V]`, returns `[...]`, float32; masking as in
    `AbstractDivergence.__call__`.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> target, model = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
        >>> div = dv.FSkewed(inner=dv.ForwardKL(), skew=0.1)
        >>> round(float(div(target, model)), 6) == round(float(dv.SkewForwardKL(skew=0.1)(target, model)), 6)
        True
    """

    spec_name = "skewed"
    formula = "D(p, a p + (1−a) q)"

    inner: AbstractFDivergence
    skew: Scalar = 0.1

    def __post_init__(self):
        check_range(self, "skew", 0, 1, ends="half-open")

    def _mixed(self, pair: Pair) -> tuple[Pair, jax.Array, jax.Array]:
        """The pair (p, m), with log(p/m) and log(q/m)."""
        log_pm, log_qm = mixture_log_ratios(self.skew, pair.log_u)
        m = self.skew * pair.p + (1 - self.skew) * pair.q
        some = pair.log_q > -jnp.inf
        log_m = jnp.where(some, jnp.where(some, pair.log_q, 0) - log_qm, -jnp.inf)
        return Pair(pair.p, m, pair.log_p, log_m, log_pm), log_pm, log_qm

    def summand(self, pair: Pair) -> jax.Array:
        """m·f(p/m)."""
        return self.inner.summand(self._mixed(pair)[0])

    def target_slope(self, pair: Pair) -> jax.Array:
        """p·f′(p/m) + (a·p/m)·m·g(p/m)."""
        mixed, log_pm, _ = self._mixed(pair)
        through = self.skew * jnp.exp(jnp.minimum(log_pm, 80.0)) * self.inner.model_slope(mixed)
        return self.inner.target_slope(mixed) + jnp.where(self.skew > 0, through, 0)

    def model_slope(self, pair: Pair) -> jax.Array:
        """((1 − a)·q/m)·m·g(p/m)."""
        mixed, _, log_qm = self._mixed(pair)
        return (1 - self.skew) * jnp.exp(log_qm) * self.inner.model_slope(mixed)

    def link(self, s: ArrayLike) -> jax.Array:
        """(1 − a)·g(p/m), through log(p/m), which stays finite where p and m do not."""
        s = jnp.asarray(s)
        inside = jnp.isfinite(s)
        log_pm = mixture_log_ratios(self.skew, -jnp.where(inside, s, 0))[0]
        ends = jnp.where(s > 0, self.f_at_zero, self.limits.link_floor)
        return jnp.where(inside, (1 - self.skew) * self.inner.link(-log_pm), ends)

    def weight(self, s: ArrayLike) -> jax.Array:
        """(1 − a)²·(q/m)·h(p/m), h the inner weight: the perspective's second derivative is (1 − a)²f″(u/v)/v³."""
        log_pm, log_qm = mixture_log_ratios(self.skew, -jnp.asarray(s))
        return (1 - self.skew) ** 2 * jnp.exp(log_qm) * self.inner.weight(-log_pm)

    def log_df_inverse(self, y: ArrayLike) -> jax.Array:
        """Numerical."""
        y = jnp.asarray(y)
        return invert_increasing(lambda x: self.target_slope(pair_at(jnp.zeros_like(x), -x)), y)

    def link_inverse(self, score: ArrayLike) -> jax.Array:
        """Numerical."""
        return invert_increasing(self.link, jnp.asarray(score))

    @property
    def limits(self) -> Limits:
        """(1 − a)·f(0), a·f(1/a), a·f(0) + f′(0) and (1 − a)·g(1/a); the inner ones at a = 0."""
        inner, a = self.inner.limits, self.skew
        positive, some = a > 0, choose(a > 0, a, 0.5)
        at_edge, link_at_edge = self._at_edge(some)
        falls = choose(inner.df_at_zero == -math.inf, True, False)
        finite = choose(falls, 0.0, inner.f_at_zero) * a + choose(falls, 0.0, inner.df_at_zero)
        return Limits(
            (1 - a) * inner.f_at_zero,
            choose(positive, some * at_edge, inner.slope_at_infinity),
            choose(falls, -math.inf, finite),
            choose(positive, (1 - a) * link_at_edge, inner.link_floor),
        )

    def _at_edge(self, skew: Scalar) -> tuple[Any, Any]:
        """(f, g) at u = 1/a, as numbers where the parameters are, so that flags can be asked inside `jit`."""
        if is_traced(skew, *jax.tree.leaves(self.inner)):
            return self.inner.f(1 / skew), self.inner.link(jnp.log(skew))
        with jax.ensure_compile_time_eval():
            return float(self.inner.f(1 / skew)), float(self.inner.link(jnp.log(skew)))

    @property
    def smooth(self) -> bool:  # type: ignore[override]
        """As the inner one."""
        return self.inner.smooth

    @property
    def name(self) -> str:
        """`skewed(…, skew=…)`."""
        return _name(self.inner, self.skew)

    def dual(self) -> AbstractFDivergence:
        """D(q, a·q + (1 − a)·p)."""
        return FDual(inner=self)


@divergence
class Skewed(AbstractDivergence):
    """D(p, a·p + (1 − a)·q) of a divergence outside the f-family; made by `skewed`.

    Called with logits `[..., V]`, returns `[...]`, float32; masking as in `AbstractDivergence.__call__`. The mixture is
    formed in logarithms, and gradients flow through both occurrences of the target.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> target, model = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
        >>> round(float(dv.Skewed(inner=dv.CauchySchwarz(), skew=0.5)(target, model)), 6)
        0.030312
    """

    spec_name = "skewed"
    formula = "D(p, a p + (1−a) q)"

    inner: AbstractDivergence
    skew: Scalar = 0.1

    def __post_init__(self):
        check_range(self, "skew", 0, 1, ends="half-open")

    def rows(self, target: jax.Array, model: jax.Array) -> jax.Array:
        """The inner divergence of the target and the mixture."""
        pair, a = split_rows(target, model).common, self.skew
        common = pair.log_p > -jnp.inf
        log_p, log_q = log_softmax(target), log_softmax(model)
        log_qm = mixture_log_ratios(a, pair.log_u)[1]
        mixed = jnp.where(common, pair.log_q, 0) - log_qm
        # Outside the common support in logarithms as well: a mass that underflows to zero is not an impossible token.
        alone = jnp.where(log_p > -jnp.inf, log_p + _log(a), log_q + _log(1 - a))
        log_m = jnp.where(common, mixed, alone)
        legal = jnp.any(log_q > -jnp.inf, -1, keepdims=True)
        return self.inner.rows(log_p, jnp.where(legal, log_m, -jnp.inf))

    @property
    def infinite_at(self) -> InfiniteAt:
        """Where the inner one is, but with a > 0 the mixture rules out nothing that the target has."""
        inner = self.inner.infinite_at
        return InfiniteAt(inner.target_zero, choose(self.skew > 0, False, inner.model_zero))

    @property
    def name(self) -> str:
        """`skewed(…, skew=…)`."""
        return _name(self.inner, self.skew)

    def normalized(self) -> AbstractDivergence:
        """Divided by (1 − a)², for an inner divergence of curvature 1."""
        return (1 / (1 - self.skew) ** 2) * Skewed(inner=self.inner.normalized(), skew=self.skew)


def _log(weight: Scalar) -> jax.Array:
    weight = jnp.asarray(weight)
    return jnp.where(weight > 0, jnp.log(jnp.where(weight > 0, weight, 1)), -jnp.inf)
