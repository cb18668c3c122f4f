"""Step-level rewards from labels of whole completions: the implicit process reward model."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.objectives.arguments import is_static
from divax.objectives.pair_mean import pair_mean
from divax.objectives.pairs import check_shape, completion_log_ratios, floats, silence
from divax.objectives.weighted import Weighted


def implicit_process_reward(
    *,
    logps: ArrayLike,
    reference_logps: ArrayLike,
    correct: ArrayLike,
    beta: ArrayLike = 0.05,
    weights: ArrayLike | None = None,
) -> tuple[Weighted, dict[str, Weighted]]:
    r"""Trains a reward model on outcomes whose log-ratio is, token by token, a process reward.

    .. math:: l = -c \log\sigma(r) - (1-c)\log\sigma(-r), \qquad r = \beta \log\frac{\pi(y)}{\mathrm{ref}(y)}

    Args:
        logps: `[B]`, of completions, summed over tokens.
        reference_logps: `[B]`, no gradient.
        correct: `[B]`, outcome labels in [0, 1].
        beta: `> 0`.
        weights: `[B]`.

    Returns:
        The loss, a mean over completions; metrics `accuracy` (r = 0 is half right) and `brier`.

    Raises:
        ValueError: arrays of another shape, or a `beta` that is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> loss, _ = implicit_process_reward(
        ...     logps=jnp.zeros(1), reference_logps=jnp.zeros(1), correct=jnp.array([True])
        ... )
        >>> round(float(loss.mean()), 4)
        0.6931

    Source: L. Yuan et al., "Free Process Rewards without Process Labels", arXiv:2412.01981.
    """
    if is_static(beta) and not beta > 0:
        raise ValueError(f"beta={beta} must be positive")
    ratios, live = completion_log_ratios(logps, reference_logps, weights)
    label = floats(jax.lax.stop_gradient(correct), "correct")
    check_shape(label, "correct", ratios)
    label = silence(label, live)
    reward = jnp.asarray(beta, ratios.dtype) * ratios
    rows = label * jax.nn.softplus(-reward) + (1 - label) * jax.nn.softplus(reward)
    held = jax.lax.stop_gradient(reward)
    right = 0.5 * (1 + jnp.sign(held) * jnp.sign(label - 0.5))
    metrics = {
        "accuracy": pair_mean(right, live),
        "brier": pair_mean((jax.nn.sigmoid(held) - label) ** 2, live),
    }
    return pair_mean(rows, live), metrics


def process_rewards(
    *,
    token_log_ratios: ArrayLike,
    mask: ArrayLike,
    step_ids: ArrayLike | None = None,
    beta: ArrayLike = 0.05,
) -> jax.Array:
    r"""The reward of each token, spread over its step: `beta` times the step's log-ratios.

    .. math:: Q_t = \beta \sum_{i \le t} \log\frac{\pi(y_i|y_{<i})}{\mathrm{ref}(y_i|y_{<i})}, \qquad
        \text{reward of a step} = Q_\mathrm{end} - Q_\mathrm{begin}

    At the optimum under the reverse KL, `Q_t` is the soft value of the prefix less that of the
    prompt: what the outcome is worth after t tokens, `beta log E_ref[exp(outcome/beta)]`.

    Args:
        token_log_ratios: `[B, T]`.
        mask: `[B, T]`, the completion's tokens.
        step_ids: `[B, T]` integers, non-decreasing along a completion: the step a token belongs
            to. `None` makes every token a step.
        beta: `> 0`.

    Returns:
        `[B, T]`: at the last token of each step its reward, 0 elsewhere.

    Raises:
        ValueError: arrays that are not `[B, T]`.

    Example:
        >>> import jax.numpy as jnp
        >>> rewards = process_rewards(
        ...     token_log_ratios=jnp.array([[1.0, 2.0, 4.0]]), mask=jnp.ones((1, 3)),
        ...     step_ids=jnp.array([[0, 0, 1]]), beta=1.0,
        ... )
        >>> rewards.tolist()
        [[0.0, 3.0, 4.0]]

    Source: as `implicit_process_reward`, eq. 4.
    """
    ratios = floats(token_log_ratios, "token_log_ratios")
    if ratios.ndim != 2:
        raise ValueError(f"token_log_ratios must be [B, T], got shape {ratios.shape}")
    live = floats(mask, "mask")
    check_shape(live, "mask", ratios)
    scaled = jnp.asarray(beta, ratios.dtype) * silence(ratios, live)
    if step_ids is None:
        return scaled
    steps = jnp.asarray(step_ids)
    check_shape(steps, "step_ids", ratios)
    same = (steps[:, :, None] == steps[:, None, :]) & (live != 0)[:, :, None] & (live != 0)[:, None]
    sums = jnp.einsum("bts,bs->bt", same.astype(scaled.dtype), scaled)
    later = jnp.triu(jnp.ones((ratios.shape[1],) * 2, bool), 1)
    last = ~jnp.any(same & later[None], axis=-1) & (live != 0)
    return jnp.where(last, sums, 0)
