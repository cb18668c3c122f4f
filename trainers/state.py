"""The whole state of a run."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that changes while training; the next data batch is a function of `step`.

    Attributes:
        params: the trained parameters.
        opt_state: the optimizer's state.
        step: int32 scalar, the number of updates made.
        key: the run's key; step n draws from `fold_in(key, n)`, so it never changes.

    Example:
        >>> import jax, optax
        >>> state = TrainState.create({"w": jnp.ones(2)}, optax.sgd(0.1), jax.random.key(0))
        >>> int(state.step)
        0
    """

    params: Any
    opt_state: Any
    step: jax.Array
    key: jax.Array

    @classmethod
    def create(
        cls, params: Any, optimizer: optax.GradientTransformation, key: jax.Array
    ) -> "TrainState":
        """The state before the first step."""
        return cls(params, optimizer.init(params), jnp.zeros((), jnp.int32), key)
