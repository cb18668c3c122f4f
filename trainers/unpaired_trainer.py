"""Preference optimisation of a policy on completions that are labelled by themselves."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.typing import ArrayLike

from divax import objectives
from divax.divergences import divergence as frozen_pytree
from divax.divergences.fused_linear import Implementation
from divax.objectives import Weighted
from divax.trainers.completion_rows import (
    CompletionRows,
    as_argument,
    check_numbers,
    check_reference,
)
from divax.trainers.completions import completion_lengths
from divax.trainers.coupled_step import make_coupled_step
from divax.trainers.implementation import check_states
from divax.trainers.labelled import LabelledBatch, LabelledLogps, LabelledObjective
from divax.trainers.model import Model
from divax.trainers.reference import AbstractReference
from divax.trainers.start_check import checked_at_the_start
from divax.trainers.trainer import Trainer, make_trainer

# What an objective's own checks are called with.
_EXAMPLE = LabelledLogps(*[np.ones(2, np.float32)] * 7)  # type: ignore[arg-type]


@frozen_pytree
class KahnemanTversky:
    """`objectives.kto` as an objective of labelled completions, its numbers traced.

    Attributes:
        beta: `> 0`.
        desirable_weight: of a desirable completion.
        undesirable_weight: of an undesirable one.

    Example:
        >>> import jax
        >>> jax.tree.leaves(KahnemanTversky(beta=0.2))
        [0.2, 1.0, 1.0]
    """

    beta: ArrayLike = 0.1
    desirable_weight: ArrayLike = 1.0
    undesirable_weight: ArrayLike = 1.0

    def __call__(self, rows: LabelledLogps) -> tuple[Weighted, dict[str, Weighted]]:
        """The loss and metrics of `objectives.kto`; without mismatched rows, z = 0."""
        return objectives.kto(
            logps=rows.logps,
            reference_logps=rows.reference_logps,
            desirable=rows.desirable,
            mismatched_log_ratios=rows.mismatched_log_ratios,
            mismatched_weights=rows.mismatched_weights,
            beta=self.beta,
            desirable_weight=self.desirable_weight,
            undesirable_weight=self.undesirable_weight,
            weights=rows.weights,
        )


@frozen_pytree
class BinaryClassifier:
    """`objectives.unpaired_bco` as an objective of labelled completions.

    Attributes:
        beta: `> 0`.

    Example:
        >>> import jax
        >>> jax.tree.leaves(BinaryClassifier())
        [0.1]
    """

    beta: ArrayLike = 0.1

    def __call__(self, rows: LabelledLogps) -> tuple[Weighted, dict[str, Weighted]]:
        """The loss and metrics of `objectives.unpaired_bco`, anchored at the batch's mean reward."""
        return objectives.unpaired_bco(
            logps=rows.logps,
            reference_logps=rows.reference_logps,
            desirable=rows.desirable,
            beta=self.beta,
            weights=rows.weights,
        )


def unpaired_preference(
    *,
    policy: Model,
    params: Any,
    reference: AbstractReference,
    optimizer: optax.GradientTransformation,
    objective: LabelledObjective = KahnemanTversky(),  # noqa: B008 (frozen value)
    reference_model: Model | None = None,
    micro_batches: int = 1,
    chunk_size: int | None = None,
    from_reference: bool = True,
    mesh: Mesh | None = None,
    implementation: Implementation | None = None,
) -> Trainer:
    """Trains a policy on completions that are labelled desirable or not, without pairs.

    The update is exact for every objective and any number of micro-batches: see `coupled_step`.

    Args:
        policy: the model that is trained.
        params: the parameters that it starts from.
        reference: as in `preference`.
        optimizer: any Optax transformation.
        objective: `KahnemanTversky(beta)`, `BinaryClassifier(beta)`, or any function of
            `LabelledLogps`.
        reference_model: the reference's model, where it is not the policy's.
        micro_batches: parts that the rows of a batch are split into.
        chunk_size: positions whose logits exist at a time; `None` chooses.
        from_reference: as in `preference`.
        mesh: a JAX mesh; see `divax.trainers.sharding`.
        implementation: as in `completion_log_probs`.

    Returns:
        A `Trainer` on `LabelledBatch`es. `evaluate` gives the means of the objective's metrics,
        `rewards/margins` (desirable less undesirable) and `rewards/accuracies`: how often the
        log-ratio's sign is the label's, ties counted as half.

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
        >>> trainer = tr.unpaired_preference(
        ...     policy=table, params=base, reference=tr.FixedReference(base),
        ...     optimizer=optax.sgd(9.0), objective=tr.KahnemanTversky(beta=0.5),
        ... )
        >>> batch = tr.labelled_batch([((0,), (1,), True), ((3,), (2,), False)], pad_to=2)
        >>> state, metrics = trainer.step(trainer.init(jax.random.key(0)), batch)
        >>> float(metrics["loss"])
        0.5
        >>> trainer.evaluate(state, [batch])["rewards/accuracies"]
        1.0

    Source: K. Ethayarajh et al., "KTO: Model Alignment as Prospect Theoretic Optimization",
    arXiv:2402.01306.
    """
    check_reference(reference)
    if isinstance(objective, type) or not callable(objective):
        raise TypeError(
            "objective must be a function of LabelledLogps such as tr.KahnemanTversky(), "
            f"got {objective!r}"
        )
    check_numbers(objective, _EXAMPLE)
    rows = CompletionRows(policy, reference_model or policy, chunk_size, mesh, implementation)
    check_states(policy, implementation, "policy")

    def held(state, batch, reference):
        return rows.reference_logps(batch, reference, state.opt_state)

    def step(state, batch, reference, objective):
        fixed = held(state, batch, reference)
        update = make_coupled_step(
            rows_fn=lambda params, completions: rows.statistics(params, completions, 1),
            loss_fn=lambda of, batch: objective(_labelled(of.log_probs, fixed, batch)),
            optimizer=optimizer,
            rows_of=lambda batch: batch.completions,
            micro_batches=micro_batches,
        )
        return update(state, batch)

    def sums(state, batch, reference, objective):
        logps = rows.statistics(state.params, batch.completions, 1).log_probs
        labelled = _labelled(logps, held(state, batch, reference), batch)
        loss, metrics = objective(labelled)
        return {"loss": loss, **metrics, "rewards/accuracies": _accuracy(labelled)}

    trainer = make_trainer(
        init_params=lambda key: jax.tree.map(jnp.copy, params),
        step=step,
        sums=sums,
        summarise=_summarise,
        optimizer=optimizer,
        frozen=(reference, as_argument(objective)),
        mesh=mesh,
    )
    return checked_at_the_start(trainer, rows, reference) if from_reference else trainer


def _labelled(logps: jax.Array, reference_logps: jax.Array, batch: LabelledBatch) -> LabelledLogps:
    policy, reference = logps[:, 0], reference_logps[:, 0]
    drift = jax.lax.stop_gradient(policy[batch.mismatched]) - reference[batch.mismatched]
    return LabelledLogps(
        logps=policy[batch.labelled],
        reference_logps=reference[batch.labelled],
        desirable=jnp.asarray(batch.desirable),
        mismatched_log_ratios=drift,
        mismatched_weights=jnp.asarray(batch.mismatched_weights),
        lengths=completion_lengths(batch.completions)[:, 0][batch.labelled],
        weights=jnp.asarray(batch.weights),
    )


def _accuracy(rows: LabelledLogps) -> Weighted:
    sign = jnp.sign(rows.logps - rows.reference_logps)
    right = 0.5 * (1 + jnp.where(rows.desirable, sign, -sign))
    weights = rows.weights.astype(right.dtype)
    return Weighted(jnp.sum(jnp.where(weights != 0, right * weights, 0)), jnp.sum(weights))


def _summarise(batch_sums: Iterable[dict[str, Any]]) -> dict[str, float]:
    batches = list(batch_sums)
    if not batches:
        raise ValueError("evaluation got no labelled completion")
    total = jax.tree.map(lambda *parts: sum(parts), *batches)
    values = {name: float(item.total / max(item.count, 1)) for name, item in total.items()}
    if "rewards/desirable" in values:
        values["rewards/margins"] = values["rewards/desirable"] - values["rewards/undesirable"]
    return values
