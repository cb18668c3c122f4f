"""Matching the logits themselves by their mean squared error."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences import LogVariance
from divax.objectives.distillation import distillation
from divax.objectives.reduction import Reduction, token_mean
from divax.objectives.token_objective import token_by_token
from divax.objectives.weighted import Weighted

_CENTRED = LogVariance(reference="uniform")


@token_by_token
def logit_mse(
    *,
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    labels: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    centred: bool = False,
    distill_weight: ArrayLike = 1.0,
    vocab_size: int | None = None,
    reduction: Reduction = token_mean,
) -> tuple[Weighted, dict[str, Weighted]]:
    r"""Mean squared difference of the logits, mixed with cross-entropy on the labels.

    .. math::
        l = w\,\tfrac1V \sum_c (s_c - t_c - \bar d)^2 + (1-w)\,(-\log \mathrm{softmax}(s)_y),
        \qquad \bar d = \tfrac1V \sum_c (s_c - t_c) \text{ if centred, else } 0

    per row. Not centred, it also asks for the teacher's additive constant, which no probability
    shows. Centred, it is `distillation` under `LogVariance(reference="uniform")`, and half of it is
    the limit of `T²` times any smooth divergence of curvature 1 as T grows.

    Args:
        student_logits: `[..., V]`, any floating dtype; the arithmetic is in float32 or better.
        teacher_logits: `[..., V]`, rows as the student's. A class that is -inf in both counts for
            nothing, in one of them +inf.
        labels: As in `distillation`.
        mask: As in `distillation`.
        centred: Whether the mean difference of each row is taken out.
        distill_weight: `w` in [0, 1]; may be traced.
        vocab_size: As in `distillation`.
        reduction: Rows and mask to a `Weighted`.

    Returns:
        The loss and the metrics of `distillation`, of which `"distill"` is the squared error.

    Raises:
        ValueError: As `distillation`.
        TypeError: As `distillation`.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax.objectives import logit_mse
        >>> student, teacher = jnp.array([[1.0, 3.0]]), jnp.array([[0.0, 0.0]])
        >>> float(logit_mse(student_logits=student, teacher_logits=teacher)[0].mean())  # (1 + 9)/2
        5.0
        >>> float(logit_mse(student_logits=student, teacher_logits=teacher, centred=True)[0].mean())
        1.0

    Source: T. Kim, J. Oh, N. Kim, S. Cho, S.-Y. Yun, "Comparing Kullback-Leibler Divergence and Mean
    Squared Error Loss in Knowledge Distillation", arXiv:2105.08919, section 3; a mean over classes
    as in the authors' code. The limit of large T: G. Hinton, O. Vinyals, J. Dean, arXiv:1503.02531,
    eq. 4.
    """
    return distillation(
        student_logits=student_logits,
        teacher_logits=teacher_logits,
        labels=labels,
        mask=mask,
        divergence=_CENTRED if centred else _squared_gap,
        distill_weight=distill_weight,
        vocab_size=vocab_size,
        reduction=reduction,
    )


def _squared_gap(teacher: jax.Array, student: jax.Array) -> jax.Array:
    """Mean of `(s - t)²` over the classes that are possible for either."""
    dtype = jnp.result_type(float)
    teacher, student = teacher.astype(dtype), student.astype(dtype)
    counts = (teacher > -jnp.inf) | (student > -jnp.inf)
    gap = jnp.where(counts, student, 0) - jnp.where(counts, teacher, 0)
    return jnp.sum(gap * gap, axis=-1) / jnp.maximum(jnp.sum(counts, axis=-1, dtype=dtype), 1)
