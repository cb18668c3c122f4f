"""`distillation` where rows, tokens or whole terms do not count, whatever they hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import distillation as oracle
from oracles.distillation import B, T, V

from divax import divergences as dv
from divax.objectives import distillation

LOGITS = ("student_logits", "teacher_logits")


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jensen_shannon"])
def test_masked_rows_contribute_nothing_whatever_they_hold(batch, name, garbage):
    divergence = dv.get(name)
    dead = ~oracle.live(batch)[..., None]
    poisoned = {
        **batch,
        **{k: np.where(dead, np.float32(garbage), batch[k]) for k in LOGITS},
    }

    def loss(student, temperature, teacher):
        data = {**batch, "student_logits": student, "teacher_logits": teacher}
        value, metrics = distillation(
            **data, divergence=divergence, temperature=temperature, distill_weight=0.5
        )
        return value.total, metrics

    compute = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    clean, dirty = (
        jax.tree.map(np.asarray, compute(data[LOGITS[0]], jnp.float32(2.0), data[LOGITS[1]]))
        for data in (batch, poisoned)
    )
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)
    assert np.all(dirty[1][0][np.broadcast_to(dead, (B, T, V))] == 0)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(dirty))


@pytest.mark.parametrize("how", ["mask", "labels"])
def test_all_masked_is_zero_with_zero_gradient(batch, how):
    batch[how] = batch[how] * 0 if how == "mask" else np.full((B, T), -100)
    batch["student_logits"] = np.full((B, T, V), np.nan, np.float32)

    def loss(student):
        value, metrics = distillation(**{**batch, "student_logits": student}, distill_weight=0.5)
        return value.mean(), metrics

    (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(batch["student_logits"])
    assert float(value) == 0.0
    assert not np.any(gradient)
    assert all(float(m.mean()) == 0.0 for m in metrics.values())


def test_fractional_weights_weigh_rows(batch):
    weights = np.random.default_rng(2).uniform(0.5, 2.0, size=(B, T)).astype(np.float32)
    batch["mask"] = batch["mask"] * weights
    loss, _ = distillation(**batch, distill_weight=0.5)
    rows = oracle.batch_rows(batch, oracle.forward_kl, temperature=1.0, weight=0.5)
    keep = (batch["mask"] > 0) & (batch["labels"] >= 0)
    np.testing.assert_allclose(loss.total, (batch["mask"] * rows)[keep].sum(), rtol=2e-6)
    np.testing.assert_allclose(loss.count, batch["mask"][keep].sum(), rtol=2e-6)


@pytest.mark.parametrize("pads", [(0, 3), (3, 0), (2, 5)])
@pytest.mark.parametrize("filler", [0.0, 50.0, -np.inf, np.nan])
def test_padded_vocabularies_lose_their_padding(batch, pads, filler):
    plain, _ = distillation(**batch, distill_weight=0.5, temperature=2.0)

    def loss(student):
        return distillation(
            **{
                **batch,
                "student_logits": student,
                "teacher_logits": pad(batch["teacher_logits"], pads[1]),
            },
            distill_weight=0.5,
            temperature=2.0,
            vocab_size=V,
        )[0].total

    def pad(logits, extra):
        return np.pad(logits, ((0, 0), (0, 0), (0, extra)), constant_values=filler)

    value, gradient = jax.value_and_grad(loss)(pad(batch["student_logits"], pads[0]))
    assert float(value) == float(plain.total)
    assert np.all(np.isfinite(gradient))
    assert not np.any(gradient[..., V:])


def test_impossible_tokens_on_both_sides_are_as_if_absent(batch):
    """-inf on both sides at one id: value and gradients, that of a learned temperature too."""

    def loss(student, temperature, data):
        return distillation(
            **{**data, "student_logits": student}, temperature=temperature, distill_weight=0.5
        )[0].total

    widened = {
        k: np.pad(batch[k], ((0, 0), (0, 0), (0, 2)), constant_values=-np.inf) for k in LOGITS
    }
    at = jax.value_and_grad(loss, argnums=(0, 1))
    value, gradients = at(batch["student_logits"], jnp.float32(2.0), batch)
    wide, wide_gradients = at(widened["student_logits"], jnp.float32(2.0), {**batch, **widened})
    np.testing.assert_allclose(wide, value, rtol=1e-6)
    np.testing.assert_allclose(wide_gradients[0][..., :V], gradients[0], rtol=1e-5, atol=1e-7)
    assert not np.any(wide_gradients[0][..., V:])
    np.testing.assert_allclose(wide_gradients[1], gradients[1], rtol=1e-5)


@pytest.mark.parametrize("weight", [1.0, jnp.float32(1.0)])
def test_a_term_of_weight_zero_is_zero_even_where_it_is_infinite(batch, weight):
    batch["labels"] = np.zeros((B, T), int)
    for side in LOGITS:
        batch[side][..., 0] = -np.inf  # the label is impossible: cross-entropy +inf
    loss, metrics = distillation(**batch, distill_weight=weight)
    assert np.isfinite(float(loss.total))
    assert float(metrics["cross_entropy"].mean()) == np.inf


def test_an_impossible_label_costs_infinity_and_no_nan(batch):
    batch["labels"][2, 3] = V + 1  # outside the vocabulary
    value, gradient = jax.value_and_grad(
        lambda s: distillation(**{**batch, "student_logits": s}, distill_weight=0.5)[0].total
    )(batch["student_logits"])
    assert float(value) == np.inf
    assert np.all(np.isfinite(gradient))
