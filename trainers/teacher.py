"""The teacher's slot: a pytree that turns a batch into logits and is never trained."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from divax.divergences import TopKCache
from divax.objectives import CombinedLogits, HiddenLogits
from divax.trainers.batch import Batch
from divax.trainers.examples import Examples
from divax.trainers.model import Model, hidden_logits, predict
from divax.trainers.reference import MovingReference
from divax.trainers.two_heads import main_logits


class AbstractTeacher(abc.ABC):
    """A pytree with `teacher(batch)`: logits `[B, T, V]`, or what a cache kept of them.

    Of `Examples` they are a classifier's, `[B, V]`.

    Its arrays travel into the jitted step as arguments: they are not donated, not compiled in as
    constants and not differentiated. A teacher that caches, averages or mixes is another final
    class beside `LiveTeacher`.

    Example:
        >>> issubclass(LiveTeacher, AbstractTeacher)
        True
    """

    @abc.abstractmethod
    def __call__(self, batch: Any) -> jax.Array | TopKCache | None:
        """The logits on a batch; `None` where nothing is known of it."""

    def unread(self, batch: Any, mesh: Mesh | None = None) -> HiddenLogits | CombinedLogits | None:
        """The same logits as states and heads, for losses that do without them; `None` where there are no such.

        Args:
            batch: as in a call.
            mesh: over whose devices its rows are spread, for what is to be told from the logits already.
        """
        del batch, mesh
        return None

    def given(self, params: Any, opt_state: Any) -> "AbstractTeacher":
        """The teacher of a step at which the student stands so: itself, unless it follows him.

        Args:
            params: the student's.
            opt_state: the optimizer's.
        """
        del params, opt_state
        return self

    def as_writer(self, purpose: str) -> "LiveTeacher":
        """The teacher as a model with parameters, which can be sampled from.

        Args:
            purpose: what is to sample from it, for the error.

        Raises:
            TypeError: it only reads: there is no model behind it.
        """
        raise TypeError(
            f"{purpose} needs a teacher that writes, a LiveTeacher; {type(self).__name__} only reads"
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LiveTeacher(AbstractTeacher):
    """A model that runs inside the student's step.

    With a LoRA student, `LiveTeacher(student, zeros)` is the same model without its adapters, at
    no memory of its own.

    Attributes:
        model: the model.
        params: its parameters, in any dtype (`optax.tree.cast(params, jnp.bfloat16)` halves their
            memory); arrays that are sharded over the trainer's mesh stay where they are.

    Example:
        >>> import jax.numpy as jnp
        >>> table = Model(init=lambda key: jnp.eye(4), apply=lambda params, tokens: params[tokens])
        >>> teacher = LiveTeacher(table, jnp.eye(4))
        >>> teacher(Batch(tokens=jnp.zeros((2, 3), jnp.int32))).shape
        (2, 3, 4)
    """

    model: Model = dataclasses.field(metadata={"static": True})
    params: Any

    def __call__(self, batch: Batch | Examples) -> jax.Array:
        """The model's logits on a batch, without a gradient; of two heads the main one's."""
        return jax.lax.stop_gradient(main_logits(predict(self.model, self.params, batch)))

    def unread(self, batch: Batch | Examples, mesh: Mesh | None = None) -> HiddenLogits | None:
        """The model's states and head, without a gradient, if it exposes them."""
        del mesh
        return jax.lax.stop_gradient(hidden_logits(self.model, self.params, batch))

    def as_writer(self, purpose: str) -> "LiveTeacher":
        """Itself."""
        del purpose
        return self


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FollowingTeacher(AbstractTeacher):
    """The student's own past: the moving average, or the last snapshot, that its optimizer keeps.

    The optimizer must be wrapped, as in `tr.following(optimizer, share=0.05)` (an exponential
    moving average) or `tr.following(optimizer, share=1, every=500)` (generations).

    Attributes:
        model: the student's.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from divax import trainers as tr
        >>> table = Model(init=lambda key: jnp.eye(4), apply=lambda params, tokens: params[tokens])
        >>> params, optimizer = jnp.eye(4), tr.following(optax.sgd(0.1), share=0.05)
        >>> teacher = FollowingTeacher(table).given(params, optimizer.init(params))
        >>> teacher(Batch(tokens=jnp.zeros((2, 3), jnp.int32))).shape
        (2, 3, 4)

    Source: A. Tarvainen, H. Valpola, "Mean teachers are better role models", arXiv:1703.01780,
    section 2.
    """

    model: Model = dataclasses.field(metadata={"static": True})

    def __call__(self, batch: Batch | Examples) -> jax.Array:
        """Refuses: without the optimizer's state there are no parameters.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "a FollowingTeacher has parameters only once it is given(params, opt_state)"
        )

    def given(self, params: Any, opt_state: Any) -> LiveTeacher:
        """The teacher with the parameters that the optimizer's state holds.

        Raises:
            TypeError: the optimizer is not wrapped by `following`.
        """
        del params
        return LiveTeacher(self.model, MovingReference().params_at(opt_state))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FunctionTeacher(AbstractTeacher):
    """Any function of the batch.

    Attributes:
        function: of `arrays` and the batch, to logits `[B, T, V]`, a `TopKCache` or `None`.
        arrays: a pytree that it reads, an argument of the step.

    Example:
        >>> import jax.numpy as jnp
        >>> unigram = FunctionTeacher(
        ...     lambda logits, batch: jnp.broadcast_to(logits, (*batch.tokens.shape, logits.size)),
        ...     jnp.zeros(4),
        ... )
        >>> unigram(Batch(tokens=jnp.zeros((2, 3), jnp.int32))).shape
        (2, 3, 4)
    """

    function: Callable[[Any, Any], jax.Array | TopKCache | None] = dataclasses.field(
        metadata={"static": True}
    )
    arrays: Any = ()

    def __call__(self, batch: Any) -> jax.Array | TopKCache | None:
        """The function's logits, without a gradient."""
        return jax.lax.stop_gradient(self.function(self.arrays, batch))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CachedTeacher(AbstractTeacher):
    """What a cache kept of a teacher, which comes with the batch.

    Attributes:
        temperature: that the rows were softened by before they were stored.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> rows = dv.cache_top_k(jnp.zeros((2, 3, 4)), k=2)
        >>> CachedTeacher()(Batch(tokens=jnp.zeros((2, 3), jnp.int32), teacher=rows)).ids.shape
        (2, 3, 2)
    """

    temperature: float = dataclasses.field(default=1.0, metadata={"static": True})

    def __call__(self, batch: Batch) -> TopKCache | None:
        """The batch's own rows of the cache; `None` where it has none."""
        return batch.teacher
