"""Models that expose their states and heads, in the working precision, and batches for them."""

import jax
import jax.numpy as jnp
import numpy as np

from divax import divergences as dv
from divax import trainers as tr


def states_model(vocab, width, *, rank=0, softcap=None, seed=0):
    """A mean of the tokens so far, of the same segment, through one layer; its head is tied to nothing.

    With a rank the head's weight is frozen, as in LoRA: the parameters hold the adapter alone.
    """
    frozen = np.random.default_rng(seed).normal(size=(width, vocab)) / np.sqrt(width)

    def init(key):
        shapes = {"embed": (vocab, width), "layer": (width, width)}
        if rank:
            shapes |= {"down": (width, rank), "up": (rank, vocab)}
        keys = jax.random.split(key, len(shapes))
        params = {
            name: jax.random.normal(k, shape)
            for k, (name, shape) in zip(keys, shapes.items(), strict=True)
        }
        return params if rank else {**params, "head": jnp.asarray(frozen)}

    def hidden(params, tokens, segment_ids=None, prefix_ids=None):
        ids = jnp.zeros(tokens.shape, jnp.int32) if segment_ids is None else segment_ids
        seen = jnp.tril(ids[:, :, None] == ids[:, None, :])
        if prefix_ids is not None:
            seen |= prefix_ids[:, :, None] == ids[:, None, :]
        seen = seen.astype(params["layer"].dtype)
        weights = seen / jnp.sum(seen, -1, keepdims=True)
        mixed = jnp.einsum("btu,bud->btd", weights, params["embed"][tokens])
        return jnp.tanh(mixed @ params["layer"])

    def head(params):
        adapter = (params["down"], params["up"]) if rank else None
        weight = jnp.asarray(frozen, params["layer"].dtype) if rank else params["head"]
        return dv.LinearHead(weight=weight, softcap=softcap, adapter=adapter)

    def apply(params, tokens, segment_ids=None, prefix_ids=None):
        return head(params).logits(hidden(params, tokens, segment_ids, prefix_ids))

    return tr.Model(init=init, apply=apply, hidden=hidden, head=head)


def text_batch(vocab, rows=8, length=10, *, packed=False):
    """Rows with uneven masks; packed, of two documents each."""
    rng = np.random.default_rng(1)
    mask = (rng.random((rows, length)) < 0.8).astype(np.float32)
    ids = (np.arange(length)[None] >= rng.integers(2, length - 2, (rows, 1))).astype(np.int32)
    return tr.Batch(
        tokens=rng.integers(vocab, size=(rows, length)).astype(np.int32),
        mask=mask,
        segment_ids=ids if packed else None,
    )


def gap(left, right):
    """The largest difference of two pytrees of the same structure."""
    assert jax.tree.structure(left) == jax.tree.structure(right)
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return max(float(np.max(np.abs(np.asarray(a) - np.asarray(b)))) for a, b in pairs)


def temporary_bytes(step, *arguments):
    """Of a compiled step."""
    memory = jax.jit(step).lower(*arguments).compile().memory_analysis()
    assert memory is not None
    return memory.temp_size_in_bytes
