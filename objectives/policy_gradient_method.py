"""`PolicyGradientMethod`: credit, surrogate, regulariser and reduction together; a published method is one."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences import divergence as frozen_pytree
from divax.objectives.advantage_estimators import AbstractAdvantage, LeaveOneOut
from divax.objectives.advantages import leave_one_out
from divax.objectives.aggregation import ConstantSum, SequenceMean
from divax.objectives.credit_shaping import AbstractShaping, Credit, Rollout
from divax.objectives.pairs import floats
from divax.objectives.policy_gradient import policy_gradient
from divax.objectives.policy_streams import as_tokens, held_tokens, live_tokens
from divax.objectives.policy_surrogates import AbstractSurrogate, Reinforce
from divax.objectives.reduction import Reduction, sequence_mean, token_mean
from divax.objectives.regularizer import AbstractRegularizer, Regularizer
from divax.objectives.sampler_correction import SamplerCorrection
from divax.objectives.token_advantages import terminal_rewards
from divax.objectives.weighted import Weighted


@frozen_pytree
class PolicyGradientMethod:
    """A policy gradient in full, as two pure functions: `credit` once per rollout, `loss` in every update.

    Attributes:
        surrogate: of the advantages.
        advantage: from rewards to advantages.
        regularizer: to the reference; `None` for none. In the reward and of samples of the policy it is part of `credit`,
            with the baseline of the group's other completions; otherwise of `loss`.
        replay: to the reference on its own completions, a `Regularizer(samples="reference")`, for `replay_penalty` on a
            buffer; `None` for none.
        shaping: changes of credit, in their order.
        correction: of the sampler; `None` takes it for the old policy.
        entropy_weight: of an entropy bonus.
        reduction: of both, surrogate and penalty; a value such as `ConstantSum()` and no function, for a method that is
            passed through `jit`.

    Raises:
        ValueError: parts that do not go together, with the reason.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax.objectives import LeaveOneOut, PolicyGradientMethod, Regularizer
        >>> method = PolicyGradientMethod(advantage=LeaveOneOut(), regularizer=Regularizer(beta=0.1))
        >>> logps, mask = jnp.full((2, 3), -1.0), jnp.ones((2, 3))
        >>> credit = method.credit(
        ...     rewards=[1.0, 0.0], mask=mask, group_size=2, old_logps=logps, reference_logps=logps - 1,
        ... )
        >>> loss, _ = method.loss(model_logps=logps, credit=credit, mask=mask, old_logps=logps)
        >>> credit.advantages[:, 0].tolist(), float(loss.mean())
        ([1.0, -1.0], 0.0)
    """

    surrogate: AbstractSurrogate = Reinforce()
    advantage: AbstractAdvantage = LeaveOneOut()
    regularizer: AbstractRegularizer | None = None
    replay: AbstractRegularizer | None = None
    shaping: tuple[AbstractShaping, ...] = ()
    correction: SamplerCorrection | None = None
    entropy_weight: ArrayLike = 0.0
    reduction: Reduction = ConstantSum()

    def __post_init__(self):
        reg = self.regularizer
        if self.replay is not None and getattr(self.replay, "samples", None) != "reference":
            raise ValueError("replay must be a Regularizer(samples='reference', ...)")
        if getattr(reg, "samples", None) == "reference":
            raise ValueError(
                "a regularizer of the reference's completions is of another batch: make it the replay"
            )
        lengths = self.reduction is sequence_mean or isinstance(self.reduction, SequenceMean)
        if isinstance(reg, Regularizer) and reg.level == "sequence" and lengths:
            raise ValueError(
                "a mean over each completion's tokens divides the gradient of the divergence by the length: use"
                " ConstantSum() or TokenMean(), or a regularizer with level='token'"
            )
        vocabulary = isinstance(reg, Regularizer) and reg.estimator == "full_vocabulary"
        own = vocabulary or getattr(reg, "level", "sequence") == "token"
        if self.advantage.sums_later and own and reg is not None and not reg.in_loss:
            raise ValueError(
                f"{type(self.advantage).__name__} sums the rewards of later tokens itself: use"
                " Regularizer(estimator='k1'), or placement='loss'"
            )
        weighing = [type(s).__name__ for s in self.shaping if s.weighs_penalty]
        if self.advantage.sums_later and self.penalty_in_credit and weighing:
            raise ValueError(
                f"{weighing[0]} weighs the penalty, which is part of the rewards that {type(self.advantage).__name__}"
                " sums: use a regularizer with placement='loss'"
            )

    def explain(self) -> str:
        """Which gradient is optimised, in words."""
        lines = [
            f"{type(self.surrogate).__name__} of {type(self.advantage).__name__},"
            f" reduced by {getattr(self.reduction, '__name__', type(self.reduction).__name__)}."
        ]
        if self.regularizer is not None:
            lines.append(f"Regularizer: {self.regularizer.explain()}")
        if self.replay is not None:
            lines.append(f"Replay: {self.replay.explain()}")
        return "\n".join(lines)

    @property
    def penalty_in_credit(self) -> bool:
        """Whether `credit` subtracts the penalty, and so needs the reference's log-probs."""
        reg = self.regularizer
        return reg is not None and not reg.in_loss and getattr(reg, "samples", "policy") == "policy"

    def credit(
        self,
        *,
        rewards: ArrayLike,
        mask: ArrayLike,
        group_size: int = 1,
        values: ArrayLike | None = None,
        old_logps: ArrayLike | None = None,
        reference_logps: ArrayLike | None = None,
        old_logits: ArrayLike | None = None,
        reference_logits: ArrayLike | None = None,
        old_divergences: ArrayLike | None = None,
        tokens: ArrayLike | None = None,
        entropies: ArrayLike | None = None,
    ) -> Credit:
        """Advantages and penalty weights of a whole rollout, before it is cut into micro-batches.

        Args:
            rewards: `[B]`, or `[B, T]` per token; consecutive rows of `group_size` are completions of one prompt.
            mask: `[B, T]`; a completion that is masked altogether, such as one whose reward failed, is in no baseline,
                and its reward may be NaN.
            group_size: G.
            values: `[B, T]`, for an advantage that needs a value function.
            old_logps: `[B, T]`, of the policy that drew the completions; for a penalty in the reward.
            reference_logps: `[B, T]`, likewise.
            old_logits: `[B, T, V]`, likewise for full-vocabulary estimators.
            reference_logits: `[B, T, V]`.
            old_divergences: `[B, T]`, instead of both logits.
            tokens: `[B, T]`, for `ConflictShaping`.
            entropies: `[B, T]`, for shapings that look at them.

        Returns:
            The credit; no gradient flows.

        Raises:
            ValueError: shapes that do not fit, or something needed that is missing.
        """
        live = jnp.asarray(mask).astype(bool).astype(jnp.result_type(float))
        rewards = floats(jax.lax.stop_gradient(rewards), "rewards")
        if rewards.ndim == 1:
            rewards = terminal_rewards(rewards, live)
        rewards = held_tokens(rewards, "rewards", live)
        if live.shape[0] % group_size:
            raise ValueError(f"{live.shape[0]} completions are no whole groups of {group_size}")
        costs = jnp.zeros_like(live)
        earned = rewards
        if self.penalty_in_credit:
            streams = {
                "reference_logps": reference_logps,
                "model_logits": old_logits,
                "reference_logits": reference_logits,
                "divergences": old_divergences,
            }
            earned, costs = self._costs(rewards, live, group_size, old_logps, streams)
        if values is not None:
            values = held_tokens(values, "values", live)
        advantages = self.advantage.tokens(earned, live, group_size, values)
        credit = Credit(live * advantages, live)
        drawn = Rollout(jnp.sum(rewards, -1), live, group_size, _array(tokens), _array(entropies))
        for shaping in self.shaping:
            credit = shaping.shape(credit, drawn)
        net = credit.advantages - credit.penalty_weights * costs
        return jax.lax.stop_gradient(credit._replace(advantages=net))

    def loss(
        self,
        *,
        model_logps: ArrayLike,
        credit: Credit,
        mask: ArrayLike,
        old_logps: ArrayLike | None = None,
        sampler_logps: ArrayLike | None = None,
        reference_logps: ArrayLike | None = None,
        model_logits: ArrayLike | None = None,
        reference_logits: ArrayLike | None = None,
        divergences: ArrayLike | None = None,
        entropies: ArrayLike | None = None,
    ) -> tuple[Weighted, dict[str, Weighted]]:
        """`policy_gradient` of these parts, for a batch or a micro-batch of the rollout.

        Args:
            model_logps: `[B, T]`, of the policy now, with its gradient.
            credit: of these rows.
            mask: `[B, T]`.
            old_logps: `[B, T]`; `None` means that the policy has not moved since the rollout.
            sampler_logps: `[B, T]`, for the correction.
            reference_logps: `[B, T]`.
            model_logits: `[B, T, V]`.
            reference_logits: `[B, T, V]`.
            divergences: `[B, T]`, instead of both logits.
            entropies: `[B, T]`.

        Returns:
            As `policy_gradient`, and the metric `sampler/weight` with a correction: the mean weight.

        Raises:
            ValueError: as `policy_gradient`; a correction without `old_logps` and `sampler_logps`.
        """
        weights: ArrayLike = 1.0
        if self.correction is not None:
            if old_logps is None or sampler_logps is None:
                raise ValueError("the sampler's correction needs old_logps and sampler_logps")
            weights = self.correction.weights(old_logps, sampler_logps, mask)
        loss, metrics = policy_gradient(
            model_logps=model_logps,
            advantages=credit.advantages,
            mask=mask,
            old_logps=old_logps,
            reference_logps=reference_logps,
            model_logits=model_logits,
            reference_logits=reference_logits,
            divergences=divergences,
            surrogate=self.surrogate,
            regularizer=None if self.penalty_in_credit else self.regularizer,
            penalty_weights=credit.penalty_weights,
            sample_weights=weights,
            entropies=entropies,
            entropy_weight=self.entropy_weight,
            reduction=self.reduction,
        )
        if self.correction is not None:
            metrics["sampler/weight"] = token_mean(weights, jnp.asarray(mask))
        return loss, metrics

    def _costs(self, rewards, live, group_size, old_logps, streams) -> tuple[jax.Array, jax.Array]:
        """Rewards after the penalty, if the advantage sums them by itself; or the penalty of each token, less a baseline."""
        reg = self.regularizer
        assert reg is not None
        if old_logps is None:
            raise ValueError("a penalty in the reward needs old_logps in credit")
        model = as_tokens(jax.lax.stop_gradient(old_logps), "old_logps")
        live_tokens(live, model)
        beta = jnp.asarray(reg.beta).astype(live.dtype)
        if self.advantage.sums_later and reg.placement == "reward_to_go":
            # A token's own share: the advantage sums what follows.
            assert isinstance(reg, Regularizer)
            reg = dataclasses.replace(reg, level="token", placement="reward", baseline=0.0)
            return rewards - beta * reg.rows(
                model_logps=model, mask=live, **streams
            ), jnp.zeros_like(live)
        rows = beta * reg.rows(model_logps=model, mask=live, **streams)
        zeros = jnp.zeros_like(live)
        if not _per_token(reg):
            whole = jnp.sum(rows, -1) / jnp.maximum(jnp.sum(live, -1), 1)
            if self.advantage.sums_later:
                return rewards - terminal_rewards(whole, live), zeros
            return rewards, live * _less_the_others(whole[:, None], live, group_size)
        # The others' penalty at the same position does not depend on this completion: a baseline without bias.
        return rewards, live * _less_the_others(rows, live, group_size)


def _per_token(reg: AbstractRegularizer) -> bool:
    """Whether a penalty in the reward differs between the tokens of a completion."""
    return reg.placement == "reward_to_go" or getattr(reg, "level", "sequence") == "token"


def _less_the_others(rows: jax.Array, live: jax.Array, group_size: int) -> jax.Array:
    """Numbers `[B, T]` less the mean of the group's other completions at each position; as they are, if alone."""
    if group_size == 1:
        return rows
    present = jnp.broadcast_to(jnp.any(live != 0, -1, keepdims=True), rows.shape)
    groups, present = (
        jnp.swapaxes(part.reshape(-1, group_size, rows.shape[1]), 1, 2) for part in (rows, present)
    )
    return jnp.swapaxes(leave_one_out(groups, present), 1, 2).reshape(rows.shape)


def _array(value: ArrayLike | None) -> jax.Array | None:
    return None if value is None else jnp.asarray(jax.lax.stop_gradient(value))
