"""Members outside the f-family: values, gradients, masks and limits against textbook definitions in 60 digits."""

import compiled
import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from oracles import beyond_f

from divax import divergences as dv

INF = np.inf
MEMBERS = {
    "renyi": [{"order": a} for a in (0.3, 0.5, 0.999, 1.0, 1.0001, 2.0, 7.0)],
    "bhattacharyya": [{}],
    "gamma": [{"gamma": g} for g in (0.0, 1e-4, 0.5, 1.0, 3.0)],
    "cauchy_schwarz": [{}],
    "hoelder": [{"exponent": a, "power": g} for a, g in ((2.0, 2.0), (1.5, 1.0), (4.0, 0.5))],
    "beta": [{"beta": b} for b in (0.0, 1e-3, 0.5, 1.0, 2.5)],
    "alpha_beta": [
        {"alpha": a, "beta": b}
        for a, b in (
            *(
                (0.5, 0.5),
                (0.8, 0.3),
                (2.0, -0.5),
                (-0.4, 1.9),
                (1.0, 0.0),
                (0.0, 0.7),
                (0.6, -0.6),
            ),
            *((0.0, 0.0), (-0.7, 0.7), (1e-5, 0.5), (0.5, 1e-6), (0.5, -0.5 + 1e-6), (-0.3, -0.4)),
        )
    ],
    "geometric_js": [{"target_weight": w} for w in (0.5, 0.1, 0.9)],
    "log_variance": [{"reference": r} for r in ("model", "target", "uniform")],
}
CASES = [(name, parameters) for name, sets in MEMBERS.items() for parameters in sets]
IDS = [f"{name}-{'-'.join(map(str, p.values()))}" for name, p in CASES]
CLASSES = {
    cls.spec_name: cls
    for cls in (
        *(dv.Renyi, dv.Bhattacharyya, dv.Gamma, dv.CauchySchwarz, dv.Hoelder, dv.Beta),
        *(dv.AlphaBeta, dv.GeometricJS, dv.LogVariance),
    )
}
every_member = pytest.mark.parametrize(("name", "parameters"), CASES, ids=IDS)


# Five tokens, one batch: random, nearly equal, peaked, and every kind of mismatch of supports.
RNG = np.random.default_rng(11)
RANDOM = [
    (t := RNG.normal(0, scale, 5), t + RNG.normal(0, gap, 5))
    for scale, gap in ((1.0, 1.0), (0.5, 1e-3), (3.0, 3.0), (2.0, 0.1))
]
MASKED = [
    ([1.0, -INF, 0.5, -0.2, 0.1], [0.3, -INF, 1.4, 2.0, -0.3]),
    ([1.0, -INF, 0.5, -0.2, 0.1], [0.3, 0.7, 0.1, 2.0, -0.3]),
    ([1.0, 0.4, 0.5, -0.2, 0.1], [0.3, 0.7, -INF, 2.0, -0.3]),
    ([1.0, -INF, 0.5, -0.2, 0.1], [0.3, 0.7, -INF, 2.0, -0.3]),
    ([0.2, -INF, -INF, -INF, -INF], [0.3, 0.7, 0.4, 2.0, -0.3]),
    ([0.2, 0.5, -INF, -INF, -INF], [-INF, -INF, 0.4, 2.0, -0.3]),
]
# After them, in the same batch so that everything compiles once: any pattern of impossible tokens, ±1e4 logits, one-hot
# rows, rows of nothing, equal rows.
WILD = RNG.normal(0, 3, (2, 90, 5))
WILD[:, 64:80] *= 3e3
WILD[RNG.random(WILD.shape) < 0.35] = -INF
WILD[:, 0], WILD[0, 1, 2], WILD[0, 2:8] = -INF, INF, WILD[1, 2:8]
TARGETS, MODELS = (
    np.concatenate([np.array(rows), wild])
    for rows, wild in zip(zip(*RANDOM, *MASKED, strict=True), WILD, strict=True)
)
KNOWN = len(RANDOM) + len(MASKED)
EQUAL = slice(KNOWN + 2, KNOWN + 8)


def oracle(name, target, model, parameters):
    return beyond_f.value(name, list(map(float, target)), list(map(float, model)), **parameters)


def relative_error(got, want):
    got, want = np.asarray(got, np.float64), np.asarray(want)
    same = (got == want) | (np.isinf(got) & np.isinf(want))
    return np.where(
        same, 0, np.where(same, 0, got - np.where(same, 0, want)) / np.where(same, 1, want)
    )


@pytest.mark.usefixtures("x64")
@every_member
def test_values_in_double_precision(name, parameters):
    got = compiled.value(CLASSES[name](**parameters), TARGETS, MODELS)[:KNOWN]
    known = zip(TARGETS[:KNOWN], MODELS[:KNOWN], strict=True)
    want = [float(oracle(name, t, s, parameters)) for t, s in known]
    np.testing.assert_allclose(got, want, rtol=1e-12)


@every_member
def test_values_in_single_precision(name, parameters):
    """Against the oracle at the float32 logits and parameters, which is what float arithmetic allows."""
    targets, models = TARGETS.astype(np.float32), MODELS.astype(np.float32)
    got = compiled.value(CLASSES[name](**parameters), targets, models)[:KNOWN]
    exact = {k: float(np.float32(v)) if k != "reference" else v for k, v in parameters.items()}
    known = zip(targets[:KNOWN], models[:KNOWN], strict=True)
    want = [float(oracle(name, t, s, exact)) for t, s in known]
    # A power p^λ multiplies the relative rounding of p by λ. A log-ratio d is a difference of logits of size x and keeps
    # their rounding, eps·x; D ~ d² doubles it.
    allowed = np.full(len(want), 2e-6 * (1 + (parameters["beta"] if name == "beta" else 0)))
    size, spread = (np.max(np.abs(targets[:4]), -1), np.std(targets[:4] - models[:4], -1))
    allowed[:4] += 2 * 2.0**-24 * size / spread
    np.testing.assert_array_less(np.abs(relative_error(got, want)), allowed)


@pytest.mark.usefixtures("x64")
@every_member
def test_gradients_by_sixty_digit_differences(name, parameters):
    both = compiled.gradients(CLASSES[name](**parameters), TARGETS, MODELS)
    for row in (0, 1, 4, 5, 6):
        target, model = TARGETS[row], MODELS[row]
        if mp.isinf(oracle(name, target, model, parameters)):
            continue
        if name == "log_variance" and parameters["reference"] != "uniform":
            continue  # the reference is frozen: it has a test of its own
        for side, gradient in enumerate(both):
            want = [
                float(x) for x in beyond_f.gradient(name, target, model, side, 50, **parameters)
            ]
            size = max(map(abs, want))
            np.testing.assert_allclose(gradient[row], want, rtol=1e-11, atol=1e-12 * size + 1e-15)


@pytest.mark.usefixtures("x64")
@every_member
def test_curvature_is_the_high_temperature_limit(name, parameters):
    div = CLASSES[name](**parameters)
    if div.curvature is None:
        with pytest.raises(ValueError, match="has no curvature"):
            div.normalized()
        return
    want = np.var(TARGETS[0] - MODELS[0]) / 2
    tempered = compiled.value(div.normalized(), TARGETS / 1e4, MODELS / 1e4)[0]
    assert float(tempered * 1e8) == pytest.approx(want, rel=1e-3)


@pytest.mark.parametrize(("name", "parameters"), CASES, ids=IDS)
def test_no_nan_anywhere_and_exact_zeros_for_equal_rows(name, parameters):
    div, t, s = CLASSES[name](**parameters), *(x.astype(np.float32) for x in (TARGETS, MODELS))
    value, gradients = compiled.value(div, t, s), compiled.gradients(div, t, s)
    assert not np.any(np.isnan(value))
    assert np.all(value >= 0)
    assert np.all(value[EQUAL] == 0)
    for gradient, rows in zip(gradients, (t, s), strict=True):
        assert np.all(np.isfinite(gradient))
        assert np.all(gradient[np.isneginf(rows)] == 0)
        np.testing.assert_array_equal(gradient[EQUAL], 0)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("cls", "points"),
    [
        (dv.Renyi, [{"order": a} for a in (0.4, 1.0, 3.0)]),
        (dv.Gamma, [{"gamma": g} for g in (0.3, 1.0)]),
        (
            dv.AlphaBeta,
            [{"alpha": a, "beta": b} for a, b in ((0.3, 0.5), (0.0, 0.4), (-0.5, 0.5), (0.0, 0.0))],
        ),
        (dv.GeometricJS, [{"target_weight": 0.3}]),
    ],
)
def test_derivatives_by_hyper_parameters_through_the_special_values(cls, points):
    of = lambda **at: np.asarray(compiled.value(cls(**at), TARGETS, MODELS))[: len(RANDOM)].sum()  # noqa: E731
    slope = jax.jit(jax.grad(lambda div, keep: jnp.sum(jnp.where(keep, div(TARGETS, MODELS), 0))))
    smooth, h = np.arange(len(TARGETS)) < len(RANDOM), 1e-5
    for at in points:
        got, rest = (jax.tree.leaves(slope(cls(**at), keep)) for keep in (smooth, ~smooth))
        assert np.all(np.isfinite(rest))
        for name, derivative in zip(at, got, strict=True):
            up, down = ({**at, name: at[name] + step} for step in (h, -h))
            want = (of(**up) - of(**down)) / (2 * h)
            assert float(derivative) == pytest.approx(float(want), rel=1e-7)


@pytest.mark.usefixtures("x64")
def test_identities():
    t, s = TARGETS, MODELS

    def same(a, b):
        np.testing.assert_allclose(
            compiled.value(a, t, s)[:4], compiled.value(b, t, s)[:4], rtol=1e-11
        )

    same(dv.Renyi(order=1.0), dv.ForwardKL())
    same(dv.AlphaBeta(alpha=0.3, beta=0.7), dv.Alpha(alpha=0.3))
    same(dv.Beta(beta=0.4), 1.4 * dv.AlphaBeta(alpha=1.0, beta=0.4))
    same(dv.Gamma(gamma=1.0), dv.CauchySchwarz())
    same(dv.Bhattacharyya(), 0.5 * dv.Renyi(order=0.5))
    np.testing.assert_allclose(
        compiled.value(dv.Renyi(order=2.0), t, s)[:4],
        np.log1p(compiled.value(dv.ForwardChi2(), t, s))[:4],
        rtol=1e-11,
    )


@pytest.mark.usefixtures("x64")
def test_gradients_are_the_published_differences_of_softmaxes():
    t, s = TARGETS[:1], MODELS[:1]
    softmax = jax.nn.softmax
    for div, want in (
        (dv.Renyi(order=1.7), softmax(s) - softmax(1.7 * t - 0.7 * s)),
        (dv.Gamma(gamma=0.4), softmax(1.4 * s) - softmax(t + 0.4 * s)),
        (dv.CauchySchwarz(), softmax(2 * s) - softmax(t + s)),
    ):
        np.testing.assert_allclose(
            compiled.gradients(div, TARGETS, MODELS)[1][:1], want, rtol=1e-11, atol=1e-15
        )


@pytest.mark.usefixtures("x64")
def test_half_the_log_variance_gradient_is_that_of_the_reverse_kl():
    t, s = TARGETS[:4], MODELS[:4]
    got, want = (
        compiled.gradients(div, TARGETS, MODELS)[1][:4]
        for div in (dv.LogVariance(), dv.ReverseKL())
    )
    np.testing.assert_allclose(got, 2 * want, rtol=1e-9, atol=1e-15)
    frozen = compiled.gradients(dv.LogVariance(reference="target"), TARGETS, MODELS)[0][:4]
    p = jax.nn.softmax(t)
    gap = (t - s) - jnp.sum(p * (t - s), -1, keepdims=True)
    np.testing.assert_allclose(frozen, 2 * p * gap, rtol=1e-9, atol=1e-14)


def test_renyi_gradients_stay_bounded_where_chi2_explodes():
    t, s = jnp.asarray([0.0, -20.0]), jnp.asarray([-60.0, 0.0])
    assert float(
        jnp.max(jnp.abs(compiled.gradients(dv.Renyi(order=2.0), t, s)[1]))
    ) == pytest.approx(1)
    assert float(compiled.value(dv.Renyi(order=2.0), t, s)) == pytest.approx(60, rel=1e-6)
    certain = compiled.value(dv.Renyi(order=0.0), jnp.asarray([0.0, -INF]), jnp.zeros(2))
    assert float(certain) == pytest.approx(np.log(2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dv.Renyi(order=-0.1), "order=-0.1 is outside"),
        (lambda: dv.Renyi(order=INF), "order=inf is outside"),
        (lambda: dv.Gamma(gamma=-1.0), "gamma=-1.0 is outside"),
        (lambda: dv.Hoelder(exponent=1.0), "exponent=1.0 is outside"),
        (lambda: dv.Beta(beta=-0.5), "beta=-0.5 is outside"),
        (lambda: dv.GeometricJS(target_weight=0), "target_weight=0 is outside"),
        (lambda: dv.get("log_variance('modal')"), "did you mean 'model'"),
        (lambda: dv.Renyi(order=0.0).normalized(), "has no curvature"),
    ],
)
def test_wrong_parameters_say_so(make, message):
    with pytest.raises(ValueError, match=message):
        make()
