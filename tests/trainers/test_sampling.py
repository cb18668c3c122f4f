"""The sampler: whose tokens, at which log-prob, and what they may depend on."""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.truncation import log_softmax, truncated
from scipy import stats

from divax import trainers as tr
from divax.objectives import align_causal

VOCAB = 7


@functools.cache
def transformer():
    config = tr.TransformerConfig(vocab_size=VOCAB, layers=1, width=16, heads=4, kv_heads=2)
    model = tr.transformer(config)
    generator = np.random.default_rng(1)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    # Sharp enough that a wrong logit would change what is drawn.
    params = jax.tree.map(
        lambda x: (generator.normal(size=x.shape) * 0.5 + (x.ndim == 1)).astype(np.float32), shapes
    )
    return model, params


PROMPTS = np.random.default_rng(2).integers(1, VOCAB, size=(8, 5)).astype(np.int32)
LENGTHS = np.array([5, 3, 1, 2, 5, 4, 1, 3])
MASK = np.arange(5) < LENGTHS[:, None]


def drawn(model=None, prompts: Any = PROMPTS, mask: Any = MASK, seed=0, **settings):
    """One compilation for all tests that differ in values alone."""
    own, params = transformer()
    settings = {"temperature": 1.3, "top_k": 5, "top_p": 0.9, "stop_token": 0, **settings}
    return tr.sample(
        model or own,
        params,
        prompts,
        jax.random.key(seed),
        prompt_mask=mask,
        max_new_tokens=6,
        **settings,
    )


def counting(logit=50.0):
    """Always goes on with the next number, modulo the vocabulary."""
    return tr.Model(
        init=lambda key: logit * jnp.roll(jnp.eye(VOCAB), 1, axis=1),
        apply=lambda params, tokens: params[tokens],
    )


def forced(samples, temperature=1.3, top_k=5, top_p=0.9):
    """Both log-probs of every completion token, from one forward pass over the whole rows."""
    model, params = transformer()
    logits = np.asarray(jax.jit(model.apply)(params, samples.tokens))
    sampler, plain = np.zeros(samples.tokens.shape), np.zeros(samples.tokens.shape)
    for b, t in np.argwhere(np.asarray(samples.mask)):
        token, before = int(samples.tokens[b, t]), logits[b, t - 1]
        probability = truncated(before, temperature, top_k, top_p)[0][token]
        assert probability > 0, "a token that was truncated away"
        sampler[b, t], plain[b, t] = np.log(probability), log_softmax(before)[token]
    return sampler, plain


def test_log_probs_are_those_of_a_forward_pass():
    samples = drawn()
    sampler, plain = forced(samples)
    np.testing.assert_allclose(samples.sampler_logps, sampler, atol=1e-5)
    np.testing.assert_allclose(samples.model_logps, plain, atol=1e-5)
    assert samples.model_logps.dtype == samples.sampler_logps.dtype == jnp.float32
    assert np.abs(sampler - plain).max() > 0.1


def test_the_layout_is_that_of_a_batch():
    samples = drawn()
    tokens, mask, ends = map(np.asarray, (samples.tokens, samples.mask, samples.completion_lengths))
    assert tokens.shape == (8, 5 + 6)
    for row, prompt, size, end in zip(tokens, PROMPTS, LENGTHS, ends, strict=True):
        np.testing.assert_array_equal(row[:size], prompt[:size])
        np.testing.assert_array_equal(row[size + end :], 0)
    np.testing.assert_array_equal(samples.prompt_lengths, LENGTHS)
    columns = np.arange(11) - LENGTHS[:, None]
    np.testing.assert_array_equal(mask, (columns >= 0) & (columns < ends[:, None]))
    # Both endings occur, and a stop token only at the end.
    assert 0 < np.sum(samples.stopped) < 8
    for b in range(8):
        completion = tokens[b, LENGTHS[b] :][: ends[b]]
        assert (completion[:-1] != 0).all()
        assert samples.stopped[b] == (completion[-1] == 0)
        assert samples.stopped[b] or ends[b] == 6
    labels, weights = align_causal(samples.batch.tokens, samples.batch.mask)
    labels, weights = np.asarray(labels), np.asarray(weights)
    assert weights.sum() == ends.sum()
    np.testing.assert_array_equal(labels[weights > 0], tokens[mask > 0])
    # The log-probs go along by a roll: the first token is a prompt's, so nothing wraps around.
    np.testing.assert_array_equal(np.roll(samples.model_logps, -1, axis=1) != 0, weights > 0)


def test_without_a_cache_the_same_samples():
    model, _ = transformer()
    plain = tr.Model(init=model.init, apply=model.apply)
    expected, found = drawn(), drawn(plain)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.model_logps, expected.model_logps, atol=1e-5)
    np.testing.assert_allclose(found.sampler_logps, expected.sampler_logps, atol=1e-5)


def test_the_side_of_the_padding_changes_nothing(same):
    left = np.zeros_like(PROMPTS)
    for row, prompt, size in zip(left, PROMPTS, LENGTHS, strict=True):
        row[5 - size :] = prompt[:size]
    garbage = np.where(MASK, PROMPTS, VOCAB - 1)
    same(drawn(), drawn(prompts=left, mask=MASK[:, ::-1]))
    same(drawn(), drawn(prompts=garbage))


def test_a_row_depends_on_its_own_prompt_and_key(same):
    others = PROMPTS.copy()
    others[1:] = others[1:] % (VOCAB - 1) + 1
    row = functools.partial(jax.tree.map, lambda x: x[0])
    same(row(drawn()), row(drawn(prompts=others)))
    # A key per row travels with it.
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(8))
    order = np.array([3, 1, 7, 0, 5, 2, 4, 6])
    model, params = transformer()
    moved = tr.sample(
        model,
        params,
        PROMPTS[order],
        keys[order],
        prompt_mask=MASK[order],
        max_new_tokens=6,
        temperature=1.3,
        top_k=5,
        top_p=0.9,
        stop_token=0,
    )
    same(moved, jax.tree.map(lambda x: x[order], drawn()))
    assert (drawn(seed=1).tokens != drawn().tokens).any()


def test_greedy_is_the_argmax_rollout():
    samples = drawn(temperature=0.0, stop_token=VOCAB)
    model, params = transformer()
    apply = jax.jit(model.apply)
    tokens = np.where(MASK, PROMPTS, 0)
    tokens = np.pad(tokens, ((0, 0), (0, 6)))
    for step in range(6):
        logits = np.asarray(apply(params, tokens))[range(8), LENGTHS + step - 1]
        tokens[range(8), LENGTHS + step] = logits.argmax(-1)
    np.testing.assert_array_equal(samples.tokens, tokens)
    np.testing.assert_array_equal(samples.sampler_logps, 0)
    np.testing.assert_allclose(samples.model_logps, forced(samples)[1], atol=1e-5)


def test_eight_devices_draw_what_one_draws():
    mesh = jax.make_mesh((8,), ("data",))
    spread, alone = drawn(mesh=mesh), drawn()
    assert len(spread.tokens.sharding.device_set) == 8
    assert spread.tokens.addressable_shards[0].data.shape == (1, 11)
    np.testing.assert_array_equal(spread.tokens, alone.tokens)
    np.testing.assert_array_equal(spread.mask, alone.mask)
    np.testing.assert_allclose(spread.sampler_logps, alone.sampler_logps, atol=1e-5)
    with pytest.raises(ValueError, match="batch of 3 rows does not divide over the mesh's 8"):
        drawn(prompts=PROMPTS[:3], mask=MASK[:3], mesh=mesh)


V, LENGTH = 3, 3


@functools.cache
def tabular():
    """Logits of their own for every prefix of a prompt of one token and up to two more."""
    place = jnp.array([[0, 9, 3, 1]], jnp.int32)

    def apply(params, tokens):
        history = jnp.cumsum(tokens * place, axis=1)
        return params[jnp.arange(tokens.shape[1])[None], history]

    return tr.Model(
        init=lambda key: jnp.asarray(np.random.default_rng(8).normal(size=(4, 27, V)), jnp.float32),
        apply=apply,
    )


@pytest.mark.parametrize("settings", [(1.0, 1.0), (0.6, 0.85)])
def test_frequencies_are_the_probabilities(settings, key):
    """Chi-square over all 27 sequences at the level 0.001; the key is fixed."""
    model, count = tabular(), 20_000
    params, (temperature, top_p) = model.init(key), settings
    table = np.asarray(params, np.float64)
    prompts = np.zeros((count, 1), int)
    samples = tr.sample(
        model, params, prompts, key, max_new_tokens=LENGTH, temperature=temperature, top_p=top_p
    )
    found = np.zeros((V,) * LENGTH)
    np.add.at(found, tuple(np.asarray(samples.tokens[:, 1:]).T), 1)
    exact = np.zeros((V,) * LENGTH)
    for a, b, c in itertools.product(range(V), repeat=LENGTH):
        prefixes = (table[0, 0], table[1, 9 * a], table[2, 9 * a + 3 * b])
        steps = [truncated(logits, temperature, None, top_p)[0] for logits in prefixes]
        exact[a, b, c] = steps[0][a] * steps[1][b] * steps[2][c]
    possible = exact > 0
    assert found[~possible].sum() == 0
    assert (count * exact[possible]).min() > 5
    expected = count * exact[possible]
    statistic = np.sum((found[possible] - expected) ** 2 / expected)
    assert statistic < stats.chi2.ppf(0.999, possible.sum() - 1)
    assert (possible.sum() == 27) == (top_p == 1)


def test_stop_tokens_count_once_and_the_loop_ends_with_the_last_row():
    steps = []

    def extend(params, cache, tokens, lengths):
        jax.debug.callback(lambda: steps.append(1))
        return params[tokens[:, 0]], cache

    decode = tr.Decoding(init_cache=lambda params, batch_size, length: (), extend=extend)
    model = dataclasses.replace(counting(), decode=decode)
    params, key = model.init(jax.random.key(0)), jax.random.key(0)
    prompts = np.array([[1], [4], [5], [6]])
    samples = tr.sample(model, params, prompts, key, max_new_tokens=50, stop_token=[5, 2])
    jax.effects_barrier()
    assert len(steps) == 4
    expected = [[1, 2, 0, 0, 0], [4, 5, 0, 0, 0], [5, 6, 0, 1, 2], [6, 0, 1, 2, 0]]
    np.testing.assert_array_equal(samples.tokens[:, :5], expected)
    assert not samples.tokens[:, 5:].any()
    np.testing.assert_array_equal(samples.completion_lengths, [1, 1, 4, 3])
    np.testing.assert_array_equal(samples.mask.sum(1), [1, 1, 4, 3])
    assert samples.stopped.all()


def test_a_sample_that_was_cut_off_goes_on_as_it_would_have():
    """Prompts filled up to five tokens with what was drawn behind them."""
    whole = drawn(stop_token=VOCAB)
    again = drawn(prompts=whole.tokens[:, :5], mask=np.ones((8, 5)), stop_token=VOCAB)
    ends = np.arange(11) < LENGTHS[:, None] + 6
    np.testing.assert_array_equal(again.tokens[ends], whole.tokens[ends])
    new = ends & (np.arange(11) >= 5)[None]
    np.testing.assert_allclose(again.model_logps[new], whole.model_logps[new], atol=1e-5)


def test_a_recurrent_state_is_as_good_as_its_prefix(x64):
    """Any cache will do: here one vector per row, in double precision."""
    generator = np.random.default_rng(6)
    shapes = {"in": (VOCAB, 8), "over": (8, 8), "out": (8, VOCAB)}
    params = {name: jnp.asarray(generator.normal(size=shape)) for name, shape in shapes.items()}

    def read(params, state, tokens):
        def step(state, token):
            state = jnp.tanh(params["in"][token] + state @ params["over"])
            return state, state

        return jnp.swapaxes(jax.lax.scan(step, state, tokens.T)[1], 0, 1)

    def extend(params, state, tokens, lengths):
        state = read(params, state, tokens)[jnp.arange(len(lengths)), lengths - 1]
        return state @ params["out"], state

    model = tr.Model(
        init=lambda key: params,
        apply=lambda params, tokens: (
            read(params, jnp.zeros((len(tokens), 8)), tokens) @ params["out"]
        ),
    )
    decode = tr.Decoding(lambda params, batch_size, length: jnp.zeros((batch_size, 8)), extend)
    cached = drawn_from(dataclasses.replace(model, decode=decode), params)
    plain = drawn_from(model, params)
    np.testing.assert_array_equal(cached.tokens, plain.tokens)
    assert cached.model_logps.dtype == jnp.float64
    np.testing.assert_allclose(cached.model_logps, plain.model_logps, atol=1e-12)
    np.testing.assert_allclose(cached.sampler_logps, plain.sampler_logps, atol=1e-12)


def drawn_from(model, params):
    return tr.sample(
        model,
        params,
        PROMPTS,
        jax.random.key(3),
        prompt_mask=MASK,
        max_new_tokens=6,
        temperature=0.9,
    )


def test_bfloat16_parameters_in_float32_and_one_compilation_for_every_setting(table, key):
    traces = []

    def apply(params, tokens):
        traces.append(1)
        return table.apply(params, tokens)

    model = tr.Model(init=table.init, apply=apply)
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), table.init(key))
    logits = np.asarray(params["logits"].astype(jnp.float32))[:, :5]
    counts = []
    for temperature, top_p, stop in [(1.0, 1, 9), (0, 0.9, 2), (jnp.float32(2), 0.3, np.int64(1))]:
        samples = tr.sample(
            model,
            params,
            PROMPTS,
            key,
            max_new_tokens=3,
            vocab_size=5,
            temperature=temperature,
            top_p=top_p,
            stop_token=stop,
        )
        counts.append(len(traces))
        tokens, mask = np.asarray(samples.tokens), np.asarray(samples.mask)[:, 5:]
        assert tokens[:, 5:].max() < 5
        expected = log_softmax(logits)[tokens[:, 4:-1], tokens[:, 5:]] * mask
        np.testing.assert_allclose(samples.model_logps[:, 5:], expected, atol=1e-6)
    assert counts[0] == counts[1] == counts[2] > 0


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"prompts": np.zeros((0, 3), int)}, ValueError, r"no prompts: .* shape \(0, 3\)"),
        ({"prompts": np.zeros((2, 0), int)}, ValueError, r"no prompts: .* shape \(2, 0\)"),
        ({"prompts": np.zeros(3, int)}, ValueError, r"prompts must be tokens \[B, P\], got"),
        ({"prompts": np.zeros((2, 3))}, TypeError, "prompts must be integers, got float32"),
        ({"prompts": np.full((2, 3), -100)}, ValueError, "prompts hold the token -100: mask"),
        ({"prompt_mask": np.ones((2, 4))}, ValueError, r"prompt_mask must have the shape"),
        ({"prompt_mask": [[1, 0, 0], [0, 0, 0]]}, ValueError, "prompt 1 is empty: begin it"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens must be at least 1, got 0"),
        ({"max_new_tokens": 8}, ValueError, "3 tokens and 8 new ones .* context of 10"),
        ({"temperature": -0.5}, ValueError, "temperature must be finite and at least 0, got -0.5"),
        ({"temperature": np.nan}, ValueError, "temperature must be finite"),
        ({"temperature": np.ones(2)}, ValueError, r"temperature must be a scalar, got .*\(2,\)"),
        ({"top_k": 0}, ValueError, "top_k must be at least 1, got 0; None keeps all tokens"),
        ({"top_k": 2.5}, TypeError, "top_k must be an integer, got 2.5"),
        ({"top_p": 0.0}, ValueError, r"top_p must be in \(0, 1\], got 0.0"),
        ({"top_p": 1.01}, ValueError, r"top_p must be in \(0, 1\], got 1.01"),
        ({"stop_token": -1}, ValueError, "stop_token must be a token's id, got -1"),
        ({"stop_token": np.zeros((1, 1), int)}, ValueError, "stop_token must be one id or a list"),
        ({"key": 0}, TypeError, r"key must come from jax.random.key\(seed\), got int"),
        ({"key": jax.random.split(jax.random.key(0), 3)}, ValueError, "one for each of 2 rows"),
        ({"vocab_size": 0}, ValueError, "vocab_size must be at least 1, got 0"),
    ],
)
def test_wrong_input_gets_one_line(changed, error, message):
    model = dataclasses.replace(counting(), context=10)
    asked = {
        "prompts": np.zeros((2, 3), int),
        "key": jax.random.key(0),
        "max_new_tokens": 2,
        **changed,
    }
    with pytest.raises(error, match=message) as raised:
        tr.sample(model, np.eye(VOCAB, dtype=np.float32), **asked)
    assert "\n" not in str(raised.value)


def test_it_is_a_pure_function_under_jit():
    """The devices exchange nothing in the loop but whether every row has stopped."""
    model, params = transformer()

    @jax.jit
    def rollout(params, prompts, mask, key, temperature):
        return tr.sample(
            model,
            params,
            prompts,
            key,
            prompt_mask=mask,
            max_new_tokens=6,
            temperature=temperature,
            top_k=5,
            top_p=0.9,
            stop_token=0,
        )

    auto = jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((8,), ("data",), axis_types=(auto,))
    rows = jax.device_put((PROMPTS, MASK), jax.NamedSharding(mesh, jax.P("data")))
    whole = jax.device_put(
        (params, jax.random.key(0), jnp.float32(1.3)), jax.NamedSharding(mesh, jax.P())
    )
    compiled = rollout.lower(whole[0], *rows, *whole[1:]).compile()
    found = compiled(whole[0], *rows, *whole[1:])
    np.testing.assert_array_equal(found.tokens, drawn().tokens)
    moved = [line for line in str(compiled.as_text()).splitlines() if "channel_id=" in line]
    assert len(moved) == 1
    assert "= pred[] all-reduce(" in moved[0]
