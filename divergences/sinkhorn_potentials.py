"""Entropic optimal transport between categorical distributions, solved in logarithms."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences.numerics import Scalar
from divax.divergences.rows import log_softmax
from divax.divergences.sinkhorn_absorbed import absorbed_iterations
from divax.divergences.soft_transform import soft_transform, transposed

# Elements of the plans of all rows beyond which a cost that they share is not worth multiplying: 64 MB of float32.
_PLAN = 2**24


class SinkhornPotentials(NamedTuple):
    """Solution of one entropic transport problem per row.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> bool(dv.Sinkhorn(epsilon=0.5).solve(jnp.zeros(3), jnp.ones(3)).converged)
        True

    Attributes:
        value: OT_ε = ⟨P, C⟩ + ε·KL(P ‖ p⊗q), `[...]`.
        f: potential of the first distribution, `[..., V]`; finite also where its mass is zero.
        g: potential of the second one.
        error: L1 distance of the plan's first marginal from p, `[...]`.
        iterations: Sinkhorn iterations made (of the slowest row).
        converged: error ≤ tolerance, `[...]`.
    """

    value: jax.Array
    f: jax.Array
    g: jax.Array
    error: jax.Array
    iterations: jax.Array
    converged: jax.Array


def sinkhorn_potentials(
    target: ArrayLike,
    model: ArrayLike,
    *,
    epsilon: Scalar,
    cost: ArrayLike | None = None,
    max_iterations: int = 2000,
    tolerance: float = 1e-6,
) -> SinkhornPotentials:
    """Solves min over couplings P of p and q of ⟨P, C⟩ + ε·KL(P ‖ p⊗q), for each row.

    Log-domain Sinkhorn on log-weights, so −inf logits are harmless. The iterations see no gradient; the value is the
    dual objective at their fixed point, whose derivatives by Danskin's theorem are exact at convergence for the
    logits, the cost and ε, under `grad` and `jvp` alike. The error of an unconverged dual value is second order in `error`.

    Args:
        target: logits `[..., V]` of p.
        model: logits `[..., V]` of q.
        epsilon: regularisation, > 0, in units of the cost.
        cost: `[V, V]` cost from target tokens to model tokens, or `[..., V, V]`, one for each row; None is the 0–1
            cost, for which an iteration takes O(V) time and memory instead of O(V²).
        max_iterations: iterations at most.
        tolerance: stop when the marginal error of every row is at most this. Not less than about 1e-6 in float32.

    Returns:
        The potentials, value and convergence report.

    Raises:
        ValueError: a cost that is neither `[V, V]` nor `[..., V, V]`.

    Example:
        >>> import jax.numpy as jnp
        >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
        >>> solved = sinkhorn_potentials(p, q, epsilon=0.05)
        >>> bool(solved.converged), round(float(solved.value), 3)
        (True, 0.261)

    Source: M. Cuturi, "Sinkhorn Distances: Lightspeed Computation of Optimal Transport", arXiv:1306.0895, alg. 1; dual
    and ε-convention, G. Peyré, M. Cuturi, "Computational Optimal Transport", arXiv:1803.00567, §4.4.
    """
    iterate = functools.partial(_iterate, max_iterations=max_iterations, tolerance=tolerance)
    return solved_by(iterate, target, model, epsilon, cost, tolerance)


def solved_by(
    iterate: Callable[..., tuple[jax.Array, jax.Array, jax.Array, jax.Array]],
    target: ArrayLike,
    model: ArrayLike,
    epsilon: Scalar,
    cost: ArrayLike | None,
    tolerance: float,
) -> SinkhornPotentials:
    """The dual value and report at the potentials that `iterate(log_p, log_q, epsilon, cost)` finds without gradients."""
    log_p, log_q = log_softmax(jnp.asarray(target)), log_softmax(jnp.asarray(model))
    cost = checked_cost(cost, log_p)
    # A row in which either side has no possible token is not a transport problem; it is worth 0.
    legal = jnp.all(jnp.any(jnp.stack([log_p, log_q]) > -jnp.inf, -1), 0)
    log_p, log_q = (
        jnp.where(legal[..., None], x, -jnp.log(float(x.shape[-1]))) for x in (log_p, log_q)
    )
    frozen = jax.lax.stop_gradient((log_p, log_q, epsilon, cost))
    f, g, error, iterations = iterate(*frozen)
    f, g = jax.lax.stop_gradient((f, g))
    mass = plan_mass(f, g, log_p, log_q, epsilon, cost)
    value = _expectation(log_p, f) + _expectation(log_q, g) - epsilon * (mass - 1)
    value = jnp.where(legal, value, 0)
    return SinkhornPotentials(value, f, g, error, iterations, error <= tolerance)


def checked_cost(cost: ArrayLike | None, rows: jax.Array) -> jax.Array | None:
    """The cost in the dtype of the rows `[..., V]`; a ValueError unless it is one matrix, or one for each row."""
    if cost is None:
        return None
    cost, size = jnp.asarray(cost).astype(rows.dtype), rows.shape[-1]
    if cost.shape not in ((size, size), (*rows.shape, size)):
        raise ValueError(
            f"cost has shape {cost.shape}, but a vocabulary of {size} needs ({size}, {size})"
        )
    return cost


def _iterate(log_p, log_q, epsilon, cost, max_iterations, tolerance):
    """Alternates the two transforms until every row's first marginal is within tolerance.

    On scaling vectors, which is several times as fast, wherever the plans of all rows are not too large to keep.
    """
    plans = log_p.size * log_p.shape[-1]
    if cost is not None and max_iterations > 1 and plans <= max(cost.size, _PLAN):
        stop = {"max_iterations": max_iterations, "tolerance": tolerance}
        return absorbed_iterations(log_p, log_q, epsilon, cost, **stop)
    p, reverse_cost = jnp.exp(log_p), transposed(cost)

    def error_of(f, g):
        # After the g-update the second marginal is exact; the first is p·exp((f − f_next)/ε).
        ratio = jnp.expm1((f - soft_transform(g, log_q, epsilon, reverse_cost)) / epsilon)
        return jnp.sum(jnp.where(p > 0, p * jnp.abs(ratio), 0), -1)

    def unfinished(state):
        _, _, error, count = state
        return (count < max_iterations) & jnp.any(error > tolerance)

    def step(state):
        _, g, _, count = state
        f = soft_transform(g, log_q, epsilon, reverse_cost)
        g = soft_transform(f, log_p, epsilon, cost)
        return f, g, error_of(f, g), count + 1

    zeros = jnp.zeros_like(log_p)
    start = zeros, zeros, jnp.full(log_p.shape[:-1], jnp.inf, log_p.dtype), jnp.asarray(0)
    return jax.lax.while_loop(unfinished, step, start)


def plan_mass(f, g, log_p, log_q, epsilon, cost):
    """Σ_ij exp((f_i + g_j − C_ij)/ε)·p_i·q_j."""
    column = -soft_transform(f, log_p, epsilon, cost) / epsilon
    exponent = g / epsilon + column + log_q
    return jnp.exp(jax.nn.logsumexp(exponent, axis=-1))


def _expectation(log_mass, values):
    return jnp.sum(jnp.exp(log_mass) * values, -1)
