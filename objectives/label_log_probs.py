"""Log-probs of given tokens from hidden states, without the logits of a whole sequence at once."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences import LinearHead
from divax.objectives.arguments import as_labels
from divax.objectives.cross_entropy import cross_entropy_rows


def label_log_probs(
    *, hidden: ArrayLike, head: ArrayLike | LinearHead, labels: ArrayLike, chunk_size: int = 1024
) -> jax.Array:
    r"""Log-probability of each label under `softmax(hidden @ head)`, in chunks of positions.

    .. math:: \log \mathrm{softmax}(h_t W)_{y_t}

    No more than `[chunk_size, V]` logits exist at a time, in either pass: a chunk is computed
    again for its gradient instead of being kept.

    Args:
        hidden: `[..., D]`, the states before the vocabulary head, any floating dtype.
        head: `[D, V]`, or a `LinearHead`.
        labels: integers `[...]`; a negative one (-100) gives 0 and no gradient.
        chunk_size: positions per chunk, at least 1; the result does not depend on it.

    Returns:
        `[...]`, nats, float32 (float64 under x64).

    Raises:
        ValueError: The shapes do not fit together.

    Example:
        >>> import jax.numpy as jnp
        >>> logps = label_log_probs(
        ...     hidden=jnp.ones((2, 3, 4)), head=jnp.zeros((4, 5)), labels=jnp.full((2, 3), 1)
        ... )
        >>> logps.shape, round(float(logps[0, 0]), 4)  # -log 5
        ((2, 3), -1.6094)
    """
    return _by_label(
        hidden, head, labels, chunk_size, lambda logits, label: -cross_entropy_rows(logits, label)
    )


class LabelStatistics(NamedTuple):
    """What `label_statistics` returns.

    Attributes:
        log_probs: `[...]`, of the labels.
        log_collisions: `[...]`, of two independent draws being the same token.

    Example:
        >>> LabelStatistics._fields
        ('log_probs', 'log_collisions')
    """

    log_probs: jax.Array
    log_collisions: jax.Array


def label_statistics(
    *, hidden: ArrayLike, head: ArrayLike | LinearHead, labels: ArrayLike, chunk_size: int = 1024
) -> LabelStatistics:
    r"""`label_log_probs`, and how concentrated the distribution is that each label is drawn from.

    .. math:: \log p_t(y_t), \qquad \log \sum_v p_t(v)^2, \qquad p_t = \mathrm{softmax}(h_t W)

    The second is the logarithm of the collision probability, minus the Rényi entropy of order 2:
    what the first would be on average over `p_t`, inside the logarithm. It carries no gradient.

    Args:
        hidden: as in `label_log_probs`.
        head: `[D, V]`, or a `LinearHead`.
        labels: integers `[...]`; a negative one gives 0 in both.
        chunk_size: positions per chunk.

    Returns:
        `LabelStatistics(log_probs, log_collisions)`; a part that is not used under `jit` is not
        computed.

    Raises:
        ValueError: as `label_log_probs`.

    Example:
        >>> import jax.numpy as jnp
        >>> both = label_statistics(
        ...     hidden=jnp.ones((3, 4)), head=jnp.zeros((4, 5)), labels=jnp.zeros(3, int)
        ... )
        >>> [round(float(part[0]), 4) for part in both]  # -log 5 twice
        [-1.6094, -1.6094]
    """
    return LabelStatistics(*_by_label(hidden, head, labels, chunk_size, statistics_of_rows))


def statistics_of_rows(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Per row of logits, the label's log-prob and the log of the collision probability."""
    held = jax.lax.stop_gradient(logits.astype(jnp.result_type(float)))
    collisions = jax.nn.logsumexp(2 * jax.nn.log_softmax(held), axis=-1)
    return -cross_entropy_rows(logits, labels), collisions


def _by_label(hidden, head, labels, chunk_size: int, of_logits: Callable[..., Any]) -> Any:
    """`of_logits(logits, labels)` per position, 0 where the label is negative, chunk by chunk."""
    hidden, labels = jnp.asarray(hidden), as_labels(labels)
    of_states = _products(head, hidden.shape)
    if labels.shape != hidden.shape[:-1]:
        raise ValueError(f"labels must be {hidden.shape[:-1]}, one per state, got {labels.shape}")
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} must be at least 1")
    states, targets = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)
    count = targets.size
    chunk = min(chunk_size, max(count, 1))
    padding = -count % chunk
    states = jnp.pad(states, ((0, padding), (0, 0))).reshape(-1, chunk, states.shape[-1])
    targets = jnp.pad(targets, (0, padding), constant_values=-1).reshape(-1, chunk)

    @jax.checkpoint
    def of_chunk(state, target):
        # Masked states may hold anything; their product with the head must not be NaN.
        state = jnp.where((target >= 0)[:, None], state, jnp.zeros((), state.dtype))
        values = of_logits(of_states(state), target)
        return jax.tree.map(lambda value: jnp.where(target >= 0, value, 0), values)

    rows = jax.lax.map(lambda chunks: of_chunk(*chunks), (states, targets))
    return jax.tree.map(lambda row: row.reshape(-1)[:count].reshape(labels.shape), rows)


def _products(head: Any, hidden: tuple[int, ...]) -> Callable[[jax.Array], jax.Array]:
    """From states to logits."""
    if isinstance(head, LinearHead):
        return head.logits
    weight = jnp.asarray(head)
    if weight.ndim != 2 or hidden[-1:] != weight.shape[:1]:
        raise ValueError(f"hidden {hidden} must end in the head's first axis {weight.shape}")
    wide = jnp.result_type(float)
    return lambda states: jnp.matmul(states, weight, preferred_element_type=wide)
