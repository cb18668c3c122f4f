"""Distillation of a student from a teacher: any objective, on data or on samples."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from divax.divergences import AbstractDivergence
from divax.objectives import (
    DistillationObjective,
    DistillationRows,
    TokenDistillation,
)
from divax.objectives.arguments import is_static
from divax.trainers.batch import Batch
from divax.trainers.evaluation import comparison_sums, prediction_sums, summarise_tokens
from divax.trainers.model import Model, predict
from divax.trainers.sample_sources import AbstractSampleSource, DataSamples, Drawn, Roles
from divax.trainers.scheduled_objective import Scheduled
from divax.trainers.state import TrainState
from divax.trainers.step import make_step
from divax.trainers.teacher import AbstractTeacher, CachedTeacher
from divax.trainers.trainer import Trainer, make_trainer

#: Folded into a step's key for its samples: far from the numbers of its micro-batches.
_SAMPLES = 1 << 20


class DistillationState(NamedTuple):
    """What is kept beside the parameters, as the `opt_state` of a `TrainState`.

    Attributes:
        optimizer: the optimizer's own state; with `following`, a teacher's parameters in it.
        samples: the memory of the source of samples.

    Example:
        >>> DistillationState._fields
        ('optimizer', 'samples')
    """

    optimizer: Any
    samples: Any


def distillation(
    *,
    student: Model,
    teacher: AbstractTeacher,
    objective: DistillationObjective | Scheduled = TokenDistillation(),  # noqa: B008 (frozen value)
    samples: AbstractSampleSource = DataSamples(),  # noqa: B008 (frozen value)
    optimizer: optax.GradientTransformation,
    micro_batches: int = 1,
    mesh: Mesh | None = None,
    vocab_size: int | None = None,
) -> Trainer:
    """Trains a student on a teacher's next-token distributions.

    A step takes its rows from the source of samples, runs student and teacher on them, and makes
    one update under the objective: all of it one compiled call. Nothing random is left outside
    the state's key and step, and what samples remember is part of the state.

    Args:
        student: the model that is trained.
        teacher: a `LiveTeacher`, or another `AbstractTeacher`.
        objective: what is minimised, a function of `objectives.DistillationRows`; `tr.Scheduled`
            makes its numbers follow the step. Arrays in it are arguments of the compiled step,
            Python numbers its constants.
        samples: whose texts are learned from: the data's, the student's, the teacher's.
        optimizer: any Optax transformation.
        micro_batches: parts that a batch is split into; the update does not depend on it.
        mesh: a JAX mesh; see `divax.trainers.sharding`.
        vocab_size: the tokenizer's size, where a vocabulary is padded.

    Returns:
        A `Trainer` on `Batch`es. `evaluate` gives the student's `perplexity`, `accuracy` and
        `ece`, and where the teacher knows the batch, the student's `forward_kl` and `reverse_kl` to
        it and top-1 `agreement` with it, and a live teacher's own measures as `teacher/...`.

    Raises:
        TypeError: the teacher, the objective or the samples are something else.
        ValueError: a cache of another temperature than the objective's.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from divax import divergences as dv, objectives, trainers as tr
        >>> table = tr.Model(
        ...     init=lambda key: jnp.zeros((4, 4)), apply=lambda params, tokens: params[tokens]
        ... )
        >>> teacher = tr.LiveTeacher(table, 9 * jnp.eye(4))
        >>> trainer = tr.distillation(
        ...     student=table, teacher=teacher, optimizer=optax.sgd(1.0),
        ...     objective=objectives.TokenDistillation(divergence=dv.ReverseKL()),
        ... )
        >>> batch = tr.Batch(tokens=jnp.array([[0, 1, 2, 3]]))
        >>> state, metrics = trainer.step(trainer.init(jax.random.key(0)), batch)
        >>> trainer.evaluate(state, [batch])["agreement"]
        1.0
    """
    _check(teacher, objective, samples)
    arrays, whole = _parted(objective)
    engine = _Engine(student, whole, optimizer, micro_batches, vocab_size, mesh)
    trainer = make_trainer(
        init_params=student.init,
        step=engine.step,
        sums=engine.sums,
        summarise=summarise_tokens,
        optimizer=optimizer,
        frozen=(teacher, arrays, samples),
        mesh=mesh,
        keep=lambda opt_state: DistillationState(opt_state, samples.init()),
    )

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        if isinstance(batch.tokens, np.ndarray):
            samples.check(batch)
        return trainer.step(state, batch)

    return dataclasses.replace(trainer, step=step)


class _Engine(NamedTuple):
    """The device's part: a step and the sums of an evaluation."""

    student: Model
    whole: Callable[[list[Any]], Any]
    optimizer: optax.GradientTransformation
    micro_batches: int
    vocab_size: int | None
    mesh: Mesh | None

    def step(self, state, batch, teacher, arrays, samples):
        kept: DistillationState = state.opt_state
        objective = self.whole(arrays)
        if isinstance(objective, Scheduled):
            objective = objective.at(state.step)
        teacher = teacher.given(state.params, kept.optimizer)

        def loss_fn(params, drawn, key, teacher):
            del key
            return objective(self.rows(params, drawn, teacher))

        def loss(batch):
            return loss_fn(state.params, Drawn.data(batch), None, teacher)[0].mean()

        key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), _SAMPLES)
        roles = Roles(self.student, state.params, teacher, loss, state.step, key, self.mesh)
        drawn, memory, told = samples.draw(batch, kept.samples, roles)
        update = make_step(loss_fn, self.optimizer, self.micro_batches)
        inner = dataclasses.replace(state, opt_state=kept.optimizer)
        inner, metrics = update(inner, drawn, teacher)
        after = dataclasses.replace(inner, opt_state=DistillationState(inner.opt_state, memory))
        return after, {**metrics, **told}

    def rows(self, params, drawn: Drawn, teacher) -> DistillationRows:
        """What the objective reads of them."""
        batch = drawn.batch
        labels, mask = batch.targets()
        return DistillationRows(
            student_logits=self.restricted(predict(self.student, params, batch)),
            teacher_logits=self.restricted(teacher(batch)),
            labels=labels,
            mask=mask,
            sampler_logps=jnp.roll(drawn.sampler_logps, -1, axis=1),
            writers=drawn.writers,
        )

    def restricted(self, logits):
        """Logits of the tokenizer's own ids; a cache has no others."""
        if self.vocab_size is None or not isinstance(logits, jax.Array):
            return logits
        return logits[..., : self.vocab_size]

    def sums(self, state, batch, teacher, arrays, samples):
        del arrays, samples
        held = teacher.given(state.params, state.opt_state.optimizer)(batch)
        logits = predict(self.student, state.params, batch)
        measured: dict[str, Any] = prediction_sums(logits, batch, self.vocab_size)
        if held is not None:
            measured |= comparison_sums(logits, held, batch, self.vocab_size)
        if isinstance(held, jax.Array):
            measured["teacher"] = prediction_sums(held, batch, self.vocab_size)
        return measured


def _parted(objective: Any) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """The arrays of a value, and how to put it together again; everything else is a constant."""
    leaves, structure = jax.tree.flatten(objective)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array | np.ndarray)]

    def whole(arrays):
        filled = list(leaves)
        for place, array in zip(places, arrays, strict=True):
            filled[place] = array
        return structure.unflatten(filled)

    return [leaves[place] for place in places], whole


def _check(teacher, objective, samples) -> None:
    if not isinstance(teacher, AbstractTeacher):
        raise TypeError(
            f"teacher must be an AbstractTeacher, got {type(teacher).__name__}: "
            "wrap a model as LiveTeacher(model, params)"
        )
    if isinstance(objective, type) or not callable(objective):
        found = objective.__name__ if isinstance(objective, type) else type(objective).__name__
        raise TypeError(
            f"objective must be a function of DistillationRows, got {found}: "
            "a divergence goes into objectives.TokenDistillation(divergence=...)"
        )
    if isinstance(objective, AbstractDivergence):
        raise TypeError(
            f"objective must be a function of DistillationRows, got the divergence {objective.name}: "
            "put it into objectives.TokenDistillation(divergence=...)"
        )
    if not isinstance(samples, AbstractSampleSource):
        raise TypeError(
            f"samples must be a source such as tr.DataSamples(), got {type(samples).__name__}"
        )
    if isinstance(teacher, CachedTeacher):
        first = objective
        if isinstance(objective, Scheduled):
            first = objective.at(jnp.zeros((), jnp.int32))
        _check_temperature(first, teacher.temperature)


def _check_temperature(objective: Any, stored: float) -> None:
    wanted = getattr(objective, "temperature", None)
    if wanted is None or not (is_static(wanted) or isinstance(wanted, jax.Array)):
        return
    if float(wanted) != stored:
        raise ValueError(
            f"the cache holds the teacher at temperature {stored:g}, and the objective compares at "
            f"{float(wanted):g}: K tokens at one temperature do not tell the rest at another; make "
            "a cache at the temperature of the loss"
        )
