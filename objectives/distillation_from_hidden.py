"""Distillation from two models' hidden states and heads: neither's logits exist for all tokens at once."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences import (
    AbstractFDivergence,
    ForwardKL,
    LinearHead,
    TopKCache,
    VocabularySharding,
)
from divax.divergences.fused_linear import (
    Implementation,
    chosen_walk,
    common_vocabulary,
    make_plan,
)
from divax.divergences.linear_head import LinearLogits, linear_logits
from divax.divergences.most_likely import most_likely
from divax.divergences.row_form import softened
from divax.divergences.token_walk import Operands
from divax.divergences.walk_gradients import one_shot
from divax.objectives.arguments import as_labels, as_scalar, is_static, live_weights
from divax.objectives.cross_entropy import cross_entropy_rows
from divax.objectives.distillation import (
    against_cache,
    check_weights,
    distillation,
    row_entropy,
)
from divax.objectives.distillation_form import DistillationForm
from divax.objectives.logit_rows import weigh
from divax.objectives.reduction import Reduction, coefficients, token_mean
from divax.objectives.weighted import Weighted

_FORWARD_KL = ForwardKL()


def distillation_from_hidden(
    *,
    student_hidden: ArrayLike,
    student_head: ArrayLike | LinearHead,
    teacher_hidden: ArrayLike | None = None,
    teacher_head: ArrayLike | LinearHead | None = None,
    teacher: TopKCache | None = None,
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
    sharding: VocabularySharding | None = None,
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
        teacher: instead of the two, a `TopKCache` of the teacher's rows, as in `distillation`.
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
        sharding: of the heads over devices, likewise.

    Returns:
        The loss, and the metrics of `distillation`.

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
        (teacher_hidden, teacher_head),
        teacher,
        (student_hidden, student_head),
        labels,
        mask,
        vocab_size,
    )
    live, ids = case.live, case.labels
    walk = chosen_walk(implementation, live.size, case.vocab_size, sharding)
    if walk is None:
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
    plan = make_plan(
        *_row_functions(divergence, scale_by_t2, case), case.vocab_size, chunk, vocab_chunk
    )
    operands = Operands(params, case.sides, case.rows(), case.counts)
    total, _, extras = one_shot(walk, plan, operands, coefficients(reduction, live).reshape(-1))
    metrics = {name: token_mean(row, live.reshape(-1)) for name, row in extras.items()}
    return Weighted(total=total, count=reduction(jnp.zeros_like(live), live).count), metrics


class _Case(NamedTuple):
    """Two models on the same rows, checked.

    Attributes:
        sides: teacher and student; the student alone if the teacher is a cache.
        cache: of the teacher, or None.
        labels: `[...]` or None.
        live: weights `[...]`.
        vocab_size: that both have.
    """

    sides: tuple[LinearLogits, ...]
    cache: TopKCache | None
    labels: jax.Array | None
    live: jax.Array
    vocab_size: int

    @property
    def counts(self) -> jax.Array:
        """Which rows count, `[N]`."""
        return self.live.reshape(-1) != 0

    def rows(self) -> Any:
        """What is known of each row beside its logits, `[N, ...]`."""
        ids = None if self.labels is None else self.labels.reshape(-1)
        if self.cache is None:
            return ids
        axes = self.live.ndim
        return (
            ids,
            jax.tree.map(lambda x: x.reshape(-1, *x.shape[axes:]), self.cache),
            self.live.reshape(-1),
        )

    def logits(self) -> list[Any]:
        """All of them, `[..., V]`, teacher first."""
        rows = [side.rows_at(0, self.live.size, self.counts) for side in self.sides]
        shape = (*self.live.shape, self.vocab_size)
        logits = [side.capped(side.raw())[:, : self.vocab_size].reshape(shape) for side in rows]
        return logits if self.cache is None else [self.cache, *logits]


def _case(live_teacher, cache, student, labels, mask, vocab_size: int | None) -> _Case:
    (teacher_hidden, teacher_head), (student_hidden, student_head) = live_teacher, student
    student_hidden, ids = jnp.asarray(student_hidden), None if labels is None else as_labels(labels)
    lead = student_hidden.shape[:-1]
    live = live_weights(lead, ids, mask, "student_hidden")
    counts = live.reshape(-1) != 0
    model = linear_logits(student_hidden, student_head, "student_hidden", "student_head", counts)
    _check_teacher(teacher_hidden, teacher_head, cache)
    if cache is not None:
        cache = jax.lax.stop_gradient(jax.tree.map(jnp.asarray, cache))
        _check_same_rows("the cache's rows", cache.ids.shape, student_hidden.shape)
        return _Case((model,), cache, ids, live, common_vocabulary((model,), vocab_size))
    teacher_hidden, teacher_head = jax.lax.stop_gradient(
        (jnp.asarray(teacher_hidden), teacher_head)
    )
    _check_same_rows("teacher_hidden", teacher_hidden.shape, student_hidden.shape)
    other = linear_logits(teacher_hidden, teacher_head, "teacher_hidden", "teacher_head", counts)
    sides = (other, model)
    return _Case(sides, None, ids, live, common_vocabulary(sides, vocab_size))


def _check_teacher(hidden: object, head: object, cache: object) -> None:
    if cache is None and (hidden is None or head is None):
        raise ValueError(
            "a teacher is missing: pass teacher_hidden and teacher_head, or a TopKCache as teacher"
        )
    if cache is not None and not (hidden is None and head is None):
        raise ValueError(
            "teacher is a cache: leave out teacher_hidden and teacher_head, or the cache"
        )


def _check_same_rows(name: str, found: tuple[int, ...], student: tuple[int, ...]) -> None:
    if found[:-1] != student[:-1]:
        raise ValueError(
            f"student_hidden {student} and {name} {found} must agree in every axis but the last: run both models on the"
            " same tokens"
        )


def _row_functions(divergence: Any, scale_by_t2: bool, case: _Case) -> tuple[Any, Any]:
    """What a walk computes of a row, as a function and as a form where it has one."""
    if case.cache is not None:
        return functools.partial(_rows_of_cache, scale_by_t2), None
    full = all(side.bias is None for side in case.sides)
    known = isinstance(divergence, AbstractFDivergence)
    form = functools.partial(_form, scale_by_t2, full) if known else None
    return functools.partial(_rows, scale_by_t2), form


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
    target, model = (softened(one, params[1]) for one in logits)
    best = most_likely(target) == most_likely(model)
    return _loss_rows(scale_by_t2, params, target, model, logits[-1], labels, {"agreement": best})


def _rows_of_cache(
    scale_by_t2: bool, params: Any, logits: tuple[jax.Array, ...], rows: Any
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss and metrics of a chunk whose teacher is a cache."""
    labels, cache, live = rows
    target, model, student, extra = against_cache(logits[0], cache, live, params[1], None)
    return _loss_rows(scale_by_t2, params, target, model, student, labels, extra)


def _loss_rows(scale_by_t2, params, target, model, student, labels, extra):
    """w·T²·D + (1 − w)·cross-entropy, and the metrics."""
    divergence, temperature, weight = params
    distill = divergence(target, model).astype(weight.dtype)
    scaled = weight if temperature is None or not scale_by_t2 else weight * temperature**2
    loss = weigh(scaled, distill)
    extras = {
        "distill": distill,
        "teacher_entropy": row_entropy(target),
        "student_entropy": row_entropy(model),
        **{name: row.astype(distill.dtype) for name, row in extra.items()},
    }
    if labels is not None:
        extras["cross_entropy"] = hard = cross_entropy_rows(student, labels)
        loss = loss + weigh(1 - weight, hard)
    return loss, extras
