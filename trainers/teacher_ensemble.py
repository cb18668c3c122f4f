"""Several teachers in the place of one: their mixture or product, weighted once or by the labels."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from divax.objectives import (
    CombinedLogits,
    HiddenLogits,
    mixture_of_teachers,
    product_of_teachers,
    teacher_weights,
    token_statistics,
)
from divax.objectives.arguments import live_weights
from divax.objectives.hidden_rows import parted
from divax.objectives.teacher_ensembles import weights_of_costs
from divax.trainers.batch import Batch
from divax.trainers.examples import Examples
from divax.trainers.sharding import rows_over_devices
from divax.trainers.teacher import AbstractTeacher

#: The mixture is exact for the forward KL, the product for the reverse KL.
Combination = Literal["mixture", "product"]
_COMBINE = {"mixture": mixture_of_teachers, "product": product_of_teachers}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EnsembleTeacher(AbstractTeacher):
    r"""Several teachers as one distribution, at temperature 1.

    .. math:: \sum_m w_m p_m(v) \quad\text{or}\quad
        \mathrm{softmax}\Big(\sum_m w_m \log p_m(v)\Big)

    `sum_m w_m KL(p_m || q)` has the gradient of KL(mixture‖q), `sum_m w_m KL(q || p_m)` that of
    KL(q‖product): one pass in place of M.

    Attributes:
        teachers: each of which sees the same batch; none of them a cache.
        weights: `[M]`, divided by their sum; `None` is all alike.
        combine: "mixture" or "product".
        vocab_size: the tokenizer's size, where teachers pad it, each in its way: their logits are cut to it first.

    Raises:
        ValueError: no teacher, weights that are not theirs, or another combination; when called, teachers of several
            vocabularies.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import trainers as tr
        >>> table = tr.Model(init=lambda key: jnp.eye(4), apply=lambda params, tokens: params[tokens])
        >>> teachers = tuple(tr.LiveTeacher(table, scale * jnp.eye(4)) for scale in (1.0, 3.0))
        >>> both = EnsembleTeacher(teachers, combine="product")
        >>> logits = both(tr.Batch(tokens=jnp.zeros((1, 1), jnp.int32)))
        >>> round(float(logits[0, 0, 0] - logits[0, 0, 1]), 4)  # the mean of 1 and 3
        2.0
    """

    teachers: tuple[AbstractTeacher, ...]
    weights: jax.Array | np.ndarray | None = None
    combine: Combination = dataclasses.field(default="mixture", metadata={"static": True})
    vocab_size: int | None = dataclasses.field(default=None, metadata={"static": True})

    def __post_init__(self):
        _check(self.teachers, self.combine)
        found = np.shape(self.weights)
        if self.weights is not None and found not in ((len(self.teachers),), ()):
            raise ValueError(f"weights must be [{len(self.teachers)}], got the shape {found}")

    def __call__(self, batch: Batch | Examples) -> jax.Array:
        """The combined log-probabilities, `[B, T, V]`, or `[B, V]` of examples."""
        return _COMBINE[self.combine](_stacked(self.teachers, batch, self.vocab_size), self.weights)

    def unread(self, batch: Batch | Examples, mesh: Mesh | None = None) -> CombinedLogits | None:
        """All teachers' states and heads, if each has them."""
        parts = _unread(self.teachers, batch, mesh)
        if parts is None:
            return None
        weights = jnp.ones(len(parts)) if self.weights is None else jnp.asarray(self.weights)
        everywhere = jnp.broadcast_to(weights, (*parts[0].hidden.shape[:-1], len(parts)))
        return CombinedLogits(
            parts=parts,
            weights=everywhere,
            combine=_COMBINE[self.combine],
            vocab_size=self.vocab_size,
        )

    def given(self, params: Any, opt_state: Any) -> "EnsembleTeacher":
        """All teachers as the student stands."""
        teachers = tuple(teacher.given(params, opt_state) for teacher in self.teachers)
        return dataclasses.replace(self, teachers=teachers)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LabelWeightedTeacher(AbstractTeacher):
    """Several teachers, each believed on a row the more, the better it predicts the row's labels.

    Attributes:
        teachers: at least two, each of which sees the same batch; none of them a cache.
        combine: "mixture" or "product".
        vocab_size: as of `EnsembleTeacher`.

    Raises:
        ValueError: as of `EnsembleTeacher`.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import trainers as tr
        >>> table = tr.Model(init=lambda key: jnp.eye(4), apply=lambda params, tokens: params[tokens])
        >>> right, wrong = (tr.LiveTeacher(table, scale * jnp.eye(4)) for scale in (9.0, -9.0))
        >>> logits = LabelWeightedTeacher((right, wrong))(tr.Batch(tokens=jnp.array([[2, 2]])))
        >>> int(jnp.argmax(logits[0, 0]))
        2

    Source: H. Zhang, D. Chen, C. Wang, "Confidence-Aware Multi-Teacher Knowledge Distillation",
    arXiv:2201.00007, eq. 3.
    """

    teachers: tuple[AbstractTeacher, ...]
    combine: Combination = dataclasses.field(default="mixture", metadata={"static": True})
    vocab_size: int | None = dataclasses.field(default=None, metadata={"static": True})

    def __post_init__(self):
        _check(self.teachers, self.combine)

    def __call__(self, batch: Batch | Examples) -> jax.Array:
        """The combined log-probabilities, `[B, T, V]`, or `[B, V]` of examples."""
        logits = _stacked(self.teachers, batch, self.vocab_size)
        labels, mask = batch.targets()
        return _COMBINE[self.combine](logits, teacher_weights(logits, labels, mask))

    def unread(self, batch: Batch | Examples, mesh: Mesh | None = None) -> CombinedLogits | None:
        """All teachers' states and heads, if each has them; their weights take one walk over each."""
        parts = _unread(self.teachers, batch, mesh)
        if parts is None:
            return None
        rows, heads, joined = parted((parts, batch.targets()))

        def of_rows(rows, heads):
            parts, (labels, mask) = joined(rows, heads)
            live = live_weights(labels.shape, labels, mask, "each teacher's states")
            known = jnp.where(live != 0, labels, -1)
            costs = [
                -token_statistics(
                    hidden=part.hidden, head=part.head, labels=known, vocab_size=self.vocab_size
                ).log_probs
                for part in parts
            ]
            return weights_of_costs(jnp.stack(costs), live).T

        return self._combined(parts, rows_over_devices(of_rows, mesh, rows, heads))

    def _combined(self, parts: tuple[HiddenLogits, ...], weights: jax.Array) -> CombinedLogits:
        """With weights `[B, M]`, the same for every token of a sample."""
        lead = parts[0].hidden.shape[:-1]
        samples = weights.reshape(lead[0], *(1,) * (len(lead) - 1), len(parts))
        everywhere = jnp.broadcast_to(samples, (*lead, len(parts)))
        return CombinedLogits(
            parts=parts,
            weights=everywhere,
            combine=_COMBINE[self.combine],
            vocab_size=self.vocab_size,
        )

    def given(self, params: Any, opt_state: Any) -> "LabelWeightedTeacher":
        """All teachers as the student stands."""
        teachers = tuple(teacher.given(params, opt_state) for teacher in self.teachers)
        return dataclasses.replace(self, teachers=teachers)


def _unread(
    teachers: tuple[AbstractTeacher, ...], batch: Batch | Examples, mesh: Mesh | None
) -> tuple[HiddenLogits, ...] | None:
    """Of each, where all are single models that expose them."""
    parts = [teacher.unread(batch, mesh) for teacher in teachers]
    found = tuple(part for part in parts if isinstance(part, HiddenLogits))
    return found if len(found) == len(parts) else None


def _stacked(
    teachers: tuple[AbstractTeacher, ...], batch: Batch | Examples, vocab_size: int | None
) -> jax.Array:
    logits, wide = [], jnp.result_type(float)
    for teacher in teachers:
        found = teacher(batch)
        if not isinstance(found, jax.Array):
            raise ValueError(
                f"an ensemble needs all of every teacher's logits, and a {type(teacher).__name__} "
                "has a few of them or none"
            )
        logits.append(found[..., :vocab_size].astype(wide))
    sizes = sorted({found.shape[-1] for found in logits})
    if len(sizes) > 1 or vocab_size not in (None, *sizes):
        raise ValueError(
            f"teachers of {', '.join(map(str, sizes))} logits are combined: pass the tokenizer's size, which none has "
            f"less of, as the ensemble's vocab_size (now {vocab_size})"
        )
    return jnp.stack(logits)


def _check(teachers: tuple[AbstractTeacher, ...], combine: str) -> None:
    if not teachers:
        raise ValueError("an ensemble needs at least one teacher")
    if combine not in _COMBINE:
        raise ValueError(f"combine={combine!r} is none of {', '.join(_COMBINE)}")
