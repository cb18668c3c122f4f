"""Log-probs of given tokens from hidden states, without the logits of a whole sequence at once."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.objectives.arguments import as_labels
from divax.objectives.cross_entropy import cross_entropy_rows


def label_log_probs(
    *, hidden: ArrayLike, head: ArrayLike, labels: ArrayLike, chunk_size: int = 1024
) -> jax.Array:
    r"""Log-probability of each label under `softmax(hidden @ head)`, in chunks of positions.

    .. math:: \log \mathrm{softmax}(h_t W)_{y_t}

    No more than `[chunk_size, V]` logits exist at a time, in either pass: a chunk is computed
    again for its gradient instead of being kept.

    Args:
        hidden: `[..., D]`, the states before the vocabulary head, any floating dtype.
        head: `[D, V]`.
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
    hidden, head, labels = jnp.asarray(hidden), jnp.asarray(head), as_labels(labels)
    if head.ndim != 2 or hidden.shape[-1:] != head.shape[:1]:
        raise ValueError(f"hidden {hidden.shape} must end in the head's first axis {head.shape}")
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
        logits = jnp.matmul(state, head, preferred_element_type=jnp.result_type(float))
        return jnp.where(target >= 0, -cross_entropy_rows(logits, target), 0)

    logps = jax.lax.map(lambda chunks: of_chunk(*chunks), (states, targets))
    return logps.reshape(-1)[:count].reshape(labels.shape)
