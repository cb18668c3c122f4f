"""Unbalanced entropic transport: marginals that may be missed, at a price."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences.base import divergence
from divax.divergences.numerics import Scalar, exprel
from divax.divergences.rows import log_softmax
from divax.divergences.sinkhorn_potentials import (
    SinkhornPotentials,
    checked_cost,
    plan_mass,
)
from divax.divergences.soft_transform import soft_transform, transposed
from divax.divergences.transport import AbstractTransport, check_positive


def unbalanced_potentials(
    log_target: ArrayLike,
    log_model: ArrayLike,
    *,
    epsilon: Scalar,
    rho: Scalar,
    cost: ArrayLike | None = None,
    max_iterations: int = 2000,
    tolerance: float = 1e-6,
) -> SinkhornPotentials:
    """Solves min over P ≥ 0 of ⟨P, C⟩ + ε·KL(P ‖ a⊗b) + ρ·KL(P·1 ‖ a) + ρ·KL(Pᵀ·1 ‖ b), for each row of masses.

    KL is the generalised one, Σ x log(x/y) − x + y. The masses need not sum to 1, or to the same: rows are log-masses,
    not logits, and are not normalised. The step is the balanced one shrunk by ρ/(ρ + ε), followed by the best shift of one
    potential against the other (in closed form), without which the total mass converges slowly for ρ ≫ ε. The
    value is the dual objective at the fixed point, with exact derivatives by Danskin's theorem, as in
    `sinkhorn_potentials`.

    Args:
        log_target: log-masses a, `[..., V]`; −inf is no mass.
        log_model: log-masses b, `[..., V]`.
        epsilon: regularisation, > 0, in units of the cost.
        rho: price of missing a marginal, > 0 and finite, in units of the cost.
        cost: `[V, V]`, or `[..., V, V]`, one for each row; None is the 0–1 cost.
        max_iterations: iterations at most.
        tolerance: stop when the L1 error of every row's first marginal (from a·e^{−f/ρ}) is at most this.

    Returns:
        The potentials, value and convergence report.

    Raises:
        ValueError: a cost that is neither `[V, V]` nor `[..., V, V]`.

    Example:
        >>> import jax.numpy as jnp
        >>> a, b = jnp.log(jnp.array([2.0, 1.0])), jnp.log(jnp.array([1.0, 1.0]))
        >>> solved = unbalanced_potentials(a, b, epsilon=0.1, rho=1.0)
        >>> bool(solved.converged)
        True

    Source: L. Chizat et al., "Scaling Algorithms for Unbalanced Transport Problems", arXiv:1607.05816, §4; the shift,
    T. Séjourné, F.-X. Vialard, G. Peyré, "Faster Unbalanced Optimal Transport: Translation invariant Sinkhorn and 1-D
    Frank-Wolfe", arXiv:2201.00730.
    """
    log_a, log_b = jnp.asarray(log_target), jnp.asarray(log_model)
    log_a, log_b = jnp.broadcast_arrays(log_a, log_b)
    cost = checked_cost(cost, log_a)
    # Without mass on a side there is nothing to transport; such a row is solved for uniform masses and answered with 0.
    legal = jnp.any(log_a > -jnp.inf, -1) & jnp.any(log_b > -jnp.inf, -1)
    log_a, log_b = (jnp.where(legal[..., None], x, 0) for x in (log_a, log_b))
    epsilon, rho = (jnp.asarray(x).astype(log_a.dtype) for x in (epsilon, rho))
    frozen = jax.lax.stop_gradient((log_a, log_b, epsilon, rho, cost))
    f, g, error, iterations = _iterate(*frozen, max_iterations, tolerance)
    f, g = jax.lax.stop_gradient((f, g))
    # ρ(1 − e^{−f/ρ}) = f·(e^x − 1)/x at x = −f/ρ, which does not cancel as ρ grows.
    gains = (
        jnp.sum(jnp.exp(log) * potential * exprel(-potential / rho), -1)
        for log, potential in ((log_a, f), (log_b, g))
    )
    total = jnp.sum(jnp.exp(log_a), -1) * jnp.sum(jnp.exp(log_b), -1)
    value = sum(gains) - epsilon * (plan_mass(f, g, log_a, log_b, epsilon, cost) - total)
    return SinkhornPotentials(
        jnp.where(legal, value, 0), f, g, error, iterations, error <= tolerance
    )


@divergence
class UnbalancedSinkhorn(AbstractTransport):
    """Unbalanced Sinkhorn divergence, UOT(p, q) − ½·UOT(p, p) − ½·UOT(q, q), robust to outlying tokens.

    UOT is the minimum of ⟨P, C⟩ + ε·KL(P ‖ p⊗q) + ρ·KL of each marginal of P: mass is moved over at most about 2ρ, and
    given up beyond. ρ → ∞ is `Sinkhorn`. Zero at p = q, finite for all supports. Called with logits `[..., V]`,
    returns `[...]` in units of the cost, float32; masking as in `AbstractDivergence.__call__`.

    Attributes:
        epsilon: regularisation, > 0; may be traced.
        rho: price of missing a marginal, > 0 and finite; may be traced.
        cost: `[V, V]`, symmetric with zero diagonal, an `EmbeddingCost`, or None for the 0–1 cost.
        max_iterations: iterations at most, per transport problem.
        tolerance: largest L1 marginal error at which to stop.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> p, q = jnp.log(jnp.array([0.6, 0.2, 0.2])), jnp.log(jnp.array([0.2, 0.2, 0.6]))
        >>> cheap, dear = (dv.UnbalancedSinkhorn(epsilon=0.1, rho=r)(p, q) for r in (0.1, 1000.0))
        >>> bool(cheap < dear), round(float(dear - dv.Sinkhorn(epsilon=0.1)(p, q)), 3)
        (True, -0.0)

    Source: T. Séjourné et al., "Sinkhorn Divergences for Unbalanced Optimal Transport", arXiv:1910.12958.
    """

    spec_name = "unbalanced_sinkhorn"
    formula = "UOT_ε(p,q) − ½ UOT_ε(p,p) − ½ UOT_ε(q,q)"

    rho: Scalar = 1.0

    def __post_init__(self):
        check_positive(self, "epsilon", "rho")

    def rows(self, target: jax.Array, model: jax.Array) -> jax.Array:
        """The three transport problems; the total masses are equal, so no correction for them is needed."""
        return self.debiased_rows(target, model)

    def solve(self, target: ArrayLike, model: ArrayLike) -> SinkhornPotentials:
        """The transport problem between p and q with its potentials and convergence report (not debiased)."""
        rows = (log_softmax(jnp.asarray(logits)) for logits in (target, model))
        return unbalanced_potentials(*rows, rho=self.rho, **self.problem)

    def self_transport(self, logits: jax.Array) -> jax.Array:
        """UOT(p, p)."""
        return self.solve(logits, logits).value


def _iterate(log_a, log_b, epsilon, rho, cost, max_iterations, tolerance):
    """Alternates the shrunk transforms, each time with the best shift, until every first marginal is within tolerance."""
    a, reverse_cost = jnp.exp(log_a), transposed(cost)
    shrink = rho / (rho + epsilon)

    def shifted(f, g):
        # Maximises −ρ·Σ a e^{−(f+λ)/ρ} − ρ·Σ b e^{−(g−λ)/ρ}; the plan sees only f + g.
        kept = [
            jax.nn.logsumexp(x, axis=-1, keepdims=True) for x in (log_a - f / rho, log_b - g / rho)
        ]
        return f + 0.5 * rho * (kept[0] - kept[1])

    def error_of(f, g):
        # After the g-update the second marginal is right; the first is a·exp((f − f_next)/ε).
        plan = jnp.exp((f - soft_transform(g, log_b, epsilon, reverse_cost)) / epsilon)
        return jnp.sum(jnp.where(a > 0, a * jnp.abs(plan - jnp.exp(-f / rho)), 0), -1)

    def unfinished(state):
        _, _, error, count = state
        return (count < max_iterations) & jnp.any(error > tolerance)

    def step(state):
        _, g, _, count = state
        f = shifted(shrink * soft_transform(g, log_b, epsilon, reverse_cost), g)
        g = shrink * soft_transform(f, log_a, epsilon, cost)
        return f, g, error_of(f, g), count + 1

    zeros = jnp.zeros_like(log_a)
    start = zeros, zeros, jnp.full(log_a.shape[:-1], jnp.inf, log_a.dtype), jnp.asarray(0)
    return jax.lax.while_loop(unfinished, step, start)
