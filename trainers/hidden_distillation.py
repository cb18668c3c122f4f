"""A student's losses and measures from states and heads: no model's logits exist for all tokens at once."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from divax.divergences import TopKCache
from divax.divergences.fused_linear import Implementation, default_chunk
from divax.objectives import (
    CombinedLogits,
    HiddenLogits,
    HiddenObjective,
    HiddenRows,
    TokenDistillation,
    Weighted,
)
from divax.objectives.hidden_rows import parted
from divax.objectives.token_objective import array_parts
from divax.trainers.batch import Batch
from divax.trainers.evaluation import comparison_sums, prediction_sums
from divax.trainers.examples import Examples
from divax.trainers.implementation import implementation_for
from divax.trainers.model import Model, hidden_logits
from divax.trainers.sharding import row_axes, summed_over_devices
from divax.trainers.teacher import AbstractTeacher


class Unread(NamedTuple):
    """A student and its teacher on the same rows, whose logits nobody has computed.

    Attributes:
        student: states and head.
        teacher: states and head, several models' of them, or a cache; `None` where nothing is known of the batch, or asked.

    Example:
        >>> Unread._fields
        ('student', 'teacher')
    """

    student: HiddenLogits
    teacher: HiddenLogits | CombinedLogits | TopKCache | None


class HiddenDistillation(NamedTuple):
    """How a trainer does without logits, where it can and there are many.

    Attributes:
        student: the model that is trained.
        vocab_size: the tokenizer's size, or `None`.
        mesh: the trainer's.
        implementation: as in `divergences.fused_linear`; `None` chooses by the number of logits of a device.

    Example:
        >>> HiddenDistillation._fields[-1]
        'implementation'
    """

    student: Model
    vocab_size: int | None
    mesh: Mesh | None
    implementation: Implementation | None

    def serves(self, objective: Any) -> bool:
        """Whether the objective takes states and heads.

        A plain function as its divergence may look at several rows: it gets them in chunks only if somebody asked for that.
        """
        if self.implementation == "reference":
            return False
        asked = self.implementation is not None and isinstance(objective, TokenDistillation)
        return asked or getattr(objective, "takes_hidden", False)

    def unread(self, params: Any, batch: Batch, teacher: AbstractTeacher | None) -> Unread | None:
        """Both models' states and heads; `None` where all logits are to be computed.

        Args:
            params: the student's.
            batch: the tokens.
            teacher: `None` if nobody reads it.

        Raises:
            ValueError: "fast" or "lean" was asked for, and the teacher has logits alone.
        """
        if self.how(params, batch) == "reference":
            return None
        student = hidden_logits(self.student, params, batch)
        assert student is not None
        if teacher is None:
            return Unread(student, None)
        held = teacher.unread(batch, self.mesh)
        known = teacher(batch) if held is None or self._padded(held) else held
        if not isinstance(known, jax.Array):
            return Unread(student, known)
        if self.implementation is not None:
            raise ValueError(
                f"implementation={self.implementation!r} needs the states before the head, and the teacher gives all of"
                " its logits: take a LiveTeacher whose Model has a hidden and a head, or a cache"
            )
        return None

    def _padded(self, held: Any) -> bool:
        """Whether several teachers are to be combined over more than the tokenizer's ids."""
        sizes = held.sizes if isinstance(held, CombinedLogits) else {self.vocab_size}
        return self.vocab_size is not None and sizes != {self.vocab_size}

    def how(self, params: Any, batch: Batch) -> Implementation:
        """By what was asked for, or the logits of a device."""
        return implementation_for(
            self.student, params, batch.tokens, self.mesh, self.implementation
        )

    def loss(
        self,
        objective: HiddenObjective,
        unread: Unread,
        batch: Batch,
        how: Implementation,
        sampler_logps: jax.Array | None = None,
        writers: jax.Array | None = None,
    ) -> tuple[Weighted, dict[str, Weighted]]:
        """The objective's loss and metrics, each device's from its own rows."""
        rows, heads, joined = parted((unread, (*batch.targets(), sampler_logps, writers)))
        arrays, whole = array_parts(objective)
        axis_name = row_axes(self.mesh, rows)

        def of_rows(rows, everywhere):
            heads, arrays = everywhere
            both, (labels, mask, sampler_logps, writers) = joined(rows, heads)
            return whole(arrays).from_hidden(
                HiddenRows(
                    student=both.student,
                    teacher=both.teacher,
                    labels=labels,
                    mask=mask,
                    sampler_logps=sampler_logps,
                    writers=writers,
                    axis_name=axis_name,
                ),
                vocab_size=self.vocab_size,
                implementation=how,
            )

        return summed_over_devices(of_rows, self.mesh, rows, (heads, arrays))

    def sums(self, unread: Unread, batch: Batch) -> dict[str, Any]:
        """The sums of an evaluation, from the logits of a chunk of tokens at a time."""
        rows, heads, joined = parted((unread, batch.targets()))

        def of_rows(rows, heads):
            both, (labels, mask) = joined(rows, heads)
            return self._by_chunk(both, labels, mask)

        return summed_over_devices(of_rows, self.mesh, rows, heads)

    def _by_chunk(self, unread: Unread, labels: jax.Array, mask: jax.Array) -> dict[str, Any]:
        size, shape = unread.student.vocab_size, labels.shape
        chunk = max(min(default_chunk(size), labels.size), 1)
        rows, heads, joined = parted((unread, (labels, mask)))

        def chunks(x):
            x = x.reshape(-1, *x.shape[len(shape) :])
            padding = (0, -x.shape[0] % chunk)
            return jnp.pad(x, (padding, *((0, 0),) * (x.ndim - 1))).reshape(-1, chunk, *x.shape[1:])

        def of_chunk(rows):
            both, (labels, mask) = joined(rows, heads)
            return self._measured(both, Examples(None, labels, mask=mask))

        parts = jax.tree.map(chunks, rows)
        return jax.tree.map(lambda x: jnp.sum(x, 0), jax.lax.map(of_chunk, parts))

    def _measured(self, unread: Unread, tokens: Examples) -> dict[str, Any]:
        student, held = unread.student.logits(), unread.teacher
        measured: dict[str, Any] = prediction_sums(student, tokens, self.vocab_size)
        if isinstance(held, HiddenLogits | CombinedLogits):
            held = held.logits()
            measured["teacher"] = prediction_sums(held, tokens, self.vocab_size)
        if held is not None:
            measured |= comparison_sums(student, held, tokens, self.vocab_size)
        return measured
