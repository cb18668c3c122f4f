"""`distillation` split, sharded, traced, swept, in half precision, and what it stores."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import distillation as oracle

from divax import divergences as dv
from divax.objectives import distillation


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
        oracle.batch_rows(batch, oracle.forward_kl, temperature=float(t), weight=0.5)[
            oracle.live(batch)
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
