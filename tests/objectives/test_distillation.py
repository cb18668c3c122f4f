"""`distillation` against row-by-row NumPy in float64, and the promises of its docstring."""

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

B, T, V = 3, 4, 9
DIVERGENCES = {
    "forward_kl": (dv.ForwardKL(), oracle.forward_kl),
    "reverse_kl": (dv.ReverseKL(), oracle.reverse_kl),
    "jensen_shannon": (dv.JensenShannon(), oracle.jensen_shannon),
}


@pytest.fixture
def batch():
    random = np.random.default_rng(0)
    labels = random.integers(0, V, size=(B, T))
    labels[0, 1] = -100
    mask = np.ones((B, T), bool)
    mask[1, 2:] = False
    return {
        "student_logits": random.normal(scale=2.0, size=(B, T, V)).astype(np.float32),
        "teacher_logits": random.normal(scale=2.0, size=(B, T, V)).astype(np.float32),
        "labels": labels,
        "mask": mask,
    }


def live(batch):
    return batch["mask"] & (batch["labels"] >= 0)


def expected_rows(batch, divergence, **options):
    student, teacher = (batch[k].reshape(-1, V) for k in ("student_logits", "teacher_logits"))
    rows = oracle.loss_rows(student, teacher, batch["labels"].reshape(-1), divergence, **options)
    return rows.reshape(B, T)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_value_is_the_formula(batch, name, temperature, weight):
    divergence, formula = DIVERGENCES[name]
    loss, _ = distillation(
        **batch, divergence=divergence, temperature=temperature, distill_weight=weight
    )
    rows = expected_rows(batch, formula, temperature=temperature, weight=weight)
    assert loss.total.dtype == loss.count.dtype == jnp.float32
    assert float(loss.count) == live(batch).sum()
    np.testing.assert_allclose(loss.total, rows[live(batch)].sum(), rtol=2e-6)


@pytest.mark.parametrize("scale_by_t2", [False, True])
def test_t2_is_a_choice(batch, scale_by_t2):
    options = {"temperature": 3.0, "scale_by_t2": scale_by_t2}
    loss, _ = distillation(**batch, distill_weight=0.5, **options)
    rows = expected_rows(batch, oracle.forward_kl, weight=0.5, **options)
    np.testing.assert_allclose(loss.total, rows[live(batch)].sum(), rtol=2e-6)


def test_reductions_get_rows_and_mask(batch):
    rows = expected_rows(batch, oracle.forward_kl, temperature=1.0, weight=0.5)
    kept = [row[keep] for row, keep in zip(rows, live(batch), strict=True)]
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
    expected = np.where(live(batch)[..., None], expected, 0)
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
        return expected_rows(moved, formula, **options)[live(batch)].sum()

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
    expected = (gaps.var(axis=-1) / 2)[live(batch)].mean()
    for name, curvature in (("forward_kl", 1.0), ("reverse_kl", 1.0), ("jensen_shannon", 0.25)):
        loss, _ = distillation(**batch, divergence=DIVERGENCES[name][0], temperature=1e3)
        # The next term of the expansion is of order max|t - s| / T = 1e-2.
        np.testing.assert_allclose(loss.mean(), curvature * expected, rtol=1e-2)


def test_metrics_are_token_means_over_the_same_mask(batch):
    loss, metrics = distillation(**batch, temperature=2.0, distill_weight=0.25)
    keep = live(batch)
    soft = {k: oracle.softmax(batch[f"{k}_logits"] / 2)[keep] for k in ("student", "teacher")}
    modes = [batch[f"{k}_logits"].argmax(-1)[keep] for k in ("student", "teacher")]
    expected = {
        "distill": expected_rows(
            batch, oracle.forward_kl, temperature=2.0, weight=1.0, scale_by_t2=False
        )[keep].mean(),
        "cross_entropy": expected_rows(batch, oracle.forward_kl, temperature=1.0, weight=0.0)[
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


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_masked_rows_contribute_nothing_whatever_they_hold(batch, name, garbage):
    divergence = DIVERGENCES[name][0]
    dead = ~live(batch)[..., None]
    poisoned = {
        **batch,
        **{
            k: np.where(dead, np.float32(garbage), batch[k])
            for k in ("student_logits", "teacher_logits")
        },
    }

    def loss(student, temperature, data):
        value, metrics = distillation(
            **{**data, "student_logits": student},
            divergence=divergence,
            temperature=temperature,
            distill_weight=0.5,
        )
        return value.total, metrics

    for data in (batch, poisoned):
        (value, metrics), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(
            data["student_logits"], jnp.float32(2.0), data
        )
        data["result"] = jax.tree.map(np.asarray, (value, metrics, gradients))
    clean, dirty = batch.pop("result"), poisoned.pop("result")
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)
    assert np.all(dirty[2][0][np.broadcast_to(dead, (B, T, V))] == 0)
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
    rows = expected_rows(batch, oracle.forward_kl, temperature=1.0, weight=0.5)
    keep = (batch["mask"] > 0) & (batch["labels"] >= 0)
    np.testing.assert_allclose(loss.total, (batch["mask"] * rows)[keep].sum(), rtol=2e-6)
    np.testing.assert_allclose(loss.count, batch["mask"][keep].sum(), rtol=2e-6)


def test_labels_are_optional_at_weight_one(batch):
    del batch["labels"]
    loss, metrics = distillation(**batch)
    assert float(loss.count) == batch["mask"].sum()
    assert "cross_entropy" not in metrics


def test_vision_logits_need_no_time_axis(batch):
    loss, _ = distillation(
        student_logits=batch["student_logits"][:, 0], teacher_logits=batch["teacher_logits"][:, 0]
    )
    rows = expected_rows(batch, oracle.forward_kl, temperature=1.0, weight=1.0)
    np.testing.assert_allclose(loss.mean(), rows[:, 0].mean(), rtol=2e-6)


@pytest.mark.parametrize("cuts", [[1], [1, 2]])
def test_micro_batches_add_up(batch, cuts, x64):
    @jax.jit
    def total_and_gradient(data):
        def total(student):
            value, _ = distillation(**{**data, "student_logits": student}, distill_weight=0.5)
            return value.total, value

        gradient, value = jax.grad(total, has_aux=True)(data["student_logits"])
        return value, gradient

    batch = {k: v.astype(np.float64) if v.dtype == np.float32 else v for k, v in batch.items()}
    whole, gradient = total_and_gradient(batch)
    split = {k: np.split(v, cuts) for k, v in batch.items()}
    parts = [total_and_gradient({k: v[i] for k, v in split.items()}) for i in range(len(cuts) + 1)]
    merged = functools.reduce(operator.add, [value for value, _ in parts])
    np.testing.assert_allclose(merged.total, whole.total, rtol=1e-14)
    assert float(merged.count) == float(whole.count)
    np.testing.assert_allclose(
        np.concatenate([g for _, g in parts]), gradient, rtol=1e-13, atol=1e-15
    )


def test_eight_devices_give_the_sums_of_one(batch):
    tiled = {k: np.concatenate([v] * 8)[:16] for k, v in batch.items()}
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    compute = jax.jit(lambda data: distillation(**data, distill_weight=0.5)[0])
    apart = compute(jax.device_put(tiled, sharding))
    together = compute(tiled)
    assert float(apart.count) == float(together.count)
    np.testing.assert_allclose(apart.total, together.total, rtol=1e-6)


def test_one_trace_serves_every_hyper_parameter(batch):
    traces = []

    @jax.jit
    def loss(temperature, weight, divergence):
        traces.append(1)
        return distillation(
            **batch, temperature=temperature, distill_weight=weight, divergence=divergence
        )[0].mean()

    for temperature, weight, alpha in ((1.0, 0.1, 0.2), (2.0, 0.5, 0.5), (4.0, 1.0, 0.9)):
        assert np.isfinite(loss(temperature, weight, dv.Alpha(alpha=alpha)))
    assert len(traces) == 1


def test_vmap_over_temperature_is_the_loop(batch):
    temperatures = jnp.array([0.5, 1.0, 3.0])
    swept = jax.vmap(lambda t: distillation(**batch, temperature=t, distill_weight=0.5)[0].mean())(
        temperatures
    )
    looped = [
        expected_rows(batch, oracle.forward_kl, temperature=float(t), weight=0.5)[
            live(batch)
        ].mean()
        for t in temperatures
    ]
    np.testing.assert_allclose(swept, looped, rtol=2e-6)


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_bfloat16_logits_give_what_float32_gives_on_the_same_values(batch, temperature):
    halved = {k: jnp.asarray(batch[k], jnp.bfloat16) for k in ("student_logits", "teacher_logits")}
    options = {"temperature": temperature, "distill_weight": 0.5}
    from_half, _ = distillation(**{**batch, **halved}, **options)
    exact = {k: v.astype(jnp.float32) for k, v in halved.items()}
    from_full, _ = distillation(**{**batch, **exact}, **options)
    assert float(from_half.total) == float(from_full.total)
    gradient = jax.grad(
        lambda s: distillation(**{**batch, **halved, "student_logits": s}, **options)[0].total
    )(halved["student_logits"])
    assert gradient.dtype == jnp.bfloat16


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
        k: np.pad(batch[k], ((0, 0), (0, 0), (0, 2)), constant_values=-np.inf)
        for k in ("student_logits", "teacher_logits")
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
    for side in ("student_logits", "teacher_logits"):
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


def test_metrics_and_padding_store_nothing_of_the_size_of_the_logits():
    """In the training step, where the gradient has to be stored anyway."""
    shape = (2, 64, 4096)
    logits = jax.ShapeDtypeStruct(shape, jnp.float32)
    labels = jax.ShapeDtypeStruct(shape[:-1], jnp.int32)

    def temporary_bytes(with_metrics, vocab_size):
        def loss(student, teacher, labels):
            value, metrics = distillation(
                student_logits=student,
                teacher_logits=teacher,
                labels=labels,
                distill_weight=0.5,
                vocab_size=vocab_size,
            )
            return value.total, metrics if with_metrics else None

        step = jax.jit(jax.value_and_grad(loss, has_aux=True))
        compiled = step.lower(logits, logits, labels).compile()
        return compiled.memory_analysis().temp_size_in_bytes  # pyright: ignore[reportOptionalMemberAccess]

    half_an_array = 4 * np.prod(shape) / 2
    plain = temporary_bytes(False, None)
    assert temporary_bytes(True, None) < plain + half_an_array
    assert temporary_bytes(False, 4000) < plain + half_an_array


WRONG = [
    (
        {"teacher_logits": np.zeros((B, T, V + 7), np.float32)},
        ValueError,
        rf"vocabularies differ: {V} and {V + 7}. Same tokenizer padded differently: pass "
        r"vocab_size=.*Different tokenizers: .* use a cross-tokenizer objective",
    ),
    (
        {"vocab_size": V + 1},
        ValueError,
        rf"vocab_size must lie between 1 and the vocabulary of student_logits \({V}\), got {V + 1}",
    ),
    ({"vocab_size": 0}, ValueError, "vocab_size must lie between 1 and"),
    (
        {"vocab_size": 8.0},
        TypeError,
        "vocab_size must be an integer known at trace time, got float",
    ),
    (
        {"teacher_logits": np.zeros((B, T + 1, V), np.float32)},
        ValueError,
        r"must agree in every axis but the last: run both models on the same tokens",
    ),
    (
        {"labels": np.zeros((B, T - 1), int)},
        ValueError,
        r"labels must have one entry per row of student_logits, shape \(3, 4\), got \(3, 3\); "
        "divax.objectives.align_causal shifts labels",
    ),
    ({"labels": np.zeros((B, T))}, TypeError, "labels must be integers, got float"),
    ({"mask": np.ones(B)}, ValueError, r"mask must have one entry per row .* got \(3,\)"),
    ({"labels": None}, ValueError, "distill_weight=0.5 mixes in .* labels is None; pass labels="),
    (
        {"labels": None, "distill_weight": jnp.float32(1.0)},
        ValueError,
        "labels is None; pass labels=, or leave distill_weight at the number 1",
    ),
    ({"distill_weight": 1.5}, ValueError, r"distill_weight must lie in \[0, 1\], got 1.5"),
    ({"distill_weight": -0.1}, ValueError, r"distill_weight must lie in \[0, 1\], got -0.1"),
    (
        {"distill_weight": np.ones(2)},
        ValueError,
        r"must be a scalar, got shape \(2,\); use jax.vmap",
    ),
    ({"temperature": 0.0}, ValueError, "temperature must be positive and finite, got 0.0"),
    ({"temperature": np.inf}, ValueError, "temperature must be positive and finite, got inf"),
    ({"temperature": float("nan")}, ValueError, "temperature must be positive and finite, got nan"),
    ({"temperature": np.ones((2,))}, ValueError, r"temperature must be a scalar, got shape \(2,\)"),
    ({"divergence": "forward_kl"}, TypeError, r"divax.divergences.get\('forward_kl'\) makes one"),
    ({"divergence": dv.ReverseKL}, TypeError, "got ReverseKL; pass an instance such as ForwardKL"),
    ({"divergence": 0.5}, TypeError, "divergence must be a divergence, got float"),
    (
        {"divergence": lambda t, s: jnp.sum(t - s)},
        ValueError,
        r"the value of the divergence must have one entry per row .* got \(\)",
    ),
    (
        {"student_logits": np.zeros((B, T, V), int)},
        TypeError,
        "student_logits must be floating-point logits, got int",
    ),
    (
        {"teacher_logits": np.zeros((B, T, 0), np.float32)},
        ValueError,
        "teacher_logits needs a vocabulary on the last axis",
    ),
]


@pytest.mark.parametrize(("change", "error", "message"), WRONG)
def test_wrong_input_says_what_is_wrong_and_what_to_do(batch, change, error, message):
    with pytest.raises(error, match=message):
        distillation(**{**batch, "distill_weight": 0.5, **change})
