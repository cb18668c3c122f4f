"""Cross-entropy of a model against labels: plain next-token training."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences.most_likely import most_likely
from divax.objectives.arguments import as_labels, check_logits, live_weights, silence_rows
from divax.objectives.reduction import Reduction, of_metrics, token_mean
from divax.objectives.vocabulary import restrict_vocabulary
from divax.objectives.weighted import Weighted


def cross_entropy(
    *,
    logits: ArrayLike,
    labels: ArrayLike,
    mask: ArrayLike | None = None,
    vocab_size: int | None = None,
    reduction: Reduction = token_mean,
) -> tuple[Weighted, dict[str, Weighted]]:
    r"""Negative log-likelihood of the labels under the model, in nats.

    .. math:: l = -\log \mathrm{softmax}(s)_y

    Args:
        logits: Model logits `[..., V]`, any floating dtype; the arithmetic is in float32 or
            better. A label whose logit is -inf, or that lies outside the vocabulary, costs +inf.
        labels: Integers `[...]`. Rows with a negative label (-100 by convention) are masked.
        mask: Weights `[...]`, bool, integer or float; where it is 0, neither the loss nor its
            gradient depends on the row, whatever it holds. Default: every labelled row counts.
        vocab_size: The tokenizer's size where the logits are padded; padded ids are removed.
        reduction: Rows and mask to a `Weighted`: `token_mean`, `sequence_mean`, or a partial of
            `constant_sum`.

    Returns:
        The loss, and the metric `"accuracy"` (top-1, mean over tokens). Under `jit` a metric that
        is not used is not computed.

    Raises:
        ValueError: If shapes do not match or `vocab_size` is larger than the vocabulary.
        TypeError: If logits are not floating or labels are not integers.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax.objectives import align_causal, cross_entropy
        >>> tokens = jnp.array([[3, 1, 2]])
        >>> labels, mask = align_causal(tokens)
        >>> loss, metrics = cross_entropy(logits=jnp.zeros((1, 3, 4)), labels=labels, mask=mask)
        >>> round(float(loss.mean()), 4), float(loss.count)  # log 4, over two predictions
        (1.3863, 2.0)
    """
    logits, labels = jnp.asarray(logits), as_labels(labels)
    check_logits(logits, "logits")
    if vocab_size is not None:
        logits = restrict_vocabulary(logits, vocab_size, "logits")
    weights = live_weights(logits.shape[:-1], labels, mask, "logits")
    logits = silence_rows(logits, weights)
    correct = most_likely(logits) == labels
    metrics = {"accuracy": of_metrics(reduction)(correct, weights)}
    return reduction(cross_entropy_rows(logits, labels), weights), metrics


def cross_entropy_rows(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """`logsumexp(logits) - logits[label]` per row, float32 or better; int32 labels < 0 read as 0.

    The label's logit is picked by a masked sum and not by a gather: it costs the same, since it
    fuses with the passes over the row that are made anyway, and unlike a gather it partitions over
    a sharded vocabulary. Other logits may be -inf.
    """
    logits = logits.astype(jnp.result_type(float))
    size = logits.shape[-1]
    labels = jnp.maximum(labels, 0)
    ids = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    picked = jnp.sum(jnp.where(ids == labels[..., None], logits, 0), axis=-1)
    picked = jnp.where(labels < size, picked, -jnp.inf)
    return jax.nn.logsumexp(logits, axis=-1) - picked
