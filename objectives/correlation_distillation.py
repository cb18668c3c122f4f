"""DIST: the student's probabilities correlate with the teacher's, by row and by class."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.objectives.arguments import is_static
from divax.objectives.cross_entropy import cross_entropy_rows
from divax.objectives.logit_rows import logit_rows, positive, soften, token_means, weigh, weight
from divax.objectives.reduction import Reduction, token_mean
from divax.objectives.weighted import Weighted


def dist(
    *,
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    labels: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    inter_weight: ArrayLike = 1.0,
    intra_weight: ArrayLike = 1.0,
    label_weight: ArrayLike = 1.0,
    temperature: ArrayLike = 1.0,
    epsilon: ArrayLike = 1e-8,
    vocab_size: int | None = None,
    reduction: Reduction = token_mean,
) -> tuple[Weighted, dict[str, Weighted]]:
    r"""One minus Pearson's correlation, over the classes of a row and over the rows of a class.

    .. math::
        l_i = T^2\,[\beta\,(1 - \rho(p_{i\cdot}, q_{i\cdot}))
            + \gamma\,(1 - \tfrac1V \sum_c \rho(p_{\cdot c}, q_{\cdot c}))] + \alpha\,\mathrm{CE}_i

    with p and q the teacher's and the student's probabilities at temperature T. A correlation asks
    for p up to scale and offset, which a student much smaller than its teacher can give. A constant
    row or column has correlation 0 and no gradient. Gradients flow to the student alone.

    The second term is one number of all rows given, the same for each: a mean over rows weighs it
    like the first, but a sum over micro-batches or devices correlates within each of them. Give it
    the rows of the whole batch (32 or more), `[N, V]` at once.

    Args:
        student_logits: `[..., V]`, any floating dtype; the arithmetic is in float32 or better.
            -inf marks an impossible class.
        teacher_logits: `[..., V]`, rows as the student's.
        labels: Integers `[...]`. Rows with a negative label (-100 by convention) are masked. May be
            left out if `label_weight` is the number 0.
        mask: Weights `[...]`; where it is 0, neither the loss nor its gradient depends on the row.
            Correlations over rows are weighted by it.
        inter_weight: `beta >= 0`, of the rows; may be traced, as every weight.
        intra_weight: `gamma >= 0`, of the columns.
        label_weight: `alpha >= 0`, of the cross-entropy.
        temperature: `T > 0`.
        epsilon: Added to the product of the two norms, as in the authors' code; it damps classes
            that are improbable in every row.
        vocab_size: As in `distillation`.
        reduction: Rows and mask to a `Weighted`.

    Returns:
        The loss, and the metrics `"inter"` and `"intra"` (without `T²`), and `"cross_entropy"` if
        there are labels.

    Raises:
        ValueError: If shapes or vocabularies do not match, a plain number is out of range, or
            labels are missing although `label_weight` is not the number 0.
        TypeError: If logits are not floating or labels not integers.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax.objectives import dist
        >>> teacher = jnp.log(jnp.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]]))
        >>> flatter = jnp.log(0.5 * jnp.exp(teacher) + 0.5 / 3)  # p, mixed with the uniform
        >>> loss, _ = dist(student_logits=flatter, teacher_logits=teacher, label_weight=0)
        >>> round(abs(float(loss.mean())), 5)  # of probabilities, every affine map is as good
        0.0

    Source: T. Huang, S. You, F. Wang, C. Qian, C. Xu, "Knowledge Distillation from A Stronger
    Teacher" (DIST), arXiv:2205.10536, section 4 (inter-class and intra-class relation); `T²` and the
    weights 1 as in the authors' code.
    """
    if labels is None and not (is_static(label_weight) and label_weight == 0):
        raise ValueError(
            f"label_weight={label_weight} adds the cross-entropy on the labels, but labels is "
            "None; pass labels=, or set label_weight to the number 0"
        )
    rows = logit_rows(student_logits, teacher_logits, labels, mask, vocab_size)
    t, eps = positive(temperature, "temperature"), weight(epsilon, "epsilon")
    student, teacher = (jax.nn.softmax(soften(x, t), axis=-1) for x in (rows.student, rows.teacher))
    inter = 1 - _pearson(student, teacher, jnp.ones_like(student), -1, eps)
    flat = (x.reshape(-1, x.shape[-1]) for x in (student, teacher))
    weights = jnp.broadcast_to(rows.live.reshape(-1, 1), (rows.live.size, student.shape[-1]))
    columns = _pearson(*flat, weights, 0, eps)
    intra = jnp.full_like(inter, 1) - jnp.mean(columns)
    loss = jnp.square(t) * (
        weight(inter_weight, "inter_weight") * inter + weight(intra_weight, "intra_weight") * intra
    )
    terms = {"inter": inter, "intra": intra}
    if labels is not None:
        terms["cross_entropy"] = cross_entropy_rows(rows.student, rows.labels)
        loss += weigh(weight(label_weight, "label_weight"), terms["cross_entropy"])
    return reduction(loss, rows.live), token_means(terms, rows.live, reduction)


def _pearson(
    student: jax.Array, teacher: jax.Array, weights: jax.Array, axis: int, epsilon: jax.Array
) -> jax.Array:
    """Weighted correlation along an axis; 0 where either side is constant."""
    count = jnp.sum(weights, axis, keepdims=True)
    count = jnp.where(count > 0, count, 1)
    a, b = (x - jnp.sum(weights * x, axis, keepdims=True) / count for x in (student, teacher))
    squares = [jnp.sum(weights * x * x, axis) for x in (a, b)]
    varies = (squares[0] > 0) & (squares[1] > 0)
    # The root of a selected square: that of 0 has an infinite slope.
    norm_a, norm_b = (jnp.sqrt(jnp.where(varies, x, 1)) for x in squares)
    return jnp.where(varies, jnp.sum(weights * a * b, axis) / (norm_a * norm_b + epsilon), 0)
