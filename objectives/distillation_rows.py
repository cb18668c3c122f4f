"""What an objective of distillation may read of a batch, in one frozen pytree."""

import dataclasses
from typing import Protocol

import jax

from divax.divergences import TopKCache
from divax.objectives.weighted import Weighted

#: Who wrote a row's completion, as `DistillationRows.writers` says it.
FROM_DATA, FROM_STUDENT, FROM_TEACHER = 0, 1, 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DistillationRows:
    """Student and teacher on the same rows, with the labels and who drew them.

    Everything stands where `align_causal` puts the labels: position t belongs to token t + 1.

    Attributes:
        student_logits: `[B, T, V]`, or `[B, V]` for single decisions; the gradient's only way.
        teacher_logits: the same, or a `TopKCache` of it, or `None` where there is no teacher.
        labels: `[B, T]` int32, -100 where there is none.
        mask: `[B, T]` weights.
        sampler_logps: `[B, T]`, the labels' log-probs under whatever drew them; `None` where nobody
            has drawn them.
        writers: `[B]` int32, who wrote each row: 0 the data, 1 the student, 2 the teacher; `None`
            is the data.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax.objectives import DistillationRows
        >>> rows = DistillationRows(
        ...     student_logits=jnp.zeros((1, 2, 4)), teacher_logits=jnp.ones((1, 2, 4)),
        ...     labels=jnp.array([[3, -100]]), mask=jnp.array([[1.0, 0.0]]),
        ... )
        >>> rows.writers is None
        True
    """

    student_logits: jax.Array
    teacher_logits: jax.Array | TopKCache | None
    labels: jax.Array
    mask: jax.Array
    sampler_logps: jax.Array | None = None
    writers: jax.Array | None = None

    def whole_teacher(self, objective: str) -> jax.Array:
        """The teacher's logits `[..., V]`, for an objective that K of them do not serve.

        Args:
            objective: who needs them.

        Raises:
            ValueError: there is no teacher, or a cache of its likeliest tokens only.
        """
        if self.teacher_logits is None:
            raise ValueError(f"{objective} needs a teacher, and there is none")
        if isinstance(self.teacher_logits, TopKCache):
            raise ValueError(
                f"{objective} needs all of the teacher's logits, and a cache has "
                f"{self.teacher_logits.ids.shape[-1]} of them: give it a live teacher, or use "
                "TokenDistillation"
            )
        return self.teacher_logits

    def drawn(self, objective: str) -> jax.Array:
        """`sampler_logps`, for an objective of samples.

        Args:
            objective: who needs them.

        Raises:
            ValueError: nobody has drawn the labels.
        """
        return drawn_labels(self.sampler_logps, objective)


def drawn_labels(sampler_logps: jax.Array | None, objective: str) -> jax.Array:
    """The labels' log-probs under whatever drew them, or one line that says that nobody has."""
    if sampler_logps is None:
        raise ValueError(
            f"{objective} weighs samples by what they were drawn with, and these rows are data: "
            "train it on samples"
        )
    return sampler_logps


class DistillationObjective(Protocol):
    """What a trainer minimises: any function of the rows; a frozen pytree has its numbers traced.

    Example:
        >>> from divax.objectives import DistillationObjective, TokenDistillation
        >>> objective: DistillationObjective = TokenDistillation()
    """

    def __call__(self, rows: DistillationRows, /) -> tuple[Weighted, dict[str, Weighted]]:
        """The loss and the metrics."""
        ...
