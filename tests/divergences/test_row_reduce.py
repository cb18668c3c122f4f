"""What a GPU or TPU does with given logits, here on a CPU: one reduction over pairs, the same numbers as everywhere."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from divax import divergences as dv
from divax.divergences import f_divergence, row_blocks
from divax.divergences.row_reduce import reduced_value

MEMBERS = [
    dv.ForwardKL(),
    dv.ReverseKL(),
    0.7 * dv.ForwardKL() + 0.2 * dv.ReverseKL() + 0.1 * dv.Jeffreys(),
    0.4 * dv.JensenShannon(target_weight=0.3) + 0.6 * dv.TotalVariation(),
    dv.ForwardKL() + dv.Alpha(alpha=0.5),
]
RNG = np.random.default_rng(5)
SHAPE = (2, 3, 400)
TARGET = RNG.normal(0, 2, SHAPE)
MODEL = TARGET + RNG.normal(1, 1, SHAPE)


def supports():
    """Rows in which tokens are impossible on one side, on both, everywhere, and with a large number for −inf."""
    target, model = TARGET.copy(), MODEL.copy()
    model[0, 0, 7] = target[0, 1, 3] = target[0, 2, :9] = -np.inf
    model[0, 2, 5:300] = -np.inf
    target[1, 0, 1:] = -np.inf
    model[1, 1] = -np.inf
    target[1, 2, 200:], model[1, 2, 100:300] = -1e9, -3e4
    return target, model


def saturated():
    """A one-hot target by +inf, and by a large logit; a target whose other logits are all masked."""
    target, model = TARGET.copy(), MODEL.copy()
    target[0, 0, 4], target[0, 1, 9], model[0, 2, 2] = np.inf, 1e2, 80.0
    model[1, 0] = target[1, 0] + 300
    target[1, 1, 50:], target[1, 2, :390] = np.finfo(np.float32).min, -1e3
    return target, model


CASES = [(TARGET, MODEL), supports(), saturated()]


def other_machines(monkeypatch):
    """From here on, what they do."""
    monkeypatch.setattr(
        f_divergence, "by_machine", lambda here, elsewhere, div, *arrays: elsewhere(*arrays)
    )


def finite(values):
    return jnp.where(jnp.isfinite(values), values, 0)


def first_order(target, model, _, members=MEMBERS):
    """Values and gradients of each member."""

    def of(div):
        values, pull = jax.vjp(lambda t, s: finite(div(t, s)), target, model)
        weights = jnp.cos(jnp.arange(6.0)).reshape(2, 3).astype(values.dtype)
        return div(target, model), pull(weights)

    return [of(div) for div in members]


def all_orders(target, model, dot):
    """And tangents, with a Hessian-vector product."""

    def twice(div):
        total = lambda t, s: jnp.sum(jnp.tanh(finite(div(t, s))))  # noqa: E731
        return jax.jvp(jax.grad(total, argnums=(0, 1)), (target, model), (dot, -dot))

    members = MEMBERS[2:4]
    return first_order(target, model, dot, members), [twice(div) for div in members]


@pytest.mark.parametrize(
    ("dtype", "derivatives", "tolerance"),
    [(np.float64, all_orders, 1e-11), (np.float32, first_order, 3e-5)],
)
def test_the_same_numbers(monkeypatch, dtype, derivatives, tolerance):
    with jax.enable_x64(dtype == np.float64):
        dot = RNG.normal(0, 1, SHAPE).astype(dtype)
        arrays = [[x.astype(dtype) for x in case] for case in CASES]
        here = jax.jit(lambda *case: derivatives(*case))
        expected = [here(*case, dot) for case in arrays]
        other_machines(monkeypatch)
        there = jax.jit(lambda *case: derivatives(*case))
        for case, want in zip(arrays, expected, strict=True):
            close(there(*case, dot), want, tolerance)


def close(found, wanted, tolerance):
    """Up to rounding at the size of a row's largest number."""
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(np.isfinite(x), np.isfinite(y))
        size = np.abs(finite(y)).max(-1, keepdims=True) if np.ndim(y) == 3 else np.abs(y)
        assert np.all(np.abs(finite(x) - finite(y)) < tolerance * (1 + finite(size)))


def exact(target, model):
    """KL(p‖q) in 50 digits."""
    with mpmath.workdps(50):
        p, q = ([mpmath.exp(mpmath.mpf(float(z))) for z in row] for row in (target, model))
        p, q = ([x / sum(row) for x in row] for row in (p, q))
        return float(sum(x * mpmath.log(x / y) for x, y in zip(p, q, strict=True)))


def test_close_models_and_where_few_tokens_centre_them_badly():
    """The error that the docstring states, in float32, for logits of which a thousandth differs: some ε·(1 + (m − c)²/D)."""
    target = RNG.normal(0, 2, (5, 400)).astype(np.float32)
    model = target + np.array([1e-3, 1e-1, 1, 1e-3, 1e-3])[:, None] * RNG.normal(0, 1, (5, 400))
    model = model.astype(np.float32)
    model[3] += 40  # a constant says nothing
    target[4, 256:320], off = target[4, 256:320] - 3, np.float32(0.5)
    model[4, 256:320] = target[4, 256:320] - off
    found = jax.jit(reduced_value)(dv.ForwardKL(), target, model)
    for row in range(5):
        want = exact(target[row], model[row])
        bound = 1e-5 * (1 + (off**2 / want if row == 4 else 0))
        assert abs(float(found[row]) - want) < bound * want
    assert not np.any(jax.jit(reduced_value)(dv.ReverseKL(), target, target))


def test_bfloat16_and_a_vocabulary_of_one(monkeypatch):
    other_machines(monkeypatch)
    target, model = (jnp.asarray(x, jnp.bfloat16) for x in (TARGET, MODEL))
    both = jax.jit(jax.value_and_grad(lambda s: jnp.sum(dv.ReverseKL()(target, s))))
    value, slope = both(model)
    wide = [np.asarray(x, np.float64) for x in (target, model)]
    q, p = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in wide[::-1])
    rows = (q * np.log(q / p)).sum(-1, keepdims=True)
    np.testing.assert_allclose(value, rows.sum(), 1e-6)
    np.testing.assert_allclose(slope.astype(np.float32), q * (np.log(q / p) - rows), 2e-2, 1e-6)
    assert slope.dtype == jnp.bfloat16
    assert float(jax.jit(dv.Jeffreys())(jnp.ones(1), jnp.zeros(1))) == 0


def test_each_machine_gets_its_own_program():
    """Where the program is compiled decides: no loop of a CPU's on a GPU or TPU, and one reduction of many operands."""
    logits = jax.ShapeDtypeStruct((256, 4096), jnp.float32)
    traced = jax.jit(jax.value_and_grad(lambda s, t: jnp.sum(dv.ReverseKL()(t, s)))).trace(
        logits, logits
    )
    text = {
        name: traced.lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "cuda", "tpu")
    }
    assert "while" in text["cpu"]
    assert "while" not in text["cuda"]
    assert "while" not in text["tpu"]
    many = [text[name].count("stablehlo.reduce(%") for name in ("cuda", "tpu")]
    assert many[0] == many[1] > 0


def test_on_a_gpu():
    """The program that it compiles: the numbers, and no temporaries."""
    try:
        device = jax.devices("gpu")[0]
    except RuntimeError:
        pytest.skip("no GPU here")
    rng = np.random.default_rng(0)
    wide = rng.normal(0, 2, (256, 32768))
    wide = [wide, wide + rng.normal(0, 0.3, wide.shape)]
    target, model = (jax.device_put(jnp.asarray(x, jnp.float32), device) for x in wide)
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in wide)
    m = (p + q) / 2
    js = 0.5 * (p * np.log(p / m) + q * np.log(q / m)).sum(-1)
    for div, want in ((dv.ForwardKL(), (p * np.log(p / q)).sum(-1)), (dv.JensenShannon(), js)):
        both = jax.value_and_grad(lambda s, t, div=div: jnp.sum(div(t, s)))
        compiled = jax.jit(both).lower(model, target).compile()
        value, slope = compiled(model, target)
        np.testing.assert_allclose(value, want.sum(), 2e-5)
        if div == dv.ForwardKL():
            np.testing.assert_allclose(slope, q - p, 1e-3, 1e-8)
        memory = compiled.memory_analysis()
        assert memory is not None
        assert memory.temp_size_in_bytes <= 0.05 * model.nbytes


def test_small_arrays_take_no_switch():
    assert row_blocks.by_machine(lambda x: x, lambda x: x + 1, None, jnp.ones(2))[0] == 1
