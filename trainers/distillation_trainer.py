"""Distillation of a student from a teacher under any divergence."""

from collections.abc import Callable
from typing import TypeVar

import jax
import optax
from jax.sharding import Mesh
from jax.typing import ArrayLike

from divax import objectives
from divax.divergences import AbstractDivergence, ForwardKL
from divax.objectives import align_causal, token_mean
from divax.objectives.reduction import Reduction
from divax.trainers.evaluation import comparison_sums, prediction_sums, summarise
from divax.trainers.model import Model, predict
from divax.trainers.step import make_step
from divax.trainers.teacher import AbstractTeacher
from divax.trainers.trainer import Trainer, make_trainer

T = TypeVar("T")
#: A value, or a function of the step (a traced int32 scalar) that returns one.
Scheduled = T | Callable[[jax.Array], T]


def distillation(
    *,
    student: Model,
    teacher: AbstractTeacher,
    divergence: Scheduled[AbstractDivergence] = ForwardKL(),  # noqa: B008 (frozen value)
    optimizer: optax.GradientTransformation,
    temperature: Scheduled[ArrayLike] = 1.0,
    distill_weight: Scheduled[ArrayLike] = 1.0,
    scale_by_t2: bool = True,
    micro_batches: int = 1,
    mesh: Mesh | None = None,
    reduction: Reduction = token_mean,
    vocab_size: int | None = None,
) -> Trainer:
    """Trains a student on a teacher's next-token distributions.

    The loss is `w T² D(softmax(t/T), softmax(s/T)) + (1 - w) CE`, in nats: see
    `divax.objectives.distillation`. The divergence's parameters are traced.

    Args:
        student: the model that is trained.
        teacher: a `LiveTeacher`, or another `AbstractTeacher`.
        divergence: D(teacher, student); or a function of the step, which is a schedule.
        optimizer: any Optax transformation.
        temperature: T, or a schedule of it.
        distill_weight: w in [0, 1], or a schedule of it.
        scale_by_t2: whether D is multiplied by T².
        micro_batches: parts that a batch is split into; the update does not depend on it.
        mesh: a JAX mesh; see `divax.trainers.sharding`.
        reduction: tokens to a loss, of `divax.objectives`.
        vocab_size: the tokenizer's size, where a vocabulary is padded.

    Returns:
        A `Trainer` on `Batch`es. `evaluate` gives the student's `perplexity`, `accuracy` and
        `ece`, its `forward_kl` and `reverse_kl` to the teacher and top-1 `agreement` with it, and
        the teacher's own measures as `teacher/...`.

    Raises:
        TypeError: the teacher or the divergence is something else.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from divax import divergences as dv, trainers as tr
        >>> table = tr.Model(
        ...     init=lambda key: jnp.zeros((4, 4)), apply=lambda params, tokens: params[tokens]
        ... )
        >>> teacher = tr.LiveTeacher(table, 9 * jnp.eye(4))
        >>> trainer = tr.distillation(
        ...     student=table, teacher=teacher, divergence=dv.ReverseKL(), optimizer=optax.sgd(1.0)
        ... )
        >>> batch = tr.Batch(tokens=jnp.array([[0, 1, 2, 3]]))
        >>> state, metrics = trainer.step(trainer.init(jax.random.key(0)), batch)
        >>> trainer.evaluate(state, [batch])["agreement"]
        1.0
    """
    _check(teacher, divergence)
    constant = divergence if isinstance(divergence, AbstractDivergence) else None

    def loss_fn(params, batch, key, teacher, divergence, temperature, distill_weight):
        del key
        labels, mask = align_causal(batch.tokens, batch.mask, batch.segment_ids)
        return objectives.distillation(
            student_logits=predict(student, params, batch),
            teacher_logits=teacher(batch),
            labels=labels,
            mask=mask,
            divergence=divergence,
            temperature=temperature,
            distill_weight=distill_weight,
            scale_by_t2=scale_by_t2,
            vocab_size=vocab_size,
            reduction=reduction,
        )

    update = make_step(loss_fn, optimizer, micro_batches)

    def step(state, batch, teacher, constant):
        now = _at(divergence, state.step) if constant is None else constant
        weights = _at(temperature, state.step), _at(distill_weight, state.step)
        return update(state, batch, teacher, now, *weights)

    return make_trainer(
        init_params=student.init,
        step=step,
        sums=_evaluation_sums(student, vocab_size),
        summarise=summarise,
        optimizer=optimizer,
        frozen=(teacher, constant),
        mesh=mesh,
    )


def _evaluation_sums(student, vocab_size):
    def sums(state, batch, teacher, divergence):
        del divergence
        logits, teacher_logits = predict(student, state.params, batch), teacher(batch)
        return {
            **prediction_sums(logits, batch, vocab_size),
            **comparison_sums(logits, teacher_logits, batch, vocab_size),
            "teacher": prediction_sums(teacher_logits, batch, vocab_size),
        }

    return sums


def _at(value, step):
    return value(step) if callable(value) and not isinstance(value, AbstractDivergence) else value


def _check(teacher, divergence) -> None:
    if not isinstance(teacher, AbstractTeacher):
        raise TypeError(
            f"teacher must be an AbstractTeacher, got {type(teacher).__name__}: "
            "wrap a model as LiveTeacher(model, params)"
        )
    if isinstance(divergence, str):
        raise TypeError(
            f"divergence must be a divergence, got the string {divergence!r}: "
            f"use divax.divergences.get({divergence!r})"
        )
    if isinstance(divergence, type) or not callable(divergence):
        raise TypeError(
            f"divergence must be a divergence or a function of the step, got {divergence!r}"
        )
