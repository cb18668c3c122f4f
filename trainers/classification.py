"""Classifiers, trained on labels or on a teacher's logits under any objective of them."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from divax import objectives
from divax.objectives import Weighted
from divax.trainers.classification_measures import evaluation_sums
from divax.trainers.coupled_step import make_coupled_step
from divax.trainers.evaluation import summarise
from divax.trainers.model import Model
from divax.trainers.scheduled_objective import Scheduled
from divax.trainers.teacher import AbstractTeacher
from divax.trainers.trainer import Trainer, make_trainer
from divax.trainers.two_heads import named_logits

#: A function of the keywords `student_logits`, `teacher_logits`, `labels` and `mask`; without a teacher
#: `teacher_logits` is left out, and a student of two heads adds `auxiliary_logits`.
ClassifierObjective = Callable[..., tuple[Weighted, dict[str, Weighted]]]


def label_cross_entropy(
    *, student_logits: jax.Array, labels: jax.Array, mask: jax.Array | None = None
) -> tuple[Weighted, dict[str, Weighted]]:
    """`objectives.cross_entropy` under the names that a trainer of classifiers uses.

    Example:
        >>> import jax.numpy as jnp
        >>> loss, _ = label_cross_entropy(student_logits=jnp.zeros((1, 4)), labels=jnp.array([2]))
        >>> round(float(loss.mean()), 4)
        1.3863
    """
    return objectives.cross_entropy(logits=student_logits, labels=labels, mask=mask)


def classifier(
    *,
    model: Model,
    optimizer: optax.GradientTransformation,
    objective: ClassifierObjective | Scheduled = label_cross_entropy,
    micro_batches: int = 1,
    mesh: Mesh | None = None,
) -> Trainer:
    """Trains a classifier on labels: by cross-entropy, or any objective that needs no teacher.

    Args:
        model: `apply(params, inputs) -> logits [B, V]`, or `TwoHeads` of logits.
        optimizer: any Optax transformation.
        objective: any function of the keywords `student_logits`, `labels` and `mask`; see
            `classifier_distillation`.
        micro_batches: as in `classifier_distillation`.
        mesh: a JAX mesh; see `divax.trainers.sharding`.

    Returns:
        A `Trainer` on `Examples`; `evaluate` gives `accuracy`, `nll`, `brier` and `ece`.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from divax import trainers as tr
        >>> linear = tr.Model(init=lambda key: jnp.zeros((2, 2)), apply=lambda w, x: x @ w)
        >>> trainer = tr.classifier(model=linear, optimizer=optax.sgd(1.0))
        >>> examples = tr.Examples(inputs=jnp.eye(2), labels=jnp.array([0, 1]))
        >>> state, metrics = trainer.step(trainer.init(jax.random.key(0)), examples)
        >>> round(float(metrics["loss"]), 4), trainer.evaluate(state, [examples])["accuracy"]
        (0.6931, 1.0)
    """
    return _trainer(model, None, objective, optimizer, micro_batches, mesh)


def classifier_distillation(
    *,
    student: Model,
    teacher: AbstractTeacher,
    objective: ClassifierObjective | Scheduled = objectives.distillation,
    optimizer: optax.GradientTransformation,
    micro_batches: int = 1,
    mesh: Mesh | None = None,
) -> Trainer:
    """Trains a classifier on a teacher's logits, under any objective of them.

    Objectives may couple the rows of a batch, as DIST's classes and SinKD's transport do: the loss is
    that of the whole batch, however many micro-batches and devices it is split over. With more than one
    micro-batch this takes a second forward pass.

    Args:
        student: `apply(params, inputs) -> logits [B, V]`, or `TwoHeads` of logits.
        teacher: a `LiveTeacher`, `StoredTeacher`, `EnsembleTeacher`, `FollowingTeacher`, or another
            `AbstractTeacher` of `Examples`.
        objective: any function of the keywords `student_logits`, `teacher_logits`, `labels` and `mask`, such
            as `objectives.dkd`, `nkd`, `dist` or `pld`; a student of two heads adds `auxiliary_logits`.
            `functools.partial(objectives.dkd, temperature=2.0)` has its number compiled in;
            `jax.tree_util.Partial(objectives.dkd, temperature=2.0)` is a pytree whose number is traced.
            `Scheduled` for numbers that follow the step.
        optimizer: any Optax transformation.
        micro_batches: parts that a batch is split into; the update does not depend on it.
        mesh: a JAX mesh; see `divax.trainers.sharding`.

    Returns:
        A `Trainer` on `Examples`. `evaluate` gives the student's `accuracy`, `nll`, `brier` and `ece`,
        its `forward_kl` and `reverse_kl` to the teacher and top-1 `agreement` with it, and the teacher's
        own measures as `teacher/...`.

    Raises:
        TypeError: the teacher or the objective is something else.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from divax import objectives, trainers as tr
        >>> linear = tr.Model(init=lambda key: jnp.zeros((2, 2)), apply=lambda w, x: x @ w)
        >>> trainer = tr.classifier_distillation(
        ...     student=linear, teacher=tr.LiveTeacher(linear, 9 * jnp.eye(2)),
        ...     objective=jax.tree_util.Partial(objectives.dkd, temperature=2.0),
        ...     optimizer=optax.sgd(0.1),
        ... )
        >>> examples = tr.Examples(inputs=jnp.eye(2), labels=jnp.array([0, 1]))
        >>> state, _ = trainer.step(trainer.init(jax.random.key(0)), examples)
        >>> trainer.evaluate(state, [examples])["agreement"]
        1.0
    """
    if not isinstance(teacher, AbstractTeacher):
        raise TypeError(
            f"teacher must be an AbstractTeacher, got {type(teacher).__name__}: "
            "wrap a model as LiveTeacher(model, params)"
        )
    return _trainer(student, teacher, objective, optimizer, micro_batches, mesh)


def _trainer(student, teacher, objective, optimizer, micro_batches, mesh) -> Trainer:
    _check(objective)
    traced = objective if _is_value(objective) else None

    def rows_fn(params, examples, teacher, opt_state, objective):
        del objective
        logits = named_logits(student.apply(params, examples.inputs))
        if teacher is not None:
            logits["teacher_logits"] = teacher.given(params, opt_state)(examples)
        return logits

    def loss_fn(logits, examples, teacher, opt_state, objective):
        del teacher, opt_state
        return objective(**logits, labels=examples.labels, mask=examples.mask)

    update = make_coupled_step(
        rows_fn, loss_fn, optimizer, rows_of=lambda batch: batch, micro_batches=micro_batches
    )

    def step(state, examples, teacher, traced):
        now = objective if traced is None else traced
        now = now.at(state.step) if isinstance(now, Scheduled) else now
        return update(state, examples, teacher, state.opt_state, now)

    return make_trainer(
        init_params=student.init,
        step=step,
        sums=evaluation_sums(student),
        summarise=summarise,
        optimizer=optimizer,
        frozen=(teacher, traced),
        mesh=mesh,
    )


def _is_value(objective: Any) -> bool:
    """Whether it is a pytree of floats, which may be traced: other arguments decide the program."""
    if jax.tree_util.all_leaves([objective]):
        return False
    leaves = jax.tree.leaves(objective)
    return all(isinstance(leaf, float | np.floating | np.ndarray | jax.Array) for leaf in leaves)


def _check(objective: Any) -> None:
    if isinstance(objective, str):
        raise TypeError(
            f"objective must be a function of logits, got the string {objective!r}: "
            "use divax.trainers.objective_specs.logit_objective, or divax.objectives"
        )
    if isinstance(objective, type) or not callable(objective):
        raise TypeError(
            "objective must be a function of student_logits, teacher_logits, labels and mask, "
            f"such as divax.objectives.dkd, got {objective!r}"
        )
