"""A divergence's values and gradients, compiled once per class and shape, its hyper-parameters traced."""

import jax
import jax.numpy as jnp


@jax.jit
def value(div, target, model):
    """div(target, model)."""
    return div(target, model)


@jax.jit
def gradients(div, target, model):
    """∂Σ div/∂target and ∂Σ div/∂model."""
    return jax.grad(lambda t, s: jnp.sum(div(t, s)), argnums=(0, 1))(target, model)
