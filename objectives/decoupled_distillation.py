"""DKD: what the teacher says of the label, and what it says of the other classes, weighed apart."""

import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences import ForwardKL
from divax.objectives.cross_entropy import cross_entropy_rows
from divax.objectives.logit_rows import (
    check_two_classes,
    label_or_not,
    logit_rows,
    others,
    positive,
    soften,
    token_means,
    weigh,
    weight,
)
from divax.objectives.reduction import Reduction, token_mean
from divax.objectives.token_objective import token_by_token
from divax.objectives.weighted import Weighted

_FORWARD_KL = ForwardKL()


@token_by_token
def dkd(
    *,
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    labels: ArrayLike,
    mask: ArrayLike | None = None,
    target_weight: ArrayLike = 1.0,
    non_target_weight: ArrayLike = 8.0,
    label_weight: ArrayLike = 1.0,
    temperature: ArrayLike = 4.0,
    vocab_size: int | None = None,
    reduction: Reduction = token_mean,
) -> tuple[Weighted, dict[str, Weighted]]:
    r"""Decoupled distillation: KL on label against rest, and KL among the rest, weighed apart.

    .. math::
        l = T^2\,[a\,\mathrm{KL}((p_y, 1-p_y)\|(q_y, 1-q_y)) + b\,\mathrm{KL}(\hat p\|\hat q)]
            + c\,(-\log \mathrm{softmax}(s)_y)

    per row, in nats, with p and q the teacher's and the student's probabilities at temperature T,
    and the hat for those of the classes other than the label, renormalised. The forward KL of all
    classes is the first KL plus `1 - p_y` times the second, so a confident teacher mutes what it
    says of the others; here nothing does. Gradients flow to the student alone.

    Args:
        student_logits: `[..., V]`, any floating dtype; the arithmetic is in float32 or better.
            -inf marks an impossible class.
        teacher_logits: `[..., V]`, rows as the student's.
        labels: Integers `[...]`. Rows with a negative label (-100 by convention) are masked.
        mask: Weights `[...]`; where it is 0, neither the loss nor its gradient depends on the row.
        target_weight: `a >= 0`; may be traced, as every weight and the temperature.
        non_target_weight: `b >= 0`. The authors take 8 on CIFAR-100 (2 to 8 by the pair of models)
            and 0.5 on ImageNet, and scale `a` and `b` by min(epoch / 20, 1).
        label_weight: `c >= 0`, of the cross-entropy.
        temperature: `T > 0`; the authors take 4 on CIFAR-100 and 1 on ImageNet.
        vocab_size: As in `distillation`.
        reduction: Rows and mask to a `Weighted`.

    Returns:
        The loss, and the metrics `"target"` and `"non_target"` (the two KLs, without `T²`) and
        `"cross_entropy"`, means over unmasked rows.

    Raises:
        ValueError: If shapes or vocabularies do not match, there is one class, or a plain number
            is out of range.
        TypeError: If logits are not floating or labels not integers.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax.objectives import dkd
        >>> teacher = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
        >>> student = jnp.log(jnp.array([[0.2, 0.4, 0.4]]))
        >>> loss, metrics = dkd(student_logits=student, teacher_logits=teacher, labels=jnp.array([0]))
        >>> round(float(metrics["non_target"].mean()), 6)  # the others agree among themselves
        0.0

    Source: B. Zhao, Q. Cui, R. Song, Y. Qiu, J. Liang, "Decoupled Knowledge Distillation",
    arXiv:2203.08679, eq. 7 (the identity with KL: eq. 6); `T²` as in the authors' code.
    """
    rows = logit_rows(student_logits, teacher_logits, labels, mask, vocab_size)
    check_two_classes(rows.student, "dkd")
    t = positive(temperature, "temperature")
    student, teacher = soften(rows.student, t), soften(rows.teacher, t)
    target = _FORWARD_KL(label_or_not(teacher, rows.labels), label_or_not(student, rows.labels))
    non_target = _FORWARD_KL(others(teacher, rows.labels), others(student, rows.labels))
    hard = cross_entropy_rows(rows.student, rows.labels)
    loss = (
        weigh(weight(target_weight, "target_weight") * jnp.square(t), target)
        + weigh(weight(non_target_weight, "non_target_weight") * jnp.square(t), non_target)
        + weigh(weight(label_weight, "label_weight"), hard)
    )
    metrics = {"target": target, "non_target": non_target, "cross_entropy": hard}
    return reduction(loss, rows.live), token_means(metrics, rows.live, reduction)
