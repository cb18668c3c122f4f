"""Hyper-parameters: derivatives, traces, sweeps. Derivatives by logits, jit and vmap are laws (test_checks)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divax import divergences as dv


def rows(seed=0, shape=(3, 6), scale=2.0, dtype: type = np.float64):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(0, scale, (2, *shape)).astype(dtype))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("make", "at"),
    [
        (lambda a: dv.Alpha(alpha=a), 0.3),
        (lambda a: dv.Alpha(alpha=a), 1.0),
        (lambda a: dv.Alpha(alpha=a), 0.0),
        (lambda a: dv.JensenShannon(target_weight=a), 0.3),
        (lambda a: dv.InterpolatedJS(beta=a), 0.7),
        (lambda a: dv.SkewForwardKL(skew=a), 0.1),
        (lambda a: dv.SkewReverseKL(skew=a), 0.1),
        (lambda a: a * dv.ForwardKL() + (1 - a) * dv.ReverseKL(), 0.4),
    ],
)
def test_derivative_by_a_hyper_parameter(make, at):
    t, s = rows()
    value = lambda a: jnp.sum(make(a)(t, s))  # noqa: E731
    want = (value(at + 1e-6) - value(at - 1e-6)) / 2e-6
    assert float(jax.grad(value)(at)) == pytest.approx(float(want), rel=1e-6)


@pytest.mark.usefixtures("x64")
def test_the_gradient_by_a_divergence_is_a_divergence():
    t, s = rows()
    gradient = jax.grad(lambda div: jnp.sum(div(t, s)))(dv.Alpha(alpha=0.5))
    assert isinstance(gradient, dv.Alpha)
    assert np.isfinite(gradient.alpha)


def test_one_trace_serves_every_value_of_a_hyper_parameter():
    traces = []

    @jax.jit
    def loss(div, t, s):
        traces.append(1)
        return jnp.sum(div(t, s))

    t, s = rows(dtype=np.float32)
    values = [float(loss(dv.Alpha(alpha=a), t, s)) for a in (-1.0, 0.0, 0.5, 1.0, 3.0)]
    assert len(traces) == 1
    assert values == pytest.approx(
        [float(jnp.sum(dv.Alpha(alpha=a)(t, s))) for a in (-1.0, 0.0, 0.5, 1.0, 3.0)], rel=1e-5
    )


def test_a_family_is_swept_by_vmap_through_its_special_members():
    t, s = rows(dtype=np.float32)
    betas = jnp.asarray([0.0, 1e-6, 0.5, 1 - 1e-6, 1.0])
    swept = jax.vmap(lambda b: dv.InterpolatedJS(beta=b)(t, s))(betas)
    np.testing.assert_allclose(swept[0], dv.ForwardKL()(t, s), rtol=1e-6)
    np.testing.assert_allclose(swept[1], dv.ForwardKL()(t, s), rtol=1e-3)
    np.testing.assert_allclose(swept[2], 4 * dv.JensenShannon()(t, s), rtol=1e-6)
    np.testing.assert_allclose(swept[4], dv.ReverseKL()(t, s), rtol=1e-6)
