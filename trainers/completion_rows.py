"""Rows of completions under a policy and under its reference: what the preference trainers share."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from divax.divergences.fused_linear import Implementation
from divax.trainers.batch import Batch
from divax.trainers.completions import CompletionStatistics, completion_statistics
from divax.trainers.labelled import LabelledBatch
from divax.trainers.model import Model
from divax.trainers.pairs import PairBatch
from divax.trainers.reference import AbstractReference, MovingReference


class CompletionRows(NamedTuple):
    """How rows become statistics of their completions.

    Attributes:
        policy: the model that is trained.
        reference_model: the reference's.
        chunk_size: positions whose logits exist at a time; `None` chooses.
        mesh: the trainer's.
        implementation: as in `completion_log_probs`.

    Example:
        >>> CompletionRows._fields[:2]
        ('policy', 'reference_model')
    """

    policy: Model
    reference_model: Model
    chunk_size: int | None = None
    mesh: Mesh | None = None
    implementation: Implementation | None = None

    def statistics(self, params: Any, completions: Batch, segments: int) -> CompletionStatistics:
        """Of every completion under the policy, `[rows, segments]`."""
        return completion_statistics(
            self.policy,
            params,
            completions,
            segments=segments,
            chunk_size=self.chunk_size,
            mesh=self.mesh,
            implementation=self.implementation,
        )

    def reference_logps(
        self, batch: PairBatch | LabelledBatch, reference: AbstractReference, opt_state: Any
    ) -> jax.Array:
        """Log-probs under the reference: those that are known, else computed, without gradient.

        Raises:
            ValueError: known ones of a reference that moves.
        """
        if batch.reference_logps is not None:
            if isinstance(reference, MovingReference):
                raise ValueError(
                    "the batch carries reference_logps, which a MovingReference leaves behind: "
                    "leave them out, or take a FixedReference"
                )
            return jnp.asarray(batch.reference_logps)
        model = self._replace(policy=self.reference_model)
        params = reference.params_at(opt_state)
        statistics = model.statistics(params, batch.completions, batch.segments)
        return jax.lax.stop_gradient(statistics.log_probs)


def check_reference(reference: object) -> None:
    """Refuses bare parameters.

    Raises:
        TypeError: no reference.

    Example:
        >>> check_reference({"w": 1})
        Traceback (most recent call last):
        TypeError: reference must be an AbstractReference, got dict: ...
    """
    if not isinstance(reference, AbstractReference):
        raise TypeError(
            f"reference must be an AbstractReference, got {type(reference).__name__}: "
            "wrap parameters as tr.FixedReference(params)"
        )


def as_argument(objective: Any) -> Any:
    """An objective as an argument of a jitted function: its numbers traced, its functions as structure.

    Example:
        >>> type(as_argument(abs)).__name__
        'Partial'
    """
    return jax.tree.map(
        lambda leaf: jax.tree_util.Partial(leaf) if callable(leaf) else leaf, objective
    )


def check_numbers(objective: Any, example: Any) -> None:
    """An objective's own checks of its numbers, which it cannot see once they are traced.

    Args:
        objective: checked where all its leaves are plain numbers.
        example: log-probs of any values, to call it with.

    Raises:
        ValueError: what the objective raises.

    Example:
        >>> from divax import trainers as tr
        >>> one = jnp.zeros(2)
        >>> check_numbers(tr.FDivergenceDPO(beta=0.0), tr.PairLogps(*[one] * 9))
        Traceback (most recent call last):
        ValueError: beta=0.0 must be positive...
    """
    numbers = jax.tree.leaves(objective)
    if numbers and all(isinstance(leaf, int | float) for leaf in numbers):
        jax.eval_shape(objective, example)
