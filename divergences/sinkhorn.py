"""Entropic optimal transport between categorical distributions: the Sinkhorn divergence, in logarithms."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences.base import AbstractDivergence, InfiniteAt, divergence
from divax.divergences.numerics import Scalar, is_traced
from divax.divergences.rows import log_softmax


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
        cost: `[V, V]` cost from target tokens to model tokens; None is the 0–1 cost, for which an iteration takes
            O(V) time and memory instead of O(V²).
        max_iterations: iterations at most.
        tolerance: stop when the marginal error of every row is at most this. Not less than about 1e-6 in float32.

    Returns:
        The potentials, value and convergence report.

    Raises:
        ValueError: a cost that is not `[V, V]`.

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
    cost = None if cost is None else jnp.asarray(cost).astype(log_p.dtype)
    size = log_p.shape[-1]
    if cost is not None and cost.shape != (size, size):
        raise ValueError(
            f"cost has shape {cost.shape}, but a vocabulary of {size} needs ({size}, {size})"
        )
    # A row in which either side has no possible token is not a transport problem; it is worth 0.
    legal = jnp.all(jnp.any(jnp.stack([log_p, log_q]) > -jnp.inf, -1), 0)
    log_p, log_q = (jnp.where(legal[..., None], x, -jnp.log(float(size))) for x in (log_p, log_q))
    frozen = jax.lax.stop_gradient((log_p, log_q, epsilon, cost))
    f, g, error, iterations = iterate(*frozen)
    f, g = jax.lax.stop_gradient((f, g))
    mass = plan_mass(f, g, log_p, log_q, epsilon, cost)
    value = _expectation(log_p, f) + _expectation(log_q, g) - epsilon * (mass - 1)
    value = jnp.where(legal, value, 0)
    return SinkhornPotentials(value, f, g, error, iterations, error <= tolerance)


@divergence
class Sinkhorn(AbstractDivergence):
    """Sinkhorn divergence S_ε(p, q) = OT_ε(p, q) − ½·OT_ε(p, p) − ½·OT_ε(q, q) on a vocabulary with a cost.

    OT_ε(p, q) = min over couplings P of ⟨P, C⟩ + ε·KL(P ‖ p⊗q). Debiased by default, so that it is zero at p = q (OT_ε(p, p)
    is not); ε → 0 gives optimal transport and ε → ∞ half the energy distance, −½(p − q)ᵀC(p − q). Finite for any
    supports. `debiased=False` is OT_ε itself. `solve` reports convergence.

    Called with logits `[..., V]`, returns `[...]` in units of the cost, float32. Masking as in
    `AbstractDivergence.__call__`. For a cost that is not of negative type the debiased value may be negative, and
    for any other by as much as its three problems are short of convergence; for equal rows it is 0.

    Attributes:
        epsilon: regularisation, > 0; may be traced.
        cost: `[V, V]`, or None for the 0–1 cost (O(V) per iteration; ε → 0 gives total variation).
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

    epsilon: Scalar = 0.1
    cost: jax.Array | None = None
    debiased: bool = dataclasses.field(default=True, metadata={"static": True})
    max_iterations: int = dataclasses.field(default=2000, metadata={"static": True})
    tolerance: float = dataclasses.field(default=1e-6, metadata={"static": True})

    def __post_init__(self):
        if (
            isinstance(self.epsilon, int | float)
            and not is_traced(self.epsilon)
            and self.epsilon <= 0
        ):
            raise ValueError(f"Sinkhorn: epsilon={self.epsilon} must be positive")

    def rows(self, target: jax.Array, model: jax.Array) -> jax.Array:
        """S_ε, or OT_ε when not debiased."""
        between = self.solve(target, model).value
        if not self.debiased:
            return between
        within = self.solve(target, target).value + self.solve(model, model).value
        return debias(between, within, target, model)

    @property
    def known_exceptions(self) -> dict[str, str]:
        """Laws that hold only as far as the iterations go, or only for a cost that treats all tokens alike."""
        to_tolerance = ("flat_at_equality", "precise_near_equality", "model_gradient")
        to_tolerance += ("target_gradient", "parameter_gradient")
        found: dict[str, str] = {law: "solved to a tolerance" for law in to_tolerance}
        found["second_order"] = "Danskin's theorem gives first derivatives only"
        if self.cost is not None:
            found["permutation_equivariant"] = "the cost tells tokens apart"
        return found

    def solve(self, target: ArrayLike, model: ArrayLike) -> SinkhornPotentials:
        """The transport problem between p and q with its potentials and convergence report (not debiased)."""
        return sinkhorn_potentials(
            target,
            model,
            epsilon=self.epsilon,
            cost=self.cost,
            max_iterations=self.max_iterations,
            tolerance=self.tolerance,
        )

    @property
    def infinite_at(self) -> InfiniteAt:
        """Nowhere."""
        return InfiniteAt(False, False)

    @property
    def name(self) -> str:
        """`sinkhorn(ε)`, with the cost's size when there is one."""
        extra = "" if self.cost is None else f", cost=<{self.cost.shape[-1]}×{self.cost.shape[-1]}>"
        epsilon = "…" if is_traced(self.epsilon) else f"{float(self.epsilon):.12g}"
        prefix = "epsilon=" if extra or not self.debiased else ""
        return f"sinkhorn({prefix}{epsilon}{extra}{'' if self.debiased else ', debiased=False'})"


def debias(between: jax.Array, within: jax.Array, target: jax.Array, model: jax.Array) -> jax.Array:
    """OT(p, q) − ½·(OT(p, p) + OT(q, q)), exactly 0 for equal rows, and for rows without a possible token on either side.

    In a batch the three problems are iterated until each one's slowest row has converged, so that for equal rows they
    need not agree to the last digit.
    """
    legal = jnp.any(target > -jnp.inf, -1) & jnp.any(model > -jnp.inf, -1)
    return jnp.where(legal & jnp.any(target != model, -1), between - 0.5 * within, 0)


def soft_transform(
    potential: jax.Array, log_mass: jax.Array, epsilon: Scalar, cost: jax.Array | None
) -> jax.Array:
    """−ε·log Σ_i exp((potential_i − C_ij)/ε + log_mass_i) for every j; finite if any mass is."""
    exponent = potential / epsilon + log_mass
    if cost is not None:
        scaled = jnp.expand_dims(cost / epsilon, tuple(range(exponent.ndim - 1)))
        return -epsilon * jax.nn.logsumexp(exponent[..., :, None] - scaled, axis=-2)
    # With C = 1 − I the sum over i is e^{−1/ε}·Σ_i e_i + (1 − e^{−1/ε})·e_j.
    everywhere = jax.nn.logsumexp(exponent, axis=-1, keepdims=True) - 1 / epsilon
    here = exponent + jnp.log(-jnp.expm1(-1 / epsilon))
    return -epsilon * jnp.logaddexp(everywhere, here)


def _iterate(log_p, log_q, epsilon, cost, max_iterations, tolerance):
    """Alternates the two transforms until every row's first marginal is within tolerance."""
    p = jnp.exp(log_p)
    transposed = None if cost is None else cost.T

    def error_of(f, g):
        # After the g-update the second marginal is exact; the first is p·exp((f − f_next)/ε).
        ratio = jnp.expm1((f - soft_transform(g, log_q, epsilon, transposed)) / epsilon)
        return jnp.sum(jnp.where(p > 0, p * jnp.abs(ratio), 0), -1)

    def unfinished(state):
        _, _, error, count = state
        return (count < max_iterations) & jnp.any(error > tolerance)

    def step(state):
        _, g, _, count = state
        f = soft_transform(g, log_q, epsilon, transposed)
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
