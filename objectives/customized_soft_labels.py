"""USKD: soft labels without a teacher, from the student's own confidence and a weak head's ranking."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences import log_softmax
from divax.objectives.arguments import as_labels, live_weights, silence_rows
from divax.objectives.cross_entropy import cross_entropy_rows
from divax.objectives.logit_rows import (
    check_same_rows,
    check_two_classes,
    floating_logits,
    is_label,
    others,
    soft_cross_entropy,
    token_means,
    weigh,
    weight,
)
from divax.objectives.reduction import Reduction, token_mean
from divax.objectives.weighted import Weighted


def uskd(
    *,
    student_logits: ArrayLike,
    weak_logits: ArrayLike,
    labels: ArrayLike,
    mask: ArrayLike | None = None,
    target_weight: ArrayLike = 1.0,
    non_target_weight: ArrayLike = 0.1,
    weak_weight: ArrayLike = 0.005,
    label_weight: ArrayLike = 1.0,
    smoothing: ArrayLike = 0.1,
    compat: Literal["cls_kd"] | None = None,
    reduction: Reduction = token_mean,
) -> tuple[Weighted, dict[str, Weighted]]:
    r"""Universal self-distillation: customised soft labels for the label and for the others.

    .. math::
        l = -(c + a\,P) \log q_y - b \sum_{k\ne y} z_k \log \hat q_k
            + m\,\mathrm{CE}_\text{smooth}(w, y), \qquad
        P = 1 + q_y^2 - \overline{q_y^2}, \qquad z_k \propto 1/\mathrm{rank}_k

    per row, in nats: q the student's probabilities, the bar a mean over the batch's unmasked rows,
    the hat renormalised over the classes other than the label, and w the logits of a weak head on
    an intermediate feature, which is not used at inference. The others are ranked by
    `w-hat + q-hat`, and soft labels follow Zipf's law in the rank. P and z carry no gradient. The
    bar couples rows: a sum over micro-batches takes each one's own mean.

    Args:
        student_logits: `[..., V]`, any floating dtype; the arithmetic is in float32 or better.
        weak_logits: `[..., V]`, finite.
        labels: Integers `[...]`. Rows with a negative label (-100 by convention) are masked.
        mask: Weights `[...]`; where it is 0, neither the loss nor its gradient depends on the row.
        target_weight: `a >= 0`; may be traced, as every weight and the smoothing. The authors take
            (a, b, m) = (1, 0.1, 0.005) on ImageNet and (0.1, 0.1, 0.1) on CIFAR-100.
        non_target_weight: `b >= 0`.
        weak_weight: `m >= 0`.
        label_weight: `c >= 0`, of the cross-entropy.
        smoothing: The share of the weak head's target that is spread over all classes.
        compat: "cls_kd" ranks as the authors' code does: by `w-hat + log q / (1 - log q_y)`, the
            label among the ranked, so that the others mostly begin at rank 2.
        reduction: Rows and mask to a `Weighted`.

    Returns:
        The loss, and the metrics `"target"`, `"non_target"`, `"weak"` (the three terms, without
        weights) and `"cross_entropy"`, means over unmasked rows.

    Raises:
        ValueError: If shapes do not match, there is one class, a plain number is out of range, or
            `compat` is unknown.
        TypeError: If logits are not floating or labels not integers.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax.objectives import uskd
        >>> loss, metrics = uskd(
        ...     student_logits=jnp.zeros((1, 3)), weak_logits=jnp.array([[0.0, 1.0, 2.0]]),
        ...     labels=jnp.array([0]),
        ... )
        >>> round(float(metrics["target"].mean()), 4)  # P is 1 in a batch of one
        1.0986

    Source: Z. Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation: A Unified
    Approach with Normalized Loss and Customized Soft Labels", arXiv:2303.13005, section "Customized
    Soft Labels for Self-KD"; `compat="cls_kd"` and the smoothing as in the authors' code.
    """
    if compat not in (None, "cls_kd"):
        raise ValueError(f"uskd: compat={compat!r} is neither None nor 'cls_kd'")
    student = floating_logits(student_logits, "student_logits")
    weak = floating_logits(weak_logits, "weak_logits")
    check_two_classes(student, "uskd")
    check_same_rows(weak, "weak_logits", student)
    if weak.shape != student.shape:
        raise ValueError(f"weak_logits {weak.shape} must have the classes of {student.shape}")
    labels = as_labels(labels)
    live = live_weights(student.shape[:-1], labels, mask, "student_logits")
    labels = jnp.maximum(labels, 0)
    student, weak = silence_rows(student, live), silence_rows(weak, live)

    hard = cross_entropy_rows(student, labels)
    zipf = _zipf(jax.lax.stop_gradient(student), jax.lax.stop_gradient(weak), labels, compat)
    terms = {
        "target": weigh(_soft_target(hard, live), hard),
        "non_target": soft_cross_entropy(zipf, others(student, labels)),
        "weak": _smoothed(weak, labels, weight(smoothing, "smoothing")),
        "cross_entropy": hard,
    }
    loss = (
        weigh(weight(target_weight, "target_weight"), terms["target"])
        + weigh(weight(non_target_weight, "non_target_weight"), terms["non_target"])
        + weigh(weight(weak_weight, "weak_weight"), terms["weak"])
        + weigh(weight(label_weight, "label_weight"), hard)
    )
    return reduction(loss, live), token_means(terms, live, reduction)


def _soft_target(hard: jax.Array, live: jax.Array) -> jax.Array:
    """`P = 1 + q_y² - mean(q_y²)`, the mean over the rows that count."""
    squares = jnp.exp(-2 * jax.lax.stop_gradient(hard))
    count = jnp.sum(live)
    return 1 + squares - jnp.sum(live * squares) / jnp.where(count > 0, count, 1)


def _zipf(student: jax.Array, weak: jax.Array, labels: jax.Array, compat: str | None) -> jax.Array:
    """Soft labels `[..., V]` by Zipf's law in the rank; 0 at the label."""
    label = is_label(student, labels)
    if compat is None:
        among_others = (jax.nn.softmax(others(x, labels), axis=-1) for x in (student, weak))
        score = jnp.where(label, -jnp.inf, sum(among_others))
    else:
        probs, logs = jax.nn.softmax(weak, axis=-1), log_softmax(student)
        at_label = (jnp.sum(jnp.where(label, x, 0), -1, keepdims=True) for x in (probs, logs))
        rest_weak, rest = (1 - x + 1e-6 for x in at_label)
        score = probs / rest_weak + logs / rest
    rank = jnp.argsort(jnp.argsort(-score, axis=-1), axis=-1) + 1
    shares = jnp.where(label, 0, 1 / rank.astype(student.dtype))
    return shares / jnp.sum(shares, axis=-1, keepdims=True)


def _smoothed(logits: jax.Array, labels: jax.Array, smoothing: jax.Array) -> jax.Array:
    """Cross-entropy against `(1 - smoothing) onehot + smoothing / V`."""
    uniform = -jnp.mean(log_softmax(logits), axis=-1)
    return (1 - smoothing) * cross_entropy_rows(logits, labels) + smoothing * uniform
