"""One batch of labelled examples."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Examples:
    """Inputs with their classes: what a classifier is trained and measured on.

    Attributes:
        inputs: `[B, ...]`, whatever the model's `apply(params, inputs)` takes.
        labels: `[B]` integers; a row with a negative label (-100 by convention) counts for nothing.
        ids: `[B]` integers that name the examples, for objectives that remember them; may be left out
            elsewhere.
        mask: `[B]` weights of the rows; `None` counts all of them.

    Example:
        >>> import numpy as np
        >>> Examples(inputs=np.zeros((4, 64)), labels=np.zeros(4, np.int32)).inputs.shape
        (4, 64)
    """

    inputs: jax.Array | np.ndarray
    labels: jax.Array | np.ndarray
    ids: jax.Array | np.ndarray | None = None
    mask: jax.Array | np.ndarray | None = None

    def arguments(self) -> tuple[Any, dict[str, Any]]:
        """What a model's `apply` is given beside its parameters."""
        return self.inputs, {}

    def targets(self) -> tuple[jax.Array, jax.Array]:
        """The labels, and how much each counts: the mask, and 0 where the label is negative."""
        labels = jnp.asarray(self.labels)
        mask = jnp.ones(labels.shape) if self.mask is None else jnp.asarray(self.mask)
        return labels, jnp.where(labels >= 0, mask.astype(jnp.result_type(float)), 0)
