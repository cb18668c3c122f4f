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
from divax.divergences.fused_linear import Implementation
from divax.objectives import (
    DistillationObjective,
    DistillationRows,
    TokenDistillation,
)
from divax.objectives.arguments import is_static
from divax.objectives.token_objective import array_parts
from divax.trainers.batch import Batch
from divax.trainers.evaluation import comparison_sums, prediction_sums, summarise_tokens
from divax.trainers.hidden_distillation import HiddenDistillation
from divax.trainers.implementation import check_states
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
    implementation: Implementation | None = None,
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
        implementation: of objectives that take it (`objectives.HiddenObjective`), of models that
            expose `hidden` and `head` (a cache does as well as a teacher), and of `evaluate`: "fast"
            and "lean" as in `divergences.fused_linear`, where no model's logits exist for all
            tokens at once; "reference" computes them. Default: "reference" up to 4 million logits
            of a device. Objectives across completions, and functions not said to be
            `objectives.token_by_token`, read all logits.

    Returns:
        A `Trainer` on `Batch`es. `evaluate` gives the student's `perplexity`, `accuracy` and
        `ece`, and where the teacher knows the batch, the student's `forward_kl` and `reverse_kl` to
        it and top-1 `agreement` with it, and a live teacher's own measures as `teacher/...`.

    Raises:
        TypeError: the teacher, the objective or the samples are something else.
        ValueError: a cache of another temperature than the objective's; "fast" or "lean" where the
            models or the objective do not allow it.

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
    check_states(student, implementation, "student")
    arrays, whole = array_parts(objective)
    unread = HiddenDistillation(student, vocab_size, mesh, implementation)
    _check_implementation(unread, objective)
    engine = _Engine(unread, whole, optimizer, micro_batches)
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

    hidden: HiddenDistillation
    whole: Callable[[list[Any]], Any]
    optimizer: optax.GradientTransformation
    micro_batches: int

    @property
    def student(self) -> Model:
        return self.hidden.student

    def step(self, state, batch, teacher, arrays, samples):
        kept: DistillationState = state.opt_state
        objective = self.whole(arrays)
        if isinstance(objective, Scheduled):
            objective = objective.at(state.step)
        teacher = teacher.given(state.params, kept.optimizer)

        def loss_fn(params, drawn, key, teacher):
            del key
            return self.loss(objective, params, drawn, teacher)

        def loss(batch):
            return loss_fn(state.params, Drawn.data(batch), None, teacher)[0].mean()

        key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), _SAMPLES)
        roles = Roles(self.student, state.params, teacher, loss, state.step, key, self.hidden.mesh)
        drawn, memory, told = samples.draw(batch, kept.samples, roles)
        update = make_step(loss_fn, self.optimizer, self.micro_batches)
        inner = dataclasses.replace(state, opt_state=kept.optimizer)
        inner, metrics = update(inner, drawn, teacher)
        after = dataclasses.replace(inner, opt_state=DistillationState(inner.opt_state, memory))
        return after, {**metrics, **told}

    def loss(self, objective, params, drawn: Drawn, teacher):
        """Of states and heads where the objective can, else of all logits."""
        unread, batch = None, drawn.batch
        if self.hidden.serves(objective):
            read = teacher if objective.reads_teacher else None
            unread = self.hidden.unread(params, batch, read)
            if unread is not None and unread.teacher is None and objective.reads_teacher:
                unread = None
        if unread is None:
            return objective(self.rows(params, drawn, teacher))
        how, sampler_logps = self.hidden.how(params, batch), _ahead(drawn.sampler_logps)
        return self.hidden.loss(objective, unread, batch, how, sampler_logps, drawn.writers)

    def rows(self, params, drawn: Drawn, teacher) -> DistillationRows:
        """What the objective reads of them."""
        batch = drawn.batch
        labels, mask = batch.targets()
        return DistillationRows(
            student_logits=self.restricted(predict(self.student, params, batch)),
            teacher_logits=self.restricted(teacher(batch)),
            labels=labels,
            mask=mask,
            sampler_logps=_ahead(drawn.sampler_logps),
            writers=drawn.writers,
        )

    def restricted(self, logits):
        """Logits of the tokenizer's own ids; a cache has no others."""
        size = self.hidden.vocab_size
        return logits[..., :size] if size and isinstance(logits, jax.Array) else logits

    def sums(self, state, batch, teacher, arrays, samples):
        del arrays, samples
        teacher = teacher.given(state.params, state.opt_state.optimizer)
        unread = self.hidden.unread(state.params, batch, teacher)
        if unread is not None:
            return self.hidden.sums(unread, batch)
        held, size = teacher(batch), self.hidden.vocab_size
        logits = predict(self.student, state.params, batch)
        measured: dict[str, Any] = prediction_sums(logits, batch, size)
        if held is not None:
            measured |= comparison_sums(logits, held, batch, size)
        if isinstance(held, jax.Array):
            measured["teacher"] = prediction_sums(held, batch, size)
        return measured


def _ahead(of_tokens: jax.Array) -> jax.Array:
    """What belongs to a token, where its prediction stands."""
    return jnp.roll(of_tokens, -1, axis=1)


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
        _check_temperature(_first(objective), teacher.temperature)


def _first(objective: Any) -> Any:
    """Of the first step."""
    scheduled = isinstance(objective, Scheduled)
    return objective.at(jnp.zeros((), jnp.int32)) if scheduled else objective


def _check_implementation(hidden: HiddenDistillation, objective: Any) -> None:
    if hidden.implementation in ("fast", "lean") and not hidden.serves(_first(objective)):
        raise ValueError(
            f"implementation={hidden.implementation!r} is of objectives that take states and heads, and"
            f" {_name(_first(objective))} reads all logits: leave it out"
        )


def _name(objective: Any) -> str:
    return getattr(objective, "__name__", type(objective).__name__)


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
