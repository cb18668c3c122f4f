"""Log-probs of completions, summed over their tokens, from a model and a batch."""

from typing import Any

import jax
import jax.numpy as jnp

from divax.objectives import align_causal
from divax.objectives.cross_entropy import cross_entropy_rows
from divax.objectives.label_log_probs import label_log_probs
from divax.trainers.batch import Batch
from divax.trainers.model import Model, hidden_states, predict


def completion_log_probs(
    model: Model, params: Any, batch: Batch, *, segments: int = 1, chunk_size: int = 1024
) -> jax.Array:
    """Sums over each completion's tokens of `log policy(token | what is before it)`.

    The completion is what the batch's mask counts as targets; the prompt and padding are masked.
    Where the model exposes `hidden` and `head`, logits exist for `chunk_size` positions at a time.
    Policy and reference must both go through this function: it is the same arithmetic, so equal
    parameters give equal numbers, to the bit.

    Args:
        model: the model.
        params: its parameters.
        batch: tokens `[B, T]`, mask, and segment ids where rows are packed.
        segments: how many completions a packed row may hold; their ids are 0 to segments - 1.
        chunk_size: positions whose logits exist at a time.

    Returns:
        `[B, segments]`, nats; 0 for a segment that is not there.

    Raises:
        ValueError: several segments of a batch without segment ids.

    Example:
        >>> import jax.numpy as jnp
        >>> table = Model(init=lambda key: jnp.zeros((4, 4)), apply=lambda params, tokens: params[tokens])
        >>> batch = Batch(tokens=jnp.array([[0, 1, 2]]), mask=jnp.array([[0, 1, 1]]))
        >>> round(float(completion_log_probs(table, jnp.zeros((4, 4)), batch)[0, 0]), 4)  # 2 log 1/4
        -2.7726
    """
    labels, _ = align_causal(batch.tokens, batch.mask, batch.segment_ids)
    if model.hidden is None or model.head is None:
        logits = predict(model, params, batch)
        logps = jnp.where(labels >= 0, -cross_entropy_rows(logits, labels), 0)
    else:
        logps = label_log_probs(
            hidden=hidden_states(model, params, batch),
            head=model.head(params),
            labels=labels,
            chunk_size=chunk_size,
        )
    return _by_segment(logps, batch, segments)


def completion_lengths(batch: Batch, *, segments: int = 1) -> jax.Array:
    """Numbers of tokens that `completion_log_probs` sums over, `[B, segments]`.

    Example:
        >>> import jax.numpy as jnp
        >>> batch = Batch(tokens=jnp.array([[0, 1, 2]]), mask=jnp.array([[0, 1, 1]]))
        >>> completion_lengths(batch).tolist()
        [[2.0]]
    """
    labels, _ = align_causal(batch.tokens, batch.mask, batch.segment_ids)
    return _by_segment((labels >= 0).astype(jnp.result_type(float)), batch, segments)


def _by_segment(values: jax.Array, batch: Batch, segments: int) -> jax.Array:
    if segments == 1:
        return jnp.sum(values, axis=-1, keepdims=True)
    if batch.segment_ids is None:
        raise ValueError(f"segments={segments} needs segment_ids in the batch")
    ids = jnp.asarray(batch.segment_ids)[..., None] == jnp.arange(segments)[None, None]
    return jnp.sum(jnp.where(ids, values[..., None], 0), axis=-2)
