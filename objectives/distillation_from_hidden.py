"""Distillation from two models' hidden states and heads: neither's logits exist for all tokens at once."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences import AbstractFDivergence, ForwardKL, LinearHead
from divax.divergences.fused_linear import (
    Implementation,
    common_vocabulary,
    default_implementation,
    make_plan,
)
from divax.divergences.linear_head import LinearLogits, linear_logits
from divax.divergences.most_likely import most_likely
from divax.divergences.row_form import softened
from divax.divergences.token_walk import Operands, walk_tokens
from divax.divergences.vocabulary_walk import walk_vocabulary
from divax.divergences.walk_gradients import one_shot
from divax.objectives.arguments import as_labels, as_scalar, is_static, live_weights
from divax.objectives.cross_entropy import cross_entropy_rows
from divax.objectives.distillation import check_weights, distillation, row_entropy
from divax.objectives.distillation_form import DistillationForm
from divax.objectives.logit_rows import weigh
from divax.objectives.reduction import Reduction, token_mean
from divax.objectives.weighted import Weighted

_FORWARD_KL = ForwardKL()


def distillation_from_hidden(
    *,
    student_hidden: ArrayLike,
    student_head: ArrayLike | LinearHead,
    teacher_hidden: ArrayLike,
    teacher_head: ArrayLike | LinearHead,
    labels: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    divergence: Callable[[jax.Array, jax.Array], jax.Array] = _FORWARD_KL,
    temperature: ArrayLike = 1.0,
    distill_weight: ArrayLike = 1.0,
    scale_by_t2: bool = True,
    vocab_size: int | None = None,
    reduction: Reduction = token_mean,
    chunk: int | None = None,
    vocab_chunk: int | None = None,
    implementation: Implementation | None = None,
) -> tuple[Weighted, dict[str, Weighted]]:
    r"""`distillation` of `hidden @ head` on both sides, loss, gradients and metrics in one walk over the tokens.

    .. math::
        l = w\,T^2\,D(\mathrm{softmax}(t/T),\, \mathrm{softmax}(s/T))
            + (1-w)\,(-\log \mathrm{softmax}(s)_y), \qquad t = h_t W_t,\ s = h_s W_s

    The gradients are formed while a chunk's logits are there (`divergences.fused_linear`), so the weight of every row
    must be known beforehand: the reduction must be linear in the values, as all of this package's are.

    Args:
        student_hidden: `[..., H]`, the states before the student's head; the gradient's way with `student_head`.
        student_head: `[H, V]` or a `LinearHead`.
        teacher_hidden: `[..., H']`, without gradient.
        teacher_head: likewise.
        labels: as in `distillation`, like everything down to `reduction`.
        mask: weights `[...]`.
        divergence: D.
        temperature: T > 0; may be traced.
        distill_weight: w in [0, 1]; may be traced.
        scale_by_t2: whether D is multiplied by T².
        vocab_size: the tokenizer's size, where the heads are padded.
        reduction: rows and mask to a `Weighted`, linear in the rows.
        chunk: tokens at a time; None chooses.
        vocab_chunk: tokens of the vocabulary at a time; None chooses.
        implementation: "reference", "fast", "lean" or None, as in `divergences.fused_linear`.

    Returns:
        The loss, and the metrics of `distillation` as far as they exist without a cache.

    Raises:
        ValueError: as `distillation` and `divergences.fused_linear`.
        TypeError: likewise.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax.objectives import distillation, distillation_from_hidden
        >>> states, head = jnp.eye(3), jnp.eye(3)
        >>> loss, metrics = distillation_from_hidden(
        ...     student_hidden=states, student_head=head, teacher_hidden=2 * states, teacher_head=head,
        ...     labels=jnp.array([0, 1, -100]), distill_weight=0.5, chunk=2, implementation="fast",
        ... )
        >>> dense, _ = distillation(
        ...     student_logits=states, teacher_logits=2 * states, labels=jnp.array([0, 1, -100]), distill_weight=0.5
        ... )
        >>> round(float(loss.mean() - dense.mean()), 5), float(metrics["agreement"].mean())
        (0.0, 1.0)

    Reference:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, section 2.
    """
    check_weights(temperature, distill_weight, None if labels is None else as_labels(labels))
    case = _case(
        (teacher_hidden, teacher_head), (student_hidden, student_head), labels, mask, vocab_size
    )
    live, ids = case.live, case.labels
    how = implementation or default_implementation(live.size, case.vocab_size, divergence)
    if how == "reference" or not live.size:
        teacher_logits, student_logits = case.logits()
        return distillation(
            student_logits=student_logits,
            teacher_logits=teacher_logits,
            labels=ids,
            mask=live,
            divergence=divergence,
            temperature=temperature,
            distill_weight=distill_weight,
            scale_by_t2=scale_by_t2,
            reduction=reduction,
        )
    plain = is_static(temperature) and temperature == 1
    params = (
        _as_pytree(divergence),
        None if plain else as_scalar(temperature, "temperature"),
        as_scalar(distill_weight, "distill_weight"),
    )
    full = all(side.bias is None for side in case.sides)
    known = isinstance(divergence, AbstractFDivergence)
    form = functools.partial(_form, scale_by_t2, full) if known else None
    rows = functools.partial(_rows, scale_by_t2)
    plan = make_plan(rows, form, case.vocab_size, chunk, vocab_chunk)
    operands = Operands(params, case.sides, None if ids is None else ids.reshape(-1), case.counts)
    # A linear reduction is Σ coefficient·row, and its gradient at any rows is the coefficients.
    coefficients = jax.grad(lambda rows: reduction(rows, live).total)(jnp.zeros_like(live))
    walk = walk_vocabulary if how == "lean" else walk_tokens
    total, _, extras = one_shot(walk, plan, operands, coefficients.reshape(-1))
    metrics = {name: token_mean(row, live.reshape(-1)) for name, row in extras.items()}
    return Weighted(total=total, count=reduction(jnp.zeros_like(live), live).count), metrics


class _Case(NamedTuple):
    """Two models on the same rows, checked.

    Attributes:
        sides: teacher and student.
        labels: `[...]` or None.
        live: weights `[...]`.
        vocab_size: that both have.
    """

    sides: tuple[LinearLogits, ...]
    labels: jax.Array | None
    live: jax.Array
    vocab_size: int

    @property
    def counts(self) -> jax.Array:
        """Which rows count, `[N]`."""
        return self.live.reshape(-1) != 0

    def logits(self) -> list[jax.Array]:
        """All of them, `[..., V]`."""
        rows = [side.rows_at(0, self.live.size, self.counts) for side in self.sides]
        shape = (*self.live.shape, self.vocab_size)
        return [side.capped(side.raw())[:, : self.vocab_size].reshape(shape) for side in rows]


def _case(teacher, student, labels, mask, vocab_size: int | None) -> _Case:
    (teacher_hidden, teacher_head), (student_hidden, student_head) = teacher, student
    teacher_hidden, student_hidden = jnp.asarray(teacher_hidden), jnp.asarray(student_hidden)
    lead, ids = student_hidden.shape[:-1], None if labels is None else as_labels(labels)
    if teacher_hidden.shape[:-1] != lead:
        raise ValueError(
            f"student_hidden {student_hidden.shape} and teacher_hidden {teacher_hidden.shape} must agree in every axis "
            "but the last: run both models on the same tokens"
        )
    live = live_weights(lead, ids, mask, "student_hidden")
    counts = live.reshape(-1) != 0
    teacher_hidden, teacher_head = jax.lax.stop_gradient((teacher_hidden, teacher_head))
    sides = (
        linear_logits(teacher_hidden, teacher_head, "teacher_hidden", "teacher_head", counts),
        linear_logits(student_hidden, student_head, "student_hidden", "student_head", counts),
    )
    return _Case(sides, ids, live, common_vocabulary(sides, vocab_size))


def _as_pytree(divergence: Any) -> Any:
    """The divergence; a plain function has no numbers inside."""
    return divergence if dataclasses.is_dataclass(divergence) else jax.tree_util.Partial(divergence)


def _form(scale_by_t2: bool, full: bool, params: Any) -> DistillationForm:
    divergence, temperature, weight = params
    return DistillationForm(
        divergence=divergence,
        temperature=temperature,
        weight=weight,
        scale_by_t2=scale_by_t2,
        full=full,
    )


def _rows(
    scale_by_t2: bool, params: Any, logits: tuple[jax.Array, ...], labels: jax.Array | None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss and metrics of a chunk, for divergences without a form."""
    divergence, temperature, weight = params
    target, model = (softened(one, temperature) for one in logits)
    distill = divergence(target, model).astype(weight.dtype)
    scaled = weight if temperature is None or not scale_by_t2 else weight * temperature**2
    loss = weigh(scaled, distill)
    extras = {
        "distill": distill,
        "teacher_entropy": row_entropy(target),
        "student_entropy": row_entropy(model),
        "agreement": (most_likely(target) == most_likely(model)).astype(distill.dtype),
    }
    if labels is not None:
        extras["cross_entropy"] = hard = cross_entropy_rows(logits[-1], labels)
        loss = loss + weigh(1 - weight, hard)
    return loss, extras
