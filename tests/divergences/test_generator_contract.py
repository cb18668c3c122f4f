"""f, its derivatives, link, inverses and conjugate against arbitrary precision; flags and limits.

That these agree with each other for every registered member is the business of the generator's laws (test_checks).
"""

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
POINTS = np.array([1e-6, 0.01, 0.3, 0.9, 0.999, 1.0, 1.001, 1.2, 4.0, 60.0, 1e5])
pytestmark = pytest.mark.usefixtures("x64")


@jax.jit
def contract(div, u):
    """Everything at once: one compilation for a class and all its hyper-parameters."""
    s = -jnp.log(u)
    link, df = div.link(s), div.df(u)
    return {
        "f": div.f(u),
        "df": df,
        "d2f": div.d2f(u),
        "link": link,
        "weight": div.weight(s),
        "slope of the link": jax.vmap(jax.grad(div.link))(s),
        "link_inverse": div.link_inverse(link),
        "df_inverse": div.df_inverse(df),
        "conjugate": div.conjugate(df),
    }


@pytest.mark.parametrize("spec", SPECS)
def test_the_contract_in_sixty_digits(spec):
    f, div = categorical.generator(spec)[0], f_member(spec)
    got = {name: np.asarray(values) for name, values in contract(div, POINTS).items()}
    with mp.workdps(60):
        points = [mp.mpf(u) for u in POINTS]
        steps = [mp.mpf(10) ** -15 * u for u in points]
        value = [f(u) for u in points]
        slope = [mp.diff(f, u, h=h) for u, h in zip(points, steps, strict=True)]
        bend = [mp.diff(f, u, 2, h=h) for u, h in zip(points, steps, strict=True)]
        each = list(zip(points, value, slope, bend, strict=True))
        want = {
            "f": (value, 1e-11, 1e-15),
            "df": (slope, 1e-11, 1e-13),
            "d2f": (bend, 1e-9, 0),
            "link": ([v - u * d for u, v, d, _ in each], 1e-11, 1e-13),
            "weight": ([u * u * b for u, _, _, b in each], 1e-9, 0),
        }
        inner = slice(
            1, -2
        )  # farther out f′ and the link sit at their limits and hold no digit of u
        undone = {
            "slope of the link": ([u * u * b for u, _, _, b in each], 1e-8, 0),
            "link_inverse": ([-mp.log(u) for u in points], 1e-8, 1e-12),
            "df_inverse": (points, 1e-8, 0),
            "conjugate": ([u * d - v for u, v, d, _ in each], 1e-9, 1e-12),
        }
    for name, (numbers, relative, absolute) in want.items():
        expected = [float(x) for x in numbers]
        np.testing.assert_allclose(got[name], expected, relative, absolute, err_msg=name)
    for name, (numbers, relative, absolute) in undone.items():
        expected = [float(x) for x in numbers]
        np.testing.assert_allclose(
            got[name][inner], expected[inner], relative, absolute, err_msg=name
        )
    assert float(div.f(1.0)) == 0
    assert float(div.df(1.0)) == 0
    assert div.curvature == pytest.approx(float(bend[5]), rel=1e-9)


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
