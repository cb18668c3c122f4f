"""The Sinkhorn divergence: entropic optimal transport, debiased so that it is zero at equality."""

from __future__ import annotations

import dataclasses

import jax
from jax.typing import ArrayLike

from divax.divergences.base import divergence
from divax.divergences.sinkhorn_potentials import SinkhornPotentials, sinkhorn_potentials
from divax.divergences.transport import AbstractTransport, check_positive


@divergence
class Sinkhorn(AbstractTransport):
    """Sinkhorn divergence S_ε(p, q) = OT_ε(p, q) − ½·OT_ε(p, p) − ½·OT_ε(q, q) on a vocabulary with a cost.

    OT_ε(p, q) = min over couplings P of ⟨P, C⟩ + ε·KL(P ‖ p⊗q). Debiased by default, so that it is zero at p = q (OT_ε(p, p)
    is not); ε → 0 gives optimal transport and ε → ∞ half the energy distance, −½(p − q)ᵀC(p − q). Finite for any
    supports. `debiased=False` is OT_ε itself. `solve` reports convergence.

    Called with logits `[..., V]`, returns `[...]` in units of the cost, float32. Masking as in
    `AbstractDivergence.__call__`. For a cost that is not of negative type the debiased value may be negative, and
    for any other by as much as its three problems are short of convergence; for equal rows it is 0.

    The self-terms are solved like the rest, so that what all three are short of convergence cancels near p = q. They may
    take thousands of iterations where ε is small against the cost: there, and for a whole vocabulary,
    `AnnealedSinkhorn` takes a few.

    Attributes:
        epsilon: regularisation, > 0; may be traced.
        cost: `[V, V]`, an `EmbeddingCost`, or None for the 0–1 cost (O(V) per iteration; ε → 0 gives total variation).
        debiased: subtract the self-transport terms; a cost should then be symmetric with zero diagonal.
        max_iterations: iterations at most, per transport problem.
        tolerance: largest L1 marginal error at which to stop.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> points = jnp.arange(3.0)
        >>> cost = jnp.abs(points[:, None] - points[None, :])
        >>> p, q = jnp.log(jnp.array([0.6, 0.2, 0.2])), jnp.log(jnp.array([0.2, 0.2, 0.6]))
        >>> round(float(dv.Sinkhorn(epsilon=0.01, cost=cost)(p, q)), 3)  # W1 is 0.8
        0.792

    Source: A. Genevay, G. Peyré, M. Cuturi, "Learning Generative Models with Sinkhorn Divergences", arXiv:1706.00292,
    §2; J. Feydy et al., "Interpolating between Optimal Transport and MMD using Sinkhorn Divergences",
    arXiv:1810.08278, eq. 3.
    """

    spec_name = "sinkhorn"
    formula = "OT_ε(p,q) − ½ OT_ε(p,p) − ½ OT_ε(q,q)"

    debiased: bool = dataclasses.field(default=True, metadata={"static": True})

    def __post_init__(self):
        check_positive(self, "epsilon")

    def rows(self, target: jax.Array, model: jax.Array) -> jax.Array:
        """S_ε, or OT_ε when not debiased."""
        return (
            self.debiased_rows(target, model) if self.debiased else self.solve(target, model).value
        )

    def solve(self, target: ArrayLike, model: ArrayLike) -> SinkhornPotentials:
        """The transport problem between p and q with its potentials and convergence report (not debiased)."""
        return sinkhorn_potentials(target, model, **self.problem)

    def self_transport(self, logits: jax.Array) -> jax.Array:
        """OT_ε(p, p)."""
        return self.solve(logits, logits).value
