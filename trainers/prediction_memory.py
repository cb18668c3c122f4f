"""PS-KD: a classifier taught by its own predictions of the epoch before, kept in the run's state."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.typing import ArrayLike, DTypeLike

from divax import objectives
from divax.objectives import PredictionMemory
from divax.trainers.classification_measures import evaluation_sums
from divax.trainers.evaluation import summarise
from divax.trainers.model import Model
from divax.trainers.step import make_step
from divax.trainers.trainer import Trainer, make_trainer


class RememberingState(NamedTuple):
    """The `opt_state` of a run that remembers: the optimizer's own, and the predictions.

    Example:
        >>> RememberingState._fields
        ('inner', 'memory')
    """

    inner: Any
    memory: PredictionMemory


def progressive_self_distillation(
    *,
    student: Model,
    examples: int,
    classes: int,
    optimizer: optax.GradientTransformation,
    past_weight: ArrayLike | Callable[[jax.Array], ArrayLike],
    memory_dtype: DTypeLike = jnp.float32,
    micro_batches: int = 1,
    mesh: Mesh | None = None,
) -> Trainer:
    r"""Trains a classifier on labels softened by what it said of each example the last time.

    .. math:: l = -\sum_c [(1-a)\,1_{c=y} + a\,p_c] \log \mathrm{softmax}(s)_c

    with p the prediction that the student made before the update of the last step that held the example;
    an example that is new has its label alone. The predictions are a part of `opt_state`, so checkpoints
    hold them. With micro-batches the forward pass is made a second time to record.

    Args:
        student: `apply(params, inputs) -> logits [B, V]`.
        examples: how many there are; a batch's `ids` lie in [0, examples).
        classes: V.
        optimizer: any Optax transformation.
        past_weight: `a` in [0, 1], or a schedule of the step. The paper's grows with the epoch,
            `0.8 (epoch + 1) / epochs`.
        memory_dtype: float16 halves the memory.
        micro_batches: parts that a batch is split into; the update does not depend on it.
        mesh: a JAX mesh; see `divax.trainers.sharding`.

    Returns:
        A `Trainer` on `Examples` with ids; `evaluate` gives `accuracy`, `nll`, `brier` and `ece`.

    Raises:
        ValueError: sizes below 1; a batch without ids, when the step is traced.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from divax import trainers as tr
        >>> linear = tr.Model(init=lambda key: jnp.zeros((2, 2)), apply=lambda w, x: x @ w)
        >>> trainer = tr.progressive_self_distillation(
        ...     student=linear, examples=2, classes=2, optimizer=optax.sgd(1.0), past_weight=0.8
        ... )
        >>> batch = tr.Examples(inputs=jnp.eye(2), labels=jnp.array([0, 1]), ids=jnp.array([0, 1]))
        >>> state, metrics = trainer.step(trainer.init(jax.random.key(0)), batch)
        >>> float(metrics["remembered"]), state.opt_state.memory.probs[0].tolist()
        (0.0, [0.5, 0.5])
        >>> float(trainer.step(state, batch)[1]["remembered"])
        1.0

    Source: K. Kim et al., "Self-Knowledge Distillation with Progressive Refinement of Targets",
    arXiv:2006.12000, section 3.
    """
    if examples < 1 or classes < 1:
        raise ValueError(f"examples={examples} and classes={classes} must be at least 1")

    def loss_fn(params, batch, key, memory, past_weight):
        del key
        return objectives.ps_kd(
            student_logits=student.apply(params, batch.inputs),
            past_probs=memory.read(batch.ids),
            labels=batch.labels,
            mask=batch.mask,
            past_weight=past_weight,
        )

    remembering = _remembering(optimizer, examples, classes, memory_dtype)
    update = make_step(loss_fn, remembering, micro_batches)

    def step(state, batch):
        if batch.ids is None:
            raise ValueError("PS-KD remembers examples by their ids, and the batch has none")
        now = past_weight(state.step) if callable(past_weight) else past_weight
        memory = state.opt_state.memory
        # The same forward pass as the loss's, which XLA makes once where it is not split.
        said = student.apply(state.params, batch.inputs)
        state, metrics = update(state, batch, memory, now)
        kept = state.opt_state._replace(memory=memory.record(batch.ids, said, batch.mask))
        return dataclasses.replace(state, opt_state=kept), metrics

    return make_trainer(
        init_params=student.init,
        step=step,
        sums=evaluation_sums(student),
        summarise=summarise,
        optimizer=remembering,
        mesh=mesh,
    )


def _remembering(
    optimizer: optax.GradientTransformation, examples: int, classes: int, dtype: DTypeLike
) -> optax.GradientTransformation:
    """The optimizer with an empty memory beside its state, which the step fills."""

    def init(params):
        memory = PredictionMemory.empty(examples=examples, classes=classes, dtype=dtype)
        return RememberingState(optimizer.init(params), memory)

    def update(updates, state, params=None):
        updates, inner = optimizer.update(updates, state.inner, params)
        return updates, state._replace(inner=inner)

    return optax.GradientTransformation(init, update)
