"""Accuracy where target and model nearly agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divax import divergences as dv

SMOOTH = [
    "forward_kl",
    "reverse_kl",
    "jeffreys",
    "jensen_shannon(0.5)",
    "jensen_shannon(0.1)",
    "interpolated_js(0.0)",
    "interpolated_js(0.3)",
    "interpolated_js(1.0)",
    "interpolated_js(1e-6)",
    "alpha(-1.0)",
    "alpha(0.0)",
    "alpha(0.5)",
    "alpha(1.0)",
    "alpha(2.5)",
    "forward_chi2",
    "reverse_chi2",
    "squared_hellinger",
    "triangular",
    "skew_forward_kl(0.1)",
    "skew_reverse_kl(0.1)",
    "adaptive_kl(0.5)",
]


def vocabulary_rows(size=32768, gap=1e-3):
    rng = np.random.default_rng(7)
    target = rng.normal(0, 3, size).astype(np.float32)
    return target, (target + gap * rng.normal(size=size)).astype(np.float32)


def reference(spec, target, model):
    """The double-precision value of the float32 logits; its own error at this gap is below 1e-9."""
    with jax.enable_x64(True):
        return float(
            dv.get(spec)(jnp.asarray(target, jnp.float64), jnp.asarray(model, jnp.float64))
        )


@pytest.mark.parametrize("spec", SMOOTH)
def test_float32_agrees_with_double_at_a_gap_of_a_thousandth(spec):
    target, model = vocabulary_rows()
    value = float(dv.get(spec)(jnp.asarray(target), jnp.asarray(model)))
    assert value == pytest.approx(reference(spec, target, model), rel=5e-4)


def test_the_double_reference_has_the_second_order_value():
    """Independent of the library: D ≈ f″(1)/2 · Var_p(t − s), within the third order."""
    target, model = (x.astype(np.float64) for x in vocabulary_rows())
    p = np.exp(target - target.max())
    p /= p.sum()
    gap = target - model
    variance = p @ gap**2 - (p @ gap) ** 2
    for spec in SMOOTH:
        div = dv.get(spec)
        curvature = div.curvature if isinstance(div, dv.AbstractFDivergence) else 1.0
        assert reference(spec, target, model) == pytest.approx(curvature * variance / 2, rel=5e-3)
