"""What the transport divergences share: a ground cost, debiasing, restriction to few tokens, and their names."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences.base import InfiniteAt, divergence
from divax.divergences.ground_cost import EmbeddingCost, gathered
from divax.divergences.numerics import Scalar, is_traced
from divax.divergences.sinkhorn_potentials import SinkhornPotentials
from divax.divergences.token_divergence import AbstractTokenDivergence
from divax.divergences.vocabulary_mmd import check_embeddings


@divergence
class AbstractTransport(AbstractTokenDivergence):
    """Entropic transport between p and q with a cost between tokens; a member says how it is solved.

    Example:
        >>> from divax import divergences as dv
        >>> isinstance(dv.UnbalancedSinkhorn(), dv.AbstractTransport)
        True

    Attributes:
        epsilon: regularisation, > 0, in units of the cost; may be traced.
        cost: `[V, V]` (or `[..., V, V]`, a row's own), an `EmbeddingCost`, or None for the 0–1 cost.
        max_iterations: iterations at most, per transport problem.
        tolerance: largest L1 marginal error at which to stop.
    """

    epsilon: Scalar = 0.1
    cost: jax.Array | EmbeddingCost | None = None
    max_iterations: int = dataclasses.field(default=2000, metadata={"static": True})
    tolerance: float = dataclasses.field(default=1e-6, metadata={"static": True})

    @abc.abstractmethod
    def solve(self, target: ArrayLike, model: ArrayLike) -> SinkhornPotentials:
        """The transport problem between p and q with its potentials and convergence report (not debiased)."""

    @abc.abstractmethod
    def self_transport(self, logits: jax.Array) -> jax.Array:
        """The value of the transport problem between a distribution and itself, `[...]`."""

    def debiased_rows(self, target: jax.Array, model: jax.Array) -> jax.Array:
        """OT(p, q) − ½·OT(p, p) − ½·OT(q, q), exactly 0 for equal rows.

        In a batch the three problems are iterated until each one's slowest row has converged, so that for equal rows
        they need not agree to the last digit.
        """
        within = self.self_transport(target) + self.self_transport(model)
        # A row without a possible token on either side is worth 0, in the self-terms as well.
        legal = jnp.any(target > -jnp.inf, -1) & jnp.any(model > -jnp.inf, -1)
        differ = jnp.any(target != model, -1)
        return jnp.where(legal & differ, self.solve(target, model).value - 0.5 * within, 0)

    @property
    def problem(self) -> dict[str, Any]:
        """The arguments of the solvers that are the same for all."""
        cost = self.cost.matrix() if isinstance(self.cost, EmbeddingCost) else self.cost
        stop = {"max_iterations": self.max_iterations, "tolerance": self.tolerance}
        return {"epsilon": self.epsilon, "cost": cost, **stop}

    def on_tokens(self, ids: jax.Array, *, vocabulary: int, tail: bool) -> Self:
        """The same problem with the cost between these tokens alone; the 0–1 cost counts a tail as one more token.

        Raises:
            ValueError: a cost for another vocabulary, or a matrix and a tail.
        """
        if self.cost is None:
            return self
        if isinstance(self.cost, EmbeddingCost):
            check_embeddings(self.cost.embeddings, vocabulary)
            return dataclasses.replace(self, cost=self.cost.among(ids, tail=tail))
        if self.cost.shape[-2:] != (vocabulary, vocabulary):
            raise ValueError(
                f"cost has shape {self.cost.shape}, but a vocabulary of {vocabulary} needs ({vocabulary}, {vocabulary})"
            )
        if tail:
            raise ValueError(
                f"{self.name}: a cost matrix says nothing of the bucket of all other tokens; give "
                "cost=EmbeddingCost(embeddings=...), or drop the bucket with TopKRenormalized"
            )
        return dataclasses.replace(self, cost=gathered(self.cost, ids))

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

    @property
    def infinite_at(self) -> InfiniteAt:
        """Nowhere."""
        return InfiniteAt(False, False)

    @property
    def name(self) -> str:
        """`spec_name(ε)`, with whatever else there is."""
        fields = [f.name for f in dataclasses.fields(self) if not f.metadata.get("static")]
        shown = {name: _show(getattr(self, name)) for name in fields if name != "cost"}
        if self.cost is not None:
            kind = self.cost.metric + " " if isinstance(self.cost, EmbeddingCost) else ""
            shown["cost"] = f"<{kind}{self.cost.shape[-1]}×{self.cost.shape[-1]}>"
        if not getattr(self, "debiased", True):
            shown["debiased"] = "False"
        if list(shown) == ["epsilon"]:
            return f"{self.spec_name}({shown['epsilon']})"
        return f"{self.spec_name}({', '.join(f'{name}={text}' for name, text in shown.items())})"


def check_positive(div: AbstractTransport, *parameters: str) -> None:
    """Raises ValueError when a concrete hyper-parameter is not positive and finite (traced ones are not looked at)."""
    for parameter in parameters:
        value = getattr(div, parameter)
        if isinstance(value, int | float) and not is_traced(value) and not 0 < value < jnp.inf:
            raise ValueError(
                f"{type(div).__name__}: {parameter}={value} must be positive and finite"
            )


def _show(value: Scalar) -> str:
    return "…" if is_traced(value) else f"{float(value):.12g}"
