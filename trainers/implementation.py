"""Whether a trainer computes all logits, or has its losses read them in parts from states and a head."""

from typing import Any

import jax
from jax.sharding import Mesh

from divax.divergences import LinearHead
from divax.divergences.fused_linear import (
    Implementation,
    check_implementation,
    default_implementation,
)
from divax.trainers.model import Model


def implementation_for(
    model: Model,
    params: Any,
    tokens: Any,
    mesh: Mesh | None,
    implementation: Implementation | None,
) -> Implementation:
    """What was asked for, else the choice of `divergences.fused_linear` for the logits that a device has.

    Args:
        model: the model; "reference" if it does not expose its states and its head.
        params: its parameters, which are not read.
        tokens: `[B, T]`.
        mesh: over whose devices the tokens are split.
        implementation: what was asked for.

    Example:
        >>> import jax.numpy as jnp
        >>> table = Model(init=lambda key: 0, apply=lambda params, tokens: params[tokens])
        >>> implementation_for(table, jnp.eye(4), jnp.zeros((2, 3), int), None, None)
        'reference'
    """
    if model.hidden is None or model.head is None:
        return "reference"
    if implementation is not None:
        return implementation
    head, devices = jax.eval_shape(model.head, params), 1 if mesh is None else mesh.size
    tied = isinstance(head, LinearHead) and head.tied
    weight: Any = head.weight if isinstance(head, LinearHead) else head
    return default_implementation(-(-tokens.size // devices), weight.shape[0 if tied else 1])


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
