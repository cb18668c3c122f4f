"""Exact accumulation: sums over sums, whatever the micro-batches."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from divax import objectives
from divax import trainers as tr
from divax.objectives import Weighted


def squared_error(params, batch, key):
    """Sum over the live rows of (w . x - y)^2, and their number."""
    del key
    x, y, live = batch
    rows = jnp.where(live, (x @ params - y) ** 2, 0)
    return Weighted(rows.sum(), live.sum().astype(rows.dtype)), {}


def regression(live):
    generator = np.random.default_rng(3)
    return generator.normal(size=(8, 3)), generator.normal(size=8), np.asarray(live)


def numpy_update(w, batch, rate):
    x, y, live = batch
    grad = sum(2 * (x[i] @ w - y[i]) * x[i] for i in range(8) if live[i]) / max(live.sum(), 1)
    return w - rate * grad, np.linalg.norm(grad)


UNEVEN = [True, True, True, False, False, True, False, False]


@pytest.mark.parametrize("micro_batches", [1, 2, 4, 8])
def test_any_split_gives_the_gradient_of_the_whole(x64, key, micro_batches):
    batch = regression(UNEVEN)
    w = np.array([0.3, -1.0, 2.0])
    expected, norm = numpy_update(w, batch, 0.1)
    step = tr.make_step(squared_error, optax.sgd(0.1), micro_batches)
    state, metrics = step(tr.TrainState.create(jnp.asarray(w), optax.sgd(0.1), key), batch)
    np.testing.assert_allclose(state.params, expected, rtol=1e-13)
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-13)
    x, y, live = batch
    np.testing.assert_allclose(metrics["loss"], ((x @ w - y) ** 2)[live].mean(), rtol=1e-13)


def test_a_mean_of_means_would_be_another_update(x64):
    x, y, live = regression(UNEVEN)
    w = np.array([0.3, -1.0, 2.0])
    exact, _ = numpy_update(w, (x, y, live), 0.1)
    rows = [np.array([i in (m, m + 4) for i in range(8)]) & live for m in range(4)]
    parts = [numpy_update(w, (x, y, part), 0.1)[0] for part in rows]
    assert np.abs(np.mean(parts, axis=0) - exact).max() > 1e-2


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_nothing_counted_changes_nothing(key, micro_batches):
    x, y, live = (v.astype(np.float32) for v in regression([False] * 8))
    step = tr.make_step(squared_error, optax.sgd(0.1), micro_batches)
    before = jnp.array([0.3, -1.0, 2.0])
    state, metrics = step(tr.TrainState.create(before, optax.sgd(0.1), key), (x, y, live > 0))
    np.testing.assert_array_equal(state.params, before)
    assert float(metrics["loss"]) == 0
    assert float(metrics["grad_norm"]) == 0


def test_micro_batches_of_a_language_model(table, batches, key):
    """1 x 8 and 8 x 1 of a real objective with uneven masks, in float32."""

    def after(micro_batches):
        trainer = tr.language_model(
            model=table, optimizer=optax.sgd(1.0), micro_batches=micro_batches
        )
        state, metrics = trainer.init(key), {}
        for i in range(3):
            state, metrics = trainer.step(state, batches(i))
        return state.params["logits"], metrics["loss"]

    (one, loss_one), (eight, loss_eight) = after(1), after(8)
    # Sums of at most 40 float32 terms below 1, reordered: 40 * 2**-24 per step.
    np.testing.assert_allclose(one, eight, atol=1e-5)
    np.testing.assert_allclose(loss_one, loss_eight, rtol=1e-5)


@pytest.mark.parametrize(("rows", "parts"), [(8, 3), (8, 16)])
def test_parts_must_divide_the_batch(table, key, rows, parts):
    trainer = tr.language_model(model=table, optimizer=optax.sgd(1.0), micro_batches=parts)
    batch = tr.Batch(tokens=np.zeros((rows, 4), np.int32))
    with pytest.raises(ValueError, match=f"{parts} micro-batches do not divide a batch of {rows}"):
        trainer.step(trainer.init(key), batch)


def test_parts_must_be_positive():
    with pytest.raises(ValueError, match="micro_batches must be at least 1, got 0"):
        tr.make_step(squared_error, optax.sgd(0.1), 0)


def test_every_micro_batch_and_step_has_its_own_key(key):
    def noise(params, batch, key):
        draw = jax.random.normal(key)
        return Weighted(params * draw, jnp.float32(1)), {
            "first": Weighted(draw, jnp.float32(1)),
            "square": Weighted(draw**2, jnp.float32(1)),
        }

    step = jax.jit(tr.make_step(noise, optax.sgd(0.1), 2))
    state = tr.TrainState.create(jnp.float32(0), optax.sgd(0.1), key)
    state, one = step(state, jnp.zeros(2))
    _, two = step(state, jnp.zeros(2))
    # Equal draws would have mean(draw)^2 == mean(draw^2).
    assert abs(float(one["first"]) ** 2 - float(one["square"])) > 1e-3
    assert float(one["first"]) != float(two["first"])


def test_the_learning_rate_is_reported_where_the_optimizer_states_it(table, batches, key, relaxed):
    stated = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.inject_hyperparams(optax.adamw)(learning_rate=optax.linear_schedule(0.5, 0, 10)),
    )
    for optimizer, rates in ((stated, [0.5, 0.45]), (optax.adamw(1e-3), [None, None])):
        trainer = tr.language_model(model=table, optimizer=relaxed(optimizer))
        state = trainer.init(key)
        for i, rate in enumerate(rates):
            state, metrics = trainer.step(state, batches(i))
            assert ("learning_rate" in metrics) == (rate is not None)
            if rate is not None:
                assert float(metrics["learning_rate"]) == pytest.approx(rate, rel=1e-6)


def test_bfloat16_parameters_accumulate_in_float32(key):
    """The mean of 512 gradients of 1: a bfloat16 sum stalls at 256, where its spacing is 2."""

    def loss_fn(params, batch, key):
        return Weighted(jnp.sum(params.astype(jnp.float32) * batch), jnp.float32(1)), {}

    step = tr.make_step(loss_fn, optax.sgd(1.0), 512)
    state = tr.TrainState.create(jnp.bfloat16(0), optax.sgd(1.0), key)
    state, metrics = step(state, jnp.ones(512, jnp.float32))
    assert state.params.dtype == jnp.bfloat16
    assert float(state.params) == -1
    assert float(metrics["grad_norm"]) == 1


def test_the_update_is_that_of_a_hand_written_optax_loop(table, batches, key, adam):
    optimizer = adam(1e-2)

    def loss_fn(params, batch):
        labels, mask = objectives.align_causal(batch.tokens, batch.mask)
        logp = jax.nn.log_softmax(params["logits"][batch.tokens])
        picked = jnp.take_along_axis(logp, jnp.maximum(labels, 0)[..., None], axis=-1)[..., 0]
        return -(picked * mask).sum() / jnp.maximum(mask.sum(), 1)

    trainer = tr.language_model(model=table, optimizer=optimizer)
    state = trainer.init(key)
    params: Any = jax.tree.map(jnp.copy, state.params)
    opt_state = optimizer.init(params)
    for i in range(5):
        state, _ = trainer.step(state, batches(i))
        updates, opt_state = optimizer.update(jax.grad(loss_fn)(params, batches(i)), opt_state)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(state.params["logits"], params["logits"], atol=1e-5)
