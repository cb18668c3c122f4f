"""The later f-divergences: values, gradients, the whole generator contract, limits and masks, against 50 digits."""

import compiled
import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from oracles import more_generators as oracle

from divax import divergences as dv

INF = np.inf
MEMBERS = {
    "skew_chi2": [{"skew": a} for a in (0.0, 0.1, 0.5, 0.9, 1.0)],
    "arithmetic_geometric": [{}],
    "frontier_integral": [{}],
    "modified_gan": [{}],
    "log1p_abs": [{}],
    "clipped_alpha": [
        {"alpha": a, "clip": c} for a, c in ((-1.0, 5.0), (0.5, 2.1), (1.0, 5.0), (2.0, 3.0))
    ],
}
CASES = [(name, parameters) for name, sets in MEMBERS.items() for parameters in sets]
IDS = [f"{name}-{'-'.join(map(str, p.values()))}" for name, p in CASES]
CLASSES = {
    cls.spec_name: cls
    for cls in (
        *(dv.SkewChi2, dv.ArithmeticGeometric, dv.FrontierIntegral, dv.ModifiedGAN),
        *(dv.Log1pAbs, dv.ClippedAlpha),
    )
}
every_member = pytest.mark.parametrize(("name", "parameters"), CASES, ids=IDS)

RNG = np.random.default_rng(12)
ROWS = [
    (t := RNG.normal(0, scale, 5), t + RNG.normal(0, gap, 5))
    for scale, gap in ((1.0, 1.0), (0.5, 1e-3), (3.0, 3.0), (2.0, 0.1))
]
MASKED = [
    ([1.0, -INF, 0.5, -0.2, 0.1], [0.3, -INF, 1.4, 2.0, -0.3]),
    ([1.0, -INF, 0.5, -0.2, 0.1], [0.3, 0.7, 0.1, 2.0, -0.3]),
    ([1.0, 0.4, 0.5, -0.2, 0.1], [0.3, 0.7, -INF, 2.0, -0.3]),
    ([0.2, 0.5, -INF, -INF, -INF], [-INF, -INF, 0.4, 2.0, -0.3]),
]
WILD = RNG.normal(0, 3, (2, 92, 5))
WILD[:, 64:80] *= 3e3
WILD[RNG.random(WILD.shape) < 0.35] = -INF
WILD[:, 0], WILD[0, 1, 2], WILD[0, 2:8] = -INF, INF, WILD[1, 2:8]
TARGETS, MODELS = (
    np.concatenate([np.array(rows), wild])
    for rows, wild in zip(zip(*ROWS, *MASKED, strict=True), WILD, strict=True)
)
KNOWN = len(ROWS) + len(MASKED)
EQUAL = slice(KNOWN + 2, KNOWN + 8)


@jax.jit
def contract(div, u):
    s = -jnp.log(u)
    return {
        "f": div.f(u),
        "df": div.df(u),
        "d2f": div.d2f(u),
        "link": div.link(s),
        "link_inverse": div.link_inverse(div.link(s)),
        "df_inverse": div.df_inverse(div.df(u)),
        "conjugate": div.conjugate(div.df(u)),
    }


@pytest.mark.usefixtures("x64")
@every_member
def test_values_and_gradients_in_double_precision(name, parameters):
    div = CLASSES[name](**parameters)
    value, gradients = (
        compiled.value(div, TARGETS, MODELS),
        compiled.gradients(div, TARGETS, MODELS),
    )
    for row in range(KNOWN):
        rows = TARGETS[row], MODELS[row]
        want = float(oracle.value(name, *rows, **parameters))
        assert float(value[row]) == pytest.approx(want, rel=1e-12)
        if want == INF or row in (2, 3, 7):
            continue
        for side in (0, 1):
            slopes = [float(x) for x in oracle.gradient(name, *rows, side, **parameters)]
            size = max(map(abs, slopes))
            np.testing.assert_allclose(
                gradients[side][row], slopes, rtol=1e-11, atol=1e-12 * size + 1e-15
            )


@every_member
def test_values_in_single_precision_and_no_nan(name, parameters):
    div, t, s = CLASSES[name](**parameters), *(x.astype(np.float32) for x in (TARGETS, MODELS))
    value, gradients = compiled.value(div, t, s), compiled.gradients(div, t, s)
    exact = {k: float(np.float32(v)) for k, v in parameters.items()}
    for row in range(KNOWN):
        # A log-ratio d keeps the rounding of its logits, eps·x, and D ~ d² doubles it.
        gap = np.std(t[row] - s[row]) if row < len(ROWS) else 1.0
        size = np.max(np.abs(t[row])) if row < len(ROWS) else 0.0
        want = float(
            oracle.value(name, list(map(float, t[row])), list(map(float, s[row])), **exact)
        )
        assert float(value[row]) == pytest.approx(want, rel=float(2e-6 + 2 * 2.0**-24 * size / gap))
    assert not np.any(np.isnan(value))
    assert np.all(value >= 0)
    assert np.all(value[EQUAL] == 0)
    for gradient, rows in zip(gradients, (t, s), strict=True):
        assert np.all(np.isfinite(gradient))
        assert np.all(gradient[np.isneginf(rows)] == 0)
        np.testing.assert_array_equal(gradient[EQUAL], 0)


POINTS = np.array([1e-6, 0.01, 0.3, 0.9, 0.999, 1.001, 1.2, 4.0, 60.0, 1e5])


@pytest.mark.usefixtures("x64")
@every_member
def test_the_generator_contract(name, parameters):
    div = CLASSES[name](**parameters)
    got = {key: np.asarray(x) for key, x in contract(div, POINTS).items()}
    f = oracle.generator(name, **parameters)
    with mp.workdps(60):
        for i, u in enumerate(map(mp.mpf, POINTS)):
            step = mp.mpf(10) ** -15 * u
            slope, bend = mp.diff(f, u, h=step), mp.diff(f, u, 2, h=step)
            assert got["f"][i] == pytest.approx(float(f(u)), rel=1e-11, abs=1e-15)
            assert got["df"][i] == pytest.approx(float(slope), rel=1e-11, abs=1e-13)
            assert got["d2f"][i] == pytest.approx(float(bend), rel=1e-9, abs=1e-100)
            assert got["link"][i] == pytest.approx(float(f(u) - u * slope), rel=1e-10, abs=1e-13)
            # At the far ends link and f′ sit at their finite limits and hold no digit of u.
            if float(bend) > 1e-100 and 1e-3 < u < 1e3:
                assert got["link_inverse"][i] == pytest.approx(-float(mp.log(u)), rel=1e-8)
                assert got["df_inverse"][i] == pytest.approx(float(u), rel=1e-7)
                conjugate = float(u * slope - f(u))
                assert got["conjugate"][i] == pytest.approx(conjugate, rel=1e-8, abs=1e-12)
    if div.smooth:
        with mp.workdps(60):
            at_one = mp.diff(f, mp.mpf(1), 2, h=mp.mpf(10) ** -15)
        assert div.curvature == pytest.approx(float(at_one), rel=1e-9)


@pytest.mark.usefixtures("x64")
@every_member
def test_limits_flags_and_duals(name, parameters):
    div = CLASSES[name](**parameters)
    ends = contract(div, np.array([1e-250, 1e120, *[1.0] * 8]))
    limits = div.limits
    for got, want in (
        (ends["f"][0], limits.f_at_zero),
        (ends["f"][1] / 1e120, limits.slope_at_infinity),
        (ends["df"][0], limits.df_at_zero),
        (ends["link"][1], limits.link_floor),
    ):
        if np.isinf(want):
            assert abs(float(got)) > 50
            assert np.sign(got) == np.sign(want)
        else:
            assert float(got) == pytest.approx(float(want), rel=1e-9, abs=1e-12)
    dual, u = div.dual(), POINTS
    np.testing.assert_allclose(
        contract(dual, u)["f"], u * contract(div, 1 / u)["f"], rtol=1e-10, atol=1e-18
    )
    assert bool(div.symmetric) == (dual == div)
    swapped = compiled.value(dual, MODELS, TARGETS)
    np.testing.assert_allclose(swapped, compiled.value(div, TARGETS, MODELS), rtol=1e-11)


@pytest.mark.usefixtures("x64")
def test_identities():
    same = lambda a, b: np.testing.assert_allclose(  # noqa: E731
        compiled.value(a, TARGETS, MODELS), compiled.value(b, TARGETS, MODELS), rtol=1e-10
    )
    same(dv.SkewChi2(skew=0.0), dv.ForwardChi2())
    same(dv.SkewChi2(skew=0.5), 2 * dv.Triangular())
    same(dv.SkewChi2(skew=1.0), dv.ReverseChi2())
    same(dv.JensenShannon() + 0.5 * dv.ArithmeticGeometric(), 0.25 * dv.Jeffreys())
    finite = np.isfinite(compiled.value(dv.JensenShannon(), TARGETS, MODELS))
    js, fi = (
        np.asarray(compiled.value(d, TARGETS, MODELS))
        for d in (dv.JensenShannon(), dv.FrontierIntegral())
    )
    assert np.all(finite)
    assert np.all(fi >= 4 / 3 * js * (1 - 1e-9))
    assert np.all(fi <= js / np.log(2) * (1 + 1e-9))


@pytest.mark.usefixtures("x64")
def test_frontier_integral_is_the_integral():
    """Gauss–Legendre over λ of λ·KL(p‖r) + (1 − λ)·KL(q‖r), twice."""
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.3, 0.6])
    nodes, weights = np.polynomial.legendre.leggauss(80)
    total = 0.0
    for node, weight in zip(0.5 * (nodes + 1), 0.5 * weights, strict=True):
        r = node * p + (1 - node) * q
        total += (
            2 * weight * (node * np.sum(p * np.log(p / r)) + (1 - node) * np.sum(q * np.log(q / r)))
        )
    assert float(dv.FrontierIntegral()(np.log(p), np.log(q))) == pytest.approx(total, rel=1e-10)


def test_flags():
    assert dv.ArithmeticGeometric().admissible
    assert dv.FrontierIntegral().admissible
    assert dv.FrontierIntegral().bounded
    assert not dv.ModifiedGAN().admissible
    assert not dv.SkewChi2(skew=0.5).admissible
    assert dv.SkewChi2(skew=0.0).admissible
    assert dv.SkewChi2(skew=0.3).bounded
    assert dv.ClippedAlpha(alpha=1.0).bounded
    with pytest.raises(ValueError, match="no curvature"):
        dv.Log1pAbs().normalized()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dv.SkewChi2(skew=1.1), r"skew=1.1 is outside \[0, 1\]"),
        (lambda: dv.ClippedAlpha(clip=1.0), "clip=1.0 is outside"),
        (lambda: dv.tsallis(0.0), "order=0.0 must be positive"),
    ],
)
def test_wrong_parameters_say_so(make, message):
    with pytest.raises(ValueError, match=message):
        make()
