"""Distances between distributions on an ordered support: Wasserstein-1 and Cramér, from cumulative sums."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Self

import jax
import jax.numpy as jnp

from divax.divergences.base import InfiniteAt, divergence
from divax.divergences.gap import magnitude, probability_gap
from divax.divergences.token_divergence import AbstractTokenDivergence


@divergence
class AbstractOrderedDistance(AbstractTokenDivergence):
    """A distance between distributions on positions: symmetric, finite for all supports, and blind to the tokens' names.

    Example:
        >>> from divax import divergences as dv
        >>> isinstance(dv.Cramer(), dv.AbstractOrderedDistance)
        True

    Attributes:
        positions: `[V]`, where each atom lies, in any order, or `[..., V]` of each row; None is 0, 1, …, V − 1.
    """

    known_exceptions: ClassVar[Mapping[str, str]] = {
        "permutation_equivariant": "the order of the tokens is what it measures"
    }

    positions: jax.Array | None = None

    @property
    def infinite_at(self) -> InfiniteAt:
        """Nowhere."""
        return InfiniteAt(False, False)

    def dual(self) -> Self:
        """Itself."""
        return self

    def on_tokens(self, ids: jax.Array, *, vocabulary: int, tail: bool) -> Self:
        """The same between the positions of the kept tokens, for `TopKRenormalized`.

        Raises:
            ValueError: a tail, which has no position.
        """
        if tail:
            raise ValueError(
                f"{self.spec_name} has no place for the bucket of all other tokens: use TopKRenormalized"
            )
        places = jnp.arange(vocabulary) if self.positions is None else jnp.asarray(self.positions)
        return dataclasses.replace(self, positions=places[ids].astype(jnp.result_type(float)))


@divergence
class Wasserstein1(AbstractOrderedDistance):
    """Earth mover's distance on an ordered support, W₁ = Σ |F − G|·Δx with the cumulative distributions F and G.

    Exact optimal transport for the cost |x − y|, without iterations. A distance, not a squared one: its gradient by the
    model's probabilities, the reverse cumulative sum of sign(G − F)·Δx, does not vanish as q → p (0 is taken at
    F = G), and a temperature scales it by T¹. Called with logits `[..., V]`, returns `[...]` in units of the
    positions, float32; masking as in `AbstractDivergence.__call__`; finite for all supports.

    Attributes:
        positions: `[V]`, where each atom lies, in any order, or `[..., V]` of each row; None is 0, 1, …, V − 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> p, q = jnp.log(jnp.array([0.6, 0.2, 0.2])), jnp.log(jnp.array([0.2, 0.2, 0.6]))
        >>> round(float(dv.Wasserstein1()(p, q)), 6)
        0.8

    Source: S. S. Vallender, "Calculation of the Wasserstein distance between probability distributions on the line" (1974).
    """

    spec_name = "wasserstein1"
    formula = "Σ |F − G| Δx"

    def rows(self, target: jax.Array, model: jax.Array) -> jax.Array:
        """Σ |F − G|·Δx."""
        cumulative, steps = _cumulative_gap(target, model, self.positions)
        return jnp.sum(magnitude(cumulative) * steps, -1)


@divergence
class Cramer(AbstractOrderedDistance):
    """Cramér distance on an ordered support, Σ (F − G)²·Δx: half the energy distance, smooth where W₁ has a kink.

    Its sample gradients are unbiased, which those of W₁ are not. Called with logits `[..., V]`, returns `[...]` in
    units of the positions, float32; masking as in `AbstractDivergence.__call__`; finite for all supports.

    Attributes:
        positions: `[V]`, where each atom lies, in any order, or `[..., V]` of each row; None is 0, 1, …, V − 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> p, q = jnp.log(jnp.array([0.6, 0.2, 0.2])), jnp.log(jnp.array([0.2, 0.2, 0.6]))
        >>> round(float(dv.Cramer()(p, q)), 6)
        0.32

    Source: M. G. Bellemare et al., "The Cramer Distance as a Solution to Biased Wasserstein Gradients", arXiv:1705.10743,
    §4.
    """

    spec_name = "cramer"
    formula = "Σ (F − G)² Δx"

    def rows(self, target: jax.Array, model: jax.Array) -> jax.Array:
        """Σ (F − G)²·Δx."""
        cumulative, steps = _cumulative_gap(target, model, self.positions)
        return jnp.sum(cumulative**2 * steps, -1)


def _cumulative_gap(
    target: jax.Array, model: jax.Array, positions: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """F − G at every atom but the last (where it is 0), and the steps Δx to the next one; both broadcastable."""
    gap = probability_gap(target, model)
    size = gap.shape[-1]
    if positions is None:
        steps = jnp.ones(size - 1, gap.dtype)
    else:
        if jnp.shape(positions)[-1:] != (size,):
            raise ValueError(
                f"positions have shape {jnp.shape(positions)}, but {size} atoms need ({size},)"
            )
        places = jnp.broadcast_to(jnp.asarray(positions).astype(gap.dtype), gap.shape)
        order = jnp.argsort(places, axis=-1)
        gap = jnp.take_along_axis(gap, order, -1)
        steps = jnp.diff(jnp.take_along_axis(places, order, -1), axis=-1)
    cumulative = jnp.cumsum(gap, axis=-1)[..., :-1]
    return cumulative, jnp.broadcast_to(steps, cumulative.shape)
