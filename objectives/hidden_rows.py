"""What an objective of distillation may read of a batch whose logits nobody has computed."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from divax.divergences import TopKCache
from divax.divergences import divergence as frozen_pytree
from divax.divergences.fused_linear import Implementation
from divax.objectives.distillation_rows import DistillationRows, drawn_labels
from divax.objectives.hidden_logits import CombinedLogits, HiddenLogits
from divax.objectives.weighted import Weighted


@frozen_pytree
class HiddenRows:
    """`DistillationRows` with states and heads in the place of logits.

    Attributes:
        student: its states and head; the gradient's only way.
        teacher: likewise, those of several teachers, or a cache; `None` where there is none.
        labels: `[B, T]` int32, -100 where there is none.
        mask: `[B, T]` weights.
        sampler_logps: `[B, T]`, the labels' log-probs under whatever drew them; `None` where nobody has drawn them.
        writers: `[B]` int32, who wrote each row, as in `DistillationRows`.
        axis_name: under `jax.shard_map`, of the axes over which the batch is split, for what is of the whole batch.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax.objectives import HiddenLogits, HiddenRows
        >>> student = HiddenLogits(hidden=jnp.ones((1, 2, 3)), head=jnp.ones((3, 5)))
        >>> rows = HiddenRows(
        ...     student=student, teacher=None, labels=jnp.array([[3, -100]]), mask=jnp.array([[1.0, 0.0]])
        ... )
        >>> rows.dense(vocab_size=4).student_logits.shape
        (1, 2, 4)
    """

    student: HiddenLogits
    teacher: HiddenLogits | CombinedLogits | TopKCache | None
    labels: jax.Array
    mask: jax.Array
    sampler_logps: jax.Array | None = None
    writers: jax.Array | None = None
    axis_name: tuple[str, ...] = dataclasses.field(default=(), metadata={"static": True})

    def dense(self, vocab_size: int | None = None) -> DistillationRows:
        """The same with all logits, of the first `vocab_size` tokens if that is said."""
        known = self.teacher
        teacher = known.logits() if isinstance(known, HiddenLogits | CombinedLogits) else known
        return DistillationRows(
            student_logits=self.student.logits()[..., :vocab_size],
            teacher_logits=teacher[..., :vocab_size] if isinstance(teacher, jax.Array) else teacher,
            labels=self.labels,
            mask=self.mask,
            sampler_logps=self.sampler_logps,
            writers=self.writers,
        )

    def drawn(self, objective: str) -> jax.Array:
        """`sampler_logps`, for an objective of samples.

        Args:
            objective: who needs them.

        Raises:
            ValueError: nobody has drawn the labels.
        """
        return drawn_labels(self.sampler_logps, objective)


class HiddenObjective(Protocol):
    """An objective of distillation that a trainer may give states and heads in the place of logits.

    Example:
        >>> from divax.objectives import HiddenObjective, TokenDistillation
        >>> objective: HiddenObjective = TokenDistillation()
        >>> objective.takes_hidden, objective.reads_teacher
        (True, True)
    """

    @property
    def takes_hidden(self) -> bool:
        """Whether `from_hidden` may be called, with the rows of each device by themselves."""
        ...

    @property
    def reads_teacher(self) -> bool:
        """Whether there must be a teacher."""
        ...

    def from_hidden(
        self,
        rows: HiddenRows,
        /,
        *,
        vocab_size: int | None = None,
        implementation: Implementation | None = None,
    ) -> tuple[Weighted, dict[str, Weighted]]:
        """The loss and the metrics that the objective has of `rows.dense(vocab_size)`, without all logits at once."""
        ...


def parted(tree: Any) -> tuple[list[Any], list[Any], Callable[[Any, Any], Any]]:
    """What has the rows as leading axes, what every row shares, and how to put a pytree of states and heads together.

    Example:
        >>> import jax.numpy as jnp
        >>> pair = (HiddenLogits(hidden=jnp.ones((2, 3)), head=jnp.ones((3, 5))), jnp.zeros(2))
        >>> rows, heads, joined = parted(pair)
        >>> [x.shape for x in rows], heads[1], joined(rows, heads)[0].vocab_size
        ([(2, 3), (2,)], None, 5)
    """
    leaves, structure = jax.tree.flatten(tree, is_leaf=_is_states)
    rows = [leaf.hidden if _is_states(leaf) else jnp.asarray(leaf) for leaf in leaves]
    heads = [leaf.head if _is_states(leaf) else None for leaf in leaves]

    def joined(rows: Any, heads: Any) -> Any:
        pairs = zip(rows, heads, strict=True)
        return structure.unflatten(
            states if head is None else HiddenLogits(hidden=states, head=head)
            for states, head in pairs
        )

    return rows, heads, joined


def _is_states(x: Any) -> bool:
    return isinstance(x, HiddenLogits)
