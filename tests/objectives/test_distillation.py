"""`distillation` against row-by-row NumPy in float64: values, gradients and metrics."""

import functools
import operator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import distillation as oracle

from divax import divergences as dv
from divax.objectives import constant_sum, distillation, sequence_mean, token_mean

DIVERGENCES = {
    "forward_kl": (dv.ForwardKL(), oracle.forward_kl),
    "reverse_kl": (dv.ReverseKL(), oracle.reverse_kl),
    "jensen_shannon": (dv.JensenShannon(), oracle.jensen_shannon),
}


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_value_is_the_formula(batch, name, temperature, weight):
    divergence, formula = DIVERGENCES[name]
    loss, _ = distillation(
        **batch, divergence=divergence, temperature=temperature, distill_weight=weight
    )
    rows = oracle.batch_rows(batch, formula, temperature=temperature, weight=weight)
    assert loss.total.dtype == loss.count.dtype == jnp.float32
    assert float(loss.count) == oracle.live(batch).sum()
    np.testing.assert_allclose(loss.total, rows[oracle.live(batch)].sum(), rtol=2e-6)


@pytest.mark.parametrize("scale_by_t2", [False, True])
def test_t2_is_a_choice(batch, scale_by_t2):
    options = {"temperature": 3.0, "scale_by_t2": scale_by_t2}
    loss, _ = distillation(**batch, distill_weight=0.5, **options)
    rows = oracle.batch_rows(batch, oracle.forward_kl, weight=0.5, **options)
    np.testing.assert_allclose(loss.total, rows[oracle.live(batch)].sum(), rtol=2e-6)


def test_reductions_get_rows_and_mask(batch):
    rows = oracle.batch_rows(batch, oracle.forward_kl, temperature=1.0, weight=0.5)
    kept = [row[keep] for row, keep in zip(rows, oracle.live(batch), strict=True)]
    expected = {
        token_mean: np.concatenate(kept).mean(),
        sequence_mean: np.mean([row.mean() for row in kept]),
        partial(constant_sum, constant=16.0): np.mean([row.sum() / 16 for row in kept]),
    }
    for reduction, value in expected.items():
        loss, _ = distillation(**batch, distill_weight=0.5, reduction=reduction)
        np.testing.assert_allclose(loss.mean(), value, rtol=2e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_gradient_of_the_forward_kl_is_the_closed_form(batch, temperature, x64):
    batch = {k: v.astype(np.float64) if v.dtype == np.float32 else v for k, v in batch.items()}
    gradient = jax.grad(
        lambda s: (
            distillation(
                **{**batch, "student_logits": s}, temperature=temperature, distill_weight=0.7
            )[0].total
        )
    )(batch["student_logits"])
    expected = oracle.forward_kl_gradient(
        batch["student_logits"],
        batch["teacher_logits"],
        np.maximum(batch["labels"], 0),
        temperature=temperature,
        weight=0.7,
    )
    expected = np.where(oracle.live(batch)[..., None], expected, 0)
    np.testing.assert_allclose(gradient, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_gradients_are_those_of_finite_differences(batch, name, x64):
    """Along a random direction of (student, temperature, weight), on the NumPy loss."""
    divergence, formula = DIVERGENCES[name]
    student = batch["student_logits"].astype(np.float64)
    teacher = batch["teacher_logits"].astype(np.float64)
    direction = np.random.default_rng(1).normal(size=student.shape)

    def reference(step):
        moved = {**batch, "student_logits": student + step * direction, "teacher_logits": teacher}
        options = {"temperature": 2.0 + step, "weight": 0.4 - step}
        return oracle.batch_rows(moved, formula, **options)[oracle.live(batch)].sum()

    def loss(student, temperature, weight):
        return distillation(
            student_logits=student,
            teacher_logits=teacher,
            labels=batch["labels"],
            mask=batch["mask"],
            divergence=divergence,
            temperature=temperature,
            distill_weight=weight,
        )[0].total

    point = (student, np.float64(2.0), np.float64(0.4))
    _, slope = jax.jvp(loss, point, (direction, np.float64(1.0), np.float64(-1.0)))
    h = 1e-5  # central differences: error h² f'''/6, about 1e-9 here
    np.testing.assert_allclose(slope, (reference(h) - reference(-h)) / (2 * h), rtol=1e-7)


def test_no_gradient_reaches_the_teacher(batch):
    gradient = jax.grad(
        lambda t: distillation(**{**batch, "teacher_logits": t}, distill_weight=0.5)[0].total
    )(batch["teacher_logits"])
    assert not np.any(gradient)


def test_a_hot_temperature_tends_to_half_the_variance(batch):
    """T² D -> f''(1)/2 Var_uniform(t - s), the same for every member once f''(1) is divided out."""
    gaps = batch["teacher_logits"].astype(np.float64) - batch["student_logits"]
    expected = (gaps.var(axis=-1) / 2)[oracle.live(batch)].mean()
    for name, curvature in (("forward_kl", 1.0), ("reverse_kl", 1.0), ("jensen_shannon", 0.25)):
        loss, _ = distillation(**batch, divergence=DIVERGENCES[name][0], temperature=1e3)
        # The next term of the expansion is of order max|t - s| / T = 1e-2.
        np.testing.assert_allclose(loss.mean(), curvature * expected, rtol=1e-2)


def test_metrics_are_token_means_over_the_same_mask(batch):
    loss, metrics = distillation(**batch, temperature=2.0, distill_weight=0.25)
    keep = oracle.live(batch)
    soft = {k: oracle.softmax(batch[f"{k}_logits"] / 2)[keep] for k in ("student", "teacher")}
    modes = [batch[f"{k}_logits"].argmax(-1)[keep] for k in ("student", "teacher")]
    expected = {
        "distill": oracle.batch_rows(
            batch, oracle.forward_kl, temperature=2.0, weight=1.0, scale_by_t2=False
        )[keep].mean(),
        "cross_entropy": oracle.batch_rows(batch, oracle.forward_kl, temperature=1.0, weight=0.0)[
            keep
        ].mean(),
        "student_entropy": np.mean([oracle.entropy(q) for q in soft["student"]]),
        "teacher_entropy": np.mean([oracle.entropy(p) for p in soft["teacher"]]),
        "agreement": np.mean(modes[0] == modes[1]),
    }
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        assert float(metrics[name].count) == float(loss.count)
        np.testing.assert_allclose(metrics[name].mean(), value, rtol=2e-6, err_msg=name)
    parts = 0.25 * 4 * expected["distill"] + 0.75 * expected["cross_entropy"]
    np.testing.assert_allclose(loss.mean(), parts, rtol=2e-6)


def test_metrics_carry_no_gradient(batch):
    def total(student):
        _, metrics = distillation(**{**batch, "student_logits": student}, distill_weight=0.5)
        return functools.reduce(operator.add, metrics.values()).total

    assert not np.any(jax.grad(total)(batch["student_logits"]))


def test_labels_are_optional_at_weight_one(batch):
    del batch["labels"]
    loss, metrics = distillation(**batch)
    assert float(loss.count) == batch["mask"].sum()
    assert "cross_entropy" not in metrics


def test_vision_logits_need_no_time_axis(batch):
    loss, _ = distillation(
        student_logits=batch["student_logits"][:, 0], teacher_logits=batch["teacher_logits"][:, 0]
    )
    rows = oracle.batch_rows(batch, oracle.forward_kl, temperature=1.0, weight=1.0)
    np.testing.assert_allclose(loss.mean(), rows[:, 0].mean(), rtol=2e-6)
