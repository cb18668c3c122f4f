"""f, its derivatives, inverses, conjugate, link and limits, against arbitrary precision and brute force."""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from members import f_member
from oracles import categorical

from divax import divergences as dv

SPECS = [
    "forward_kl",
    "reverse_kl",
    "jeffreys",
    "jensen_shannon(0.5)",
    "jensen_shannon(0.2)",
    "interpolated_js(0.3)",
    "alpha(-1.5)",
    "alpha(0.3)",
    "alpha(0.5)",
    "alpha(2.5)",
    "forward_chi2",
    "reverse_chi2",
    "squared_hellinger",
    "triangular",
    "skew_forward_kl(0.1)",
    "skew_reverse_kl(0.1)",
]
POINTS = [1e-6, 0.01, 0.3, 0.9, 0.999, 1.0, 1.001, 1.2, 4.0, 60.0, 1e5]
pytestmark = pytest.mark.usefixtures("x64")


def oracle(spec):
    return categorical.generator(spec)[0]


def derivative(spec, u, order=1):
    with mp.workdps(60):
        return mp.diff(oracle(spec), mp.mpf(u), order, h=mp.mpf(10) ** -15 * mp.mpf(u))


@pytest.mark.parametrize("spec", SPECS)
def test_f_and_its_two_derivatives(spec):
    div = f_member(spec)
    for u in POINTS:
        with mp.workdps(60):
            f = float(oracle(spec)(mp.mpf(u)))
        assert float(div.f(u)) == pytest.approx(f, rel=1e-11, abs=1e-15)
        assert float(div.df(u)) == pytest.approx(float(derivative(spec, u)), rel=1e-11, abs=1e-13)
        assert float(div.d2f(u)) == pytest.approx(float(derivative(spec, u, 2)), rel=1e-9)


@pytest.mark.parametrize("spec", SPECS)
def test_standard_form_and_curvature(spec):
    div = f_member(spec)
    assert float(div.f(1.0)) == 0
    assert float(div.df(1.0)) == 0
    assert div.curvature == pytest.approx(float(derivative(spec, 1.0, 2)), rel=1e-9)


@pytest.mark.parametrize("spec", SPECS)
def test_link_is_the_derivative_of_the_dual_generator(spec):
    div = f_member(spec)
    for s in [-12.0, -2.0, -0.1, -1e-5, 0.0, 0.3, 3.0, 12.0]:
        with mp.workdps(60):
            dual = lambda v: v * oracle(spec)(1 / v)  # noqa: E731
            v = mp.exp(mp.mpf(s))
            want = mp.diff(dual, v, h=mp.mpf(10) ** -15 * v)
            slope = v * mp.diff(dual, v, 2, h=mp.mpf(10) ** -15 * v)
        assert float(div.link(s)) == pytest.approx(float(want), rel=1e-11, abs=1e-13)
        assert float(div.weight(s)) == pytest.approx(float(slope), rel=1e-9)
        assert float(jax.grad(div.link)(s)) == pytest.approx(float(slope), rel=1e-8)


@pytest.mark.parametrize(
    "spec", [*SPECS, "0.7*forward_kl + 0.3*reverse_kl", "2*jeffreys", "3*total_variation"]
)
def test_inverses_undo(spec):
    div = f_member(spec)
    for s in [-6.0, -1.0, -0.2, 0.0, 0.4, 2.0, 6.0]:
        if not div.smooth:
            continue
        assert float(div.link_inverse(div.link(s))) == pytest.approx(s, rel=1e-9, abs=1e-12)
        u = float(np.exp(s))
        assert float(div.df_inverse(div.df(u))) == pytest.approx(u, rel=1e-8)
    # Beyond the range of f′ the maximiser sits at the edge.
    if np.isfinite(div.slope_at_infinity):
        assert float(div.df_inverse(div.slope_at_infinity + 1.0)) == np.inf
    if np.isfinite(div.limits.df_at_zero):
        assert float(div.df_inverse(div.limits.df_at_zero - 1.0)) == 0


@pytest.mark.parametrize(
    "spec", ["jeffreys", "skew_forward_kl(0.1)", "0.5*forward_kl + 0.5*reverse_chi2"]
)
def test_numerical_inverses_are_differentiated_implicitly(spec):
    div = f_member(spec)
    y = div.df(1.7)
    slope = jax.grad(div.df_inverse)(y)
    assert float(slope) == pytest.approx(1 / float(div.d2f(1.7)), rel=1e-9)
    by_skew = lambda a: dv.SkewForwardKL(skew=a).df_inverse(0.3)  # noqa: E731
    difference = (by_skew(0.2 + 1e-6) - by_skew(0.2 - 1e-6)) / 2e-6
    assert float(jax.grad(by_skew)(0.2)) == pytest.approx(float(difference), rel=1e-6)


@pytest.mark.parametrize("spec", [*SPECS, "total_variation", "reverse_kl + reverse_chi2"])
def test_conjugate_is_the_supremum(spec):
    """Against brute force over a fine grid of u, refined once."""
    div = f_member(spec)
    grid = np.concatenate([[0.0], np.exp(np.linspace(-30, 30, 60_001))])
    for y in [-4.0, -1.0, -0.45, -0.1, 0.0, 0.05, 0.1, 0.14, 0.3, 0.9, 2.0]:
        value = float(div.conjugate(y))
        supremum = np.max(y * grid - np.asarray(div.f(grid)))
        if y > div.slope_at_infinity:
            assert value == np.inf
        elif np.isfinite(value) and supremum < 1e8:
            assert value == pytest.approx(supremum, rel=2e-5, abs=2e-6)
        assert value >= supremum - 1e-6 * max(1, abs(supremum)) or np.isinf(value)


@pytest.mark.parametrize("spec", [*SPECS, "total_variation"])
def test_limits_are_reached(spec):
    div = f_member(spec)
    limits = div.limits
    for value, limit in [
        (div.f(1e-250), limits.f_at_zero),
        (div.f(1e120) / 1e120, limits.slope_at_infinity),
        (div.df(1e-250), limits.df_at_zero),
        (div.link(-300.0), limits.link_floor),
    ]:
        if np.isinf(limit):
            assert abs(float(value)) > 50
            assert np.sign(value) == np.sign(limit)
        else:
            assert float(value) == pytest.approx(float(limit), rel=1e-9, abs=1e-12)
    assert float(div.f(0.0)) == limits.f_at_zero
    assert float(div.df(0.0)) == limits.df_at_zero
    assert float(div.link(-jnp.inf)) == limits.link_floor


@pytest.mark.parametrize(
    ("spec", "admissible", "bounded", "symmetric"),
    [
        ("forward_kl", True, False, False),
        ("reverse_kl", True, False, False),
        ("jeffreys", True, False, True),
        ("jensen_shannon", True, True, True),
        ("jensen_shannon(0.2)", True, True, False),
        ("interpolated_js(0.0)", True, False, False),
        ("interpolated_js(0.5)", True, True, True),
        ("alpha(-0.5)", False, False, False),
        ("alpha(0.0)", True, False, False),
        ("alpha(0.5)", True, True, True),
        ("alpha(1.5)", True, False, False),
        ("forward_chi2", True, False, False),
        ("reverse_chi2", False, False, False),
        ("squared_hellinger", True, True, True),
        ("total_variation", False, True, True),
        ("triangular", False, True, True),
        ("skew_forward_kl(0.1)", False, True, False),
        ("skew_forward_kl(0.0)", True, False, False),
        ("skew_reverse_kl(0.1)", True, True, False),
        ("reverse_kl + reverse_chi2", True, False, False),
        ("forward_kl + reverse_kl", True, False, True),
    ],
)
def test_flags(spec, admissible, bounded, symmetric):
    div = f_member(spec)
    assert (bool(div.admissible), bool(div.bounded), bool(div.symmetric)) == (
        admissible,
        bounded,
        symmetric,
    )


def test_flags_can_be_asked_inside_jit():
    div = dv.Alpha(alpha=0.5)
    jax.jit(lambda x: x if div.admissible and not dv.Alpha(alpha=-1.0).admissible else 1 / 0)(1.0)


def test_links_never_overflow_where_the_answer_is_finite():
    s = jnp.asarray([-1e4, -500.0, 500.0, 1e4], jnp.float32)
    np.testing.assert_array_equal(dv.ReverseKL().link(s), s)
    js = dv.JensenShannon().link(s)
    np.testing.assert_allclose(
        js, [(-1e4 + np.log(2)) / 2, (-500 + np.log(2)) / 2, *2 * [np.log(2) / 2]], rtol=1e-6
    )
    assert np.all(np.isfinite(dv.Triangular().link(s)))
    assert not np.any(np.isnan(jax.vmap(jax.grad(dv.Jeffreys().link))(s)))


def test_total_variation_has_no_curvature_to_normalise_by():
    with pytest.raises(ValueError, match="total_variation has no curvature"):
        dv.TotalVariation().normalized()
