"""A prompt read once and then token by token gives the logits of the whole sequence."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.decoder import decoder as numpy_decoder

from divax import trainers as tr
from divax.trainers.decoding import recomputing

LENGTHS = np.array([2, 4, 1])


def build(**sizes):
    config = tr.TransformerConfig(
        **{"vocab_size": 11, "layers": 2, "width": 16, "heads": 4, "kv_heads": 2, **sizes}
    )
    model = tr.transformer(config)
    # Scales of one would hide a norm that forgets them.
    generator = np.random.default_rng(5)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(
        lambda x: (generator.normal(size=x.shape) * 0.3 + (x.ndim == 1)).astype(np.float32), shapes
    )
    return model, params


def uncached(model, params, tokens):
    return np.asarray(jax.jit(model.apply)(params, tokens))


def tokens_of(seed, shape):
    return np.random.default_rng(seed).integers(11, size=shape).astype(np.int32)


def decoded(decoding, params, tokens, prompt_lengths, length):
    """The logits of every row from the last token of its prompt on: `[steps, B, V]`."""
    extend = jax.jit(decoding.extend)
    width = int(prompt_lengths.max())
    cache = decoding.init_cache(params, len(tokens), length)
    prompts = np.where(np.arange(width) < prompt_lengths[:, None], tokens[:, :width], 7)
    logits, cache = extend(params, cache, prompts, prompt_lengths.astype(np.int32))
    found = [logits]
    for step in range(tokens.shape[1] - width):
        one = np.take_along_axis(tokens, prompt_lengths[:, None] + step, axis=1)
        logits, cache = extend(params, cache, one, np.ones(len(tokens), np.int32))
        found.append(logits)
    return np.stack(found)


def at_the_same_places(logits, steps):
    """Uncached logits `[B, T, V]` in the order of `decoded`."""
    return np.stack([logits[range(3), LENGTHS - 1 + step] for step in range(steps)])


def test_cached_logits_are_those_of_the_formulas():
    model, params = build(rope_base=100.0)
    assert model.decode is not None
    tokens = tokens_of(0, (3, 8))
    found = decoded(model.decode, params, tokens, LENGTHS, 8)
    numpy_logits = functools.partial(
        numpy_decoder, params, layers=2, heads=4, kv_heads=2, base=100.0
    )
    formulas = np.stack([numpy_logits(row) for row in tokens])
    np.testing.assert_allclose(found, at_the_same_places(formulas, 5), atol=2e-5)
    whole = uncached(model, params, tokens)
    np.testing.assert_allclose(found, at_the_same_places(whole, 5), atol=1e-5)


def test_recomputing_gives_the_same_with_and_without_the_states():
    model, params = build()
    tokens = tokens_of(1, (3, 6))
    expected = at_the_same_places(uncached(model, params, tokens), 3)
    plain = tr.Model(init=model.init, apply=model.apply)
    for one in (model, plain):
        found = decoded(recomputing(one), params, tokens, LENGTHS, 9)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_double_precision(x64):
    """With as many slots as tokens: JAX's softmax in attention is float32, and sums them alike."""
    model, params = build(dtype="float64")
    assert model.decode is not None
    tokens = tokens_of(2, (3, 7))
    # Flax's RMSNorm promotes its input implicitly.
    with jax.numpy_dtype_promotion("standard"):
        found = decoded(model.decode, params, tokens, LENGTHS, 7)
        whole = uncached(model, params, tokens)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, at_the_same_places(whole, 4), atol=1e-12)


def test_a_cache_too_short_for_the_prompt():
    model, params = build()
    assert model.decode is not None
    cache = model.decode.init_cache(params, 1, 4)
    with pytest.raises(ValueError, match="a cache for 4 tokens cannot take 5: give init_cache"):
        model.decode.extend(params, cache, jnp.zeros((1, 5), jnp.int32), jnp.array([5]))


def test_bfloat16_keys_and_values():
    model, params = build(dtype="bfloat16", layers=1)
    assert model.decode is not None
    tokens = tokens_of(3, (3, 6))
    # Flax's RMSNorm promotes its bfloat16 input implicitly.
    with jax.numpy_dtype_promotion("standard"):
        found = decoded(model.decode, params, tokens, LENGTHS, 6)
        whole = uncached(model, params, tokens)
    assert found.dtype == whole.dtype == jnp.bfloat16
    expected = at_the_same_places(whole, 3).astype(np.float32)
    # Eight-bit mantissas through about ten roundings, as in test_decoder.
    np.testing.assert_allclose(found.astype(np.float32), expected, atol=10 * 2**-8 * 3)
