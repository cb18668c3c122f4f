"""What objectives share whose tokens know nothing of each other."""

import abc
import dataclasses
from typing import Any, ClassVar, Self, cast

from divax.divergences.fused_linear import Implementation
from divax.objectives.distillation_rows import DistillationRows
from divax.objectives.hidden_rows import HiddenRows
from divax.objectives.reduction import Reduction
from divax.objectives.token_objective import objective_from_hidden
from divax.objectives.weighted import Weighted


class AbstractTokenObjective(abc.ABC):
    """An objective of distillation in which each token's loss and metrics are of its own row alone.

    A frozen dataclass that says how rows become a loss, with a field `reduction` by which both are reduced, gets all else.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import objectives as ob
        >>> from divax.divergences import divergence as frozen_pytree
        >>> @frozen_pytree
        ... class Energy(ob.AbstractTokenObjective):
        ...     reduction: ob.Reduction = dataclasses.field(default=ob.token_mean, metadata={"static": True})
        ...     reads_teacher = False
        ...     def __call__(self, rows, /):
        ...         return self.reduction(jnp.sum(rows.student_logits**2, -1), rows.mask), {}
        >>> student = ob.HiddenLogits(hidden=jnp.eye(3), head=jnp.eye(3))
        >>> rows = ob.HiddenRows(student=student, teacher=None, labels=jnp.zeros(3, int), mask=jnp.ones(3))
        >>> float(Energy().from_hidden(rows, implementation="fast")[0].mean())
        1.0
    """

    takes_hidden: ClassVar[bool] = True
    """`from_hidden` may be called."""
    reads_teacher: ClassVar[bool] = True
    """Whether the teacher is read at all."""
    reduction: Reduction

    @abc.abstractmethod
    def __call__(self, rows: DistillationRows, /) -> tuple[Weighted, dict[str, Weighted]]:
        """The loss and the metrics."""

    def reduced_by(self, reduction: Reduction, /) -> Self:
        """The same with another reduction."""
        return dataclasses.replace(cast(Any, self), reduction=reduction)

    def from_hidden(
        self,
        rows: HiddenRows,
        /,
        *,
        vocab_size: int | None = None,
        implementation: Implementation | None = None,
    ) -> tuple[Weighted, dict[str, Weighted]]:
        """The same without all logits at once; see `objective_from_hidden`."""
        return objective_from_hidden(
            self, rows, vocab_size=vocab_size, implementation=implementation
        )
