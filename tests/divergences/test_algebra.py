"""Sums, multiples, duals, normalisation; specifications there and back."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from members import f_member

from divax import divergences as dv


def rows():
    rng = np.random.default_rng(5)
    return jnp.asarray(rng.normal(0, 2, (2, 4, 7)).astype(np.float32))


SPECS = [
    *dv.names(),
    "alpha(-1.5)",
    "alpha(2)",
    "jensen_shannon(0.2)",
    "interpolated_js(1.0)",
    "skew_forward_kl(0.4)",
    "0.7*forward_kl + 0.3*reverse_kl",
    "0.5*adaptive_kl + sinkhorn(0.5)",
    "2*(forward_kl + 3*alpha(0.3))",
    "dual(skew_reverse_kl(0.2))",
    "normalized(jensen_shannon(0.5))",
]


@pytest.mark.parametrize("spec", SPECS)
def test_names_read_back_as_the_same_object(spec):
    div = dv.get(spec)
    again = dv.get(div.name)
    np.testing.assert_allclose(again(*rows()), div(*rows()), rtol=1e-6)
    assert again.name == div.name
    assert hash(div) == hash(dv.get(spec))
    assert div == dv.get(spec)
    assert pickle.loads(pickle.dumps(div)) == div


def test_a_sum_of_f_divergences_is_one_and_a_mixed_sum_is_not():
    assert isinstance(dv.ForwardKL() + dv.ReverseKL(), dv.AbstractFDivergence)
    assert not isinstance(dv.ForwardKL() + dv.AdaptiveKL(), dv.AbstractFDivergence)
    t, s = rows()
    both = 0.25 * dv.ForwardKL() + dv.Alpha(alpha=0.3) * 2
    np.testing.assert_allclose(
        both(t, s), 0.25 * dv.ForwardKL()(t, s) + 2 * dv.Alpha(alpha=0.3)(t, s), rtol=1e-6
    )
    added = sum([dv.ForwardKL(), dv.ReverseKL()])
    assert isinstance(added, dv.AbstractDivergence)
    np.testing.assert_allclose(added(t, s), dv.Jeffreys()(t, s), rtol=1e-5)


def test_a_zero_weight_removes_even_an_infinite_part():
    t, s = jnp.asarray([0.0, 0.0]), jnp.asarray([0.0, -np.inf])
    mixed = dv.mixture((0.0, dv.ForwardKL()), (1.0, dv.ReverseKL()))
    assert float(mixed(t, s)) == pytest.approx(np.log(2))
    traced = jax.jit(lambda w: dv.mixture((w, dv.ForwardKL()), (1.0, dv.ReverseKL()))(t, s))
    assert float(traced(0.0)) == pytest.approx(np.log(2))
    assert traced(0.5) == np.inf


@pytest.mark.parametrize(
    "spec",
    [
        "jensen_shannon",
        "jeffreys",
        "forward_chi2",
        "triangular",
        "skew_forward_kl(0.5)",
        "forward_kl + jeffreys",
    ],
)
def test_normalisation_gives_curvature_one(spec):
    normal = f_member(spec).normalized()
    assert isinstance(normal, dv.AbstractFDivergence)
    assert normal.curvature == pytest.approx(1, rel=1e-6)
    gap = 1e-2 * jnp.asarray(np.random.default_rng(0).normal(size=9), jnp.float32)
    t = jnp.linspace(-1, 1, 9)
    assert float(normal(t, t + gap)) == pytest.approx(float(dv.ForwardKL()(t, t + gap)), rel=0.05)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("forwardkl", "unknown divergence 'forwardkl'; did you mean forward_kl"),
        ("kl", "unknown divergence 'kl'; did you mean"),
        ("zzz", "unknown divergence 'zzz'; known: forward_kl"),
        ("alpha(alfa=0.5)", "alpha has no parameter 'alfa'; did you mean alpha"),
        ("alpha('x')", "alpha must be a number"),
        ("alpha(0.5, 0.6)", "alpha takes one unnamed value"),
        ("alpha(0.5, alpha=0.6)", "given twice"),
        ("forward_kl(1)", "forward_kl takes no parameter"),
        ("jensen_shannon(2)", r"target_weight=2 is outside \(0, 1\)"),
        ("skew_forward_kl(1.0)", r"skew=1.0 is outside \[0, 1\)"),
        ("interpolated_js(-0.1)", r"beta=-0.1 is outside \[0, 1\]"),
        ("adaptive_kl(1.5)", r"head_mass=1.5 is outside \(0, 1\)"),
        ("adaptive_kl(0.5, compat='trl')", "compat"),
        ("adaptive_kl(compat='trl')", "compat='trl' is neither None nor 'reference'"),
        ("sinkhorn(0)", "epsilon=0 must be positive"),
        ("forward_kl +", "cannot read the divergence"),
        ("forward_kl - reverse_kl", "cannot read the divergence"),
        ("-1*forward_kl", "a negative multiple is no divergence"),
        ("forward_kl * reverse_kl", "cannot read the divergence"),
        ("0.5", "cannot read the divergence"),
        ("__import__('os')", "unknown divergence '__import__'"),
        ("dual(0.5)", "takes one divergence"),
        ("normalized(total_variation)", "no curvature"),
        ("", "cannot read the divergence"),
    ],
)
def test_wrong_specifications_say_what_is_wrong(spec, message):
    with pytest.raises(ValueError, match=message):
        dv.get(spec)


@pytest.mark.parametrize(
    ("target", "model", "error", "message"),
    [
        (jnp.zeros(3), jnp.zeros(4), ValueError, "target has 3 tokens and model has 4"),
        (jnp.zeros((2, 3)), jnp.zeros((5, 3)), ValueError, "do not broadcast"),
        (
            jnp.zeros(3, jnp.int32),
            jnp.zeros(3),
            TypeError,
            "target logits must be floating point, got int32",
        ),
        (jnp.zeros(3), jnp.asarray(0.0), ValueError, "non-empty last axis"),
    ],
)
def test_wrong_arrays_say_what_is_wrong(target, model, error, message):
    with pytest.raises(error, match=message):
        dv.ForwardKL()(target, model)


def test_a_mask_of_rows_is_not_one_of_tokens():
    rows = jnp.ones((2, 4), bool)
    with pytest.raises(
        ValueError, match=r"where \(2, 4\) does not broadcast to the logits \(2, 4, 3\)"
    ):
        dv.ForwardKL()(jnp.zeros((2, 4, 3)), jnp.zeros(3), where=rows)


def test_leading_axes_broadcast():
    t, s = rows()
    np.testing.assert_allclose(dv.ForwardKL()(t[:1], s)[2], dv.ForwardKL()(t[0], s[2]), rtol=1e-6)
    gradient = jax.grad(lambda t: jnp.sum(dv.ForwardKL()(t, s)))(t[:1])
    assert gradient.shape == (1, 7)
