"""The log-variance divergence: the variance of the log-ratio under a frozen reference."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from divax.divergences.base import AbstractDivergence, InfiniteAt, divergence
from divax.divergences.row_wise import AbstractRowDivergence
from divax.divergences.rows import Rows

Reference = Literal["model", "target", "uniform"]
_SWAPPED: dict[Reference, Reference] = {"model": "target", "target": "model", "uniform": "uniform"}


class Moments(NamedTuple):
    """Of a row, `[...]`: log Σ r over the common support, and the mean of log u there."""

    log_mass: jax.Array
    mean: jax.Array


@divergence
class LogVariance(AbstractRowDivergence):
    """Log-variance divergence, Var_r[log(q/p)] under a reference r through which no gradient flows.

    It needs no normaliser: any constant added to either row of logits drops out. With r = q frozen (`reference="model"`),
    half its gradient by the model's logits is exactly that of the reverse KL, KL(q‖p); "target" weighs by p; "uniform"
    is, halved, the centred mean squared error of the logits, which is the limit of every T²-scaled divergence at high
    temperature. As r is frozen, the gradient is not that of the value unless r is uniform.

    Called with logits `[..., V]`, returns `[...]` in nats², float32. Masking as in `AbstractDivergence.__call__`; +inf where
    the reference has a token that one side rules out; tokens impossible under both count for nothing, also in "uniform".
    Curvature 2. A reference other than the three is a ValueError.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> target, model = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
        >>> round(float(dv.LogVariance(reference="uniform")(target, model)), 6)  # (½·log 3)²
        0.301737
        >>> half = jax.grad(lambda s: 0.5 * dv.LogVariance()(target, s))(model)
        >>> bool(jnp.allclose(half, jax.grad(lambda s: dv.ReverseKL()(target, s))(model)))
        True

    Source: L. Richter et al., "VarGrad: A Low-Variance Gradient Estimator for Variational Inference", arXiv:2010.10436,
    eq. 5 (whose loss is half of it).
    """

    spec_name = "log_variance"
    formula = "Var_r[log(q/p)], r frozen"

    reference: Reference = dataclasses.field(default="model", metadata={"static": True})

    def __post_init__(self):
        if self.reference not in get_args(Reference):
            near = difflib.get_close_matches(str(self.reference), get_args(Reference), 1, 0.0)[0]
            raise ValueError(
                f"LogVariance: reference={self.reference!r} is none of {', '.join(get_args(Reference))};"
                f" did you mean {near!r}?"
            )

    def value(self, rows: Rows) -> jax.Array:
        """Σ r·(log u − mean)², over the common support."""
        weights, gap = self._centred(rows)
        infinite_at = self.infinite_at
        infinite = rows.has_q_only & infinite_at.target_zero
        infinite |= rows.has_p_only & infinite_at.model_zero
        return jnp.where(infinite, jnp.inf, jnp.sum(weights * gap * gap, -1))

    def slopes(self, rows: Rows) -> tuple[jax.Array, jax.Array]:
        """±2r·(log u − mean)."""
        weights, gap = self._centred(rows)
        return 2 * weights * gap, -2 * weights * gap

    def slopes_at(self, moments: Moments, rows: Rows) -> tuple[jax.Array, jax.Array]:
        """The same from what is known of whole rows."""
        common, (log_mass, mean) = rows.common.log_p > -jnp.inf, (x[..., None] for x in moments)
        logits = {"model": rows.common.log_q, "target": rows.common.log_p}.get(self.reference)
        logits = jnp.where(common, 0 if logits is None else logits, -jnp.inf)
        weights = jax.lax.stop_gradient(jnp.exp(logits - log_mass))
        slope = 2 * weights * jnp.where(common, rows.common.log_u - mean, 0)
        return slope, -slope

    def moments(self, rows: Rows) -> Moments:
        """Of whole rows."""
        mass, total = self._mass(rows)
        mean = jnp.sum(mass * rows.common.log_u, -1, keepdims=True) / total
        return Moments(jnp.log(total)[..., 0], mean[..., 0])

    def _centred(self, rows: Rows) -> tuple[jax.Array, jax.Array]:
        """R on the common support, and log u minus its mean there."""
        mass, total = self._mass(rows)
        weights, common = mass / total, rows.common.log_p > -jnp.inf
        mean = jnp.sum(weights * rows.common.log_u, -1, keepdims=True)
        return weights, jnp.where(common, rows.common.log_u - mean, 0)

    def _mass(self, rows: Rows) -> tuple[jax.Array, jax.Array]:
        """R up to a factor, and its sum over the common support, 1 instead of 0; no gradient flows."""
        uniform = (rows.common.log_p > -jnp.inf).astype(rows.p.dtype)
        mass = {"model": rows.common.q, "target": rows.common.p}.get(self.reference, uniform)
        mass = jax.lax.stop_gradient(mass)
        total = jnp.sum(mass, -1, keepdims=True)
        return mass, jnp.where(total > 0, total, 1)

    @property
    def infinite_at(self) -> InfiniteAt:
        """Where the reference has mass on a token that one side rules out."""
        return InfiniteAt(self.reference != "target", self.reference != "model")

    @property
    def curvature(self) -> Any:
        """Two."""
        return 2.0

    @property
    def known_exceptions(self) -> dict[str, str]:
        """Laws that the frozen reference breaks."""
        laws = {
            "model": ("model_gradient", "second_order"),
            "target": ("target_gradient", "second_order"),
            "uniform": ("curvature",),
        }[self.reference]
        reason = "the variance is one under the uniform distribution, not under q"
        return dict.fromkeys(
            laws,
            reason if self.reference == "uniform" else "no gradient flows through the reference",
        )

    def dual(self) -> AbstractDivergence:
        """The reference of the other side."""
        return LogVariance(reference=_SWAPPED[self.reference])
