"""Log-probs of completions, summed over their tokens, and their fluency, from a model and a batch."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from divax.divergences.fused_linear import Implementation
from divax.objectives import align_causal, token_statistics
from divax.objectives.label_log_probs import LabelStatistics, label_statistics, statistics_of_rows
from divax.trainers.batch import Batch
from divax.trainers.implementation import implementation_for
from divax.trainers.model import Model, hidden_logits, predict
from divax.trainers.sharding import rows_over_devices


def completion_log_probs(
    model: Model,
    params: Any,
    batch: Batch,
    *,
    segments: int = 1,
    chunk_size: int | None = None,
    mesh: Mesh | None = None,
    implementation: Implementation | None = None,
) -> jax.Array:
    """Sums over each completion's tokens of `log policy(token | what is before it)`.

    The completion is what the batch's mask counts as targets; the prompt and padding are masked. A
    mask between 0 and 1 weighs its token, as `discount_tails` does.
    Where the model exposes `hidden` and `head`, logits exist for `chunk_size` positions at a time.
    Policy and reference must both go through this function: it is the same arithmetic, so equal
    parameters give equal numbers, to the bit.

    Args:
        model: the model.
        params: its parameters.
        batch: tokens `[B, T]`, mask, and segment ids where rows are packed.
        segments: how many completions a packed row may hold; their ids are 0 to segments - 1.
        chunk_size: positions whose logits exist at a time; `None` chooses.
        mesh: over whose devices the rows are split; see `divax.trainers.sharding`.
        implementation: of a model that exposes `hidden` and `head`: "fast" and "lean" as in
            `objectives.token_statistics`, "reference" by `jax.checkpoint`; default: by the number of
            logits of a device, "reference" up to 4 million.

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
    options = {"segments": segments, "chunk_size": chunk_size, "mesh": mesh}
    return completion_statistics(
        model, params, batch, **options, implementation=implementation
    ).log_probs


class CompletionStatistics(NamedTuple):
    """What `completion_statistics` returns, `[B, segments]` each.

    Attributes:
        log_probs: sums over the completion's tokens, each with its weight in the mask.
        fluency: mean over the tokens of `log p_t(y_t) - log sum_v p_t(v)^2`, without gradient:
            about 0 for a completion that the model could have written, negative for one that it
            would not.

    Example:
        >>> CompletionStatistics._fields
        ('log_probs', 'fluency')
    """

    log_probs: jax.Array
    fluency: jax.Array


def completion_statistics(
    model: Model,
    params: Any,
    batch: Batch,
    *,
    segments: int = 1,
    chunk_size: int | None = None,
    mesh: Mesh | None = None,
    implementation: Implementation | None = None,
) -> CompletionStatistics:
    """`completion_log_probs`, and how much a completion reads like the model's own.

    Args:
        model: as in `completion_log_probs`.
        params: its parameters.
        batch: tokens, mask, segment ids.
        segments: how many completions a packed row may hold.
        chunk_size: positions whose logits exist at a time; `None` chooses.
        mesh: as in `completion_log_probs`.
        implementation: likewise.

    Returns:
        `CompletionStatistics(log_probs, fluency)`; under `jit` a part that is not used is not
        computed.

    Raises:
        ValueError: as `completion_log_probs`.

    Example:
        >>> import jax.numpy as jnp
        >>> table = Model(init=lambda key: jnp.zeros((4, 4)), apply=lambda params, tokens: params[tokens])
        >>> batch = Batch(tokens=jnp.array([[0, 1, 2]]), mask=jnp.array([[0, 1, 1]]))
        >>> float(completion_statistics(table, jnp.zeros((4, 4)), batch).fluency[0, 0])  # uniform
        0.0

    Source: W. Zhou et al., "WPO: Enhancing RLHF with Weighted Preference Optimization",
    arXiv:2406.11827, §3.2 (sampled alignment).
    """
    labels, weights = align_causal(batch.tokens, batch.mask, batch.segment_ids)
    made = hidden_logits(model, params, batch)
    if made is None:
        rows = LabelStatistics(*statistics_of_rows(predict(model, params, batch), labels))
    else:
        how = implementation_for(model, params, batch.tokens, mesh, implementation)
        of_rows = functools.partial(_statistics, chunk_size, how)
        split = None if how == "reference" else mesh
        rows = rows_over_devices(of_rows, split, (made.hidden, labels), made.head)
    counted = labels >= 0
    logps = jnp.where(counted, weights * rows.log_probs, 0)
    ease = jnp.where(counted, jax.lax.stop_gradient(rows.log_probs) - rows.log_collisions, 0)
    lengths = completion_lengths(batch, segments=segments)
    fluency = _by_segment(ease, batch, segments) / jnp.maximum(lengths, 1)
    return CompletionStatistics(_by_segment(logps, batch, segments), fluency)


def _statistics(
    chunk_size: int | None, how: Implementation, rows: Any, head: Any
) -> LabelStatistics:
    hidden, labels = rows
    if how == "reference":
        return label_statistics(
            hidden=hidden, head=head, labels=labels, chunk_size=chunk_size or 1024
        )
    found = token_statistics(
        hidden=hidden, head=head, labels=labels, chunk=chunk_size, implementation=how
    )
    held = jax.lax.stop_gradient((hidden, head))
    both = label_statistics(
        hidden=held[0], head=held[1], labels=labels, chunk_size=chunk_size or 256
    )
    return both._replace(log_probs=found.log_probs)


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
    ids = jnp.asarray(batch.segment_ids)
    own = ids[..., None] == jnp.arange(segments, dtype=ids.dtype)[None, None]
    return jnp.sum(jnp.where(own, values[..., None], 0), axis=-2)
