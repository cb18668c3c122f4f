"""Ground costs of transport: what it costs to move mass from one token to another, from embeddings of the tokens."""

from __future__ import annotations

import dataclasses
import difflib
import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from divax.divergences.base import divergence

Metric = Literal["euclidean", "squared_euclidean", "cosine"]


@divergence
class EmbeddingCost:
    """The cost between two tokens as a distance of their embeddings; a `[V, V]` matrix exists only if it is asked for.

    With e_v the embeddings and ê_v = e_v/‖e_v‖:

    - "euclidean": ‖e_v − e_w‖;
    - "squared_euclidean": ‖e_v − e_w‖²;
    - "cosine": 1 − cos(e_v, e_w) = ½‖ê_v − ê_w‖², in [0, 2]. A row of zeros stays at the origin, ½ away from all others.

    The Euclidean costs are not rescaled: the ε of a transport problem is in their units. Every cost is computed from
    differences, in float32 at least: it is at least 0, exactly 0 between a token and itself or one with the same
    embedding, and as precise for near neighbours far from the origin as for others (the inner products of the usual
    expansion would cancel). Its derivative where two embeddings coincide is taken as 0. All three are of negative type,
    so that a debiased Sinkhorn divergence with them is at least 0.

    The tokens outside a top-k selection are one more point, at the mean of all embeddings (of the unit rows, for "cosine").

    Attributes:
        embeddings: `[V, d]`, any float dtype: rows of the output head or the embedding table, usually frozen; finite.
            A divergence upcasts a bfloat16 table as a whole: give it the float32 one if there is one.
        metric: the distance.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> cost = dv.EmbeddingCost(embeddings=jnp.array([[0.0, 1.0], [0.0, 2.0], [1.0, 0.0]]), metric="cosine")
        >>> div = dv.TopK(inner=dv.AnnealedSinkhorn(epsilon=0.1, cost=cost), k=2, keep="union")
        >>> cost.matrix().round(6).tolist()
        [[0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 1.0, 0.0]]
    """

    embeddings: jax.Array
    metric: Metric = dataclasses.field(default="euclidean", metadata={"static": True})

    def __post_init__(self):
        if self.metric not in get_args(Metric):
            near = difflib.get_close_matches(str(self.metric), get_args(Metric), n=1, cutoff=0.0)
            raise ValueError(
                f"EmbeddingCost: metric={self.metric!r} is none of {', '.join(get_args(Metric))}; did you mean {near[0]!r}?"
            )
        shape = jnp.shape(self.embeddings)
        if len(shape) != 2:
            raise ValueError(f"EmbeddingCost: embeddings must be [V, d], got shape {shape}")

    @property
    def shape(self) -> tuple[int, int]:
        """That of the matrix, (V, V)."""
        return self.embeddings.shape[0], self.embeddings.shape[0]

    def matrix(self) -> jax.Array:
        """The cost between all tokens, `[V, V]`, in O(V²) memory."""
        return _distances(self._points(self.embeddings), self.metric)

    def among(self, ids: jax.Array, *, tail: bool) -> jax.Array:
        """The cost between the tokens of each row, and the rest of the vocabulary as a last one if `tail`.

        Args:
            ids: integer `[..., K]`.
            tail: whether there is a bucket for all other tokens.

        Returns:
            `[..., K, K]`, or `[..., K + 1, K + 1]` with a tail.
        """
        points = self._points(jnp.take(self.embeddings, ids, axis=0))
        if tail:
            rest = jnp.broadcast_to(self._centre(), (*ids.shape[:-1], 1, points.shape[-1]))
            points = jnp.concatenate([points, rest], axis=-2)
        return _distances(points, self.metric)

    def _points(self, embeddings: jax.Array) -> jax.Array:
        points = _upcast(embeddings)
        return points * _inverse_norms(points) if self.metric == "cosine" else points

    def _centre(self) -> jax.Array:
        # A mean of unit rows as a product with the norms: the unit rows of a whole vocabulary are not formed.
        embeddings = _upcast(self.embeddings)
        size = embeddings.shape[0]
        weights = jnp.full((1, size), 1 / size, embeddings.dtype)
        if self.metric == "cosine":
            weights = weights * _inverse_norms(embeddings).T
        return jnp.matmul(weights, embeddings, precision=jax.lax.Precision.HIGHEST)


def gathered(cost: jax.Array, ids: jax.Array) -> jax.Array:
    """The entries of a `[V, V]` cost (or of a row's own, `[..., V, V]`) between the tokens of each row, `[..., K, K]`."""
    if cost.ndim > 2:
        return jax.vmap(gathered)(cost, ids)
    return cost[ids[..., :, None], ids[..., None, :]]


@functools.partial(jax.jit, static_argnames="metric")
@functools.partial(jax.checkpoint, static_argnums=1)
def _distances(points: jax.Array, metric: Metric) -> jax.Array:
    """Distances of all pairs of `[..., K, d]`; compiled as one reduction, so that no [K, K, d] array is kept."""
    squared = jnp.sum((points[..., :, None, :] - points[..., None, :, :]) ** 2, -1)
    if metric == "euclidean":
        apart = squared > 0
        return jnp.where(apart, jnp.sqrt(jnp.where(apart, squared, 1)), 0)
    return 0.5 * squared if metric == "cosine" else squared


def _inverse_norms(points: jax.Array) -> jax.Array:
    squared = jnp.sum(points**2, -1, keepdims=True)
    return jnp.where(squared > 0, jax.lax.rsqrt(jnp.where(squared > 0, squared, 1)), 0)


def _upcast(x: jax.Array) -> jax.Array:
    x = jnp.asarray(x)
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)
