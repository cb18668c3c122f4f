"""Advantages of tokens: what is still to come, with a value function or without; masked tokens are skipped, not counted."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.objectives.pairs import floats
from divax.objectives.policy_streams import as_tokens, held_tokens, live_tokens


def return_to_go(rewards: ArrayLike, mask: ArrayLike, discount: ArrayLike = 1.0) -> jax.Array:
    r"""The discounted sum of the rewards from each token on.

    .. math:: G_t = r_t + \gamma G_{t+1}

    Args:
        rewards: `[B, T]`, of each token; no gradient flows.
        mask: `[B, T]`; a masked token has no reward and takes no time.
        discount: gamma.

    Returns:
        `[B, T]`, 0 where masked.

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> return_to_go([[0.0, 5.0, 1.0]], [[1, 0, 1]], 0.5).tolist()
        [[0.5, 0.0, 1.0]]
    """
    zeros = jnp.zeros_like(as_tokens(rewards, "rewards"))
    return gae(rewards, zeros, mask, discount=discount, decay=1.0)


def gae(
    rewards: ArrayLike,
    values: ArrayLike,
    mask: ArrayLike,
    *,
    discount: ArrayLike = 1.0,
    decay: ArrayLike = 0.95,
) -> jax.Array:
    r"""Generalised advantage estimation.

    .. math:: \delta_t = r_t + \gamma V_{t+1} - V_t, \qquad A_t = \delta_t + \gamma\lambda A_{t+1}

    with t + 1 the next token that is not masked, and V = 0 after the last.

    Args:
        rewards: `[B, T]`; no gradient flows, here or to the values.
        values: `[B, T]`, of the prefix before each token.
        mask: `[B, T]`.
        discount: gamma.
        decay: lambda; 1 is the return less the value, 0 the one-step error.

    Returns:
        `[B, T]`, 0 where masked. Advantage plus value is the value function's target.

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> gae([[0.0, 1.0]], [[0.25, 0.5]], [[1, 1]], decay=1.0).tolist()
        [[0.75, 0.5]]

    Source: J. Schulman et al., "High-Dimensional Continuous Control Using Generalized Advantage Estimation",
    arXiv:1506.02438, eq. 16.
    """
    live = live_tokens(mask, as_tokens(rewards, "rewards"))
    rewards = held_tokens(rewards, "rewards", live)
    values = held_tokens(values, "values", live)
    discount, decay = (jnp.asarray(x).astype(live.dtype) for x in (discount, decay))

    def backwards(later, token):
        reward, value, present = token
        next_value, next_advantage = later
        delta = reward + discount * next_value - value
        advantage = delta + discount * decay * next_advantage
        kept = jnp.where(present != 0, value, next_value)
        return (kept, jnp.where(present != 0, advantage, next_advantage)), present * advantage

    start = (jnp.zeros_like(live[:, 0]), jnp.zeros_like(live[:, 0]))
    tokens = (rewards.T, values.T, live.T)
    _, advantages = jax.lax.scan(backwards, start, tokens, reverse=True)
    return advantages.T


def whiten(
    values: ArrayLike,
    mask: ArrayLike,
    *,
    epsilon: ArrayLike = 1e-8,
    axis_name: tuple[str, ...] = (),
) -> jax.Array:
    """Less the mean and over the standard deviation, both over the tokens of the whole batch that are not masked.

    Args:
        values: any shape; no gradient flows.
        mask: of the same shape.
        epsilon: added to the variance.
        axis_name: under `jax.shard_map`, of the axes over which the batch is split.

    Returns:
        Of the same shape, 0 where masked.

    Raises:
        ValueError: shapes that differ.

    Example:
        >>> whiten([1.0, 3.0, 100.0], [1, 1, 0], epsilon=0.0).round().astype(int).tolist()
        [-1, 1, 0]
    """
    values = floats(jax.lax.stop_gradient(values), "values")
    live = live_tokens(mask, values)
    values = jnp.where(live != 0, values, 0)
    total = lambda x: jax.lax.psum(jnp.sum(x), axis_name)  # noqa: E731
    count = jnp.maximum(total(live), 1)
    centred = live * (values - total(values) / count)
    variance = total(centred * centred) / count + jnp.asarray(epsilon, values.dtype)
    return jnp.where(variance > 0, centred / jnp.sqrt(jnp.where(variance > 0, variance, 1)), 0)


def terminal_rewards(rewards: ArrayLike, mask: ArrayLike) -> jax.Array:
    """The reward of each completion, put at its last token.

    Args:
        rewards: `[B]`, of any numeric kind.
        mask: `[B, T]`.

    Returns:
        `[B, T]`; a completion without tokens has none.

    Example:
        >>> terminal_rewards([1.0, 2.0], [[1, 1], [1, 0]]).tolist()
        [[0.0, 1.0], [2.0, 0.0]]
    """
    rewards = floats(rewards, "rewards")
    live = jnp.asarray(mask).astype(bool)
    if live.ndim != 2 or rewards.shape != live.shape[:1]:
        raise ValueError(f"rewards must be [B] for a mask [B, T] {live.shape}, got {rewards.shape}")
    later = jnp.flip(jnp.cumsum(jnp.flip(live, -1), -1), -1)
    return jnp.where(live & (later == 1), rewards[:, None], 0)
