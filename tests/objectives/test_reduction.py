import functools
import operator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divax.objectives import constant_sum, sequence_mean, token_mean

B, T = 6, 5
CONSTANT = 8.0


def oracle(name, values, mask):
    """The reductions by loops over sequences and tokens, in Python floats."""
    rows = [
        [(float(m), float(v)) for m, v in zip(ms, vs, strict=True) if m]
        for ms, vs in zip(mask, values, strict=True)
    ]
    sums = [sum(m * v for m, v in row) for row in rows]
    weights = [sum(m for m, _ in row) for row in rows]
    sequences = sum(1 for row in rows if row)
    if name == "token_mean":
        return sum(sums) / max(sum(weights), 1)
    if name == "sequence_mean":
        means = [s / max(w, 1) for s, w in zip(sums, weights, strict=True)]
        return sum(means) / max(sequences, 1)
    return sum(s / CONSTANT for s in sums) / max(sequences, 1)


REDUCTIONS = {
    "token_mean": token_mean,
    "sequence_mean": sequence_mean,
    "constant_sum": partial(constant_sum, constant=CONSTANT),
}
EVERY = pytest.mark.parametrize("name", REDUCTIONS)


@pytest.fixture
def batch():
    random = np.random.default_rng(0)
    values = random.normal(size=(B, T)).astype(np.float32)
    mask = random.integers(0, 2, size=(B, T))
    mask[2] = 0  # an empty sequence
    mask[3] = 1
    return values, mask


@EVERY
@pytest.mark.parametrize("dtype", [bool, np.int32, np.uint8, np.float32, jnp.bfloat16])
def test_value_is_the_loops_value_for_any_mask_dtype(name, batch, dtype):
    values, mask = batch
    mean = REDUCTIONS[name](values, mask.astype(dtype)).mean()
    assert mean.dtype == jnp.float32
    np.testing.assert_allclose(mean, oracle(name, values, mask), rtol=1e-6)


@EVERY
def test_fractional_weights(name, batch):
    values, mask = batch
    weights = mask * np.random.default_rng(1).uniform(0.5, 3.0, size=mask.shape).astype(np.float32)
    mean = REDUCTIONS[name](values, weights).mean()
    np.testing.assert_allclose(mean, oracle(name, values, weights), rtol=1e-6)


@EVERY
def test_any_split_into_micro_batches_adds_up(name, batch, x64):
    values, mask = batch
    reduce = REDUCTIONS[name]
    whole = reduce(values, mask)
    for cuts in ([1], [2, 3], [1, 2, 3, 4, 5]):
        parts = zip(np.split(values, cuts), np.split(mask, cuts), strict=True)
        merged = functools.reduce(operator.add, [reduce(v, m) for v, m in parts])
        np.testing.assert_allclose(merged.total, whole.total, rtol=1e-14)
        assert float(merged.count) == float(whole.count)


@EVERY
def test_rows_of_padding_and_order_change_nothing(name, batch):
    values, mask = batch
    reduce = REDUCTIONS[name]
    whole = reduce(values, mask)
    padded = reduce(
        np.concatenate([values, np.full((3, T), np.nan, np.float32)]),
        np.concatenate([mask, np.zeros((3, T), mask.dtype)]),
    )
    np.testing.assert_allclose(padded.mean(), whole.mean(), rtol=1e-6)
    reversed_ = reduce(values[::-1], mask[::-1])
    np.testing.assert_allclose(reversed_.mean(), whole.mean(), rtol=1e-6)


@EVERY
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf])
def test_masked_values_may_be_anything(name, batch, garbage):
    values, mask = batch
    poisoned = np.where(mask, values, np.float32(garbage))
    value, gradient = jax.value_and_grad(lambda v: REDUCTIONS[name](v, mask).mean())(
        jnp.asarray(poisoned)
    )
    np.testing.assert_allclose(value, oracle(name, values, mask), rtol=1e-6)
    assert np.all(np.asarray(gradient)[mask == 0] == 0)


@EVERY
def test_nothing_counted_is_zero_with_zero_gradient(name, batch):
    values, mask = batch
    value, gradient = jax.value_and_grad(lambda v: REDUCTIONS[name](v, mask * 0).mean())(values)
    assert float(value) == 0.0
    assert not np.any(gradient)


def test_bfloat16_values_and_masks_count_in_float32():
    ones = jnp.ones((1, 5000), jnp.bfloat16)  # a bfloat16 sum would stop at 256
    reduced = token_mean(ones, ones)
    assert (float(reduced.total), float(reduced.count)) == (5000.0, 5000.0)


def test_token_mean_takes_decisions_without_a_time_axis():
    assert float(token_mean(jnp.array([1.0, 5.0]), jnp.array([True, True])).mean()) == 3.0
    assert float(token_mean(jnp.float32(2.0), True).mean()) == 2.0


def test_a_traced_constant_serves_a_sweep():
    sweep = jax.vmap(lambda c: constant_sum(jnp.ones((1, 4)), jnp.ones((1, 4)), c).mean())
    assert sweep(jnp.array([1.0, 2.0, 4.0])).tolist() == [4.0, 2.0, 1.0]


@EVERY
def test_mismatched_shapes_name_both(name):
    message = r"one shape, got \(2, 3\) and \(2,\); a mask has one weight per token"
    with pytest.raises(ValueError, match=message):
        REDUCTIONS[name](jnp.ones((2, 3)), jnp.ones(2))


@pytest.mark.parametrize("name", ["sequence_mean", "constant_sum"])
def test_sequences_need_a_time_axis(name):
    with pytest.raises(ValueError, match="sums over time on the last axis"):
        REDUCTIONS[name](jnp.float32(1.0), jnp.float32(1.0))


@pytest.mark.parametrize("constant", [0, -1.0, float("nan")])
def test_constant_must_be_positive(constant):
    with pytest.raises(ValueError, match="constant must be positive, got"):
        constant_sum(jnp.ones((1, 2)), jnp.ones((1, 2)), constant)
