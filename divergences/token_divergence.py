"""Divergences that tell tokens apart, and how a wrapper that keeps few tokens says which ones they are."""

from __future__ import annotations

import abc
from typing import Any

import jax

from divax.divergences.base import AbstractDivergence


class AbstractTokenDivergence(AbstractDivergence):
    """A divergence whose parameters belong to the tokens (a cost between them), so that it must know which ones it is given.

    All others treat tokens alike, and `TopK` hands them its kept rows as they are. A divergence of this kind is first
    asked for itself on the kept tokens, also from inside sums and wrappers.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> @dv.divergence
        ... class WeightedGap(dv.AbstractTokenDivergence):
        ...     spec_name, formula, infinite_at = "weighted_gap", "Σ w|p − q|", dv.InfiniteAt(False, False)
        ...     weights: jax.Array
        ...     def rows(self, target, model):
        ...         gap = jnp.exp(dv.log_softmax(target)) - jnp.exp(dv.log_softmax(model))
        ...         return jnp.sum(self.weights * jnp.abs(gap), -1)
        ...     def on_tokens(self, ids, *, vocabulary, tail):
        ...         if tail:
        ...             raise ValueError("weighted_gap has no weight for the bucket of other tokens")
        ...         return WeightedGap(weights=self.weights[ids])
        >>> div = dv.TopKRenormalized(inner=WeightedGap(weights=jnp.array([1.0, 10.0, 100.0])), k=2)
        >>> float(div(jnp.array([-9.0, 0.0, 0.0]), jnp.array([0.0, 0.0, -jnp.inf])))
        55.0
    """

    @abc.abstractmethod
    def on_tokens(self, ids: jax.Array, *, vocabulary: int, tail: bool) -> AbstractDivergence:
        """This divergence for rows of K tokens.

        Args:
            ids: which tokens, integer `[..., K]`; a repeated id is impossible in its later places.
            vocabulary: V, of which they were taken.
            tail: whether one more atom, the last, stands for all other tokens.

        Returns:
            A divergence of rows `[..., K]`, or `[..., K + 1]` with a tail.
        """


def on_tokens(
    div: AbstractDivergence, ids: jax.Array, *, vocabulary: int, tail: bool
) -> AbstractDivergence:
    """The divergence with every part of it that tells tokens apart told which tokens the rows are made of."""

    def tells_apart(part: Any) -> bool:
        return isinstance(part, AbstractTokenDivergence)

    def restrict(part: Any) -> Any:
        return part.on_tokens(ids, vocabulary=vocabulary, tail=tail) if tells_apart(part) else part

    return jax.tree.map(restrict, div, is_leaf=tells_apart)
