"""PS-KD: soft labels that the student itself gave, the last time it saw the example."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from divax.objectives.arguments import as_labels, check_rows, is_static, live_weights, silence_rows
from divax.objectives.cross_entropy import cross_entropy_rows
from divax.objectives.logit_rows import floating_logits, soft_cross_entropy, token_means, weigh
from divax.objectives.logit_rows import weight as as_weight
from divax.objectives.reduction import Reduction, token_mean
from divax.objectives.weighted import Weighted


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PredictionMemory:
    """The last prediction for each example, as state: `record` returns a new one.

    A frozen pytree: it goes through `jit`, into checkpoints, and may be sharded by its first axis.
    Reading before recording within a step gives the predictions of the epoch before, if an epoch
    visits each example once.

    Attributes:
        probs: `[N, V]`; a row of zeros has no prediction yet.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax.objectives import PredictionMemory
        >>> memory = PredictionMemory.empty(examples=3, classes=2)
        >>> memory = memory.record(jnp.array([2]), jnp.zeros((1, 2)))
        >>> memory.read(jnp.array([0, 2])).tolist()
        [[0.0, 0.0], [0.5, 0.5]]

    Source: K. Kim, B. Ji, D. Yoon, S. Hwang, "Self-Knowledge Distillation with Progressive
    Refinement of Targets" (PS-KD), arXiv:2006.12000, section 3.
    """

    probs: jax.Array

    @classmethod
    def empty(
        cls, *, examples: int, classes: int, dtype: DTypeLike = jnp.float32
    ) -> "PredictionMemory":
        """A memory of no predictions; float16 halves its size, with probabilities to 3 digits."""
        return cls(probs=jnp.zeros((examples, classes), dtype))

    def read(self, ids: ArrayLike) -> jax.Array:
        """The predictions `[..., V]` for examples `[...]`; zeros for one that is not there."""
        found = self.probs.at[self._rows(ids)].get(mode="fill", fill_value=0)
        return found.astype(jnp.result_type(float))

    def record(
        self, ids: ArrayLike, logits: ArrayLike, mask: ArrayLike | None = None
    ) -> "PredictionMemory":
        """The memory with `softmax(logits)` `[..., V]` for examples `[...]` whose mask is not 0.

        Examples that are not there are left out.

        Raises:
            ValueError: ids, mask or classes of other shape than the logits and the memory.
        """
        values = jax.lax.stop_gradient(floating_logits(logits, "logits"))
        if values.shape[-1] != self.probs.shape[-1]:
            raise ValueError(
                f"logits {values.shape} must have the {self.probs.shape[-1]} classes of the memory"
            )
        rows = self._rows(ids)
        check_rows(rows, "ids", values.shape[:-1], "logits")
        live = live_weights(values.shape[:-1], None, mask, "logits")
        rows = jnp.where(live != 0, rows, self.probs.shape[0])
        probs = jax.nn.softmax(values, axis=-1).astype(self.probs.dtype)
        return PredictionMemory(probs=self.probs.at[rows].set(probs, mode="drop"))

    def _rows(self, ids: ArrayLike) -> jax.Array:
        """Row numbers; out of range, and not the last row, where an id is negative."""
        rows = jnp.asarray(ids)
        if not jnp.issubdtype(rows.dtype, jnp.integer):
            raise TypeError(f"ids must be integers, got {rows.dtype}")
        rows = rows.astype(jnp.int32)
        return jnp.where(rows >= 0, rows, self.probs.shape[0])


def ps_kd(
    *,
    student_logits: ArrayLike,
    past_probs: ArrayLike,
    labels: ArrayLike,
    mask: ArrayLike | None = None,
    past_weight: ArrayLike,
    reduction: Reduction = token_mean,
) -> tuple[Weighted, dict[str, Weighted]]:
    r"""Cross-entropy against the label, softened by the student's own earlier prediction.

    .. math::
        l = -\sum_c [(1-a)\,1_{c=y} + a\,p_c] \log \mathrm{softmax}(s)_c

    per row, in nats, with p the prediction of an epoch ago, without gradient. A row of zeros, where
    there is none yet, has the label alone. The paper lets `a` grow with the epoch,
    `a = 0.8 (epoch + 1) / epochs`: the better the model, the more it is its own teacher.

    Args:
        student_logits: `[..., V]`, any floating dtype; the arithmetic is in float32 or better.
            -inf marks an impossible class.
        past_probs: `[..., V]`, as `PredictionMemory.read` returns them.
        labels: Integers `[...]`. Rows with a negative label (-100 by convention) are masked.
        mask: Weights `[...]`; where it is 0, neither the loss nor its gradient depends on the row.
        past_weight: `a` in [0, 1]; may be traced.
        reduction: Rows and mask to a `Weighted`.

    Returns:
        The loss, and the metrics `"cross_entropy"`, `"soft_cross_entropy"` (against p, 0 where
        there is none) and `"remembered"` (the share of rows that have a p), means over unmasked
        rows.

    Raises:
        ValueError: If shapes do not match or a plain number is out of range.
        TypeError: If logits are not floating or labels not integers.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax.objectives import ps_kd
        >>> logits, past = jnp.log(jnp.array([[0.8, 0.2]])), jnp.array([[0.5, 0.5]])
        >>> loss, _ = ps_kd(
        ...     student_logits=logits, past_probs=past, labels=jnp.array([0]), past_weight=0.8
        ... )
        >>> round(float(loss.mean()), 4)  # -0.6 log 0.8 - 0.4 log 0.2
        0.7777

    Source: K. Kim, B. Ji, D. Yoon, S. Hwang, "Self-Knowledge Distillation with Progressive
    Refinement of Targets" (PS-KD), arXiv:2006.12000, section 3.
    """
    if is_static(past_weight) and not 0 <= past_weight <= 1:
        raise ValueError(f"past_weight must lie in [0, 1], got {past_weight}")
    student = floating_logits(student_logits, "student_logits")
    past = jax.lax.stop_gradient(floating_logits(past_probs, "past_probs"))
    if past.shape != student.shape:
        raise ValueError(
            f"past_probs {past.shape} must have the shape of student_logits {student.shape}"
        )
    ids = as_labels(labels)
    live = live_weights(student.shape[:-1], ids, mask, "student_logits")
    student, past = silence_rows(student, live), silence_rows(past, live)
    hard = cross_entropy_rows(student, ids)
    soft = soft_cross_entropy(past, student)
    remembered = jnp.any(past > 0, axis=-1)
    share = jnp.where(remembered, as_weight(past_weight, "past_weight"), 0)
    terms = {"cross_entropy": hard, "soft_cross_entropy": soft, "remembered": remembered}
    return reduction(weigh(1 - share, hard) + weigh(share, soft), live), token_means(
        terms, live, reduction
    )
