"""`MiniLLM`: the reverse KL of whole completions by policy gradient, exact unless it is asked not to be."""

import dataclasses
import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences import ReverseKL
from divax.divergences import divergence as frozen_pytree
from divax.divergences.fused_linear import Implementation
from divax.objectives.aggregation import ConstantSum, TokenMean
from divax.objectives.arguments import is_static
from divax.objectives.distillation_rows import DistillationRows
from divax.objectives.hidden_rows import HiddenRows
from divax.objectives.policy_surrogates import Clipped, Reinforce
from divax.objectives.reduction import Reduction, token_mean
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
from divax.objectives.token_advantages import whiten
from divax.objectives.token_objective import tokens_from_hidden
from divax.objectives.weighted import Weighted

_STATIC = {"static": True}
_REVERSE_KL = ReverseKL()
#: Which of the rewards a token's log-prob is multiplied with: those after it, or its own too.
Returns = Literal["next", "inclusive"]


@frozen_pytree
class MiniLLM:
    r"""KL(student‖teacher) of whole completions, from completions that the student (or a mixture with the teacher) drew.

    With `r_t = log teacher(y_t) - log student(y_t)` held fixed, per completion

    .. math:: \sum_t \Big[\underbrace{\mathrm{KL}(q_t\|p_t)}_{\text{single step}}
        - \log q(y_t) \sum_{k>t} \gamma^{k-t}\, r_k\Big]

    whose expected gradient, at `gamma = 1`, is that of the divergence: the first term is how a token changes its own
    log-ratio, summed over the vocabulary (less variance), the second how it moves what comes after. `gamma = 0` leaves
    the first, which is `TokenDistillation(divergence=ReverseKL())` on the student's samples. The value is that of a
    surrogate: only its gradient means something; the metrics say how far the student is.

    Samples of another policy (p̃ = a·teacher + (1 - a)·student in the paper) are weighted by student/p̃: `prefix` weighs
    every reward by the completion up to it and every single step by the prefix before it, which is exact; `token`, by its
    own token, which leaves the prefixes as they were drawn; `none` is for the student's own samples. The paper's eq. 5
    weighs a token, and all rewards after it, by the completion up to the token, and then takes `token` in its place.

    Attributes:
        single_step: the vocabulary's sum for a token's own reward.
        long_returns: `next`, the rewards after a token, or `inclusive`, its own as well: with `single_step` that counts a
            token's own reward twice, as the authors' code does; without it, it is REINFORCE, and exact.
        importance: of the weights student/sampler.
        discount: gamma, in [0, 1].
        length_normalized: divide by the number of rewards in the sum (eq. 6 of the paper: by one less).
        reward_scale: rewards are divided by it.
        reward_limit: and cut there, after that.
        whiten: long returns less their mean, over their standard deviation, over the tokens of the batch that count
            (so micro-batches do not add up).
        clip: PPO's, of student/sampler, with `importance="token"`; infinity is none.
        reduction: tokens to a loss. `ConstantSum()` sums over a completion, which is exact.
        vocab_size: the tokenizer's own size, where a model pads it.

    A row is one completion, its prompt masked. No teacher's cache will do. A token that the teacher rules out has an
    infinite reward; `reward_limit` bounds it.

    Raises:
        ValueError: a number out of range, or a clip without the ratio that it would cut.

    Example:
        >>> from divax.objectives import MiniLLM
        >>> print(MiniLLM().explain())
        minimises KL(student || teacher) of whole completions: the expected gradient is exactly that. Needs the...
        >>> print(MiniLLM.published().explain())
        policy gradient of KL(student || teacher) of whole completions, but: a token's own reward is counted twice...

    Source: Y. Gu, L. Dong, F. Wei, M. Huang, "MiniLLM: On-Policy Distillation of Large Language Models", arXiv:2306.08543,
    eq. 1 (the divergence), 2 (its gradient), 3 (single step), 4 and 5 (teacher-mixed sampling, weights), 6 (length); of each
    reward its own prefix's weight, D. Precup, R. Sutton, S. Singh, "Eligibility Traces for Off-Policy Policy Evaluation"
    (2000), §4.
    """

    single_step: bool = dataclasses.field(default=True, metadata=_STATIC)
    long_returns: Returns = dataclasses.field(default="next", metadata=_STATIC)
    importance: SampleWeights = dataclasses.field(default="prefix", metadata=_STATIC)
    length_normalized: bool = dataclasses.field(default=False, metadata=_STATIC)
    whiten: bool = dataclasses.field(default=False, metadata=_STATIC)
    discount: ArrayLike = 1.0
    reward_scale: ArrayLike = 1.0
    reward_limit: ArrayLike = math.inf
    clip: ArrayLike = math.inf
    reduction: Reduction = ConstantSum()
    vocab_size: int | None = dataclasses.field(default=None, metadata=_STATIC)

    def __post_init__(self):
        check_choice("long_returns", self.long_returns, ("next", "inclusive"))
        check_choice("importance", self.importance, ("none", "token", "prefix"))
        if is_static(self.discount) and not 0 <= self.discount <= 1:
            raise ValueError(f"discount={self.discount} must lie in [0, 1]")
        for name in ("reward_scale", "reward_limit", "clip"):
            value = getattr(self, name)
            if is_static(value) and not value > 0:
                raise ValueError(f"{name}={value} must be positive")
        if not self.single_step and self.long_returns == "next":
            raise ValueError(
                "without single_step nothing stands for a token's own reward; use long_returns='inclusive'"
            )
        if is_static(self.clip) and self.clip != math.inf and self.importance != "token":
            raise ValueError(
                f"clip={self.clip} cuts the ratio of a token, and importance={self.importance!r}; use 'token'"
            )

    @classmethod
    def published(cls) -> "MiniLLM":
        """The settings of the authors' code: a clipped surrogate of discounted, whitened returns, own rewards included.

        Its rewards are those of the policy at sampling time, here of the policy now: the same in the first of its four
        updates of a rollout. It whitens over padding as well, here over the tokens that count: the same without padding.
        To it add `(1 - w) LabelCrossEntropy + w TokenDistillation` on a pre-training corpus, w = 0.5.

        Source: microsoft/LMOps, `minillm`, with the paper's scripts.
        """
        return cls(
            long_returns="inclusive",
            importance="token",
            length_normalized=True,
            whiten=True,
            discount=0.95,
            reward_scale=0.5,
            reward_limit=100.0,
            clip=0.2,
            reduction=TokenMean(),
        )

    @classmethod
    def trl(cls) -> "MiniLLM":
        """TRL's reading: no later rewards, own reward beside the single step: twice the reverse KL of tokens.

        TRL lets a gradient through the reward too, which adds noise of mean zero to each token; there is none here.

        Source: huggingface/trl, `trl.experimental.minillm`, with its defaults.
        """
        return cls(
            long_returns="inclusive",
            importance="token",
            discount=0.0,
            clip=0.2,
            reduction=TokenMean(),
        )

    def __call__(self, rows: DistillationRows, /) -> tuple[Weighted, dict[str, Weighted]]:
        """The surrogate, and the metrics `reverse_kl` (of tokens), `log_ratio`, `return` and `weight`.

        Raises:
            ValueError: no teacher or a cache of one, no `sampler_logps`, or shapes that do not fit.
        """
        samples, single = _tokens(self.vocab_size, rows, None)
        return self._of_tokens(samples, single, rows, ())

    def _of_tokens(self, samples: SampledLabels, single: jax.Array, rows: Any, axis_name):
        """Of the labels' log-probs and the reverse KL of each token."""
        log_weight = log_weights(samples, rows, "MiniLLM", self.importance)
        credit = self._credit(samples, log_weight, axis_name)
        loss = self._surrogate(samples, log_weight, credit)
        if self.single_step:
            loss += self._before(samples, log_weight) * single
        metrics = {
            "reverse_kl": single,
            "log_ratio": samples.gap,
            "return": credit,
            "weight": to_weight(log_weight),
        }
        held = jax.lax.stop_gradient(metrics)
        means = {name: token_mean(value, samples.live) for name, value in held.items()}
        return self.reduction(loss, samples.live), means

    def _credit(self, samples: SampledLabels, log_weight: jax.Array, axis_name) -> jax.Array:
        """What a token's log-prob is multiplied with, no gradient."""
        dtype = samples.gap.dtype
        scale, limit = (
            jnp.asarray(x).astype(dtype) for x in (self.reward_scale, self.reward_limit)
        )
        rewards = jnp.clip(-samples.gap / scale, -limit, limit)
        if self.importance == "prefix":
            rewards = to_weight(log_weight) * rewards
        counts = samples.live != 0
        returns = _later(rewards, counts, jnp.asarray(self.discount).astype(dtype))
        lengths = _later(jnp.ones_like(rewards), counts, jnp.ones((), dtype))
        if self.long_returns == "inclusive":
            returns, lengths = returns + rewards, lengths + 1
        if self.length_normalized:
            returns = returns / jnp.maximum(lengths, 1)
        if self.whiten:
            return whiten(returns, counts, axis_name=axis_name)
        return jnp.where(counts, returns, 0)

    def _surrogate(self, samples: SampledLabels, log_weight, credit) -> jax.Array:
        """The loss of each token whose gradient is `-weight credit` times that of its log-prob."""
        live = (samples.live != 0).astype(credit.dtype)
        streams: dict[str, Any] = {"logps": samples.student, "advantages": credit, "live": live}
        if self.importance != "token":
            return Reinforce().rows(old_logps=samples.student, **streams)
        edge = jnp.asarray(self.clip, credit.dtype)
        drawn = jax.lax.stop_gradient(samples.student) - log_weight
        return Clipped(low=edge, high=edge).rows(old_logps=drawn, **streams)

    def _before(self, samples: SampledLabels, log_weight: jax.Array) -> jax.Array:
        """The weight of the prefix before each token; 1 unless prefixes are weighed."""
        if self.importance != "prefix":
            return jnp.ones_like(log_weight)
        shifted = jnp.concatenate([jnp.zeros_like(log_weight[:, :1]), log_weight[:, :-1]], -1)
        return to_weight(shifted)

    @property
    def takes_hidden(self) -> bool:
        """Always."""
        return True

    @property
    def reads_teacher(self) -> bool:
        """Always."""
        return True

    def from_hidden(
        self,
        rows: HiddenRows,
        /,
        *,
        vocab_size: int | None = None,
        implementation: Implementation | None = None,
    ) -> tuple[Weighted, dict[str, Weighted]]:
        """The same without all logits at once, by `tokens_from_hidden`."""
        samples, single = tokens_from_hidden(
            functools.partial(_tokens, self.vocab_size),
            rows,
            vocab_size=vocab_size or self.vocab_size,
            implementation=implementation,
        )
        samples = samples._replace(live=live_labels(rows))
        return self._of_tokens(samples, single, rows, rows.axis_name)

    def explain(self) -> str:
        """Whose gradient it is, and what keeps it from being exact."""
        aim = "KL(student || teacher) of whole completions"
        found = _deviations(self)
        need = {
            "prefix": "Needs the sampler's log-probs.",
            "token": "Needs the sampler's log-probs.",
            "none": "Exact on the student's own samples only.",
        }[self.importance]
        held = "Rewards, weights and teacher without gradient; the value is a surrogate's."
        if not found:
            return f"minimises {aim}: the expected gradient is exactly that. {need} {held}"
        return f"policy gradient of {aim}, but: {'; '.join(found)}. {need} {held}"


def _tokens(vocab_size: int | None, rows: DistillationRows, _: Any):
    """The labels' log-probs, and the reverse KL of each token's distribution."""
    both = sampled_logits(rows, "MiniLLM", vocab_size)
    return sampled_labels(both), _REVERSE_KL(both.teacher, both.student)


def _later(rewards: jax.Array, counts: jax.Array, discount: jax.Array) -> jax.Array:
    """At each token the discounted sum of the rewards after it; a token that does not count takes no time."""

    def backwards(later, token):
        reward, present = token
        return jnp.where(present, reward + discount * later, later), discount * later

    start = jnp.zeros_like(rewards[:, 0])
    _, sums = jax.lax.scan(backwards, start, (rewards.T, counts.T), reverse=True)
    return sums.T


def _deviations(objective: MiniLLM) -> list[str]:
    """Why the expected gradient is not that of the divergence."""

    def differs(value: ArrayLike, exact: float) -> bool:
        return not (is_static(value) and value == exact)

    reduction = objective.reduction
    tests = (
        (
            objective.single_step and objective.long_returns == "inclusive",
            "a token's own reward is counted twice, in the returns and in the single step",
        ),
        (
            objective.importance == "token",
            "prefixes stay as the sampler drew them, which weights of single tokens do not mend",
        ),
        (differs(objective.discount, 1), f"later rewards are discounted by {objective.discount}"),
        (objective.length_normalized, "returns are divided by the length that is left"),
        (objective.whiten, "returns are whitened"),
        (
            differs(objective.reward_scale, 1),
            f"rewards are divided by {objective.reward_scale}, the single step is not",
        ),
        (differs(objective.reward_limit, math.inf), f"rewards end at {objective.reward_limit}"),
        (differs(objective.clip, math.inf), f"ratios are clipped at 1 ± {objective.clip}"),
        (
            not isinstance(reduction, ConstantSum),
            "the mean over tokens divides each batch by its length",
        ),
    )
    return [text for wrong, text in tests if wrong]
