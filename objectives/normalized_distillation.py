"""NKD: the label's soft target beside the classes that are not the label, renormalised."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.objectives.cross_entropy import cross_entropy_rows
from divax.objectives.logit_rows import (
    check_two_classes,
    logit_rows,
    others,
    positive,
    soft_cross_entropy,
    soften,
    token_means,
    weigh,
    weight,
)
from divax.objectives.reduction import Reduction, token_mean
from divax.objectives.token_objective import token_by_token
from divax.objectives.weighted import Weighted


@token_by_token
def nkd(
    *,
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    labels: ArrayLike,
    mask: ArrayLike | None = None,
    target_weight: ArrayLike = 1.0,
    non_target_weight: ArrayLike = 1.5,
    label_weight: ArrayLike = 1.0,
    temperature: ArrayLike = 1.0,
    vocab_size: int | None = None,
    reduction: Reduction = token_mean,
) -> tuple[Weighted, dict[str, Weighted]]:
    r"""Normalised distillation: soft target on the label, and soft labels among the others.

    .. math::
        l = -(c + a\,p_y) \log q_y - g\,T^2 \sum_{k\ne y} \hat p_k \log \hat q_k

    per row, in nats: p and q at temperature 1, the hats at temperature T and renormalised over the
    classes other than the label. The last sum is a cross-entropy: its least value is the entropy
    of the teacher's hat and not 0. Gradients flow to the student alone.

    Args:
        student_logits: `[..., V]`, any floating dtype; the arithmetic is in float32 or better.
            -inf marks an impossible class.
        teacher_logits: `[..., V]`, rows as the student's.
        labels: Integers `[...]`. Rows with a negative label (-100 by convention) are masked.
        mask: Weights `[...]`; where it is 0, neither the loss nor its gradient depends on the row.
        target_weight: `a >= 0`; may be traced, as every weight and the temperature.
        non_target_weight: `g >= 0`; the authors take 1.5 on ImageNet and 3.5 on CIFAR-100.
        label_weight: `c >= 0`, of the cross-entropy.
        temperature: `T > 0`; the authors take 1 on ImageNet and 3 on CIFAR-100.
        vocab_size: As in `distillation`.
        reduction: Rows and mask to a `Weighted`.

    Returns:
        The loss, and the metrics `"target"`, `"non_target"` (the two sums, without weights and
        `T²`) and `"cross_entropy"`, means over unmasked rows.

    Raises:
        ValueError: If shapes or vocabularies do not match, there is one class, or a plain number
            is out of range.
        TypeError: If logits are not floating or labels not integers.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax.objectives import nkd
        >>> teacher = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
        >>> loss, metrics = nkd(
        ...     student_logits=jnp.zeros((1, 3)), teacher_logits=teacher, labels=jnp.array([0])
        ... )
        >>> round(float(metrics["target"].mean()), 4)  # half of log 3
        0.5493
        >>> round(float(metrics["non_target"].mean()), 4)  # log 2
        0.6931

    Source: Z. Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation: A Unified
    Approach with Normalized Loss and Customized Soft Labels", arXiv:2303.13005, section "Normalized
    KD for Better Using Soft Labels" (its loss and the cross-entropy: `a = c = 1`).
    """
    rows = logit_rows(student_logits, teacher_logits, labels, mask, vocab_size)
    check_two_classes(rows.student, "nkd")
    t = positive(temperature, "temperature")
    hard = cross_entropy_rows(rows.student, rows.labels)
    confidence = jnp.exp(-cross_entropy_rows(rows.teacher, rows.labels))
    target = weigh(confidence, hard)
    among_others = jax.nn.softmax(others(soften(rows.teacher, t), rows.labels), axis=-1)
    non_target = soft_cross_entropy(among_others, others(soften(rows.student, t), rows.labels))
    loss = (
        weigh(weight(label_weight, "label_weight"), hard)
        + weigh(weight(target_weight, "target_weight"), target)
        + weigh(weight(non_target_weight, "non_target_weight") * jnp.square(t), non_target)
    )
    metrics = {"target": target, "non_target": non_target, "cross_entropy": hard}
    return reduction(loss, rows.live), token_means(metrics, rows.live, reduction)
