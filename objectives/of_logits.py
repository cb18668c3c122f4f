"""`OfLogits`: a function of logits as an objective of distillation."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax

from divax.objectives.abstract_token_objective import AbstractTokenObjective
from divax.objectives.distillation_rows import DistillationRows
from divax.objectives.reduction import Reduction, token_mean
from divax.objectives.weighted import Weighted


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OfLogits(AbstractTokenObjective):
    """A function of keywords, such as `dkd`, as an objective of rows.

    Attributes:
        function: of `student_logits`, `teacher_logits`, `labels` and `mask`; fix its other
            arguments by `functools.partial`, or by `jax.tree_util.Partial` if they are traced.

    Example:
        >>> import functools
        >>> from divax.objectives import OfLogits, dkd
        >>> OfLogits(functools.partial(dkd, non_target_weight=8.0)).explain()
        'dkd with non_target_weight=8.0'
    """

    function: Callable[..., tuple[Weighted, dict[str, Weighted]]]

    def __call__(self, rows: DistillationRows, /) -> tuple[Weighted, dict[str, Weighted]]:
        """The function of the rows' logits.

        Raises:
            ValueError: the teacher is a cache.
        """
        return self.function(
            student_logits=rows.student_logits,
            teacher_logits=rows.whole_teacher(self._name),
            labels=rows.labels,
            mask=rows.mask,
        )

    @property
    def takes_hidden(self) -> bool:
        """Whether the function is said to be `token_by_token`."""
        return getattr(_innermost(self.function), "by_token", False)

    @property
    def reduction(self) -> Reduction:
        """The one that is fixed, else the mean over tokens."""
        return self._fixed.get("reduction", token_mean)

    @property
    def vocab_size(self) -> int | None:
        """The tokenizer's own size, where that is fixed."""
        return self._fixed.get("vocab_size")

    def reduced_by(self, reduction: Reduction, /) -> "OfLogits":
        """The same with another reduction."""
        return OfLogits(functools.partial(self.function, reduction=reduction))

    def explain(self) -> str:
        """The function's name and what is fixed of it."""
        numbers = ", ".join(f"{name}={value}" for name, value in self._fixed.items())
        return f"{self._name} with {numbers}" if numbers else self._name

    @property
    def _fixed(self) -> dict[str, Any]:
        return getattr(self.function, "keywords", {})

    @property
    def _name(self) -> str:
        return getattr(_innermost(self.function), "__name__", "the objective")


def _innermost(function: Any) -> Any:
    """What a partial, or a partial of one, calls."""
    return _innermost(function.func) if isinstance(function, functools.partial) else function
