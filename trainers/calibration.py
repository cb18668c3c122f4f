"""Expected calibration error as sums that merge over batches."""

import dataclasses

import jax
import jax.numpy as jnp

BINS = 15


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Calibration:
    """Per confidence bin: how many predictions, how sure they were, how many were right.

    Bin i holds confidences in (i / 15, (i + 1) / 15]. Sums add up over batches by
    `jax.tree.map(add, ...)`; only `error` divides.

    Attributes:
        weight: `[15]`, the predictions' weights.
        confidence: `[15]`, weighted sum of the largest probability.
        correct: `[15]`, weight of the right predictions.

    Reference:
        Guo et al., "On Calibration of Modern Neural Networks", arXiv:1706.04599, Eq. 3.

    Example:
        >>> import jax.numpy as jnp
        >>> sure = Calibration.of(jnp.array([[9.0, -9.0]]), jnp.array([1]), jnp.array([1.0]))
        >>> round(float(sure.error()), 4)
        1.0
    """

    weight: jax.Array
    confidence: jax.Array
    correct: jax.Array

    @classmethod
    def of(cls, logits: jax.Array, labels: jax.Array, mask: jax.Array) -> "Calibration":
        """The sums of one batch: logits `[..., V]`, labels and mask `[...]`."""
        live = mask != 0
        logits = jnp.where(live[..., None], logits, 0).astype(jnp.result_type(float))
        top = jnp.max(logits, axis=-1, keepdims=True)
        confidence = 1 / jnp.sum(jnp.exp(logits - top), axis=-1)
        right = jnp.argmax(logits, axis=-1).astype(labels.dtype) == labels
        index = jnp.clip(jnp.ceil(confidence * BINS).astype(jnp.int32) - 1, 0, BINS - 1)

        def binned(values):
            return jnp.zeros(BINS, values.dtype).at[index].add(values)

        weight = mask.astype(confidence.dtype)
        return cls(binned(weight), binned(weight * confidence), binned(jnp.where(right, weight, 0)))

    def error(self) -> jax.Array:
        """The weighted mean over bins of |accuracy - confidence|, in [0, 1]."""
        return abs(self.correct - self.confidence).sum() / self.weight.sum()
