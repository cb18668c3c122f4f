"""Whether a trainer computes all logits, or has its losses read them in parts from states and a head."""

import math

from jax.sharding import Mesh

from divax.divergences.fused_linear import (
    Implementation,
    check_implementation,
    default_implementation,
)
from divax.objectives import HiddenLogits
from divax.trainers.model import Model


def implementation_for(
    logits: HiddenLogits, mesh: Mesh | None, implementation: Implementation | None
) -> Implementation:
    """What was asked for, else the choice of `divergences.fused_linear` for the logits that a device has.

    Example:
        >>> import jax.numpy as jnp
        >>> few = HiddenLogits(hidden=jnp.ones((2, 3, 4)), head=jnp.ones((4, 9)))
        >>> implementation_for(few, None, None)
        'reference'
    """
    if implementation is not None:
        return implementation
    devices = 1 if mesh is None else mesh.size
    count = math.prod(logits.hidden.shape[:-1])
    return default_implementation(-(-count // devices), logits.vocab_size)


def check_states(model: Model, implementation: Implementation | None, whose: str) -> None:
    """Refuses a model without states and a head, where somebody asked for losses from these.

    Args:
        model: the model.
        implementation: what was asked for.
        whose: the model is, for the message.

    Raises:
        ValueError: "fast" or "lean", and it does not expose both; or no implementation at all.

    Example:
        >>> table = Model(init=lambda key: 0, apply=lambda params, tokens: params[tokens])
        >>> check_states(table, "fast", "policy")
        Traceback (most recent call last):
        ValueError: implementation='fast' needs the states before the head: give the policy's Model a hidden and...
    """
    check_implementation(implementation)
    if implementation in ("fast", "lean") and (model.hidden is None or model.head is None):
        raise ValueError(
            f"implementation={implementation!r} needs the states before the head: give the {whose}'s Model a hidden and a"
            " head, or leave implementation out"
        )
