"""Conditional value at risk of a weighted sample: the mean of its worst part."""

import jax
import jax.numpy as jnp


def tail_mean(values: jax.Array, probs: jax.Array, share: jax.Array) -> jax.Array:
    """Mean of the largest values that have probability `share`; one at the edge counts in part.

    Args:
        values: `[..., N]`; a value of probability 0 may be anything.
        probs: `[..., N]`, adding up to 1.
        share: in (0, 1].

    Returns:
        `[...]`, its gradient by the values that of the envelope theorem.

    Source: R. Rockafellar, S. Uryasev, "Optimization of Conditional Value-at-Risk", Journal of
    Risk 2 (2000).
    """
    ranked = jnp.where(probs > 0, values, -jnp.inf)
    order = jnp.argsort(jax.lax.stop_gradient(-ranked), axis=-1)
    probs, values = (jnp.take_along_axis(x, order, -1) for x in (probs, values))
    taken = jnp.clip(share - (jnp.cumsum(probs, -1) - probs), 0, probs)
    return jnp.sum(jnp.where(taken > 0, taken * values, 0), -1) / share
