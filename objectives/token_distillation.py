"""`TokenDistillation`: a divergence from teacher to student at every token, as a value."""

import dataclasses
from collections.abc import Callable

import jax
from jax.typing import ArrayLike

from divax.divergences import AbstractDivergence, ForwardKL, TopKCache
from divax.divergences import divergence as frozen_pytree
from divax.divergences.fused_linear import Implementation
from divax.objectives.arguments import is_static
from divax.objectives.cross_entropy import cross_entropy
from divax.objectives.cross_entropy_from_hidden import cross_entropy_from_hidden
from divax.objectives.distillation import distillation
from divax.objectives.distillation_from_hidden import distillation_from_hidden
from divax.objectives.distillation_rows import DistillationRows
from divax.objectives.hidden_logits import CombinedLogits, HiddenLogits
from divax.objectives.hidden_rows import HiddenRows
from divax.objectives.reduction import Reduction, token_mean
from divax.objectives.token_objective import objective_from_hidden
from divax.objectives.weighted import Weighted

_FORWARD_KL = ForwardKL()


@frozen_pytree
class TokenDistillation:
    r"""`distillation` as a frozen pytree: what `tr.distillation` minimises unless told otherwise.

    .. math::
        l = w\,T^2\,D(\mathrm{softmax}(t/T),\, \mathrm{softmax}(s/T))
            + (1-w)\,(-\log \mathrm{softmax}(s)_y)

    per token, in nats. The gradient is that of this sum with the tokens held fixed: on the
    student's own samples it is not the gradient of a divergence of sequences (see `MiniLLM`).

    Attributes:
        divergence: a member of `divax.divergences`, or any function of (teacher, student) logits.
        temperature: T > 0.
        distill_weight: w in [0, 1].
        scale_by_t2: whether the divergence is multiplied by T².
        vocab_size: the tokenizer's own size, where a model pads it.
        reduction: tokens to a loss.

    Example:
        >>> from divax import divergences as dv
        >>> from divax.objectives import TokenDistillation
        >>> print(TokenDistillation(divergence=dv.ReverseKL(), temperature=2.0).explain())
        4 * reverse_kl(softmax(teacher/2), softmax(student/2)), token_mean; teacher without gradient

    Source: G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network",
    arXiv:1503.02531, section 2, eq. 1; on the student's samples: R. Agarwal et al., "On-Policy
    Distillation of Language Models: Learning from Self-Generated Mistakes" (GKD), arXiv:2306.13649,
    eq. 4, there for the forward KL (for any divergence, section 3.1). Its eq. 2 means over each
    completion first: that is `reduction=sequence_mean`.
    """

    divergence: Callable[[jax.Array, jax.Array], jax.Array] = _FORWARD_KL
    temperature: ArrayLike = 1.0
    distill_weight: ArrayLike = 1.0
    scale_by_t2: bool = dataclasses.field(default=True, metadata={"static": True})
    vocab_size: int | None = dataclasses.field(default=None, metadata={"static": True})
    reduction: Reduction = dataclasses.field(default=token_mean, metadata={"static": True})

    def __call__(self, rows: DistillationRows, /) -> tuple[Weighted, dict[str, Weighted]]:
        """The loss and the metrics of `distillation`.

        Raises:
            ValueError: there is no teacher, or its rows do not match the student's.
        """
        teacher = rows.teacher_logits
        if teacher is None:
            teacher = rows.whole_teacher("TokenDistillation")
        return distillation(
            student_logits=rows.student_logits,
            teacher_logits=teacher,
            labels=rows.labels,
            mask=rows.mask,
            divergence=self.divergence,
            temperature=self.temperature,
            distill_weight=self.distill_weight,
            scale_by_t2=self.scale_by_t2,
            vocab_size=self.vocab_size,
            reduction=self.reduction,
        )

    @property
    def takes_hidden(self) -> bool:
        """Whether the divergence is; a plain function may look at several rows, and is not."""
        known = isinstance(self.divergence, AbstractDivergence)
        return known or getattr(self.divergence, "by_token", False)

    @property
    def reads_teacher(self) -> bool:
        """Always."""
        return True

    def reduced_by(self, reduction: Reduction, /) -> "TokenDistillation":
        """The same with another reduction."""
        return dataclasses.replace(self, reduction=reduction)

    def from_hidden(
        self,
        rows: HiddenRows,
        /,
        *,
        vocab_size: int | None = None,
        implementation: Implementation | None = None,
    ) -> tuple[Weighted, dict[str, Weighted]]:
        """The same loss and metrics without all logits at once, by `distillation_from_hidden`.

        Args:
            rows: states and heads; the teacher may be a cache, or several.
            vocab_size: the tokenizer's size, if `self.vocab_size` does not say it.
            implementation: as in `divergences.fused_linear`.

        Returns:
            The loss and the metrics.
        """
        teacher, size = rows.teacher, self.vocab_size or vocab_size
        if isinstance(teacher, CombinedLogits):
            return objective_from_hidden(self, rows, vocab_size=size, implementation=implementation)
        live = teacher if isinstance(teacher, HiddenLogits) else None
        return distillation_from_hidden(
            student_hidden=rows.student.hidden,
            student_head=rows.student.head,
            teacher_hidden=None if live is None else live.hidden,
            teacher_head=None if live is None else live.head,
            teacher=teacher if isinstance(teacher, TopKCache) else None,
            labels=rows.labels,
            mask=rows.mask,
            divergence=self.divergence,
            temperature=self.temperature,
            distill_weight=self.distill_weight,
            scale_by_t2=self.scale_by_t2,
            vocab_size=size,
            reduction=self.reduction,
            implementation=implementation,
        )

    def explain(self) -> str:
        """The formula in words."""
        known = is_static(self.temperature) and is_static(self.distill_weight)
        t, w = (self.temperature, self.distill_weight) if known else ("T", "w")
        plain = known and t == 1
        sides = "teacher", "student"
        soft = [f"softmax({side})" if plain else f"softmax({side}/{_number(t)})" for side in sides]
        name = getattr(self.divergence, "name", getattr(self.divergence, "__name__", "D"))
        formula = f"{name}({', '.join(soft)})"
        factors = [] if known and w == 1 else [_number(w)]
        if self.scale_by_t2 and not plain:
            factors.append(_number(t * t) if known else "T²")  # type: ignore[operator]
        formula = " * ".join([*factors, formula])
        if not (known and w == 1):
            rest = _number(1 - w) if known else "(1 - w)"  # type: ignore[operator]
            formula += f" + {rest} * cross-entropy"
        how = getattr(self.reduction, "__name__", "reduced")
        return f"{formula}, {how}; teacher without gradient"


@frozen_pytree
class LabelCrossEntropy:
    r"""Cross-entropy on the labels, without a teacher's logits: on the teacher's samples, SeqKD.

    .. math:: l = -\log \mathrm{softmax}(s)_y

    Attributes:
        vocab_size: the tokenizer's own size, where the model pads it.
        reduction: tokens to a loss.

    Example:
        >>> from divax.objectives import LabelCrossEntropy
        >>> LabelCrossEntropy().explain()
        '-log softmax(student)[label], token_mean'

    Source: Y. Kim, A. Rush, "Sequence-Level Knowledge Distillation", arXiv:1606.07947,
    section 3.2 (the approximation by the teacher's mode; here whatever completions are given).
    """

    vocab_size: int | None = dataclasses.field(default=None, metadata={"static": True})
    reduction: Reduction = dataclasses.field(default=token_mean, metadata={"static": True})

    def __call__(self, rows: DistillationRows, /) -> tuple[Weighted, dict[str, Weighted]]:
        """The loss and the metrics of `cross_entropy`."""
        return cross_entropy(
            logits=rows.student_logits,
            labels=rows.labels,
            mask=rows.mask,
            vocab_size=self.vocab_size,
            reduction=self.reduction,
        )

    @property
    def takes_hidden(self) -> bool:
        """Always."""
        return True

    @property
    def reads_teacher(self) -> bool:
        """Never."""
        return False

    def reduced_by(self, reduction: Reduction, /) -> "LabelCrossEntropy":
        """The same with another reduction."""
        return dataclasses.replace(self, reduction=reduction)

    def from_hidden(
        self,
        rows: HiddenRows,
        /,
        *,
        vocab_size: int | None = None,
        implementation: Implementation | None = None,
    ) -> tuple[Weighted, dict[str, Weighted]]:
        """The same loss and metrics without all logits at once, by `cross_entropy_from_hidden`.

        Args:
            rows: the student's states and head; no teacher's are read.
            vocab_size: the tokenizer's size, if `self.vocab_size` does not say it.
            implementation: as in `divergences.fused_linear`.

        Returns:
            The loss and the metrics.
        """
        return cross_entropy_from_hidden(
            hidden=rows.student.hidden,
            head=rows.student.head,
            labels=rows.labels,
            mask=rows.mask,
            vocab_size=self.vocab_size or vocab_size,
            reduction=self.reduction,
            implementation=implementation,
        )

    def explain(self) -> str:
        """The formula in words."""
        how = getattr(self.reduction, "__name__", "reduced")
        return f"-log softmax(student)[label], {how}"


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)
