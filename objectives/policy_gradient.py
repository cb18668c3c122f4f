"""The policy gradient objective: a surrogate of the advantages, a regulariser, one reduction for both."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.objectives.aggregation import ConstantSum
from divax.objectives.policy_streams import (
    as_tokens,
    held_tokens,
    live_tokens,
    per_token,
)
from divax.objectives.policy_surrogates import AbstractSurrogate, Reinforce
from divax.objectives.reduction import Reduction, token_mean
from divax.objectives.regularizer import AbstractRegularizer
from divax.objectives.weighted import Weighted

_REINFORCE = Reinforce()
_CONSTANT_SUM = ConstantSum()


def policy_gradient(
    *,
    model_logps: ArrayLike,
    advantages: ArrayLike,
    mask: ArrayLike,
    old_logps: ArrayLike | None = None,
    reference_logps: ArrayLike | None = None,
    model_logits: ArrayLike | None = None,
    reference_logits: ArrayLike | None = None,
    divergences: ArrayLike | None = None,
    surrogate: AbstractSurrogate = _REINFORCE,
    regularizer: AbstractRegularizer | None = None,
    penalty_weights: ArrayLike = 1.0,
    sample_weights: ArrayLike = 1.0,
    entropies: ArrayLike | None = None,
    entropy_weight: ArrayLike = 0.0,
    reduction: Reduction = _CONSTANT_SUM,
) -> tuple[Weighted, dict[str, Weighted]]:
    r"""Loss of sampled completions whose gradient is that of `E[reward] - beta D(reference, policy)`, negated.

    .. math:: L = \mathrm{reduce}_{bt}\; c_{bt}\,\big[\,l(\log\pi_{bt}, \log\pi^{old}_{bt}, A_{bt})
        + \beta\,u_{bt}\,P_{bt}\big] - \eta\,H_{bt}

    with P the regulariser's penalty in the loss; one in the reward is subtracted from the advantages, `A - beta u P`. Only
    the gradient means something: the value of a surrogate does not. Gradients flow through `model_logps`,
    `model_logits`, `divergences` and `entropies` alone. All log-probs are of the distribution that was sampled from: the
    same temperature and truncation.

    Args:
        model_logps: `[B, T]`, of the sampled tokens under the policy.
        advantages: `[B]` or `[B, T]`, such as from `leave_one_out` or `gae`; a token of advantage 0 has no surrogate.
        mask: `[B, T]`, the tokens that were sampled (the end token among them).
        old_logps: `[B, T]`, of the policy that the samples are of; `None` means that they are the policy's own.
        reference_logps: `[B, T]`, for the regulariser.
        model_logits: `[B, T, V]`, for a full-vocabulary regulariser.
        reference_logits: `[B, T, V]`.
        divergences: `[B, T]`, instead of both logits: the regulariser's D of each token's distributions.
        surrogate: of the advantages.
        regularizer: `None` does not regularise.
        penalty_weights: u, a scalar, `[B]` or `[B, T]`: a strength for each completion (`Credit.penalty_weights`), or 0
            where the penalty is not wanted.
        sample_weights: c, likewise, of surrogate and penalty: the correction for a sampler that is not quite the old policy
            (`SamplerCorrection`).
        entropies: `[B, T]`, of the policy at each token, with their gradient (`entropy` of the logits).
        entropy_weight: eta.
        reduction: such as `ConstantSum`, `TokenMean`, `SequenceMean`.

    Returns:
        The loss, and metrics, means over tokens without gradient: `policy/ratio`, `policy/cut` (the share that the
        surrogate cuts), `policy/kl_old` (KL(old‖policy), estimated by k3), `policy/advantage` (its magnitude),
        `regularizer/penalty`, `reference/log_ratio` (KL(policy‖reference) per token, if the samples are the policy's),
        `policy/entropy`.

    Raises:
        ValueError: shapes that do not fit, an input that the regulariser needs, or a regulariser of the reference's samples
            (those are another batch: `replay_penalty`).

    Example:
        >>> import jax.numpy as jnp
        >>> from divax.objectives import Regularizer, leave_one_out, policy_gradient
        >>> logps, mask = jnp.full((2, 3), -1.0), jnp.array([[1, 1, 1], [1, 1, 0]])
        >>> loss, metrics = policy_gradient(
        ...     model_logps=logps, advantages=leave_one_out([1.0, 0.0]), mask=mask,
        ...     reference_logps=logps - 0.5, regularizer=Regularizer(beta=0.1),
        ... )
        >>> round(float(loss.mean()), 4), float(metrics["reference/log_ratio"].mean())
        (0.275, 0.5)

    Source: the policy gradient, R. Williams (1992); its regularisers as in `Regularizer`.
    """
    model = as_tokens(model_logps, "model_logps")
    live = live_tokens(mask, model)
    model = jnp.where(live != 0, model, 0)
    old = jax.lax.stop_gradient(model)
    if old_logps is not None:
        old = held_tokens(old_logps, "old_logps", live)
    credit = per_token(advantages, "advantages", live)
    rows, penalty = jnp.zeros_like(model), None
    if regularizer is not None:
        _check_regularizer(regularizer, old_logps)
        penalty = regularizer.rows(
            model_logps=model,
            mask=live,
            reference_logps=reference_logps,
            behaviour_logps=old,
            model_logits=model_logits,
            reference_logits=reference_logits,
            divergences=divergences,
        )
        weighted = per_token(penalty_weights, "penalty_weights", live) * penalty
        weighted *= jnp.asarray(regularizer.beta).astype(model.dtype)
        rows, credit = (weighted, credit) if regularizer.in_loss else (rows, credit - weighted)
    streams = {"logps": model, "old_logps": old, "advantages": credit, "live": live}
    rows += surrogate.rows(**streams)
    rows *= per_token(sample_weights, "sample_weights", live)
    rows -= _entropy_bonus(entropies, entropy_weight, live)
    metrics = _metrics(streams, surrogate.cut(**streams), penalty, reference_logps, entropies)
    return reduction(rows, live), jax.lax.stop_gradient(metrics)


def replay_penalty(
    *,
    model_logps: ArrayLike,
    reference_logps: ArrayLike,
    mask: ArrayLike,
    regularizer: AbstractRegularizer,
    sample_weights: ArrayLike = 1.0,
    reduction: Reduction = _CONSTANT_SUM,
) -> tuple[Weighted, dict[str, Weighted]]:
    r"""`beta D(reference, policy)` on completions that the reference drew: mass-covering rehearsal from a buffer.

    The buffer holds tokens and the log-probs that the reference gave them; no reference model is needed any more. Add
    the loss to that of `policy_gradient` by their means.

    Args:
        model_logps: `[B, T]`, of the buffer's tokens under the policy.
        reference_logps: `[B, T]`, as they were drawn.
        mask: `[B, T]`.
        regularizer: one of samples of the reference, such as `dph_regularizer(divergence)`.
        sample_weights: a scalar, `[B]` or `[B, T]`.
        reduction: as in `policy_gradient`.

    Returns:
        The loss, and the metrics `regularizer/penalty` and `reference/log_ratio`, here of samples of the reference.

    Raises:
        ValueError: a regulariser of other samples, or shapes that do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> from divax.objectives import dph_regularizer, replay_penalty
        >>> loss, _ = replay_penalty(
        ...     model_logps=jnp.full((1, 2), -2.0), reference_logps=jnp.full((1, 2), -1.0), mask=jnp.ones((1, 2)),
        ...     regularizer=dph_regularizer(dv.ForwardKL(), beta=1.0),
        ... )
        >>> round(float(loss.mean()), 4)  # 2 (e^-1 - 1 + 1)
        0.7358

    Source: L. Li et al., "The Choice of Divergence: A Neglected Key to Mitigating Diversity Collapse in Reinforcement
    Learning with Verifiable Reward" (DPH-RL), arXiv:2509.07430.
    """
    if getattr(regularizer, "samples", "policy") != "reference":
        raise ValueError(
            "replay_penalty is of completions that the reference drew: give it a Regularizer(samples='reference', ...)"
        )
    model = as_tokens(model_logps, "model_logps")
    live = live_tokens(mask, model)
    penalty = regularizer.rows(model_logps=model, mask=live, reference_logps=reference_logps)
    weighted = jnp.asarray(regularizer.beta).astype(model.dtype) * penalty
    rows = per_token(sample_weights, "sample_weights", live) * weighted
    log_ratio = jnp.where(live != 0, model, 0) - held_tokens(
        reference_logps, "reference_logps", live
    )
    metrics = {
        "regularizer/penalty": token_mean(penalty, live),
        "reference/log_ratio": token_mean(log_ratio, live),
    }
    return reduction(rows, live), jax.lax.stop_gradient(metrics)


def _check_regularizer(regularizer: AbstractRegularizer, old_logps: ArrayLike | None) -> None:
    samples = getattr(regularizer, "samples", "policy")
    if samples == "reference":
        raise ValueError(
            "this regularizer is of completions that the reference drew, which are another batch: use replay_penalty"
        )
    if samples == "behaviour" and old_logps is None:
        raise ValueError(
            "this regularizer is of samples of a behaviour: pass old_logps, its log-probs of them"
        )


def _entropy_bonus(entropies: ArrayLike | None, weight: ArrayLike, live: jax.Array) -> jax.Array:
    if entropies is None:
        return jnp.zeros_like(live)
    entropies = as_tokens(entropies, "entropies")
    if entropies.shape != live.shape:
        raise ValueError(f"entropies must be {live.shape}, got {entropies.shape}")
    return jnp.asarray(weight).astype(live.dtype) * jnp.where(live != 0, entropies, 0)


def _metrics(streams, cut, penalty, reference_logps, entropies) -> dict[str, Weighted]:
    live = streams["live"]
    log_ratio = streams["logps"] - streams["old_logps"]
    values = {
        "policy/ratio": jnp.exp(log_ratio),
        "policy/cut": cut,
        "policy/kl_old": jnp.expm1(log_ratio) - log_ratio,
        "policy/advantage": jnp.abs(streams["advantages"]),
    }
    if penalty is not None:
        values["regularizer/penalty"] = penalty
    if reference_logps is not None:
        reference = held_tokens(reference_logps, "reference_logps", live)
        values["reference/log_ratio"] = streams["logps"] - reference
    if entropies is not None:
        values["policy/entropy"] = as_tokens(entropies, "entropies")
    return {name: token_mean(value, live) for name, value in values.items()}
