"""Entropic transport of a distribution to itself, by an averaged iteration that converges where alternating crawls."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences.numerics import Scalar
from divax.divergences.sinkhorn_potentials import SinkhornPotentials, solved_by
from divax.divergences.soft_transform import soft_transform


def self_potentials(
    logits: ArrayLike,
    *,
    epsilon: Scalar,
    cost: ArrayLike | None = None,
    max_iterations: int = 2000,
    tolerance: float = 1e-6,
) -> SinkhornPotentials:
    """OT_ε(p, p) for a symmetric cost, whose two potentials are one: the fixed point of f ← ½(f + T f).

    The alternating iteration may still be at a marginal error of 1e-5 after 20 000 steps here (five tokens, ε a tenth of
    the cost), where this one needs some tens. Derivatives as in `sinkhorn_potentials`.

    Args:
        logits: `[..., V]` of p.
        epsilon: regularisation, > 0, in units of the cost.
        cost: `[V, V]` or `[..., V, V]`, symmetric; None is the 0–1 cost.
        max_iterations: iterations at most.
        tolerance: stop when the marginal error of every row is at most this.

    Returns:
        The potentials, value and convergence report.

    Raises:
        ValueError: a cost that is neither `[V, V]` nor `[..., V, V]`.

    Example:
        >>> import jax.numpy as jnp
        >>> solved = self_potentials(jnp.zeros(3), epsilon=0.1)
        >>> bool(solved.converged), bool(jnp.all(solved.f == solved.g))
        (True, True)

    Source: J. Feydy et al., "Interpolating between Optimal Transport and MMD using Sinkhorn Divergences",
    arXiv:1810.08278, eq. 25.
    """

    def iterate(log_p, _, epsilon, cost):
        p = jnp.exp(log_p)

        def unfinished(state):
            _, error, count = state
            return (count < max_iterations) & jnp.any(error > tolerance)

        def step(state):
            f, _, count = state
            transformed = soft_transform(f, log_p, epsilon, cost)
            # The plan's marginal at f is p·exp((f − T f)/ε).
            ratio = jnp.expm1((f - transformed) / epsilon)
            error = jnp.sum(jnp.where(p > 0, p * jnp.abs(ratio), 0), -1)
            # Once every row is within tolerance, the potentials that were measured are kept.
            done = jnp.all(error <= tolerance)
            return jnp.where(done, f, 0.5 * (f + transformed)), error, count + 1

        start = jnp.full(log_p.shape[:-1], jnp.inf, log_p.dtype)
        f, error, count = jax.lax.while_loop(
            unfinished, step, (jnp.zeros_like(log_p), start, jnp.asarray(0))
        )
        return f, f, error, count

    return solved_by(iterate, logits, logits, epsilon, cost, tolerance)
