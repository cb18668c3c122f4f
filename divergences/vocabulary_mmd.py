"""MMD on the vocabulary: how far apart two distributions' mean embeddings are."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from divax.divergences.base import AbstractDivergence, InfiniteAt, divergence
from divax.divergences.gap import probability_gap


@divergence
class VocabularyMMD(AbstractDivergence):
    """Squared MMD with the kernel K = EEᵀ of token embeddings, (p − q)ᵀK(p − q) = ‖Eᵀ(p − q)‖².

    O(V·d) time and no V×V matrix. Gradient with respect to the model's logits: 2q(w − ⟨q, w⟩) with w = K(q − p). Zero at
    p = q, and wherever the mean embeddings agree: with d < V − 1 a pseudo-distance, and not an f-divergence (merging
    tokens may increase it). Called with logits `[..., V]`, returns `[...]` in squared units of the embeddings, float32;
    masking as in `AbstractDivergence.__call__`; finite for all supports.

    Attributes:
        embeddings: E, `[V, d]`: rows of the output head or the embedding table, usually frozen.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> div = dv.VocabularyMMD(embeddings=jnp.array([[0.0], [3.0]]))
        >>> float(div(jnp.array([0.0, -jnp.inf]), jnp.array([-jnp.inf, 0.0])))
        9.0

    Source: A. Gretton et al., "A Kernel Two-Sample Test" (2012), eq. 1, for a finite feature map.
    """

    spec_name = "vocabulary_mmd"
    formula = "‖Eᵀ(p − q)‖²"

    embeddings: jax.Array

    def rows(self, target: jax.Array, model: jax.Array) -> jax.Array:
        """‖Eᵀ(p − q)‖²."""
        check_embeddings(self.embeddings, target.shape[-1])
        mean_gap = jnp.matmul(
            probability_gap(target, model), self.embeddings, precision=jax.lax.Precision.HIGHEST
        )
        return jnp.sum(mean_gap**2, -1)

    @property
    def infinite_at(self) -> InfiniteAt:
        """Nowhere."""
        return InfiniteAt(False, False)

    def dual(self) -> VocabularyMMD:
        """Itself."""
        return self


def check_embeddings(embeddings: jax.Array, vocabulary: int) -> None:
    """Raises ValueError unless there is one row per token."""
    shape = jnp.shape(embeddings)
    if len(shape) != 2 or shape[0] != vocabulary:
        raise ValueError(
            f"embeddings have shape {shape}, but a vocabulary of {vocabulary} needs ({vocabulary}, d)"
        )
