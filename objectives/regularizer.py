"""`Regularizer`: a divergence to a reference policy, and how samples show it, as one value that refuses to be wrong."""

import abc
import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences import AbstractDivergence, AbstractFDivergence, ForwardKL, ReverseKL
from divax.divergences import divergence as frozen_pytree
from divax.divergences.rows import pair_at
from divax.objectives.arguments import check_logits, check_rows, is_static, silence_rows
from divax.objectives.link_score import score
from divax.objectives.policy_streams import (
    as_tokens,
    bounded_exponent,
    held_tokens,
    later_sums,
    live_tokens,
)
from divax.objectives.regularizer_gradient import (
    Estimator,
    Importance,
    Level,
    Placement,
    Samples,
    check_choices,
    explanation,
)

_STATIC = {"static": True}
#: Log-ratios are clipped here in value, never in gradient, before an exponential: e^20 fits every float.
_BOUND = 20.0


class _Streams(NamedTuple):
    """Log-probs at the level of the divergence, `[B, T]` or `[B]`: of the policy, its ratio to reference and behaviour."""

    logps: jax.Array
    log_ratio: jax.Array
    log_weight: jax.Array


class AbstractRegularizer(abc.ABC):
    """A penalty for leaving a reference policy, as a policy gradient uses it; final subclasses are frozen pytrees.

    Example:
        >>> from divax.objectives import AbstractRegularizer, Regularizer
        >>> issubclass(Regularizer, AbstractRegularizer)
        True
    """

    beta: ArrayLike
    placement: Placement

    @property
    def in_loss(self) -> bool:
        """Whether `rows` belong in the loss, and not in the reward."""
        return self.placement == "loss"

    @abc.abstractmethod
    def explain(self) -> str:
        """Which gradient is optimised, in words."""

    @abc.abstractmethod
    def rows(
        self,
        *,
        model_logps: ArrayLike,
        mask: ArrayLike,
        reference_logps: ArrayLike | None = None,
        behaviour_logps: ArrayLike | None = None,
        model_logits: ArrayLike | None = None,
        reference_logits: ArrayLike | None = None,
        divergences: ArrayLike | None = None,
    ) -> jax.Array:
        """The penalty of each token `[B, T]`, without beta, for the loss or, detached, for the reward."""


@frozen_pytree
class Regularizer(AbstractRegularizer):
    r"""`beta D(reference, policy)` as a policy gradient sees it: every part of the choice named, wrong ones refused.

    With `s = log(policy/reference)`, `w = policy/behaviour` (1 in value on samples of the policy) and `r = e^{-s}`:

    | estimator | number | in the loss | in the reward |
    |---|---|---|---|
    | `k1` | `s` | reverse KL, weight differentiated | reverse KL |
    | `k2` | `s²/2` | reverse KL, weight detached or none | refused: biased |
    | `k3` | `r - 1 - log r` | forward KL; reverse KL where the weight is differentiated | refused: biased |
    | `generic` | `link(s)` times the score, or `w f(r)` where `w` is differentiated | any D | any D |
    | `full_vocabulary` | D of each row of logits | any D per token; KL of completions | to-go: reverse KL |

    Of `forward_kl` on samples of the reference, `k1` is `-s`, the likelihood; on samples of a behaviour it is weighted by
    reference/behaviour. Construction fails unless the expected gradient is that of the divergence and level named;
    what else is in use, with the gradient that it has, is a `PublishedPenalty`.

    Attributes:
        divergence: `D(reference, policy)`: `ReverseKL()` is KL(policy‖reference). The direction is in the name, and
            `.dual()` swaps it. Any divergence for `full_vocabulary` at token level, an f-divergence otherwise.
        beta: the weight; may be traced.
        samples: who drew the tokens: the `policy`, a `behaviour` (an older policy, an engine) or the `reference`.
        level: `sequence`, the divergence of whole completions, or `token`, that of each token's distribution summed over
            the prefixes drawn, which are held fixed: it misses how a token moves the prefixes after it.
        placement: differentiated in the `loss`; a detached number in the `reward` of all tokens of a completion (at token
            level, of its own token); or, per token, the sum from it on, `reward_to_go`.
        estimator: see the table.
        importance: what becomes of `w` in a loss: `none`, `detached`, `differentiated`.
        allow_heavy_tails: estimate divergences with f'(∞) = ∞ (forward_kl, jeffreys, ...) from samples that the reference
            did not draw; a mode that the policy lost then makes the variance unbounded.
        baseline: subtracted from the number in the reward. It has no gradient in expectation; a clipped surrogate
            sees it.
        cap: where weights in a loss are cut; infinity, the default, is exact.
        tail: where a link turns linear, in nats of the log-ratio, as in `score`: beyond it the gradient is bounded, and so
            not exact, but for the reverse KL, whose link is linear. Exponents are bounded at 20 nats in value, never in
            gradient.

    Raises:
        TypeError: not a divergence with a score.
        ValueError: a combination with another expected gradient than that of its divergence, with the reason.

    Example:
        >>> from divax import divergences as dv
        >>> from divax.objectives import Regularizer
        >>> print(Regularizer(beta=0.1).explain())
        minimises reverse_kl(reference, policy) = Σ q log(q/p), with p the reference and q the policy, of whole...
        >>> Regularizer(estimator="k3", placement="loss", level="token")
        Traceback (most recent call last):
        ...
        ValueError: k3 for reverse_kl in the loss at token level from samples of the policy: its gradient is that of...

    Source: Y. Tang, R. Munos, "On a few pitfalls in KL divergence gradient estimation for RL", arXiv:2506.09477; Y.
    Zhang et al., "On the Design of KL-Regularized Policy Gradient Algorithms for LLM Reasoning", arXiv:2505.17508; the
    full-vocabulary estimators, A. Amini, T. Vieira, R. Cotterell, "Better Estimation of the KL Divergence Between
    Language Models", arXiv:2504.10637.
    """

    divergence: AbstractDivergence = ReverseKL()
    beta: ArrayLike = 0.05
    samples: Samples = dataclasses.field(default="policy", metadata=_STATIC)
    level: Level = dataclasses.field(default="sequence", metadata=_STATIC)
    placement: Placement = dataclasses.field(default="reward_to_go", metadata=_STATIC)
    estimator: Estimator = dataclasses.field(default="k1", metadata=_STATIC)
    importance: Importance = dataclasses.field(default="none", metadata=_STATIC)
    allow_heavy_tails: bool = dataclasses.field(default=False, metadata=_STATIC)
    baseline: ArrayLike = 0.0
    cap: ArrayLike = math.inf
    tail: ArrayLike = 10.0

    def __post_init__(self):
        check_choices(self)
        if is_static(self.beta) and not self.beta >= 0:
            raise ValueError(f"beta={self.beta} must not be negative")
        if is_static(self.cap) and self.cap != math.inf and self.importance == "none":
            raise ValueError(f"cap={self.cap} cuts importance weights, and importance='none'")
        if is_static(self.baseline) and self.baseline != 0 and self.placement == "loss":
            raise ValueError(f"baseline={self.baseline} is of a reward, and placement='loss'")

    def explain(self) -> str:
        """Which gradient is optimised, in words."""
        return explanation(self)

    def rows(
        self,
        *,
        model_logps: ArrayLike,
        mask: ArrayLike,
        reference_logps: ArrayLike | None = None,
        behaviour_logps: ArrayLike | None = None,
        model_logits: ArrayLike | None = None,
        reference_logits: ArrayLike | None = None,
        divergences: ArrayLike | None = None,
    ) -> jax.Array:
        """The penalty of each token, without beta: to add to the loss, or, detached, to subtract from the reward.

        Args:
            model_logps: `[B, T]`, of the sampled tokens under the policy; with its gradient.
            mask: `[B, T]`, the tokens that count; where it is 0 the rest may be anything.
            reference_logps: `[B, T]`, for all estimators but `full_vocabulary` (which needs them in a reward).
            behaviour_logps: `[B, T]`, of who drew the tokens; for importance weights only.
            model_logits: `[B, T, V]`, position t the distribution of token t; for `full_vocabulary`.
            reference_logits: `[B, T, V]`.
            divergences: `[B, T]`, instead of the two: D of each token's distributions, with its gradient, as
                `token_statistics` gives it from hidden states.

        Returns:
            `[B, T]`, nats; 0 where masked. Summed over a completion it is the number of the completion; in the reward it
            stands at each token that it is the reward of.

        Raises:
            ValueError: an input that is missing, or of the wrong shape.
        """
        model = as_tokens(model_logps, "model_logps")
        live = live_tokens(mask, model)
        whole = self.estimator == "full_vocabulary" and divergences is None
        given = (
            ("reference_logps", reference_logps, self._reads_reference_logps),
            ("behaviour_logps", behaviour_logps, self._reads_behaviour),
            ("model_logits", model_logits, whole),
            ("reference_logits", reference_logits, whole),
        )
        for name, value, needed in given:
            if needed and value is None:
                raise ValueError(
                    f"{self.estimator} in the {self.placement} from samples of the {self.samples} needs {name}"
                )
        model = jnp.where(live != 0, model, 0)
        reference = _or_zeros(reference_logps, "reference_logps", live)
        behaviour = jax.lax.stop_gradient(model)
        if self._reads_behaviour:
            behaviour = _or_zeros(behaviour_logps, "behaviour_logps", live)
        rows = None
        if whole:
            rows = _vocabulary_rows(self.divergence, model_logits, reference_logits, live)
        elif self.estimator == "full_vocabulary":
            found = as_tokens(divergences, "divergences")  # type: ignore[arg-type]
            check_rows(found, "divergences", live.shape, "model_logps")
            rows = jnp.where(live != 0, found, 0)
        streams = _Streams(model, model - reference, model - behaviour)
        if self.in_loss:
            return live * self._loss(streams, rows, live)
        return live * (self._reward(streams, rows, live) - self.baseline)

    @property
    def _reads_reference_logps(self) -> bool:
        return self.estimator != "full_vocabulary" or not self.in_loss

    @property
    def _reads_behaviour(self) -> bool:
        return self.samples == "behaviour" and self.importance != "none"

    def _loss(self, streams: _Streams, rows: jax.Array | None, live: jax.Array) -> jax.Array:
        if rows is not None:
            if self.level == "token" or self.samples == "reference":
                return rows
            # The weight of a prefix, differentiated: how the policy moves the prefixes is in the gradient.
            before = jnp.cumsum(streams.log_weight, -1) - streams.log_weight
            return self._weight(before) * rows
        if self.level == "token":
            return self._number(streams)
        whole = _Streams(*(jnp.sum(part, -1) for part in streams))
        share = live / jnp.maximum(jnp.sum(live, -1, keepdims=True), 1)
        return share * self._number(whole)[:, None]

    def _number(self, at: _Streams) -> jax.Array:
        """The number whose derivative is wanted, per token or per completion."""
        if self.samples == "reference":
            if self.estimator == "k1":
                return -at.log_ratio
            return _generator(self.divergence.dual(), at.log_ratio)
        if self.importance == "differentiated":
            number = at.log_ratio
            if self.estimator != "k1":  # k3 is the generic number of reverse_kl
                number = _generator(self.divergence, -at.log_ratio)
            return self._weight(at.log_weight) * number
        if isinstance(self.divergence, ForwardKL) and self.estimator == "k1":
            # log(reference/policy), weighted by reference/behaviour.
            weight = self._weight(at.log_weight - at.log_ratio)
            return jax.lax.stop_gradient(weight) * -at.log_ratio
        weight = jax.lax.stop_gradient(self._weight(at.log_weight))
        if self.estimator == "k2":
            return weight * 0.5 * at.log_ratio * at.log_ratio
        if self.estimator == "k3":
            return weight * _generator(ReverseKL(), -at.log_ratio)
        surrogate = self._link(at.log_ratio) * at.logps
        value = jax.lax.stop_gradient(_generator(self.divergence, -at.log_ratio))
        return weight * (value + surrogate - jax.lax.stop_gradient(surrogate))

    def _link(self, log_ratio: jax.Array) -> jax.Array:
        return jax.lax.stop_gradient(score(self.divergence, log_ratio, self.tail))

    def _weight(self, log_weight: jax.Array) -> jax.Array:
        weight = jnp.exp(bounded_exponent(log_weight, _BOUND))
        return jnp.minimum(weight, jnp.asarray(self.cap, weight.dtype))

    def _reward(self, streams: _Streams, rows: jax.Array | None, live: jax.Array) -> jax.Array:
        log_ratio = jax.lax.stop_gradient(streams.log_ratio)
        if rows is not None:
            rows = jax.lax.stop_gradient(rows)
            return log_ratio + later_sums(rows) - rows
        if self.placement == "reward_to_go":
            return later_sums(log_ratio)
        if self.level == "sequence":
            log_ratio = jnp.sum(log_ratio, -1, keepdims=True)
        return jnp.broadcast_to(self._link(log_ratio), live.shape)


def _generator(divergence: AbstractFDivergence, log_u: jax.Array) -> jax.Array:
    """f(u), differentiable in log u."""
    bounded = bounded_exponent(log_u, _BOUND)
    return divergence.summand(pair_at(bounded, jnp.zeros_like(bounded)))


def _or_zeros(value: ArrayLike | None, name: str, live: jax.Array) -> jax.Array:
    return jnp.zeros_like(live) if value is None else held_tokens(value, name, live)


def _vocabulary_rows(divergence, model_logits, reference_logits, live) -> jax.Array:
    """D of each row of logits, 0 where masked."""
    pair = []
    for name, logits in (("reference_logits", reference_logits), ("model_logits", model_logits)):
        logits = jnp.asarray(logits)
        check_logits(logits, name)
        check_rows(live, "mask", logits.shape[:-1], name)
        pair.append(silence_rows(logits, live))
    return live * divergence(jax.lax.stop_gradient(pair[0]), pair[1])
