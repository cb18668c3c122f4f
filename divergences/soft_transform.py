"""The soft-min transform of a potential, which both Sinkhorn iterations are made of."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from divax.divergences.numerics import Scalar


def transposed(cost: jax.Array | None) -> jax.Array | None:
    """The cost seen from the other side."""
    return None if cost is None else jnp.swapaxes(cost, -1, -2)


def soft_transform(
    potential: jax.Array, log_mass: jax.Array, epsilon: Scalar, cost: jax.Array | None
) -> jax.Array:
    """−ε·log Σ_i exp((potential_i − C_ij)/ε + log_mass_i) for every j; finite if any mass is."""
    exponent = potential / epsilon + log_mass
    if cost is not None:
        scaled = jnp.expand_dims(cost / epsilon, tuple(range(exponent.ndim + 1 - cost.ndim)))
        return -epsilon * jax.nn.logsumexp(exponent[..., :, None] - scaled, axis=-2)
    # With C = 1 − I the sum over i is e^{−1/ε}·Σ_i e_i + (1 − e^{−1/ε})·e_j.
    everywhere = jax.nn.logsumexp(exponent, axis=-1, keepdims=True) - 1 / epsilon
    here = exponent + jnp.log(-jnp.expm1(-1 / epsilon))
    return -epsilon * jnp.logaddexp(everywhere, here)
