"""`SampledDistillation`: the reverse KL of tokens from one sampled token each, by estimators whose gradient it is."""

import dataclasses
import functools
import math
from typing import Any, Literal

import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences import divergence as frozen_pytree
from divax.divergences.fused_linear import Implementation
from divax.objectives.aggregation import TokenMean
from divax.objectives.arguments import is_static
from divax.objectives.distillation_rows import DistillationRows
from divax.objectives.hidden_rows import HiddenRows
from divax.objectives.logit_rows import token_means
from divax.objectives.reduction import Reduction
from divax.objectives.sampled_labels import (
    SampledLabels,
    SampleWeights,
    check_choice,
    live_labels,
    log_weights,
    sampled_labels,
    sampled_logits,
    to_weight,
)
from divax.objectives.token_objective import objective_from_hidden, tokens_from_hidden
from divax.objectives.weighted import Weighted

_STATIC = {"static": True}
_REFUSED = {
    "k1": "log(student/teacher) as a loss has no gradient but noise, because E[grad log student] = 0; as an advantage"
    " it is 'reinforce'",
    "k3": "teacher/student - 1 + log(student/teacher) as a loss has the gradient of the forward KL, at the student's"
    " prefixes, and only its value estimates the reverse KL; if that is wanted, use TokenDistillation()",
}


@frozen_pytree
class SampledDistillation:
    r"""KL(student‖teacher) of every token from the token that was drawn: no sum over the vocabulary.

    With `d = log student(y) - log teacher(y)` and `w = student/sampler`, per token

    | estimator | loss | gradient |
    |---|---|---|
    | `k2` | `w d²/2` | `w d grad log student` |
    | `reinforce` | `w d log student`, d held fixed: the advantage is `-d` | the same, sample by sample |

    whose expectation is the gradient of the reverse KL of each token's distribution, with the prefixes held fixed: that of
    `TokenDistillation(divergence=ReverseKL())`, with more variance and without a teacher's whole distribution having to
    be sent. It is not that of completions, for which see `MiniLLM`.

    It is KDRL's distillation term and on-policy distillation's advantage; `objectives.kdrl` adds the first to GRPO
    (`Regularizer(estimator="k2", level="token", placement="loss")`, the teacher as its reference), where
    `unsolved_only=True` leaves completions alone that earned their reward: without rewards there is nothing to mask here.

    Attributes:
        estimator: `k2` or `reinforce`; anything else is refused, with what it would optimise.
        importance: `none` for the student's own samples; `token` weighs each by its own ratio, the prefixes staying those
            of the sampler; `prefix` by that of the completion up to it, the prefixes becoming the student's. Detached.
        cap: where weights are cut; infinity is exact.
        vocab_size: the tokenizer's own size, where a model pads it.
        reduction: tokens to a loss. A batch's mean over tokens divides by a length that is itself drawn, which vanishes
            for many tokens; `ConstantSum()` does not.

    Raises:
        ValueError: an estimator whose gradient is another's, or a cap of weights that are not there.

    Example:
        >>> from divax.objectives import SampledDistillation
        >>> print(SampledDistillation().explain())
        minimises KL(student || teacher) of each token's distribution by (log student - log teacher)^2 / 2 of the drawn...
        >>> SampledDistillation(estimator="k3")
        Traceback (most recent call last):
        ...
        ValueError: estimator='k3': teacher/student - 1 + log(student/teacher) as a loss has the gradient of the forward...

    Source: H. Xu et al., "KDRL: Post-Training Reasoning LLMs via Unified Knowledge Distillation and Reinforcement
    Learning", arXiv:2506.02208, eq. 5 (`reinforce`), eq. 8 (`k2`, beside GRPO) with appendix A.3; K. Lu, Thinking Machines
    Lab, "On-Policy Distillation" (2025, a web page); the gradients, Y. Tang, R. Munos, "On a few pitfalls in
    KL divergence gradient estimation for RL", arXiv:2506.09477.
    """

    estimator: Literal["k2", "reinforce"] = dataclasses.field(default="k2", metadata=_STATIC)
    importance: SampleWeights = dataclasses.field(default="none", metadata=_STATIC)
    cap: ArrayLike = math.inf
    vocab_size: int | None = dataclasses.field(default=None, metadata=_STATIC)
    reduction: Reduction = TokenMean()

    def __post_init__(self):
        if self.estimator in _REFUSED:
            raise ValueError(f"estimator={self.estimator!r}: {_REFUSED[self.estimator]}")
        check_choice("estimator", self.estimator, ("k2", "reinforce"))
        check_choice("importance", self.importance, ("none", "token", "prefix"))
        if is_static(self.cap) and not self.cap > 0:
            raise ValueError(f"cap={self.cap} must be positive")
        if is_static(self.cap) and self.cap != math.inf and self.importance == "none":
            raise ValueError(f"cap={self.cap} cuts importance weights, and importance='none'")

    def __call__(self, rows: DistillationRows, /) -> tuple[Weighted, dict[str, Weighted]]:
        """The loss, and the metrics `log_ratio` (d, which estimates the reverse KL) and `weight`.

        Raises:
            ValueError: no teacher or a cache of one, no `sampler_logps` for weights, or shapes that do not fit.
        """
        return self._of_labels(_labels(self.vocab_size, rows, None), rows)

    def _of_labels(self, samples: SampledLabels, rows: Any):
        """Of the labels' log-probs."""
        log_weight = log_weights(samples, rows, "SampledDistillation", self.importance)
        weight = to_weight(log_weight)
        cut = jnp.minimum(weight, jnp.asarray(self.cap).astype(weight.dtype))
        if self.estimator == "k2":
            loss = cut * 0.5 * jnp.square(samples.student - samples.teacher)
        else:
            loss = cut * samples.gap * samples.student
        held = {"log_ratio": weight * samples.gap, "weight": weight}
        return self.reduction(loss, samples.live), token_means(held, samples.live, self.reduction)

    @property
    def takes_hidden(self) -> bool:
        """Always."""
        return True

    @property
    def reads_teacher(self) -> bool:
        """Always."""
        return True

    def reduced_by(self, reduction: Reduction, /) -> "SampledDistillation":
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
        """The same without all logits at once, in one walk, or with weights of prefixes in two."""
        if self.importance == "prefix":
            samples = tokens_from_hidden(
                functools.partial(_labels, self.vocab_size),
                rows,
                vocab_size=vocab_size or self.vocab_size,
                implementation=implementation,
            )
            return self._of_labels(samples._replace(live=live_labels(rows)), rows)
        return objective_from_hidden(
            self, rows, vocab_size=vocab_size, implementation=implementation
        )

    def explain(self) -> str:
        """Whose gradient it is, on whose samples."""
        number = {
            "k2": "(log student - log teacher)^2 / 2 of the drawn token",
            "reinforce": "REINFORCE with the advantage log teacher - log student of the drawn token",
        }[self.estimator]
        on = {
            "none": "on the student's own samples, without weights",
            "token": "weighted by student/sampler of the token, at the sampler's prefixes",
            "prefix": "weighted by student/sampler of the completion up to the token",
        }[self.importance]
        text = (
            f"minimises KL(student || teacher) of each token's distribution by {number}, {on}; prefixes, weights and"
            " teacher without gradient"
        )
        if not (is_static(self.cap) and self.cap == math.inf):
            text += f"; weights are cut at {self.cap}: biased where they exceed it"
        return text


def _labels(vocab_size: int | None, rows: DistillationRows, _: Any) -> SampledLabels:
    return sampled_labels(sampled_logits(rows, "SampledDistillation", vocab_size))
