"""The distribution that is sampled from: temperature, then top-k, then top-p."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def sampler_logits(
    logits: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
    top_k: ArrayLike | None = None,
    top_p: ArrayLike | None = None,
) -> jax.Array:
    """Logits whose softmax is the distribution that `sample` draws from.

    With p = softmax(logits / T): top-k keeps the k most probable tokens; top-p then keeps the
    shortest list of the most probable ones that holds at least the share `top_p` of what top-k
    left. Of equally probable tokens the lower id comes first, so at most k are kept, and `top_k=1`
    is T = 0, which puts everything on the argmax. All three may be traced; one sort, and only
    where something is truncated.

    An objective that replays the sampler's truncation calls this on the logits of its own forward
    pass.

    Args:
        logits: `[..., V]`, any float dtype; -inf is an impossible token.
        temperature: T >= 0, a scalar; 0 is greedy.
        top_k: how many tokens are kept, at least 1; `None` keeps all.
        top_p: the share that is kept, in (0, 1]; `None` and 1 keep all.

    Returns:
        `[..., V]` float32 (float64 under x64), -inf where truncated.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> logits = jnp.log(jnp.array([0.5, 0.1, 0.3, 0.1]))
        >>> jnp.isfinite(sampler_logits(logits, top_p=0.75)).tolist()
        [True, False, True, False]
        >>> jax.nn.softmax(sampler_logits(logits, temperature=0)).tolist()
        [1.0, 0.0, 0.0, 0.0]

    Source: Fan, Lewis and Dauphin, arXiv:1805.04833 (top-k); Holtzman et al., arXiv:1904.09751,
    section 3.1 (top-p).
    """
    logits = jnp.asarray(logits).astype(jnp.result_type(float))
    scaled = _tempered(logits, jnp.asarray(temperature, logits.dtype))
    if top_k is None and top_p is None:
        return scaled
    ids = jax.lax.broadcasted_iota(jnp.int32, scaled.shape, scaled.ndim - 1)
    negated, order = jax.lax.sort((-scaled, ids), num_keys=1, is_stable=True)
    descending, kept = -negated, jnp.ones(scaled.shape, bool)
    if top_k is not None:
        kept &= ids < jnp.asarray(top_k, jnp.int32)
    if top_p is not None:
        share = jnp.asarray(top_p, logits.dtype)
        cumulative = jnp.cumsum(jax.nn.softmax(jnp.where(kept, descending, -jnp.inf)), axis=-1)
        before = jnp.concatenate([jnp.zeros_like(cumulative[..., :1]), cumulative[..., :-1]], -1)
        # The rounded sum may reach 1 before the tail does.
        kept &= (before < share) | (share >= 1)
    # What is kept is a prefix of the sorted order, so its last entry tells the tokens apart.
    last = jnp.sum(kept, axis=-1, keepdims=True) - 1
    threshold = jnp.take_along_axis(descending, last, axis=-1)
    last_id = jnp.take_along_axis(order, last, axis=-1)
    inside = (scaled > threshold) | ((scaled == threshold) & (ids <= last_id))
    return jnp.where(inside, scaled, -jnp.inf)


def _tempered(logits: jax.Array, temperature: jax.Array) -> jax.Array:
    # Without their maximum, logits over a tiny temperature overflow to -inf and never to +inf.
    shifted = logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    warm = temperature >= jnp.finfo(logits.dtype).tiny
    first = jnp.argmax(logits, axis=-1, keepdims=True)
    ids = jax.lax.broadcasted_iota(first.dtype, logits.shape, logits.ndim - 1)
    greedy = jnp.where(ids == first, 0.0, -jnp.inf).astype(logits.dtype)
    return jnp.where(warm, shifted / jnp.where(warm, temperature, 1.0), greedy)
