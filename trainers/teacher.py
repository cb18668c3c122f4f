"""The teacher's slot: a pytree that turns a batch into logits and is never trained."""

import abc
import dataclasses
from typing import Any

import jax

from divax.trainers.batch import Batch
from divax.trainers.model import Model, predict


class AbstractTeacher(abc.ABC):
    """A pytree with `teacher(batch) -> logits [B, T, V]`.

    Its arrays travel into the jitted step as arguments: they are not donated, not compiled in as
    constants and not differentiated. A teacher that caches, averages or mixes is another final
    class beside `LiveTeacher`.

    Example:
        >>> issubclass(LiveTeacher, AbstractTeacher)
        True
    """

    @abc.abstractmethod
    def __call__(self, batch: Batch) -> jax.Array:
        """The logits on a batch, `[B, T, V]`."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LiveTeacher(AbstractTeacher):
    """A model that runs inside the student's step.

    Attributes:
        model: the model.
        params: its parameters, in any dtype (bfloat16 halves their memory).

    Example:
        >>> import jax.numpy as jnp
        >>> table = Model(init=lambda key: jnp.eye(4), apply=lambda params, tokens: params[tokens])
        >>> teacher = LiveTeacher(table, jnp.eye(4))
        >>> teacher(Batch(tokens=jnp.zeros((2, 3), jnp.int32))).shape
        (2, 3, 4)
    """

    model: Model = dataclasses.field(metadata={"static": True})
    params: Any

    def __call__(self, batch: Batch) -> jax.Array:
        """The model's logits on a batch, without a gradient."""
        return jax.lax.stop_gradient(predict(self.model, self.params, batch))
