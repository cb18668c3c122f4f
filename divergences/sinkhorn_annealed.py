"""Sinkhorn with ε-scaling: sharp transport in few iterations, by starting blurred."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences.base import check_range, divergence
from divax.divergences.numerics import Scalar
from divax.divergences.sinkhorn_potentials import (
    SinkhornPotentials,
    solved_by,
)
from divax.divergences.sinkhorn_symmetric import self_potentials
from divax.divergences.soft_transform import soft_transform, transposed
from divax.divergences.transport import AbstractTransport, check_positive

_SETTLED = 1e-3


def annealed_potentials(
    target: ArrayLike,
    model: ArrayLike,
    *,
    epsilon: Scalar,
    cost: ArrayLike | None = None,
    decay: Scalar = 0.5,
    max_iterations: int = 2000,
    tolerance: float = 1e-6,
) -> SinkhornPotentials:
    """Solves the problem of `sinkhorn_potentials` with ε falling geometrically from the largest cost to `epsilon`.

    Each level is warm-started from the one before and left at a marginal error of 1e-3; `tolerance` is asked for at ε
    itself. The answer is the same where both converge. For ε a thousandth of the cost it mostly takes fewer iterations
    (0.4 times as many in the median of six random problems of 12 and 40 points, 1.3 times as many in the worst).

    Args:
        target: logits `[..., V]` of p.
        model: logits `[..., V]` of q.
        epsilon: final regularisation, > 0, in units of the cost.
        cost: `[V, V]`, or `[..., V, V]`, one for each row; None is the 0–1 cost.
        decay: factor per level, in (0, 1).
        max_iterations: iterations at most, those of the descent included.
        tolerance: stop when the marginal error of every row is at most this.

    Returns:
        The potentials, value and convergence report.

    Raises:
        ValueError: a cost that is neither `[V, V]` nor `[..., V, V]`.

    Example:
        >>> import jax.numpy as jnp
        >>> points = jnp.arange(3.0)
        >>> cost = jnp.abs(points[:, None] - points[None, :])
        >>> p, q = jnp.log(jnp.array([0.6, 0.2, 0.2])), jnp.log(jnp.array([0.2, 0.2, 0.6]))
        >>> round(float(annealed_potentials(p, q, epsilon=0.001, cost=cost).value), 3)  # W1
        0.8

    Source: B. Schmitzer, "Stabilized Sparse Scaling Algorithms for Entropy Regularized Transport Problems",
    arXiv:1610.06519, §3.2.
    """
    iterate = functools.partial(
        _iterate, decay=decay, max_iterations=max_iterations, tolerance=tolerance
    )
    return solved_by(iterate, target, model, epsilon, cost, tolerance)


@divergence
class AnnealedSinkhorn(AbstractTransport):
    """The debiased Sinkhorn divergence of `Sinkhorn`, solved with ε-scaling: for ε far below the cost.

    The self-terms are solved by `self_potentials`, which converges where alternating does not.

    Called with logits `[..., V]`, returns `[...]` in units of the cost, float32; masking as in
    `AbstractDivergence.__call__`; finite for all supports.

    Attributes:
        epsilon: final regularisation, > 0; may be traced.
        cost: `[V, V]`, symmetric with zero diagonal, an `EmbeddingCost`, or None for the 0–1 cost.
        decay: factor of ε per level, in (0, 1); may be traced.
        max_iterations: iterations at most, per transport problem.
        tolerance: largest L1 marginal error at which to stop.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> points = jnp.arange(3.0)
        >>> cost = jnp.abs(points[:, None] - points[None, :])
        >>> p, q = jnp.log(jnp.array([0.6, 0.2, 0.2])), jnp.log(jnp.array([0.2, 0.2, 0.6]))
        >>> round(float(dv.AnnealedSinkhorn(epsilon=0.001, cost=cost)(p, q)), 3)
        0.799

    Source: J. Feydy et al., "Interpolating between Optimal Transport and MMD using Sinkhorn Divergences",
    arXiv:1810.08278, eq. 3; the scaling, B. Schmitzer, arXiv:1610.06519, §3.2.
    """

    spec_name = "annealed_sinkhorn"
    formula = "OT_ε(p,q) − ½ OT_ε(p,p) − ½ OT_ε(q,q)"

    epsilon: Scalar = 0.01
    decay: Scalar = 0.5

    def __post_init__(self):
        check_positive(self, "epsilon")
        check_range(self, "decay", 0, 1, ends="open")

    def rows(self, target: jax.Array, model: jax.Array) -> jax.Array:
        """S_ε."""
        return self.debiased_rows(target, model)

    def solve(self, target: ArrayLike, model: ArrayLike) -> SinkhornPotentials:
        """The transport problem between p and q with its potentials and convergence report (not debiased)."""
        return annealed_potentials(target, model, decay=self.decay, **self.problem)

    def self_transport(self, logits: jax.Array) -> jax.Array:
        """OT_ε(p, p)."""
        return self_potentials(logits, **self.problem).value


def _iterate(log_p, log_q, epsilon, cost, *, decay, max_iterations, tolerance):
    """Alternates the two transforms at one ε after the other, until every first marginal is within tolerance at the last."""
    p, reverse_cost = jnp.exp(log_p), transposed(cost)
    epsilon = jnp.asarray(epsilon).astype(log_p.dtype)
    decay = jax.lax.stop_gradient(jnp.asarray(decay).astype(log_p.dtype))

    def unfinished(state):
        _, _, blur, error, count = state
        return (count < max_iterations) & ((blur > epsilon) | jnp.any(error > tolerance))

    def step(state):
        _, g, blur, _, count = state
        f = soft_transform(g, log_q, blur, reverse_cost)
        g = soft_transform(f, log_p, blur, cost)
        ratio = jnp.expm1((f - soft_transform(g, log_q, blur, reverse_cost)) / blur)
        error = jnp.sum(jnp.where(p > 0, p * jnp.abs(ratio), 0), -1)
        settled = (blur > epsilon) & jnp.all(error <= _SETTLED)
        # An error that was measured at another ε says nothing of the next one.
        error = jnp.where(settled, jnp.inf, error)
        return f, g, jnp.where(settled, jnp.maximum(blur * decay, epsilon), blur), error, count + 1

    zeros = jnp.zeros_like(log_p)
    start = jnp.maximum(jnp.ones_like(epsilon) if cost is None else jnp.max(cost), epsilon)
    first = jnp.full(log_p.shape[:-1], jnp.inf, log_p.dtype)
    f, g, _, error, count = jax.lax.while_loop(
        unfinished, step, (zeros, zeros, start, first, jnp.asarray(0))
    )
    return f, g, error, count
