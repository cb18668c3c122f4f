"""What published code computes otherwise than its paper: the numbers reproduced, the difference said in words."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences import AbstractDivergence, ForwardKL, entropy
from divax.divergences import divergence as frozen_pytree
from divax.divergences.fused_linear import Implementation
from divax.objectives.arguments import as_labels, check_rows, is_static
from divax.objectives.cross_entropy import cross_entropy_rows
from divax.objectives.distillation import distillation
from divax.objectives.distillation_rows import DistillationObjective, DistillationRows
from divax.objectives.hidden_rows import HiddenObjective, HiddenRows
from divax.objectives.logit_rows import logit_rows, positive
from divax.objectives.reduction import token_mean
from divax.objectives.token_distillation import TokenDistillation
from divax.objectives.weighted import Weighted

_FORWARD_KL = ForwardKL()


@frozen_pytree
class AsPublished:
    """An objective as some code has it, which says of itself what is different.

    Attributes:
        objective: what is computed.
        difference: in words.

    Example:
        >>> from divax.objectives import AsPublished, TokenDistillation
        >>> print(AsPublished(objective=TokenDistillation(), difference="nothing else").explain())
        forward_kl(softmax(teacher), softmax(student)), token_mean; teacher without gradient. As published: nothing else
    """

    objective: DistillationObjective
    difference: str = dataclasses.field(metadata={"static": True})

    def __call__(self, rows: DistillationRows, /) -> tuple[Weighted, dict[str, Weighted]]:
        """The objective's."""
        return self.objective(rows)

    @property
    def takes_hidden(self) -> bool:
        """The objective's."""
        return getattr(self.objective, "takes_hidden", False)

    @property
    def reads_teacher(self) -> bool:
        """The objective's."""
        return getattr(self.objective, "reads_teacher", True)

    def from_hidden(
        self,
        rows: HiddenRows,
        /,
        *,
        vocab_size: int | None = None,
        implementation: Implementation | None = None,
    ) -> tuple[Weighted, dict[str, Weighted]]:
        """The objective's, if `takes_hidden`."""
        inner: HiddenObjective = self.objective  # type: ignore[assignment]
        return inner.from_hidden(rows, vocab_size=vocab_size, implementation=implementation)

    def explain(self) -> str:
        """The objective's words, and the difference."""
        explain: Callable[[], str] = getattr(self.objective, "explain", lambda: "an objective")
        return f"{explain()}. As published: {self.difference}"


@frozen_pytree
class WithTeacherEntropy:
    r"""A divergence and the teacher's entropy: the cross-entropy form, whose gradient is the same and which is never 0.

    .. math:: D(p, q) + H(p)

    For the forward KL it is the soft cross-entropy `-sum p log q`, for the skewed one `-sum p log (a p + (1 - a) q)`.

    Attributes:
        inner: D, of (teacher, student) logits.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> from divax.objectives import WithTeacherEntropy
        >>> round(float(WithTeacherEntropy(inner=dv.ForwardKL())(jnp.zeros(2), jnp.zeros(2))), 4)  # log 2
        0.6931

    Source: the soft cross-entropy of G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network",
    arXiv:1503.02531, §2, as the codes of MiniLLM, DistiLLM and torchtune have it.
    """

    inner: Callable[[jax.Array, jax.Array], jax.Array]

    @property
    def name(self) -> str:
        """The divergence's, and what is added."""
        return f"(entropy(teacher) + {getattr(self.inner, 'name', 'D')})"

    @property
    def by_token(self) -> bool:
        """Whether the divergence is: any but a plain function."""
        return isinstance(self.inner, AbstractDivergence)

    def __call__(self, target: jax.Array, model: jax.Array) -> jax.Array:
        """`[..., V]` twice to `[...]`."""
        value = self.inner(target, model)
        return value + jax.lax.stop_gradient(entropy(target.astype(value.dtype)))


@frozen_pytree
class EveryPosition:
    r"""Hinton's loss with a mean over every position of the batch, masked ones and padding too: Tunix's.

    .. math:: \frac1{BT}\sum_{bt}\Big[w\,T^2\,\mathrm{KL}(p_{bt}\|q_{bt}) + (1 - w)\,(-\log q_{bt}(y))\Big]

    with no cross-entropy where there is no label. The divergence is taken at padding as well, and the more padding there
    is, the less a real token weighs: `TokenDistillation` with the same numbers does neither. Rows that do not count may
    therefore not hold NaN.

    Attributes:
        temperature: T, of the KL.
        distill_weight: w in [0, 1].
        vocab_size: the tokenizer's own size, where a model pads it.

    Example:
        >>> from divax.objectives import EveryPosition
        >>> print(EveryPosition().explain())
        0.5 * 4 * forward_kl(softmax(teacher/2), softmax(student/2)) + 0.5 * cross-entropy, mean over every position...

    Source: google/tunix, `LogitStrategy`, of G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network",
    arXiv:1503.02531, §2.
    """

    temperature: ArrayLike = 2.0
    distill_weight: ArrayLike = 0.5
    vocab_size: int | None = dataclasses.field(default=None, metadata={"static": True})

    def __post_init__(self):
        positive(self.temperature, "temperature")
        if is_static(self.distill_weight) and not 0 <= self.distill_weight <= 1:
            raise ValueError(f"distill_weight={self.distill_weight} must lie in [0, 1]")

    def __call__(self, rows: DistillationRows, /) -> tuple[Weighted, dict[str, Weighted]]:
        """The loss, and the metrics of `distillation`, at every position.

        Raises:
            ValueError: no teacher, a cache of one, or shapes that do not fit.
        """
        teacher = rows.whole_teacher("EveryPosition")
        soft, metrics = distillation(
            student_logits=rows.student_logits,
            teacher_logits=teacher,
            divergence=_FORWARD_KL,
            temperature=self.temperature,
            vocab_size=self.vocab_size,
        )
        both = logit_rows(rows.student_logits, teacher, None, None, self.vocab_size)
        labels = as_labels(rows.labels)
        check_rows(labels, "labels", both.live.shape, "student_logits")
        hard = jnp.where(labels >= 0, cross_entropy_rows(both.student, labels), 0)
        # `both.live` is 1 everywhere: no mask was given.
        mean = token_mean(hard, both.live)
        share = jnp.asarray(self.distill_weight).astype(mean.total.dtype)
        total = share * soft.total + (1 - share) * mean.total
        return Weighted(total, mean.count), {
            **metrics,
            "cross_entropy": jax.lax.stop_gradient(mean),
        }

    def explain(self) -> str:
        """The formula in words."""
        same = TokenDistillation(temperature=self.temperature, distill_weight=self.distill_weight)
        formula = same.explain().split(", token_mean")[0]
        return f"{formula}, mean over every position, padding included; teacher without gradient"
