"""Rényi divergences between escort distributions: gamma, Cauchy–Schwarz and Hölder, bounded gradients throughout.

The escort of order c of p is p^c/Σ p^c = softmax(c·logits). Each member here is a Rényi divergence of two escorts, up to a
factor, which is why each works on logits without their normalisers and has a gradient that is a difference of two
softmaxes: with P̂, Q̂ the escorts of order c,

- gamma(γ) = R_a(P̂‖Q̂)/c with c = 1 + γ and a = 1/c;
- Cauchy–Schwarz = ½·R_½(P̂‖Q̂) with c = 2;
- Hölder(α, γ) = (1 − 1/α)·R_{1/α}(P̂‖Q̂) with c = γ.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from divax.divergences.base import AbstractDivergence, InfiniteAt, check_range, divergence
from divax.divergences.numerics import Scalar
from divax.divergences.renyi import Bhattacharyya, Renyi, renyi_slopes, renyi_value
from divax.divergences.row_wise import AbstractRowDivergence, log_sum, scaled
from divax.divergences.rows import Pair, Rows


def escort(rows: Rows, power: Scalar) -> Rows:
    """The rows of p^c/Σ p^c and q^c/Σ q^c for a power c > 0; `power` = 1 changes nothing.

    The log-ratio is c·log(p/q) − (log Σ p^c − log Σ q^c), not a difference of rounded escorts; the error of the second
    term is common to a row and drops out to first order, as in `split_rows`.
    """
    log_p, log_only_p = _powered(rows.common.log_p, rows.p_only, power)
    log_q, log_only_q = _powered(rows.common.log_q, rows.q_only, power)
    total_p = log_sum(jnp.concatenate([log_p, log_only_p], -1))
    total_q = log_sum(jnp.concatenate([log_q, log_only_q], -1))
    total_p, total_q = (jnp.where(total > -jnp.inf, total, 0) for total in (total_p, total_q))
    log_p, log_q = log_p - total_p, log_q - total_q
    log_u = jnp.where(log_p > -jnp.inf, power * rows.common.log_u - (total_p - total_q), 0)
    common = Pair(jnp.exp(log_p), jnp.exp(log_q), log_p, log_q, log_u)
    p_only, q_only = jnp.exp(log_only_p - total_p), jnp.exp(log_only_q - total_q)
    return rows._replace(
        common=common,
        p=common.p + p_only,
        q=common.q + q_only,
        p_only=p_only,
        q_only=q_only,
    )


def _powered(log_mass: jax.Array, only: jax.Array, power: Scalar) -> tuple[jax.Array, jax.Array]:
    """c·log of both kinds of mass, −inf where there is none; that −inf is never multiplied by a c to be differentiated."""
    some, alone = log_mass > -jnp.inf, only > 0
    common = jnp.where(some, power * jnp.where(some, log_mass, 0), -jnp.inf)
    return common, jnp.where(alone, power * jnp.log(jnp.where(alone, only, 1)), -jnp.inf)


def _value(rows: Rows, div: AbstractDivergence) -> jax.Array:
    form = escorts(div)
    return scaled(form.factor, renyi_value(escort(rows, form.power), form.order, form.rest))


def _slopes(rows: Rows, div: AbstractDivergence) -> tuple[jax.Array, jax.Array]:
    # The slopes of the escorts sum to zero, so the escorts' own softmax adds nothing but the factor c.
    form = escorts(div)
    by_target, by_model = renyi_slopes(escort(rows, form.power), form.order, form.rest)
    return form.factor * form.power * by_target, form.factor * form.power * by_model


@divergence
class Gamma(AbstractRowDivergence):
    """Gamma-divergence (type 2), [log Σ p^c + γ·log Σ q^c − c·log Σ p·q^γ]/(γ·c) with c = 1 + γ; KL(p‖q) at γ = 0.

    Unchanged when either argument is multiplied by a constant: normalisers cancel. The gradient by the model's logits is
    softmax((1 + γ)s) − softmax(t + γs), bounded by 1; tokens that the model thinks unlikely are discounted like q^γ, which
    makes it robust to a few wrong target tokens. No data-processing inequality holds.

    Called with logits `[..., V]`, returns `[...]` in nats, float32. Masking as in `AbstractDivergence.__call__`; +inf
    for disjoint supports (and, at γ = 0, wherever KL(p‖q) is). Curvature 1. A gamma outside [0, ∞) is a ValueError.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> target, model = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
        >>> [round(float(dv.Gamma(gamma=gamma)(target, model)), 5) for gamma in (0.0, 0.5, 1.0)]
        [0.14384, 0.13004, 0.11157]

    Source: H. Fujisawa, S. Eguchi, "Robust Parameter Estimation with a Small Bias against Heavy Contamination" (2008),
    §3.
    """

    spec_name = "gamma"
    formula = "[log Σ p^(1+γ) + γ log Σ q^(1+γ) − (1+γ) log Σ p q^γ]/(γ(1+γ))"

    known_exceptions: ClassVar[Mapping[str, str]] = {
        "curvature": "near p = q it weighs logits by an escort of q, not by q"
    }

    gamma: Scalar = 0.5

    def __post_init__(self):
        check_range(self, "gamma", 0, math.inf, ends="half-open")

    def value(self, rows: Rows) -> jax.Array:
        """R_{1/c}(P̂‖Q̂)/c."""
        return _value(rows, self)

    def slopes(self, rows: Rows) -> tuple[jax.Array, jax.Array]:
        """(P̂ − r)/γ and Q̂ − r."""
        return _slopes(rows, self)

    @property
    def infinite_at(self) -> InfiniteAt:
        """On no single atom unless γ = 0."""
        return InfiniteAt(False, self.gamma == 0)

    @property
    def curvature(self) -> Any:
        """One."""
        return 1.0


@divergence
class CauchySchwarz(AbstractRowDivergence):
    """Cauchy–Schwarz divergence, −log(Σ p·q/√(Σ p²·Σ q²)): gamma-divergence at γ = 1, half of what some authors define.

    Symmetric; unchanged when either argument is multiplied by a constant. The gradient by the model's logits is
    softmax(2s) − softmax(t + s). No data-processing inequality holds.

    Called with logits `[..., V]`, returns `[...]` in nats, float32. Masking as in `AbstractDivergence.__call__`; +inf
    for disjoint supports only, which no `support` policy changes. Curvature 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> target, model = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
        >>> round(float(dv.CauchySchwarz()(target, model)), 6)
        0.111572

    Source: R. Jenssen, J. C. Principe, D. Erdogmus, T. Eltoft, "The Cauchy–Schwarz Divergence and Parzen Windowing"
    (2006), eq. 1 (whose value is the same).
    """

    spec_name = "cauchy_schwarz"
    formula = "−log(Σ pq/√(Σ p² Σ q²))"
    known_exceptions: ClassVar[Mapping[str, str]] = {
        "curvature": "near p = q it weighs logits by an escort of q, not by q"
    }

    def value(self, rows: Rows) -> jax.Array:
        """½·R_½ of the escorts of order 2."""
        return _value(rows, self)

    def slopes(self, rows: Rows) -> tuple[jax.Array, jax.Array]:
        """P̂ − r and Q̂ − r."""
        return _slopes(rows, self)

    @property
    def infinite_at(self) -> InfiniteAt:
        """On no single atom."""
        return InfiniteAt(False, False)

    @property
    def curvature(self) -> Any:
        """One."""
        return 1.0

    def dual(self) -> AbstractDivergence:
        """Itself."""
        return self


@divergence
class Hoelder(AbstractRowDivergence):
    """Proper Hölder divergence, −log(Σ p^{γ/α}·q^{γ/β} / ((Σ p^γ)^{1/α}·(Σ q^γ)^{1/β})) with 1/α + 1/β = 1.

    `exponent` is α > 1 and `power` is γ > 0. α = γ = 2 is Cauchy–Schwarz; γ = 1 is the Chernoff (skew Bhattacharyya)
    coefficient. The gradient by the model's logits is (γ/β)(softmax(γs) − softmax(γt/α + γs/β)), bounded by γ/β.

    Called with logits `[..., V]`, returns `[...]` in nats, float32. Masking as in `AbstractDivergence.__call__`; +inf
    for disjoint supports only, which no `support` policy changes. Curvature γ²/(αβ). An exponent outside (1, ∞) or a
    power outside (0, ∞) is a ValueError.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> target, model = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
        >>> round(float(dv.Hoelder(exponent=2, power=2)(target, model)), 6)
        0.111572

    Source: F. Nielsen, K. Sun, S. Marchand-Maillet, "On Hölder Projective Divergences", arXiv:1701.03916, def. 2.
    """

    spec_name = "hoelder"
    formula = "−log(Σ p^(γ/α) q^(γ/β) / ((Σ p^γ)^(1/α) (Σ q^γ)^(1/β)))"

    exponent: Scalar = 2.0
    power: Scalar = 1.0

    def __post_init__(self):
        check_range(self, "exponent", 1, math.inf, ends="open")
        check_range(self, "power", 0, math.inf, ends="open")

    def value(self, rows: Rows) -> jax.Array:
        """(1 − 1/α)·R_{1/α}(P̂‖Q̂)."""
        return _value(rows, self)

    def slopes(self, rows: Rows) -> tuple[jax.Array, jax.Array]:
        """(γ/α)(P̂ − r) and (γ/β)(Q̂ − r)."""
        return _slopes(rows, self)

    @property
    def infinite_at(self) -> InfiniteAt:
        """On no single atom."""
        return InfiniteAt(False, False)

    @property
    def curvature(self) -> Any:
        """γ²/(αβ)."""
        return self.power**2 * (1 - 1 / self.exponent) / self.exponent

    def dual(self) -> AbstractDivergence:
        """The conjugate exponent, α/(α − 1)."""
        return Hoelder(exponent=self.exponent / (self.exponent - 1), power=self.power)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Escorts:
    """factor·Rényi(order) of the escorts of order `power`, which is what many a divergence is.

    Attributes:
        factor: ≥ 0.
        power: the order of the escorts, > 0; None for 1.
        order: the a of Rényi's divergence.
        rest: 1 − a.
    """

    factor: Scalar
    power: Scalar | None
    order: Scalar
    rest: Scalar


def escorts(div: AbstractDivergence) -> Escorts | None:
    """Of which escorts it is a Rényi divergence; None if of none."""
    match div:
        case Renyi():
            return Escorts(1.0, None, div.order, 1 - div.order)
        case Bhattacharyya():
            return Escorts(0.5, None, 0.5, 0.5)
        case Gamma():
            c = 1 + div.gamma
            return Escorts(1 / c, c, 1 / c, div.gamma / c)
        case CauchySchwarz():
            return Escorts(0.5, 2.0, 0.5, 0.5)
        case Hoelder():
            order, rest = 1 / div.exponent, (div.exponent - 1) / div.exponent
            return Escorts(rest, div.power, order, rest)
    return None
