"""Dual-head distillation with aligned gradients: the teacher may not pull the backbone from the labels."""

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.typing import ArrayLike

from divax import objectives
from divax.objectives import align_gradients
from divax.trainers.classification_measures import evaluation_sums
from divax.trainers.evaluation import summarise
from divax.trainers.model import Model
from divax.trainers.state import TrainState
from divax.trainers.step import mean_gradient, stated_learning_rate
from divax.trainers.teacher import AbstractTeacher
from divax.trainers.trainer import Trainer, make_trainer

BACKBONE = "backbone"


def aligned_dual_head_distillation(
    *,
    student: Model,
    teacher: AbstractTeacher,
    optimizer: optax.GradientTransformation,
    auxiliary_weight: ArrayLike = 1.0,
    temperature: ArrayLike = 2.0,
    micro_batches: int = 1,
    mesh: Mesh | None = None,
) -> Trainer:
    """Trains one head on labels and another on the teacher's logits, with aligned gradients.

    The loss is that of `objectives.dual_head`; on the backbone, what the distillation's gradient has
    against the labels' is taken out of it (`objectives.align_gradients`), each head has its own. Without
    the alignment, `classifier_distillation` takes `objectives.dual_head` as it is.

    Args:
        student: `apply(params, inputs) -> TwoHeads`; its parameters are a dictionary whose "backbone" is
            what both heads stand on.
        teacher: an `AbstractTeacher`.
        optimizer: any Optax transformation.
        auxiliary_weight: of the distillation.
        temperature: of the binary KL.
        micro_batches: parts that a batch is split into; the update does not depend on it.
        mesh: a JAX mesh; see `divax.trainers.sharding`.

    Returns:
        A `Trainer` on `Examples`; `evaluate` measures the main head as `classifier_distillation` does. The
        metric `conflict` of a step is the share of the distillation's gradient on the backbone that was
        taken out, in [0, 1].

    Raises:
        ValueError: the parameters have no backbone, when they are made.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from divax import trainers as tr
        >>> student = tr.Model(
        ...     init=lambda key: {"backbone": jnp.eye(2), "main": jnp.eye(2), "auxiliary": jnp.eye(2)},
        ...     apply=lambda p, x: tr.TwoHeads(*(x @ p["backbone"] @ p[h] for h in ("main", "auxiliary"))),
        ... )
        >>> linear = tr.Model(init=lambda key: jnp.eye(2), apply=lambda w, x: x @ w)
        >>> trainer = tr.aligned_dual_head_distillation(
        ...     student=student, teacher=tr.LiveTeacher(linear, 3 * jnp.eye(2)),
        ...     optimizer=optax.sgd(0.1),
        ... )
        >>> examples = tr.Examples(inputs=jnp.eye(2), labels=jnp.array([0, 1]))
        >>> state, metrics = trainer.step(trainer.init(jax.random.key(0)), examples)
        >>> float(metrics["conflict"])
        0.0

    Source: P. Yang et al., "Dual-Head Knowledge Distillation: Enhancing Logits Utilization with an
    Auxiliary Head", arXiv:2411.08937; see `objectives.dual_head`.
    """
    of_labels, of_teacher = _term(student, labels=True), _term(student, labels=False)

    def step(state, examples, teacher, numbers):
        frozen = (teacher, state.opt_state, *numbers)
        key = jax.random.fold_in(state.key, state.step)
        task, hard, metrics = mean_gradient(
            of_labels, state.params, examples, key, frozen, micro_batches=micro_batches
        )
        distill, soft, _ = mean_gradient(
            of_teacher, state.params, examples, key, frozen, micro_batches=micro_batches
        )
        grads, conflict = _combine(task, distill)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        report = {"loss": hard.mean() + soft.mean(), "conflict": conflict}
        report |= {name: value.mean() for name, value in metrics.items()}
        report |= {"grad_norm": optax.tree.norm(grads), **stated_learning_rate(opt_state)}
        return TrainState(params, opt_state, state.step + 1, state.key), report

    return make_trainer(
        init_params=lambda key: _with_backbone(student.init(key)),
        step=step,
        sums=evaluation_sums(student),
        summarise=summarise,
        optimizer=optimizer,
        frozen=(teacher, (auxiliary_weight, temperature)),
        mesh=mesh,
    )


def _term(student: Model, *, labels: bool):
    """One of the two terms: with the other's weight the number 0, its gradient is its own alone."""

    def loss_fn(params, examples, key, teacher, opt_state, weight, temperature):
        del key
        output = student.apply(params, examples.inputs)
        return objectives.dual_head(
            student_logits=output.main,
            auxiliary_logits=output.auxiliary,
            teacher_logits=teacher.given(params, opt_state)(examples),
            labels=examples.labels,
            mask=examples.mask,
            auxiliary_weight=0.0 if labels else weight,
            label_weight=1.0 if labels else 0.0,
            temperature=temperature,
        )

    return loss_fn


def _combine(task, distill):
    """The sum of both gradients, aligned on the backbone, and how much of the second that cost."""
    aligned = align_gradients(task[BACKBONE], distill[BACKBONE])
    whole, left = optax.tree.norm(distill[BACKBONE]), optax.tree.norm(aligned)
    share = 1 - left / jnp.where(whole > 0, whole, 1)
    conflict = jnp.where(whole > 0, jnp.maximum(share, 0), 0)
    summed = jax.tree.map(lambda a, b: a + b, task, {**distill, BACKBONE: aligned})
    return summed, conflict


def _with_backbone(params):
    if not isinstance(params, dict) or BACKBONE not in params:
        raise ValueError(
            'the student of two heads needs parameters {"backbone": ..., ...}, got '
            + (f"the keys {sorted(params)}" if isinstance(params, dict) else type(params).__name__)
        )
    return params
