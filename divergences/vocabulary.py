"""Comparing distributions over two different vocabularies."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences.gap import magnitude
from divax.divergences.rows import log_softmax


def universal_logit_distance(target: ArrayLike, model: ArrayLike) -> jax.Array:
    """ULD, Σ_k |p₍ₖ₎ − q₍ₖ₎| of the two rows of probabilities, each sorted, the shorter padded with zeros.

    It equals the minimum over permutations σ of ‖p − q∘σ‖₁. It compares shapes and is blind to labels: zero for a model
    that is right up to a permutation, so it needs a likelihood term beside it (the authors weight it 1.5, at
    temperature 1).

    Args:
        target: logits `[..., V]`, any float dtype, upcast to float32 at least; −inf allowed.
        model: logits `[..., W]`; W may differ from V, leading axes broadcast.

    Returns:
        `[...]` in [0, 2]. 0 for a row in which either side has no possible token.

    Raises:
        TypeError: logits that are not floating point.

    Example:
        >>> import jax.numpy as jnp
        >>> p, q = jnp.log(jnp.array([0.7, 0.3])), jnp.log(jnp.array([0.1, 0.5, 0.4]))
        >>> round(float(universal_logit_distance(p, q)), 6)  # |.7 - .5| + |.3 - .4| + .1
        0.4

    Source: N. Boizard et al., "Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for LLMs",
    arXiv:2402.12030, eq. 6.
    """
    p, q = _sorted_probabilities(target), _sorted_probabilities(model)
    dtype = jnp.promote_types(p.dtype, q.dtype)
    size = max(p.shape[-1], q.shape[-1])
    lead = jnp.broadcast_shapes(p.shape[:-1], q.shape[:-1])
    p, q = (jnp.broadcast_to(_padded(x.astype(dtype), size), (*lead, size)) for x in (p, q))
    legal = (jnp.sum(p, -1) > 0) & (jnp.sum(q, -1) > 0)
    return jnp.where(legal, jnp.sum(magnitude(p - q), -1), 0)


def _sorted_probabilities(logits: ArrayLike) -> jax.Array:
    logits = jnp.asarray(logits)
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise TypeError(f"logits must be floating point, got {logits.dtype}")
    logits = logits if logits.dtype == jnp.float64 else logits.astype(jnp.float32)
    log_probs = log_softmax(logits)
    # The exponential of a sorted row is sorted; −inf has probability 0 and no gradient.
    return jnp.exp(jnp.flip(jnp.sort(log_probs, axis=-1), axis=-1))


def _padded(probabilities: jax.Array, size: int) -> jax.Array:
    missing = size - probabilities.shape[-1]
    return jnp.pad(probabilities, [(0, 0)] * (probabilities.ndim - 1) + [(0, missing)])
