"""`DirectPreferenceDistillation`: at every token, the teacher's favourite is preferred to the student's (DPKD)."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences import divergence as frozen_pytree
from divax.objectives.abstract_token_objective import AbstractTokenObjective
from divax.objectives.arguments import is_static
from divax.objectives.distillation_rows import DistillationRows
from divax.objectives.logit_rows import is_label, logit_rows
from divax.objectives.margin_losses import Logistic
from divax.objectives.pair_loss import AbstractMarginLoss
from divax.objectives.reduction import Reduction, of_metrics, token_mean
from divax.objectives.weighted import Weighted

_STATIC = {"static": True}


@frozen_pytree
class DirectPreferenceDistillation(AbstractTokenObjective):
    r"""DPO of tokens: the teacher's likeliest against the student's likeliest, the teacher being the reference.

    .. math::
        l(\beta d), \qquad d = \log\frac{q(y^p)}{q(y^q)} - \log\frac{p(y^p)}{p(y^q)},
        \qquad y^p = \arg\max p,\ y^q = \arg\max q

    with p the teacher, q the student and `l(x) = softplus(-x)` for the logistic loss. Both likeliest tokens are held
    fixed. Where they are one token the loss is a constant, log 2 for the logistic; elsewhere it pushes the two apart until
    the student's favourite is the teacher's, and no further: no divergence is minimised, and the rest of the vocabulary is
    left alone. The authors add as much of `LabelCrossEntropy`.

    The sequence-level reading is `preference`, of whole completions, with the teacher as the reference:

        preference(chosen_logps=student on the teacher's completion, rejected_logps=student on its own,
                   reference_chosen_logps=teacher on the first, reference_rejected_logps=teacher on the second)

    with `chosen_lengths` and `rejected_lengths` for the averages that DistiLLM-2's baseline takes.

    Attributes:
        beta: the scale of the margin; may be traced.
        loss: of the margin; `Squared()` is the authors' IPO variant.
        vocab_size: the tokenizer's own size, where a model pads it.
        reduction: tokens to a loss.

    Raises:
        ValueError: a beta that is not positive.

    Example:
        >>> from divax.objectives import DirectPreferenceDistillation
        >>> print(DirectPreferenceDistillation().explain())
        Logistic of 0.1 * (log student(a)/student(b) - log teacher(a)/teacher(b)), a the teacher's likeliest token, b...

    Source: Y. Li, Y. Gu, L. Dong, D. Wang, Y. Cheng, F. Wei, "Direct Preference Knowledge Distillation for Large Language
    Models", arXiv:2406.19774, eq. 8 (of completions; with their lengths, eq. 9 and algorithm 1); per token as in the
    authors' code.
    """

    beta: ArrayLike = 0.1
    loss: AbstractMarginLoss = Logistic()
    vocab_size: int | None = dataclasses.field(default=None, metadata=_STATIC)
    reduction: Reduction = dataclasses.field(default=token_mean, metadata=_STATIC)

    def __post_init__(self):
        if is_static(self.beta) and not self.beta > 0:
            raise ValueError(f"beta={self.beta} must be positive")

    def __call__(self, rows: DistillationRows, /) -> tuple[Weighted, dict[str, Weighted]]:
        """The loss, and the metrics `agreement` (one favourite) and `margin` (d, where there are two).

        Raises:
            ValueError: no teacher, a cache of one, or shapes that do not fit.
        """
        teacher = rows.whole_teacher("DirectPreferenceDistillation")
        both = logit_rows(rows.student_logits, teacher, rows.labels, rows.mask, self.vocab_size)
        wanted, own = (
            jnp.argmax(jax.lax.stop_gradient(x), -1).astype(jnp.int32)
            for x in (both.teacher, both.student)
        )
        # The normalisers cancel: log-softmax is not needed, nor its rounding in bfloat16.
        gaps = (_at(x, wanted) - _at(x, own) for x in (both.student, both.teacher))
        margin = next(gaps) - next(gaps)
        beta = jnp.asarray(self.beta).astype(margin.dtype)
        differs = jnp.where(wanted != own, both.live, 0)
        mean = of_metrics(self.reduction)
        metrics = {
            "agreement": mean(wanted == own, both.live),
            "margin": mean(jax.lax.stop_gradient(margin), differs),
        }
        return self.reduction(self.loss.of_margin(beta * margin, beta), both.live), metrics

    def explain(self) -> str:
        """The margin and what is held fixed."""
        beta = f"{self.beta:g}" if is_static(self.beta) else "beta"
        return (
            f"{type(self.loss).__name__} of {beta} * (log student(a)/student(b) - log teacher(a)/teacher(b)), a the"
            " teacher's likeliest token, b the student's, both held fixed; no gradient where they are one. Of no"
            " divergence: it moves favourites only"
        )


def _at(logits: jax.Array, ids: jax.Array) -> jax.Array:
    # A masked sum partitions over a sharded vocabulary, which a gather does not.
    return jnp.sum(jnp.where(is_label(logits, ids), logits, 0), -1)
