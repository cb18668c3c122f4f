"""The Cauchy–Schwarz divergence of K distributions against its definition on probabilities."""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from oracles import beyond_f
from oracles.categorical import softmax

from divax import divergences as dv

INF = np.inf


def oracle(rows):
    with mp.workdps(60):
        return float(
            beyond_f.generalized_cauchy_schwarz([softmax(list(map(float, row))) for row in rows])
        )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 6.0])
def test_values_and_gradients(count, scale):
    rng = np.random.default_rng(count)
    rows = rng.normal(0, 1, 6) + scale * rng.normal(size=(count, 6))
    value, gradient = jax.value_and_grad(lambda x: dv.generalized_cauchy_schwarz(*x))(rows)
    assert float(value) == pytest.approx(oracle(rows), rel=1e-10)
    want = jax.nn.softmax(count * rows) - jax.nn.softmax(rows.sum(0))
    np.testing.assert_allclose(gradient, want, rtol=1e-8, atol=1e-14)
    direction = rng.normal(size=rows.shape)
    grad = jax.grad(lambda x: dv.generalized_cauchy_schwarz(*x))
    hvp = jax.jvp(grad, (jnp.asarray(rows),), (jnp.asarray(direction),))[1]
    difference = (grad(rows + 1e-6 * direction) - grad(rows - 1e-6 * direction)) / 2e-6
    np.testing.assert_allclose(hvp, difference, rtol=1e-5, atol=1e-8)


def test_two_distributions_are_the_pairwise_member():
    t, s = np.random.default_rng(0).normal(0, 2, (2, 8, 7)).astype(np.float32)
    np.testing.assert_allclose(
        dv.generalized_cauchy_schwarz(t, s), dv.CauchySchwarz()(t, s), rtol=3e-6
    )


def test_impossible_tokens_and_extremes():
    rows = np.asarray(
        [
            [[0.3, -INF, 1.0], [0.3, -INF, 1.0], [-INF, -INF, -INF], [1e4, 0, -1e4], [0, 0, -INF]],
            [[0.1, 0.4, -INF], [0.3, -INF, 1.0], [0.1, 0.4, 0.0], [-1e4, 0, 1e4], [-INF, -INF, 0]],
            [[0.6, 0.2, 0.7], [0.3, -INF, 1.0], [0.1, 0.4, 0.0], [0, 0, 0], [0, 0, 0]],
        ],
        np.float32,
    )
    value = dv.generalized_cauchy_schwarz(*rows)
    gradients = jax.grad(lambda x: jnp.sum(dv.generalized_cauchy_schwarz(*x)))(jnp.asarray(rows))
    assert value[0] == pytest.approx(oracle(rows[:, 0]), rel=2e-6)
    assert value[1] == 0
    assert value[2] == 0
    assert value[4] == INF
    assert np.all(np.isfinite(gradients))
    np.testing.assert_array_equal(gradients[:, 1], 0)


def test_wrong_input_says_so():
    with pytest.raises(ValueError, match="at least 2"):
        dv.generalized_cauchy_schwarz(jnp.zeros(3))
    with pytest.raises(ValueError, match="one vocabulary"):
        dv.generalized_cauchy_schwarz(jnp.zeros(3), jnp.zeros(4))
    with pytest.raises(TypeError, match="floating point"):
        dv.generalized_cauchy_schwarz(jnp.zeros(3), jnp.zeros(3, jnp.int32))
