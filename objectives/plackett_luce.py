"""PLD: the student ranks the classes as the teacher does, the label first."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.objectives.cross_entropy import cross_entropy_rows
from divax.objectives.logit_rows import is_label, logit_rows, positive, soften, token_means
from divax.objectives.reduction import Reduction, token_mean
from divax.objectives.token_objective import token_by_token
from divax.objectives.weighted import Weighted


@token_by_token
def pld(
    *,
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    labels: ArrayLike,
    mask: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    vocab_size: int | None = None,
    reduction: Reduction = token_mean,
) -> tuple[Weighted, dict[str, Weighted]]:
    r"""Plackett-Luce distillation: weighted negative log-likelihood of the teacher's ranking.

    .. math::
        l = \sum_k p_{\pi_k} \Big[\log \sum_{j \ge k} e^{s_{\pi_j}} - s_{\pi_k}\Big], \qquad
        \pi_1 = y, \quad t_{\pi_2} \ge t_{\pi_3} \ge \dots

    per row, in nats, with `p = softmax(t/T)` the teacher's probabilities. It stands in place of
    cross-entropy and distillation together, with no weight between them: `k = 1` is `p_y` times the
    cross-entropy, and a teacher that is certain of the label leaves that alone. Convex in the
    student's logits and the same for `s + constant`. Equal teacher logits rank by class. Gradients
    flow to the student alone.

    Args:
        student_logits: `[..., V]`, any floating dtype; the arithmetic is in float32 or better.
            -inf marks an impossible class; it costs +inf where the teacher gives it mass.
        teacher_logits: `[..., V]`, rows as the student's.
        labels: Integers `[...]` below V. Rows with a negative label (-100 by convention) are
            masked.
        mask: Weights `[...]`; where it is 0, neither the loss nor its gradient depends on the row.
        temperature: `T > 0` of the teacher's weights; may be traced.
        vocab_size: As in `distillation`.
        reduction: Rows and mask to a `Weighted`.

    Returns:
        The loss, and the metric `"cross_entropy"`, a mean over unmasked rows.

    Raises:
        ValueError: If shapes or vocabularies do not match, or a plain number is out of range.
        TypeError: If logits are not floating or labels not integers.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax.objectives import pld
        >>> teacher = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
        >>> loss, _ = pld(
        ...     student_logits=jnp.zeros((1, 3)), teacher_logits=teacher, labels=jnp.array([1])
        ... )
        >>> round(float(loss.mean()), 4)  # log(3)/4 + log(2)/2
        0.6212

    Source: E. Bassam, D. Zhu, K. Bian, "PLD: A Choice-Theoretic List-Wise Knowledge Distillation",
    arXiv:2506.12542, section 4.2 (the ranking: section 4.1; `T`: section 5.2.2).
    """
    rows = logit_rows(student_logits, teacher_logits, labels, mask, vocab_size)
    probs = jax.nn.softmax(soften(rows.teacher, positive(temperature, "temperature")), axis=-1)
    first = is_label(rows.teacher, rows.labels)
    order = jnp.argsort(jnp.where(first, -jnp.inf, -rows.teacher), axis=-1)
    weights, logits = (jnp.take_along_axis(x, order, -1) for x in (probs, rows.student))
    possible = logits > -jnp.inf
    # Finite and far below every other: exp of the difference is 0 exactly, and so is its gradient.
    floored = jnp.where(possible, logits, jnp.finfo(logits.dtype).min / 4)
    costs = jax.lax.cumlogsumexp(floored, axis=logits.ndim - 1, reverse=True) - floored
    costs = jnp.where(weights > 0, jnp.where(possible, costs, jnp.inf), 0)
    metrics = {"cross_entropy": cross_entropy_rows(rows.student, rows.labels)}
    return reduction(jnp.sum(weights * costs, axis=-1), rows.live), token_means(
        metrics, rows.live, reduction
    )
