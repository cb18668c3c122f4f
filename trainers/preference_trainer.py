"""Preference optimisation of a policy on pairs of completions, under any objective of their log-probs."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.typing import ArrayLike

from divax import objectives
from divax.divergences import AbstractDivergence, ReverseKL
from divax.divergences import divergence as frozen_pytree
from divax.divergences.fused_linear import Implementation
from divax.objectives import AbstractPairLoss, Logistic, PairAggregate, PairMean, Weighted
from divax.trainers.completion_rows import (
    CompletionRows,
    as_argument,
    check_numbers,
    check_reference,
)
from divax.trainers.completions import (
    CompletionStatistics,
    completion_lengths,
    completion_log_probs,
)
from divax.trainers.coupled_step import make_coupled_step
from divax.trainers.implementation import check_states
from divax.trainers.model import Model
from divax.trainers.pairs import PairBatch, PairLogps, PairObjective
from divax.trainers.preference_evaluation import pair_sums, summarise_pairs
from divax.trainers.reference import AbstractReference
from divax.trainers.scheduled_objective import Scheduled
from divax.trainers.start_check import checked_at_the_start
from divax.trainers.trainer import Trainer, make_trainer


@frozen_pytree
class FDivergenceDPO:
    """`objectives.preference` as an objective of pairs, its numbers traced.

    Attributes:
        divergence: an admissible f-divergence D(reference, policy).
        loss: of a pair.
        beta: `> 0`.
        label_probs: that the labels are right.
        aggregate: pairs to a loss.
        tail: where the score's linear tail starts.

    Example:
        >>> import jax
        >>> jax.tree.leaves(FDivergenceDPO(beta=0.2, label_probs=0.9))
        [0.2, 0.9, 10.0]
    """

    divergence: AbstractDivergence = ReverseKL()
    loss: AbstractPairLoss = Logistic()
    beta: ArrayLike = 0.1
    label_probs: ArrayLike | None = None
    aggregate: PairAggregate = PairMean()
    tail: ArrayLike = 10.0

    def __call__(self, pairs: PairLogps) -> tuple[Weighted, dict[str, Weighted]]:
        """The loss and metrics of `objectives.preference`."""
        return objectives.preference(
            chosen_logps=pairs.chosen_logps,
            rejected_logps=pairs.rejected_logps,
            reference_chosen_logps=pairs.reference_chosen_logps,
            reference_rejected_logps=pairs.reference_rejected_logps,
            divergence=self.divergence,
            loss=self.loss,
            beta=self.beta,
            label_probs=self.label_probs,
            aggregate=self.aggregate,
            weights=pairs.weights,
            tail=self.tail,
        )


def preference(
    *,
    policy: Model,
    params: Any,
    reference: AbstractReference,
    optimizer: optax.GradientTransformation,
    objective: PairObjective = FDivergenceDPO(),  # noqa: B008 (frozen value)
    reference_model: Model | None = None,
    micro_batches: int = 1,
    chunk_size: int | None = None,
    from_reference: bool = True,
    mesh: Mesh | None = None,
    implementation: Implementation | None = None,
) -> Trainer:
    """Trains a policy so that what it prefers over a reference agrees with preference labels.

    The update is exact for every objective and any number of micro-batches: see `coupled_step`.

    Args:
        policy: the model that is trained.
        params: the parameters that it starts from.
        reference: `FixedReference(params)`, or `MovingReference()` with a `following` optimizer.
            A batch that carries `reference_logps` is not asked again.
        optimizer: any Optax transformation.
        objective: `FDivergenceDPO(divergence, loss, beta, ...)`, or any function of `PairLogps`, such as
            `lambda pairs: objectives.simpo(chosen_logps=pairs.chosen_logps, ...)`; around either,
            `OnPolicyWeighted`; `Scheduled` for numbers that change with the step.
        reference_model: the reference's model, where it is not the policy's.
        micro_batches: parts that the completions of a batch are split into.
        chunk_size: positions whose logits exist at a time; `None` chooses.
        from_reference: the policy starts as its reference, and the first step makes sure of it; see
            `check_start`. `False` where it does not, as with a teacher or a soup for a reference.
        mesh: a JAX mesh; see `divax.trainers.sharding`.
        implementation: as in `completion_log_probs`.

    Returns:
        A `Trainer` on `PairBatch`es. `evaluate` gives the means of the objective's metrics, the
        `ece` of the implied preference probability, and `length_correlation`.

    Raises:
        TypeError: a reference or an objective that is none.
        ValueError: an objective that refuses its numbers.
        RunError: at the first step, a policy that is not its reference.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from divax import trainers as tr
        >>> table = tr.Model(
        ...     init=lambda key: jnp.zeros((4, 4)), apply=lambda params, tokens: params[tokens]
        ... )
        >>> base = jnp.zeros((4, 4))
        >>> trainer = tr.preference(
        ...     policy=table, params=base, reference=tr.FixedReference(base),
        ...     optimizer=optax.sgd(1.0), objective=tr.FDivergenceDPO(beta=0.5),
        ... )
        >>> batch = tr.pair_batch([((0,), (1,), (2,))], pad_to=2)
        >>> state, metrics = trainer.step(trainer.init(jax.random.key(0)), batch)
        >>> round(float(metrics["loss"]), 4)  # log 2: the policy is the reference
        0.6931
        >>> trainer.evaluate(state, [batch])["rewards/accuracies"]
        1.0

    Source: as `objectives.preference`.
    """
    check_reference(reference)
    if isinstance(objective, type) or not callable(objective):
        raise TypeError(
            f"objective must be a function of PairLogps such as tr.FDivergenceDPO(), got {objective!r}"
        )
    rows = CompletionRows(policy, reference_model or policy, chunk_size, mesh, implementation)
    check_states(policy, implementation, "policy")

    def held(state, batch, reference):
        return rows.reference_logps(batch, reference, state.opt_state)

    def step(state, batch, reference, objective):
        fixed, now = held(state, batch, reference), _at_step(objective, state.step)
        update = make_coupled_step(
            rows_fn=lambda params, part: rows.statistics(params, part, batch.segments),
            loss_fn=lambda statistics, batch: now(_pairs(statistics, fixed, batch)),
            optimizer=optimizer,
            rows_of=lambda batch: batch.completions,
            micro_batches=micro_batches,
        )
        return update(state, batch)

    def sums(state, batch, reference, objective):
        statistics = rows.statistics(state.params, batch.completions, batch.segments)
        pairs = _pairs(statistics, held(state, batch, reference), batch)
        return pair_sums(_at_step(objective, state.step), pairs)

    one = jnp.zeros(2)
    check_numbers(objective, PairLogps(*[one] * 6, jnp.ones(2), one, one))
    trainer = make_trainer(
        init_params=lambda key: jax.tree.map(jnp.copy, params),
        step=step,
        sums=sums,
        summarise=summarise_pairs,
        optimizer=optimizer,
        frozen=(reference, as_argument(objective)),
        mesh=mesh,
    )
    return checked_at_the_start(trainer, rows, reference) if from_reference else trainer


def _pairs(
    statistics: CompletionStatistics, reference_logps: jax.Array, batch: PairBatch
) -> PairLogps:
    def of_pairs(rows):
        flat = rows.reshape(-1)
        return flat[batch.chosen], flat[batch.rejected]

    return PairLogps(
        *of_pairs(statistics.log_probs),
        *of_pairs(reference_logps),
        *of_pairs(completion_lengths(batch.completions, segments=batch.segments)),
        jnp.asarray(batch.weights),
        *of_pairs(statistics.fluency),
    )


def _at_step(objective: PairObjective, step: jax.Array) -> PairObjective:
    return objective.at(step) if isinstance(objective, Scheduled) else objective


def precompute_reference(
    model: Model,
    params: Any,
    batches: Iterable[PairBatch],
    *,
    chunk_size: int | None = None,
) -> Iterable[PairBatch]:
    """The batches with the reference's log-probs in them, so that training runs it no more.

    Args:
        model: the reference's model.
        params: its parameters.
        batches: pairs.
        chunk_size: positions whose logits exist at a time, as in the trainer.

    Returns:
        The batches, one by one.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import trainers as tr
        >>> table = tr.Model(init=lambda key: 0, apply=lambda params, tokens: params[tokens])
        >>> batch = tr.pair_batch([((0,), (1,), (2, 3))], pad_to=3)
        >>> (known,) = tr.precompute_reference(table, jnp.zeros((4, 4)), [batch])
        >>> [round(float(logp), 4) for logp in known.reference_logps[:, 0]]  # log 1/4 and twice that
        [-1.3863, -2.7726]
    """
    score = jax.jit(
        lambda params, batch: completion_log_probs(
            model, params, batch.completions, segments=batch.segments, chunk_size=chunk_size
        )
    )
    for batch in batches:
        yield dataclasses.replace(batch, reference_logps=score(params, batch))
