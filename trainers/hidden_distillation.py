"""Distillation and its measures from states and heads: no model's logits exist for all tokens at once."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from divax.divergences import AbstractDivergence, TopKCache
from divax.divergences.fused_linear import Implementation, make_plan
from divax.objectives import HiddenLogits, TokenDistillation, Weighted
from divax.trainers.batch import Batch
from divax.trainers.evaluation import comparison_sums, prediction_sums
from divax.trainers.examples import Examples
from divax.trainers.implementation import implementation_for
from divax.trainers.model import Model, hidden_logits
from divax.trainers.sharding import summed_over_devices
from divax.trainers.teacher import AbstractTeacher


class Unread(NamedTuple):
    """A student and its teacher on the same rows, whose logits nobody has computed.

    Attributes:
        student: states and head.
        teacher: states and head, or a cache, or `None` where nothing is known of the batch.

    Example:
        >>> Unread._fields
        ('student', 'teacher')
    """

    student: HiddenLogits
    teacher: HiddenLogits | TopKCache | None

    def rows_and_heads(self) -> tuple[Any, Any]:
        """What has the rows as leading axis, and what every row shares."""
        if isinstance(self.teacher, HiddenLogits):
            return (self.student.hidden, self.teacher.hidden), (
                self.student.head,
                self.teacher.head,
            )
        return (self.student.hidden, self.teacher), (self.student.head, None)

    @classmethod
    def joined(cls, rows: Any, heads: Any) -> "Unread":
        """The same again, of any of the rows."""
        teacher = rows[1] if heads[1] is None else HiddenLogits(hidden=rows[1], head=heads[1])
        return cls(HiddenLogits(hidden=rows[0], head=heads[0]), teacher)


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
        """Whether the objective is one of tokens by themselves.

        A plain function as its divergence may look at several rows: it gets them in chunks only if somebody asked for that.
        """
        if not isinstance(objective, TokenDistillation) or self.implementation == "reference":
            return False
        return self.implementation is not None or isinstance(
            objective.divergence, AbstractDivergence
        )

    def unread(self, params: Any, batch: Batch, teacher: AbstractTeacher) -> Unread | None:
        """Both models' states and heads; `None` where all logits are to be computed.

        Raises:
            ValueError: "fast" or "lean" was asked for, and the teacher has logits alone.
        """
        if self.how(params, batch) == "reference":
            return None
        student, held = hidden_logits(self.student, params, batch), teacher.unread(batch)
        assert student is not None
        known = teacher(batch) if held is None else held
        if not isinstance(known, jax.Array):
            return Unread(student, known)
        if self.implementation is not None:
            raise ValueError(
                f"implementation={self.implementation!r} needs the states before the head, and the teacher gives all of"
                " its logits: take a LiveTeacher whose Model has a hidden and a head, or a cache"
            )
        return None

    def how(self, params: Any, batch: Batch) -> Implementation:
        """By what was asked for, or the logits of a device."""
        return implementation_for(
            self.student, params, batch.tokens, self.mesh, self.implementation
        )

    def loss(
        self,
        arrays: list[Any],
        whole: Callable[[list[Any]], TokenDistillation],
        unread: Unread,
        batch: Batch,
        how: Implementation,
    ) -> tuple[Weighted, dict[str, Weighted]]:
        """The loss and metrics of the objective that `whole` makes of its arrays, each device's from its own rows."""
        rows, heads = unread.rows_and_heads()

        def of_rows(rows, everywhere):
            (states, labels, mask), (heads, arrays) = rows, everywhere
            both = Unread.joined(states, heads)
            assert both.teacher is not None
            return whole(arrays).from_hidden(
                both.student,
                both.teacher,
                labels=labels,
                mask=mask,
                vocab_size=self.vocab_size,
                implementation=how,
            )

        return summed_over_devices(of_rows, self.mesh, (rows, *batch.targets()), (heads, arrays))

    def sums(self, unread: Unread, batch: Batch) -> dict[str, Any]:
        """The sums of an evaluation, from the logits of a chunk of tokens at a time."""
        rows, heads = unread.rows_and_heads()

        by_chunk = lambda rows, heads: self._by_chunk(*rows, heads)  # noqa: E731
        return summed_over_devices(by_chunk, self.mesh, (rows, *batch.targets()), heads)

    def _by_chunk(self, states, labels, mask, heads) -> dict[str, Any]:
        size = Unread.joined(states, heads).student.vocab_size
        chunk = max(min(make_plan(None, None, size, None, None).chunk, labels.size), 1)

        def chunks(x):
            x = x.reshape(-1, *x.shape[labels.ndim :])
            padding = (0, -x.shape[0] % chunk)
            return jnp.pad(x, (padding, *((0, 0),) * (x.ndim - 1))).reshape(-1, chunk, *x.shape[1:])

        def of_chunk(rows):
            states, labels, mask = rows
            return self._measured(Unread.joined(states, heads), Examples(None, labels, mask=mask))

        parts = jax.tree.map(chunks, (states, labels, mask))
        return jax.tree.map(lambda x: jnp.sum(x, 0), jax.lax.map(of_chunk, parts))

    def _measured(self, unread: Unread, tokens: Examples) -> dict[str, Any]:
        student, held = unread.student.logits(), unread.teacher
        measured: dict[str, Any] = prediction_sums(student, tokens, self.vocab_size)
        if isinstance(held, HiddenLogits):
            held = held.logits()
            measured["teacher"] = prediction_sums(held, tokens, self.vocab_size)
        if held is not None:
            measured |= comparison_sums(student, held, tokens, self.vocab_size)
        return measured
