"""Dual-head distillation: a head of its own, which is dropped later, matches the teacher's logits."""

from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences import ForwardKL
from divax.objectives.arguments import silence_rows
from divax.objectives.cross_entropy import cross_entropy_rows
from divax.objectives.logit_rows import (
    check_same_rows,
    floating_logits,
    logit_rows,
    positive,
    soften,
    token_means,
    weigh,
    weight,
)
from divax.objectives.reduction import Reduction, token_mean
from divax.objectives.vocabulary import restrict_vocabulary
from divax.objectives.weighted import Weighted

_FORWARD_KL = ForwardKL()
Tree = TypeVar("Tree")


def dual_head(
    *,
    student_logits: ArrayLike,
    auxiliary_logits: ArrayLike,
    teacher_logits: ArrayLike,
    labels: ArrayLike,
    mask: ArrayLike | None = None,
    auxiliary_weight: ArrayLike = 1.0,
    label_weight: ArrayLike = 1.0,
    temperature: ArrayLike = 2.0,
    vocab_size: int | None = None,
    reduction: Reduction = token_mean,
) -> tuple[Weighted, dict[str, Weighted]]:
    r"""Cross-entropy on the main head, and on the other a binary KL per class to the teacher.

    .. math::
        l = -c \log \mathrm{softmax}(s)_y + a\,T^2 \sum_c
            \mathrm{KL}(\mathrm{Bern}(\sigma(t_c/T)) \| \mathrm{Bern}(\sigma(u_c/T)))

    per row, in nats, with main logits s and auxiliary logits u on one backbone. The binary KL sees
    the logits' level, which softmax hides; on one head it pulls against cross-entropy. For the
    gradients of the two terms on the backbone see `align_gradients`. No gradient reaches the
    teacher.

    It is the paper's BinaryKL. The authors train with its BinaryKL-Norm instead, per class
    `KL(Bern(1/2) || Bern(sigmoid((u_c - t_c)/T)))`, which is not here.

    Args:
        student_logits: `[..., V]`, of the head that is kept; the arithmetic is in float32 or
            better. -inf marks an impossible class.
        auxiliary_logits: `[..., V]`, of the head that is dropped after training.
        teacher_logits: `[..., V]`, rows as the student's.
        labels: Integers `[...]`. Rows with a negative label (-100 by convention) are masked.
        mask: Weights `[...]`; where it is 0, neither the loss nor its gradient depends on the row.
        auxiliary_weight: `a >= 0`; may be traced, as every weight and the temperature. The
            authors take 1 on CIFAR-100 and 0.1 on ImageNet, of BinaryKL-Norm.
        label_weight: `c >= 0`, of the cross-entropy; with one weight 0 the gradient is the other
            term's alone, as `align_gradients` wants them.
        temperature: `T > 0`.
        vocab_size: As in `distillation`.
        reduction: Rows and mask to a `Weighted`.

    Returns:
        The loss, and the metrics `"cross_entropy"` and `"binary_kl"` (without `T²`), means over
        unmasked rows.

    Raises:
        ValueError: If shapes or vocabularies do not match, or a plain number is out of range.
        TypeError: If logits are not floating or labels not integers.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax.objectives import dual_head
        >>> zeros = jnp.zeros((1, 2))
        >>> loss, metrics = dual_head(
        ...     student_logits=zeros, auxiliary_logits=zeros, teacher_logits=zeros + 1,
        ...     labels=jnp.array([0]), temperature=1,
        ... )
        >>> round(float(metrics["binary_kl"].mean()), 3)  # two classes, sigmoid(1) against 1/2
        0.222

    Source: P. Yang, C.-C. Zong, S.-J. Huang, L. Feng, B. An, "Dual-Head Knowledge Distillation:
    Enhancing Logits Utilization with an Auxiliary Head" (DHKD), arXiv:2411.08937, the sections on
    BinaryKL and on the two heads; the formula as in the authors' `BinaryKL`.
    """
    rows = logit_rows(student_logits, teacher_logits, labels, mask, vocab_size)
    auxiliary = floating_logits(auxiliary_logits, "auxiliary_logits")
    check_same_rows(auxiliary, "auxiliary_logits", rows.student)
    if vocab_size is not None:
        auxiliary = restrict_vocabulary(auxiliary, vocab_size, "auxiliary_logits")
    if auxiliary.shape != rows.student.shape:
        raise ValueError(
            f"auxiliary_logits {auxiliary.shape} must have the classes of {rows.student.shape}"
        )
    t = positive(temperature, "temperature")
    auxiliary = silence_rows(auxiliary, rows.live)
    binary = jnp.sum(_FORWARD_KL(_binary(rows.teacher, t), _binary(auxiliary, t)), axis=-1)
    hard = cross_entropy_rows(rows.student, rows.labels)
    scale = weight(auxiliary_weight, "auxiliary_weight") * jnp.square(t)
    loss = weigh(weight(label_weight, "label_weight"), hard) + weigh(scale, binary)
    return reduction(loss, rows.live), token_means(
        {"cross_entropy": hard, "binary_kl": binary}, rows.live, reduction
    )


def align_gradients(task_gradient: Tree, distill_gradient: Tree) -> Tree:
    r"""The distillation gradient without what works against the task's.

    .. math::
        g_D - \frac{\min(g_T\cdot g_D, 0)}{\|g_T\|^2}\, g_T

    Only where the two point apart is anything taken, and only from the distillation's: their sum
    never raises the task's loss to first order. Give it the backbone's gradients; each head keeps
    its own.

    Args:
        task_gradient: Any pytree of arrays, the gradient of the cross-entropy.
        distill_gradient: The same tree, of the distillation term.

    Returns:
        The tree of the aligned distillation gradient, to add to the task's.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax.objectives import align_gradients
        >>> aligned = align_gradients({"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([-3.0, 2.0])})
        >>> aligned["w"].tolist()
        [0.0, 2.0]

    Source: P. Yang, C.-C. Zong, S.-J. Huang, L. Feng, B. An, "Dual-Head Knowledge Distillation:
    Enhancing Logits Utilization with an Auxiliary Head" (DHKD), arXiv:2411.08937, its gradient
    alignment; the formula as in the authors' code.
    """
    inner = _dot(task_gradient, distill_gradient)
    norm2 = _dot(task_gradient, task_gradient)
    share = jnp.minimum(inner, 0) / jnp.where(norm2 > 0, norm2, 1)
    return jax.tree.map(lambda d, g: d - share.astype(d.dtype) * g, distill_gradient, task_gradient)


def _binary(logits: jax.Array, temperature: jax.Array) -> jax.Array:
    """Logits `[..., V, 2]` of the distribution of each class against its absence."""
    return jnp.stack([soften(logits, temperature), jnp.zeros_like(logits)], axis=-1)


def _dot(left: Tree, right: Tree) -> jax.Array:
    """Inner product of two trees, in float32 or better."""
    dtype = jnp.result_type(float)
    products = jax.tree.map(lambda a, b: jnp.sum(a.astype(dtype) * b.astype(dtype)), left, right)
    return sum(jax.tree.leaves(products), jnp.zeros((), dtype))
