"""The Rényi divergence and the Bhattacharyya distance: logarithms of Σ p^a·q^{1−a}, with bounded gradients."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from divax.divergences.alpha import Alpha
from divax.divergences.base import AbstractDivergence, InfiniteAt, check_range, divergence
from divax.divergences.numerics import Scalar, difference, log1prel, scaled_expm1
from divax.divergences.row_wise import AbstractRowDivergence, log_sum
from divax.divergences.rows import Rows


class Affinity(NamedTuple):
    """The affinity Z = Σ p^a·q^{1−a} of two rows over their common support, and the Rényi divergence it makes.

    Attributes:
        log_z: log Z, `[...]`, 0 for disjoint supports.
        divergence: log Z/(a − 1), continuous at a = 1, where it is KL(p‖q); `[...]`, without the infinite part.
        disjoint: whether no atom is possible under both, so that Z = 0.
    """

    log_z: jax.Array
    divergence: jax.Array
    disjoint: jax.Array


def affinity(rows: Rows, order: Scalar, rest: Scalar) -> Affinity:
    """Z for 0 ≤ a < ∞ and `rest` = 1 − a (given apart: a difference would lose its digits).

    With F_a the generator of Amari's α-divergence and P₀, Q₀ the masses that the other side rules out,
    Z − 1 = a(a − 1)·Σ q·F_a − (1 − a)·Q₀ − a·P₀, whose terms are of one sign for a ≤ 1 and do not cancel near p = q. It is
    used for |log Z| < 0.4; beyond, the logarithm of the sum has nothing to cancel, and cannot overflow.
    """
    log_z_far = log_sum(rows.common.log_power(order))[..., 0]
    distributions = jnp.sum(rows.p, -1) > 0
    near = (jnp.abs(log_z_far) < 0.4) | ~distributions
    disjoint = ~near & (log_z_far == -jnp.inf)
    # Far rows may overflow in the sum that only near rows use.
    pair = jax.tree.map(lambda x: jnp.where(near[..., None], x, 0), rows.common)
    only_p, only_q = (jnp.where(near, jnp.sum(x, -1), 0) for x in (rows.p_only, rows.q_only))
    summed = order * jnp.sum(Alpha(alpha=order).summand(pair), -1)
    x = -rest * (summed + only_q) - order * only_p
    one = jnp.asarray(rest == 0)
    rate = jnp.where(one, 1, -rest)
    per_rate = summed + only_q - jnp.where(one, 0, order / rate) * only_p
    log_z_far = jnp.where(near | disjoint, 0, log_z_far)
    return Affinity(
        log_z=jnp.where(near, jnp.log1p(x), log_z_far),
        divergence=jnp.where(near, per_rate * log1prel(x), log_z_far / rate),
        disjoint=disjoint,
    )


def renyi_value(rows: Rows, order: Scalar, rest: Scalar) -> jax.Array:
    """Log Z/(a − 1), +inf for disjoint supports and, for a ≥ 1, where the model rules out an atom of the target."""
    of = affinity(rows, order, rest)
    infinite = of.disjoint | rows.has_p_only & (rest <= 0)
    return jnp.where(infinite, jnp.inf, jnp.maximum(of.divergence, 0))


def renyi_slopes(rows: Rows, order: Scalar, rest: Scalar) -> tuple[jax.Array, jax.Array]:
    """a(r − p)/(a − 1) and q − r with r = p^a·q^{1−a}/Z: both sum to zero, and the second is bounded by 1."""
    return renyi_slopes_at(affinity(rows, order, rest), rows, order, rest)


def renyi_slopes_at(
    of: Affinity, rows: Rows, order: Scalar, rest: Scalar
) -> tuple[jax.Array, jax.Array]:
    """The same with what whole rows tell known."""
    pair = rows.common
    log_z, value = of.log_z[..., None], of.divergence[..., None]
    log_r = pair.log_power(order) - log_z
    one = jnp.asarray(rest == 0)
    beyond = jnp.where(one, 0, order / jnp.where(one, 1, rest)) * rows.p_only
    by_target = order * scaled_expm1(pair.p, log_r, -rest, pair.log_u - value) + beyond
    by_model = difference(pair.q, jnp.exp(log_r), log_z - order * pair.log_u) + rows.q_only
    return by_target, by_model


@divergence
class Renyi(AbstractRowDivergence):
    """Rényi divergence of order a, log(Σ p^a·q^{1−a})/(a − 1), for 0 ≤ a < ∞; KL(p‖q) at a = 1, continuously.

    Its gradient by the model's logits is q − r with r = softmax(a·t + (1 − a)·s): bounded by 1 for every order, and for
    a > 1 not vanishing on a confidently wrong model, where χ² explodes and JS dies out. Non-decreasing in a; for a
    one-hot target it is the cross-entropy, whatever a. R₂ = log(1 + χ²(p‖q)), R₀ = −log q(p > 0); curvature a.

    Called with logits `[..., V]`, returns `[...]` in nats, float32. Masking as in `AbstractDivergence.__call__`; +inf
    for a ≥ 1 where the model rules out a target token, and for disjoint supports (for a < 1 no `support` policy changes
    that). An order outside [0, ∞) is a ValueError.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> target, model = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
        >>> sweep = jax.vmap(lambda order: dv.Renyi(order=order)(target, model))
        >>> [round(float(value), 6) for value in sweep(jnp.array([0.5, 1.0, 2.0]))]
        [0.069336, 0.143841, 0.287682]

    Source: A. Rényi, "On Measures of Entropy and Information" (1961), eq. 3.3; T. van Erven, P. Harremoës, "Rényi
    Divergence and Kullback-Leibler Divergence", arXiv:1206.2459, eq. 1.
    """

    spec_name = "renyi"
    formula = "log(Σ p^a q^(1−a))/(a−1)"
    # Van Erven and Harremoës, theorem 9: at every order.
    data_processing = True

    order: Scalar = 0.5

    def __post_init__(self):
        check_range(self, "order", 0, math.inf, ends="half-open")

    def value(self, rows: Rows) -> jax.Array:
        """Log Z/(a − 1)."""
        return renyi_value(rows, self.order, 1 - self.order)

    def slopes(self, rows: Rows) -> tuple[jax.Array, jax.Array]:
        """a(r − p)/(a − 1) and q − r."""
        return renyi_slopes(rows, self.order, 1 - self.order)

    @property
    def infinite_at(self) -> InfiniteAt:
        """For a ≥ 1 where the model rules a target token out."""
        return InfiniteAt(False, self.order >= 1)

    @property
    def curvature(self) -> Any:
        """The order."""
        return self.order


@divergence
class Bhattacharyya(AbstractRowDivergence):
    """Bhattacharyya distance, −log Σ √(p·q) = ½·Rényi of order ½ = −log(1 − H²); symmetric.

    Its gradient by the model's logits is ½(q − r) with r = softmax(½(t + s)). Called with logits `[..., V]`, returns `[...]`
    in nats, float32. Masking as in `AbstractDivergence.__call__`; +inf for disjoint supports only, which no `support`
    policy changes. Curvature ¼.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> target, model = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
        >>> round(float(dv.Bhattacharyya()(target, model)), 6)
        0.034668

    Source: A. Bhattacharyya, "On a Measure of Divergence between Two Statistical Populations" (1943), §2.
    """

    spec_name = "bhattacharyya"
    formula = "−log Σ √(pq)"
    data_processing = True

    def value(self, rows: Rows) -> jax.Array:
        """−log Z at a = ½."""
        return 0.5 * renyi_value(rows, 0.5, 0.5)

    def slopes(self, rows: Rows) -> tuple[jax.Array, jax.Array]:
        """½(p − r) and ½(q − r)."""
        by_target, by_model = renyi_slopes(rows, 0.5, 0.5)
        return 0.5 * by_target, 0.5 * by_model

    @property
    def infinite_at(self) -> InfiniteAt:
        """On no single atom: only disjoint supports are infinitely far apart."""
        return InfiniteAt(False, False)

    @property
    def curvature(self) -> Any:
        """A quarter."""
        return 0.25

    def dual(self) -> AbstractDivergence:
        """Itself."""
        return self
