"""SinKD: distillation with a transport distance between the batch's answers and its teacher's."""

from typing import Literal

import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences import ForwardKL, batch_sinkhorn, sinkd_as_published
from divax.objectives.arguments import is_static
from divax.objectives.cross_entropy import cross_entropy_rows
from divax.objectives.logit_rows import logit_rows, positive, soften, token_means, weigh, weight
from divax.objectives.reduction import Reduction, token_mean
from divax.objectives.weighted import Weighted

_FORWARD_KL = ForwardKL()


def sinkd(
    *,
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    labels: ArrayLike,
    mask: ArrayLike | None = None,
    sinkhorn_weight: ArrayLike = 0.8,
    distill_weight: ArrayLike = 0.9,
    temperature: ArrayLike = 4.0,
    epsilon: ArrayLike = 0.1,
    mismatch: ArrayLike = 1.0,
    compat: Literal["sinkd"] | None = None,
    vocab_size: int | None = None,
    reduction: Reduction = token_mean,
) -> tuple[Weighted, dict[str, Weighted]]:
    r"""Forward KL and cross-entropy per row, and a Sinkhorn divergence between all rows at once.

    .. math::
        l_i = w\,T^2\,\mathrm{KL}(p_i^T \| q_i^T) + (1-w)\,\mathrm{CE}_i + b\,S_\epsilon(p, q)

    in nats but for S, `divax.divergences.batch_sinkhorn` of the rows at temperature 1: the cost of moving
    the teacher's rows onto the student's. S is one number of all rows given, the same for each: a mean
    over rows weighs it like the others, but a sum over micro-batches or devices transports within each of
    them. Transport within one row, where classes have distances, is `distillation` under
    `Sinkhorn`. Gradients flow to the student alone.

    Args:
        student_logits: `[..., V]`, any floating dtype; the arithmetic is in float32 or better.
        teacher_logits: `[..., V]`, rows as the student's.
        labels: Integers `[...]`. Rows with a negative label (-100 by convention) are masked.
        mask: Weights `[...]`; where it is 0, neither the loss nor its gradient depends on the row. Rows of
            any other weight are transported alike.
        sinkhorn_weight: `b >= 0`; may be traced, as every weight.
        distill_weight: `w` in [0, 1].
        temperature: `T > 0` of the KL. The authors anneal it linearly to 1.
        epsilon: Regularisation of the transport.
        mismatch: Price of moving mass between rows.
        compat: "sinkd" takes 1e-3 times `sinkd_as_published` for S: temperature 2, a sum over rows, its own
            epsilon and no mismatch, and masked rows take part as uniform ones, since that code knows no
            mask.
        vocab_size: As in `distillation`.
        reduction: Rows and mask to a `Weighted`.

    Returns:
        The loss, and the metrics `"distill"` (KL without `T²`), `"sinkhorn"` and `"cross_entropy"`.

    Raises:
        ValueError: If shapes or vocabularies do not match, a plain number is out of range, or `compat` is
            unknown.
        TypeError: If logits are not floating or labels not integers.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax.objectives import sinkd
        >>> teacher = jnp.array([[2.0, 0.0], [0.0, 2.0]])
        >>> _, right = sinkd(student_logits=teacher, teacher_logits=teacher, labels=jnp.array([0, 1]))
        >>> _, swapped = sinkd(
        ...     student_logits=teacher[::-1], teacher_logits=teacher, labels=jnp.array([0, 1])
        ... )
        >>> round(float(right["sinkhorn"].mean()), 4), bool(swapped["sinkhorn"].mean() > 0.5)
        (0.0, True)

    Source: X. Cui et al., "Sinkhorn Distance Minimization for Knowledge Distillation" (SinKD),
    arXiv:2402.17110, its batch-wise reformulation; `compat="sinkd"` as in the authors' code.
    """
    if compat not in (None, "sinkd"):
        raise ValueError(f"sinkd: compat={compat!r} is neither None nor 'sinkd'")
    if is_static(distill_weight) and not 0 <= distill_weight <= 1:
        raise ValueError(f"distill_weight must lie in [0, 1], got {distill_weight}")
    rows = logit_rows(student_logits, teacher_logits, labels, mask, vocab_size)
    t, share = positive(temperature, "temperature"), weight(distill_weight, "distill_weight")
    student, teacher = (x.reshape(-1, x.shape[-1]) for x in (rows.student, rows.teacher))
    if compat == "sinkd":
        transport = 1e-3 * sinkd_as_published(teacher, student)
    else:
        transport = batch_sinkhorn(
            teacher,
            student,
            epsilon=positive(epsilon, "epsilon"),
            mismatch=weight(mismatch, "mismatch"),
            where=rows.live.reshape(-1) != 0,
        )
    distill = _FORWARD_KL(soften(rows.teacher, t), soften(rows.student, t))
    hard = cross_entropy_rows(rows.student, rows.labels)
    everywhere = jnp.broadcast_to(transport.astype(hard.dtype), hard.shape)
    loss = (
        weigh(share * jnp.square(t), distill)
        + weigh(1 - share, hard)
        + weigh(weight(sinkhorn_weight, "sinkhorn_weight"), everywhere)
    )
    terms = {"distill": distill, "sinkhorn": everywhere, "cross_entropy": hard}
    return reduction(loss, rows.live), token_means(terms, rows.live, reduction)
