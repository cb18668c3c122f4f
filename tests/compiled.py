"""One compilation per kind of divergence, its hyper-parameters traced.

JAX's treedefs of two registered dataclasses with equally many fields compare equal, so that one jitted function called with
divergences of several classes may, when their hashes share a bucket, run the code compiled for another class. Hence one
jitted function per structure here.
"""

import functools

import jax
import jax.numpy as jnp


@functools.cache
def _value(structure: str):
    return jax.jit(lambda div, t, s: div(t, s))


@functools.cache
def _gradients(structure: str):
    return jax.jit(jax.grad(lambda div, t, s: jnp.sum(div(t, s)), argnums=(1, 2)))


def value(div, target, model):
    """div(target, model)."""
    return _value(str(jax.tree.structure(div)))(div, target, model)


def gradients(div, target, model):
    """∂Σ div/∂target and ∂Σ div/∂model."""
    return _gradients(str(jax.tree.structure(div)))(div, target, model)
