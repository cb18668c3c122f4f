"""The distribution that is sampled from, against a token-by-token NumPy transcription."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.truncation import truncated

from divax import trainers as tr


@jax.jit
def probabilities(logits, temperature, top_k, top_p):
    return jax.nn.softmax(
        tr.sampler_logits(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    )


def rows():
    """Smooth rows, rows full of ties, and rows with impossible tokens."""
    generator = np.random.default_rng(3)
    logits = generator.normal(size=(12, 9)).astype(np.float32) * 2
    logits[4:8] = generator.integers(3, size=(4, 9))
    logits[8:, [1, 5]] = -np.inf
    return logits


@pytest.mark.parametrize("top_k", [1, 3, 100])
@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 3.0])
def test_against_numpy(temperature, top_k):
    logits = rows()
    for top_p in (0.05, 0.31, 0.67, 0.93, 1.0):
        found = probabilities(logits, temperature, top_k, top_p)
        for row, got in zip(logits, found, strict=True):
            expected, margin = truncated(row, temperature, top_k, top_p)
            assert margin > 1e-5, "the case sits on a boundary: rounding would decide it"
            np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"top_k": 4}, {"top_p": 0.6}])
def test_what_is_not_asked_for_is_not_done(settings):
    found = jax.nn.softmax(tr.sampler_logits(rows(), temperature=0.8, **settings))
    expected = [truncated(row, 0.8, **settings)[0] for row in rows()]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_whole_share_keeps_the_tail_that_a_rounded_sum_would_lose():
    logits = jnp.concatenate([jnp.zeros(1), jnp.full(999, -20.0)])
    kept = {p: np.asarray(probabilities(logits, 1.0, 1000, p)) > 0 for p in (0.99, 1.0)}
    assert [kept[0.99].sum(), kept[1.0].sum()] == [1, 1000]


def test_a_tiny_temperature_is_the_limit_and_never_nan():
    logits = jnp.array([3e4, -3e4, 3e4 - 1, -jnp.inf])
    for temperature in (1e-2, 1e-30, 1e-38, 1e-44, 0.0):
        found = probabilities(logits, temperature, 4, 1.0)
        np.testing.assert_allclose(found, [1, 0, 0, 0], atol=1e-30)


def test_the_gradient_of_a_replayed_log_prob(x64):
    logits = np.random.default_rng(0).normal(size=6)

    def logp(x, temperature):
        return jax.nn.log_softmax(tr.sampler_logits(x, temperature=temperature, top_k=4))[first]

    first = int(np.argmax(logits))
    for temperature in (0.7, 2.0):
        gradient = jax.grad(logp)(jnp.asarray(logits), temperature)
        # d log p_i / d x_j = (1[i = j] - p_j) / T on what is kept.
        kept = truncated(logits, temperature, 4)[0]
        np.testing.assert_allclose(gradient, (np.eye(6)[first] - kept) / temperature, atol=1e-14)
    assert np.all(np.isfinite(jax.grad(logp)(jnp.asarray(logits), 0.0)))


def test_shapes_and_dtypes():
    logits = jnp.zeros((2, 3, 5), jnp.bfloat16)
    for top_k, top_p in itertools.product((None, 2), (None, 0.5)):
        ask = functools.partial(tr.sampler_logits, top_k=top_k, top_p=top_p)
        found = jax.eval_shape(ask, logits)
        assert (found.shape, found.dtype) == ((2, 3, 5), jnp.float32)
