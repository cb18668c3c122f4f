"""A divergence on K tokens: with one bucket for the rest, whose value is a lower bound, or renormalised."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal, Self, get_args

import jax
import jax.numpy as jnp

from divax.divergences.base import AbstractDivergence, InfiniteAt, divergence
from divax.divergences.coarse import Coarse, checked_k, coarsen, drop_tail
from divax.divergences.token_divergence import on_tokens

Keep = Literal["target", "model", "union"]


@divergence
class AbstractTopK(AbstractDivergence):
    """An inner divergence, and the choice of the tokens that it sees.

    Example:
        >>> from divax import divergences as dv
        >>> isinstance(dv.TopK(inner=dv.ForwardKL()), dv.AbstractTopK)
        True

    Attributes:
        inner: the divergence.
        k: tokens to keep, at most V (with "union": from each side, those of both once).
        keep: whose likeliest tokens, "target", "model" or "union".
    """

    # Merging tokens changes which ones are kept, and may show more of what was not.
    data_processing = False

    inner: AbstractDivergence
    k: int = dataclasses.field(default=64, metadata={"static": True})
    keep: Keep = dataclasses.field(default="target", metadata={"static": True})

    def __post_init__(self):
        if self.k < 1:
            raise ValueError(f"k={self.k} must be at least 1")
        if self.keep not in get_args(Keep):
            raise ValueError(f"keep={self.keep!r} is none of {', '.join(get_args(Keep))}")

    def kept(self, target: jax.Array, model: jax.Array) -> jax.Array:
        """The tokens to keep, integer `[..., K]`; in a union of two lists some occur twice."""
        k = checked_k(self.k, target.shape[-1])
        sides = {"target": (target,), "model": (model,), "union": (target, model)}[self.keep]
        tops = [jax.lax.top_k(jax.lax.stop_gradient(side), k)[1] for side in sides]
        return jnp.concatenate(tops, axis=-1)

    @property
    def infinite_at(self) -> InfiniteAt:
        """As the inner divergence."""
        return self.inner.infinite_at

    @property
    def name(self) -> str:
        """`spec_name(…)`."""
        return f"{self.spec_name}({self.inner.name}, k={self.k}, keep={self.keep})"

    def dual(self) -> Self:
        """The inner dual, on the other side's tokens."""
        sides: dict[Keep, Keep] = {"target": "model", "model": "target", "union": "union"}
        return dataclasses.replace(self, inner=self.inner.dual(), keep=sides[self.keep])


@divergence
class TopK(AbstractTopK):
    """D of both rows after merging all but K tokens into one bucket: a lower bound of D for every f-divergence and Rényi.

    Equal to D where target/model is constant over the bucket, and at k = V. The gradient of forward KL is q − p̃, where p̃
    is p on the kept tokens and spreads the rest of p over the bucket as the model does. No gradient flows through the
    choice of tokens. Called with logits `[..., V]`, returns `[...]`, float32; masking and infinities as the inner
    divergence. `coarsen` and `coarsen_cached` do the same in two steps, and report the coverage.

    Around a transport divergence it is what makes a vocabulary affordable: the cost is only ever formed between the kept
    tokens of a row, and the bucket stands at the mean of the embeddings (with a 0–1 cost it is a token like others). As k
    grows the value tends to D, but it is no bound.

    Attributes:
        inner: the divergence.
        k: tokens to keep, at most V (with "union": from each side, those of both once).
        keep: whose likeliest tokens: "target" suits forward KL, "model" reverse KL, "union" symmetric divergences and
            transport.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> target, model = jnp.array([3.0, 1.0, 0.0, -1.0]), jnp.array([0.0, 1.0, 2.0, 0.0])
        >>> div = dv.TopK(inner=dv.ForwardKL(), k=2)
        >>> div.name, round(float(div(target, model)), 4), round(float(div.inner(target, model)), 4)
        ('top_k(forward_kl, k=2, keep=target)', 1.6989, 1.7035)
        >>> cost = dv.EmbeddingCost(embeddings=jnp.arange(8.0).reshape(4, 2))
        >>> div = dv.TopK(inner=dv.Sinkhorn(epsilon=0.1, cost=cost), k=2, keep="union")
        >>> div.name
        'top_k(sinkhorn(epsilon=0.1, cost=<euclidean 4×4>), k=2, keep=union)'

    Source: I. Csiszár, "Information-type measures of difference of probability distributions and indirect observations"
    (1967), the data-processing inequality of f-divergences.
    """

    spec_name = "top_k"
    formula = "D of K tokens and one bucket"
    known_exceptions: ClassVar[Mapping[str, str]] = {
        "one_sided_tokens": "in the bucket a possible token hides an impossible one"
    }

    def rows(self, target: jax.Array, model: jax.Array) -> jax.Array:
        """The inner divergence of the coarse rows."""
        ids = self.kept(target, model)
        coarse = _coarse(target, model, ids)
        inner = on_tokens(self.inner, ids, vocabulary=target.shape[-1], tail=True)
        return inner.rows(coarse.target, coarse.model)


@divergence
class TopKRenormalized(AbstractTopK):
    """D of both rows restricted to K tokens and renormalised: what many implementations call top-k distillation.

    Zero while the model has any amount of mass outside, and neither an upper nor a lower bound of D: prefer `TopK`.
    Called with logits `[..., V]`, returns `[...]`, float32; masking and infinities as the inner divergence.

    Attributes:
        inner: the divergence.
        k: tokens to keep, at most V (with "union": from each side, those of both once).
        keep: whose likeliest tokens, "target", "model" or "union".

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> target, leaked = jnp.array([5.0, 5.0, 0.0]), jnp.array([0.0, 0.0, 9.0])
        >>> float(dv.TopKRenormalized(inner=dv.ForwardKL(), k=2)(target, leaked))
        0.0
    """

    spec_name = "top_k_renormalized"
    formula = "D of K tokens, renormalised"
    known_exceptions: ClassVar[Mapping[str, str]] = {
        "one_sided_tokens": "blind to what is not kept",
        "one_hot": "which impossible tokens are kept beside the possible one is arbitrary",
    }

    def rows(self, target: jax.Array, model: jax.Array) -> jax.Array:
        """The inner divergence of the kept tokens."""
        ids = self.kept(target, model)
        rows = drop_tail(_coarse(target, model, ids))
        inner = on_tokens(self.inner, ids, vocabulary=target.shape[-1], tail=False)
        return inner.rows(rows.target, rows.model)


def _coarse(target: jax.Array, model: jax.Array, ids: jax.Array) -> Coarse:
    coarse = coarsen(target, model, ids=ids)
    # Without a possible token on either side a row is no pair of distributions, and is worth 0 (here as in `Rows`).
    legal = jnp.any(target > -jnp.inf, -1) & jnp.any(model > -jnp.inf, -1)
    return coarse._replace(target=jnp.where(legal[..., None], coarse.target, -jnp.inf))
