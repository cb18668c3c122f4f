"""The built-in transformer against NumPy, and what it may and may not see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.decoder import decoder as numpy_decoder

from divax import trainers as tr


def build(key, **sizes):
    config = tr.TransformerConfig(
        **{"vocab_size": 11, "layers": 2, "width": 16, "heads": 4, "kv_heads": 2, **sizes}
    )
    model = tr.transformer(config)
    return model, model.init(key)


def tokens_of(seed, shape):
    return jnp.asarray(np.random.default_rng(seed).integers(11, size=shape), jnp.int32)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_logits_are_those_of_the_formulas(key, kv_heads):
    model, params = build(key, kv_heads=kv_heads, rope_base=100.0)
    # Scales of one would hide a norm that forgets them.
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(key, x.shape), params)
    tokens = tokens_of(0, (1, 9))
    expected = numpy_decoder(
        params, np.asarray(tokens[0]), layers=2, heads=4, kv_heads=kv_heads, base=100.0
    )
    np.testing.assert_allclose(model.apply(params, tokens)[0], expected, atol=2e-5)


def test_segments_against_the_formulas(key):
    model, params = build(key)
    tokens, segments = tokens_of(1, (1, 8)), jnp.array([[0, 0, 0, 1, 1, 1, 1, 2]])
    expected = numpy_decoder(
        params,
        np.asarray(tokens[0]),
        layers=2,
        heads=4,
        kv_heads=2,
        base=10_000.0,
        segments=np.asarray(segments[0]),
    )
    found = model.apply(params, tokens, segment_ids=segments)[0]
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_the_future_changes_nothing_before_it(key):
    model, params = build(key)
    tokens = tokens_of(2, (1, 8))
    before = model.apply(params, tokens)
    for t in range(1, 8):
        after = model.apply(params, tokens.at[0, t].add(1) % 11)
        np.testing.assert_array_equal(before[0, :t], after[0, :t])
        assert np.abs(before[0, t] - after[0, t]).max() > 1e-4


def test_packed_documents_are_predicted_as_if_alone(key):
    model, params = build(key)
    first, second = tokens_of(3, (1, 5)), tokens_of(4, (1, 6))
    packed = jnp.concatenate([first, second], axis=1)
    segments = jnp.array([[7] * 5 + [9] * 6])
    together = model.apply(params, packed, segment_ids=segments)
    np.testing.assert_allclose(together[:, :5], model.apply(params, first), atol=1e-5)
    np.testing.assert_allclose(together[:, 5:], model.apply(params, second), atol=1e-5)
    # Without the ids the second document sees the first.
    assert np.abs(model.apply(params, packed)[:, 5:] - together[:, 5:]).max() > 1e-3


def test_hidden_states_times_the_head_are_the_logits(key):
    model, params = build(key)
    tokens = tokens_of(5, (2, 6))
    assert model.hidden is not None
    assert model.head is not None
    hidden, head = model.hidden(params, tokens), model.head(params)
    assert isinstance(head, jax.Array)
    assert hidden.shape == (2, 6, 16)
    assert head.shape == (16, 11)
    np.testing.assert_array_equal(hidden @ head, model.apply(params, tokens))


def test_parameters_are_a_plain_dictionary_with_the_expected_count(key):
    _, params = build(key, mlp_width=24)
    block = 2 * 16 + 16 * 16 + 16 * 16 + 16 * 16 + 16 * 48 + 24 * 16
    assert tr.parameter_count(params) == 2 * 11 * 16 + 16 + 2 * block
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        assert all(isinstance(entry, jax.tree_util.DictKey) for entry in path)
        assert leaf.dtype == jnp.float32


def test_bfloat16_activations_keep_float32_parameters(key):
    model, params = build(key, dtype="bfloat16")
    # Flax's RMSNorm promotes its bfloat16 input implicitly.
    with jax.numpy_dtype_promotion("standard"):
        logits = model.apply(params, tokens_of(6, (1, 8)))
    assert logits.dtype == jnp.bfloat16
    exact = build(key)[0].apply(params, tokens_of(6, (1, 8)))
    # Eight-bit mantissas through about ten roundings.
    np.testing.assert_allclose(logits.astype(jnp.float32), exact, atol=10 * 2**-8 * 3)


def test_parameters_depend_on_the_key_alone(key, same):
    same(build(key)[1], build(key)[1])
    other = build(jax.random.key(1))[1]
    assert np.abs(other["head"] - build(key)[1]["head"]).max() > 0.01


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"width": 18}, "width 18 does not divide into 4 heads of an even size"),
        ({"kv_heads": 3}, "kv_heads 3 does not divide heads 4"),
        ({"layers": 0}, "layers must be at least 1, got 0"),
    ],
)
def test_sizes_that_do_not_divide(sizes, message):
    with pytest.raises(ValueError, match=message):
        tr.TransformerConfig(**{"width": 16, "heads": 4, "kv_heads": 2, **sizes})
