"""What to do with atoms on which a divergence is +inf."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, Literal, get_args

import jax
import jax.numpy as jnp

from divax.divergences.logit_reading import Side, merged_side, reduced
from divax.divergences.row_blocks import by_machine

if TYPE_CHECKING:
    from divax.divergences.base import InfiniteAt

Support = Literal["inf", "mask", "floor"]

LOG_FLOOR = -23.025850929940457
"""log 1e-10: the probability, relative to the row's own total, that "floor" gives to a ruled-out atom."""


def apply_support(
    target: jax.Array, model: jax.Array, support: Support, infinite_at: InfiniteAt
) -> tuple[jax.Array, jax.Array]:
    """Rewrites the logits so that no atom contributes +inf ("mask", "floor"), or leaves them alone ("inf").

    Only atoms on which this divergence is infinite are touched: for KL(p‖q) those with p > 0 = q, but not those with
    p = 0 < q, whose contribution is finite.

    Args:
        target: logits `[..., V]`.
        model: logits `[..., V]`.
        support: the policy.
        infinite_at: on which mismatches the divergence is +inf.

    Returns:
        The two arrays of logits, rewritten.

    Raises:
        ValueError: an unknown policy.
    """
    if support not in get_args(Support):
        near = difflib.get_close_matches(str(support), get_args(Support), n=1, cutoff=0.0)[0]
        raise ValueError(
            f"support={support!r} is none of {', '.join(get_args(Support))}; did you mean {near!r}?"
        )
    if support == "inf":
        return target, model
    if support == "mask":
        without_model, without_target = infinite_at.model_zero, infinite_at.target_zero
        return _masked(target, model, without_model), _masked(model, target, without_target)
    return (
        _floored(target, model, infinite_at.target_zero),
        _floored(model, target, infinite_at.model_zero),
    )


@jax.custom_jvp
def _masked(logits: jax.Array, other: jax.Array, off: Any) -> jax.Array:
    """−inf where either is, if that is to be masked: one comparison for both sides."""
    return jnp.where((jnp.minimum(logits, other) == -jnp.inf) & off, -jnp.inf, logits)


@_masked.defjvp
def _masked_jvp(primals, tangents):
    # No divergence depends on a logit that is −inf; without a mask in its derivative, none is written down by a GPU.
    return _masked(*primals), tangents[0]


def _floored(logits: jax.Array, other: jax.Array, off: Any) -> jax.Array:
    """The floor where only the other is possible, if that is wanted."""
    if off is False:
        return logits
    held = jax.lax.stop_gradient(logits)
    floor = by_machine(_log_total, _log_total_read, None, held)[..., None] + LOG_FLOOR
    bad = (logits == -jnp.inf) & (other != -jnp.inf)
    return jnp.where(bad, jnp.where(off, floor, -jnp.inf), logits)


def _log_total(logits: jax.Array) -> jax.Array:
    """Log Σ e^logit, 0 for each token of a row of impossible ones."""
    none = jnp.max(logits, -1, keepdims=True) == -jnp.inf
    return jax.nn.logsumexp(jnp.where(none, 0, logits), -1)


def _log_total_read(logits: jax.Array) -> jax.Array:
    """The same from one reading."""
    top, total = reduced(Side(logits, jnp.ones_like(logits)), merged_side)
    none = top == -jnp.inf
    return jnp.where(none, 0, top) + jnp.log(jnp.where(none, logits.shape[-1], total))
