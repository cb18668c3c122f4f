import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import distillation as oracle

from divax.objectives import cross_entropy

B, T, V = 3, 4, 300  # more tokens than a uint8 label can count


@pytest.fixture
def batch():
    random = np.random.default_rng(0)
    labels = random.integers(0, V, size=(B, T))
    labels[0, 1] = -100
    mask = np.ones((B, T), bool)
    mask[1, 2:] = False
    logits = random.normal(scale=2.0, size=(B, T, V)).astype(np.float32)
    logits[2, 0] += 20 * np.eye(V, dtype=np.float32)[labels[2, 0]]
    return {"logits": logits, "labels": labels, "mask": mask}


def test_value_gradient_and_accuracy_are_the_formula(batch, x64):
    logits, labels = batch["logits"].astype(np.float64), batch["labels"]
    live = batch["mask"] & (labels >= 0)

    def loss(logits):
        value, metrics = cross_entropy(**{**batch, "logits": logits})
        return value.total, (value, metrics)

    (total, (value, metrics)), gradient = jax.value_and_grad(loss, has_aux=True)(logits)
    q = oracle.softmax(logits)
    chosen = np.take_along_axis(q, np.maximum(labels, 0)[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(total, -np.log(chosen)[live].sum(), rtol=1e-12)
    assert float(value.count) == live.sum()
    np.testing.assert_allclose(
        gradient, np.where(live[..., None], q - np.eye(V)[labels], 0), rtol=1e-10, atol=1e-15
    )
    hits = (logits.argmax(-1) == labels)[live]
    assert hits.any()
    assert float(metrics["accuracy"].total) == hits.sum()


def test_uint8_labels_count_past_255():
    labels = np.full((B, T), 44, np.uint8)  # 44 = 300 - 256: an id that a uint8 iota reads twice
    wide, _ = cross_entropy(logits=np.zeros((B, T, V), np.float32), labels=labels)
    np.testing.assert_allclose(wide.mean(), np.log(V), rtol=1e-6)
    peaked = np.zeros((B, T, V), np.float32)
    peaked[..., 299] = peaked[..., 43] = 5.0
    loss, _ = cross_entropy(logits=peaked, labels=np.full((B, T), 43, np.uint8))
    np.testing.assert_allclose(loss.mean(), np.log(2 * np.exp(5) + V - 2) - 5, rtol=1e-6)


def test_padding_of_the_vocabulary_is_removed(batch):
    plain, _ = cross_entropy(**batch)
    padded = np.pad(batch["logits"], ((0, 0), (0, 0), (0, 5)), constant_values=30.0)
    cut, _ = cross_entropy(**{**batch, "logits": padded}, vocab_size=V)
    assert float(cut.total) == float(plain.total)


def test_nan_in_masked_rows_reaches_neither_value_nor_gradient(batch):
    live = batch["mask"] & (batch["labels"] >= 0)
    poisoned = np.where(live[..., None], batch["logits"], np.nan).astype(np.float32)

    def loss(logits):
        return cross_entropy(**{**batch, "logits": logits})[0].total

    clean, dirty = (jax.value_and_grad(loss)(logits) for logits in (batch["logits"], poisoned))
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)


def test_impossible_tokens_elsewhere_leave_value_and_gradient_finite(batch):
    batch["logits"][..., 7] = -np.inf
    batch["labels"][batch["labels"] == 7] = 8
    value, gradient = jax.value_and_grad(
        lambda logits: cross_entropy(**{**batch, "logits": logits})[0].total
    )(batch["logits"])
    assert np.isfinite(float(value))
    assert np.all(np.isfinite(gradient))
    assert not np.any(gradient[..., 7])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"vocab_size": V + 1}, ValueError, r"vocabulary of logits \(300\), got 301"),
        ({"labels": np.zeros((B, T))}, TypeError, "labels must be integers, got float"),
        ({"labels": np.zeros((B, T - 1), int)}, ValueError, "align_causal shifts labels"),
        ({"logits": np.zeros((B, T, V), int)}, TypeError, "logits must be floating-point logits"),
        ({"logits": np.float32(0)}, ValueError, "logits needs a vocabulary on the last axis"),
    ],
)
def test_wrong_input_says_what_is_wrong(batch, change, error, message):
    with pytest.raises(error, match=message):
        cross_entropy(**{**batch, **change})


def test_micro_batches_add_up(batch):
    whole, _ = cross_entropy(**batch)
    parts = [cross_entropy(**{k: v[i : i + 1] for k, v in batch.items()})[0] for i in range(B)]
    merged = functools.reduce(operator.add, parts)
    assert float(merged.count) == float(whole.count)
    np.testing.assert_allclose(merged.total, whole.total, rtol=1e-6)


def test_vmap_over_a_batch_axis(batch):
    swept = jax.vmap(lambda l, y: cross_entropy(logits=l, labels=y)[0])(
        jnp.asarray(batch["logits"]), jnp.asarray(batch["labels"])
    )
    whole, _ = cross_entropy(logits=batch["logits"], labels=batch["labels"])
    np.testing.assert_allclose(swept.total.sum(), whole.total, rtol=1e-6)
