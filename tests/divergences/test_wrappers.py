"""Symmetrised, skewed and tempered divergences, and the names of other fields, against what they wrap."""

import compiled
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from members import f_member
from scipy import stats

from divax import divergences as dv

INF = np.inf
RNG = np.random.default_rng(21)
T, S = RNG.normal(0, 2, (2, 6, 5))
INNER = [
    *(dv.ForwardKL(), dv.Alpha(alpha=0.3), dv.ForwardChi2(), dv.TotalVariation()),
    dv.Renyi(order=2.0),
]
WILD = RNG.normal(0, 3, (2, 60, 5)).astype(np.float32)
WILD[:, 40:] *= 3e3
WILD[RNG.random(WILD.shape) < 0.35] = -INF
WILD[:, 0], WILD[0, 1, 2], WILD[0, 2:6] = -INF, INF, WILD[1, 2:6]


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def mixed(skew):
    with np.errstate(divide="ignore"):
        return np.log(skew * softmax(T) + (1 - skew) * softmax(S))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("inner", INNER, ids=lambda div: div.name)
def test_skewed_is_the_member_against_the_mixture(inner):
    for skew in (0.0, 0.1, 0.7):
        div = dv.skewed(inner, skew)
        assert isinstance(div, dv.AbstractFDivergence) == isinstance(inner, dv.AbstractFDivergence)
        np.testing.assert_allclose(
            compiled.value(div, T, S), compiled.value(inner, T, mixed(skew)), rtol=1e-11
        )
        gradients, h = compiled.gradients(div, T, S), 1e-6
        for side in (0, 1):
            direction = RNG.normal(size=T.shape)
            up, down = (
                jnp.sum(compiled.value(div, *((T + e, S) if side == 0 else (T, S + e))))
                for e in (h * direction, -h * direction)
            )
            slope = np.sum(np.asarray(gradients[side]) * direction)
            assert float(slope) == pytest.approx(float(up - down) / (2 * h), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("inner", INNER, ids=lambda div: div.name)
def test_wrapped_divergences_are_never_nan(inner):
    t, s = WILD
    for div in (
        dv.skewed(inner, 0.2),
        dv.Tempered(inner=inner, temperature=3.0, power=2.0),
        dv.symmetrized(inner),
    ):
        value = np.asarray(compiled.value(div, t, s))
        assert not np.any(np.isnan(value)), div.name
        assert np.all(value >= 0), div.name
        assert np.all(value[2:6] <= 1e-10), div.name
        for gradient in compiled.gradients(div, t, s):
            assert np.all(np.isfinite(gradient)), div.name


@pytest.mark.usefixtures("x64")
def test_skewed_kls_are_the_members_of_that_name():
    for div, member in (
        (dv.skewed(dv.ForwardKL(), 0.1), dv.SkewForwardKL(skew=0.1)),
        (dv.skewed(dv.ForwardKL(), 0.1).dual(), dv.SkewReverseKL(skew=0.1)),
        (dv.skewed(dv.ForwardChi2(), 0.3), 0.7**2 * dv.SkewChi2(skew=0.3)),
    ):
        assert isinstance(div, dv.AbstractFDivergence)
        assert isinstance(member, dv.AbstractFDivergence)
        np.testing.assert_allclose(
            compiled.value(div, T, S), compiled.value(member, T, S), rtol=1e-11
        )
        u = jnp.asarray([1e-4, 0.3, 0.9, 1.1, 5.0, 1e4])
        for of in ("f", "df", "d2f"):
            want = getattr(member, of)(u)
            np.testing.assert_allclose(getattr(div, of)(u), want, rtol=1e-9, atol=1e-14)
        y = member.df(u)
        np.testing.assert_allclose(div.df_inverse(y), u, rtol=1e-7)
        np.testing.assert_allclose(div.link_inverse(div.link(jnp.log(u))), jnp.log(u), rtol=1e-7)
        np.testing.assert_allclose(div.limits, member.limits, rtol=1e-9)
        assert div.curvature == pytest.approx(member.curvature)
        assert (bool(div.bounded), bool(div.admissible)) == (member.bounded, member.admissible)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("inner", INNER, ids=lambda div: div.name)
def test_tempered_by_hand(inner):
    div = dv.Tempered(inner=inner, temperature=2.5, power=1.5)
    want = 2.5**1.5 * compiled.value(inner, T / 2.5, S / 2.5)
    np.testing.assert_allclose(compiled.value(div, T, S), want, rtol=1e-12)
    masked = np.where(np.arange(5) == 2, -INF, T)
    slope = jax.grad(
        lambda T_: dv.Tempered(inner=inner, temperature=T_, power=2.0)(masked[0], masked[1])
    )
    at = lambda T_: float(T_**2 * inner(masked[0] / T_, masked[1] / T_))  # noqa: E731
    difference = (at(2.5 + 1e-5) - at(2.5 - 1e-5)) / 2e-5
    assert float(slope(2.5)) == pytest.approx(difference, rel=1e-6, abs=1e-9)
    np.testing.assert_allclose(compiled.value(div.dual(), S, T), want, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_the_power_of_the_temperature_counts_where_the_value_is_infinite():
    """The finite part has its gradient, by which an optimiser may still get out of there."""
    target, model = jnp.array([1.0, 0.0, 2.0]), jnp.array([0.0, 1.0, -INF])
    for inner in (dv.ForwardKL(), dv.get("renyi(2.0)")):
        hot = dv.Tempered(inner=inner, temperature=2.0, power=3.0)
        assert hot(target, model) == INF
        found = jax.grad(lambda s, hot=hot: hot(target, s))(model)
        expected = 8 * jax.grad(lambda s, inner=inner: inner(target / 2, s / 2))(model)
        assert jnp.abs(expected).max() > 0.1
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_the_right_power_keeps_the_size():
    """T² for smooth members, T for total variation: the values settle as T grows."""
    variance = np.var(T - S, axis=-1)
    hot = dv.Tempered(inner=dv.Jeffreys(), temperature=1e4, power=2.0)
    np.testing.assert_allclose(compiled.value(hot, T, S), variance, rtol=1e-3)
    normal = dv.Tempered(inner=dv.Triangular(), temperature=1e4, power=2.0).normalized()
    np.testing.assert_allclose(compiled.value(normal, T, S), variance / 2, rtol=1e-3)
    gap = (T - S) - np.mean(T - S, -1, keepdims=True)
    total = dv.Tempered(inner=dv.TotalVariation(), temperature=1e4, power=1.0)
    np.testing.assert_allclose(compiled.value(total, T, S), np.mean(np.abs(gap), -1) / 2, rtol=1e-3)


@pytest.mark.usefixtures("x64")
def test_symmetrized():
    for inner in INNER:
        div = dv.symmetrized(inner)
        want = 0.5 * compiled.value(inner, T, S) + 0.5 * compiled.value(inner, S, T)
        np.testing.assert_allclose(compiled.value(div, T, S), want, rtol=1e-12)
    half = dv.symmetrized(dv.SkewForwardKL(skew=0.5))
    assert isinstance(half, dv.AbstractFDivergence)
    assert half.symmetric
    np.testing.assert_allclose(
        compiled.value(half, T, S), compiled.value(dv.JensenShannon(), T, S), rtol=1e-11
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("power", [1.0, 2 / 3, 0.0, -0.5, -1.0, -2.0, 3.0])
def test_cressie_read_is_scipys_power_divergence(power):
    for t, s in zip(T, S, strict=True):
        p, q = softmax(t), softmax(s)
        want = stats.power_divergence(p, q, lambda_=power).statistic
        assert float(dv.cressie_read(power)(t, s)) == pytest.approx(want, rel=1e-10)


@pytest.mark.usefixtures("x64")
def test_tsallis_and_t_power_and_chi2_kl_by_their_definitions():
    p, q = softmax(T), softmax(S)
    for a in (0.5, 1.5, 2.0):
        want = (np.sum(p**a * q ** (1 - a), -1) - 1) / (a - 1)
        np.testing.assert_allclose(compiled.value(dv.tsallis(a), T, S), want, rtol=1e-11)
    np.testing.assert_allclose(
        compiled.value(dv.tsallis(1.0), T, S), compiled.value(dv.ForwardKL(), T, S)
    )
    for t in (-1.0, 0.5, 2.5):
        u, sign = p / q, -1 if 0 < t < 1 else 1
        want = np.sum(q * sign * (u**t - 1 - t * (u - 1)), -1)
        np.testing.assert_allclose(compiled.value(dv.t_power(t), T, S), want, rtol=1e-11)
    assert np.all(np.asarray(compiled.value(dv.t_power(1.0), T, S)) == 0)
    want = np.sum(q * np.log(q / p), -1) + 0.5 * np.sum((p - q) ** 2 / p, -1)
    chipo = dv.chi2_kl(0.5)
    np.testing.assert_allclose(compiled.value(chipo, T, S), want, rtol=1e-11)
    # χPO's link is r + log r up to a constant, r = model/target.
    assert isinstance(chipo, dv.AbstractFDivergence)
    s = np.array([-3.0, 0.0, 1.0, 2.0])
    np.testing.assert_allclose(chipo.link(s), np.exp(s) + s - 1, rtol=1e-11)
    swept = jax.jit(jax.vmap(lambda a: dv.tsallis(a)(T[0], S[0])))(np.array([0.5, 1.0, 2.0]))
    np.testing.assert_allclose(swept, [dv.tsallis(a)(T[0], S[0]) for a in (0.5, 1.0, 2.0)])


TFP = {
    "alpha(0.3)": lambda u: (u**0.3 - 1 - 0.3 * (u - 1)) / (0.3 * (0.3 - 1)),
    "forward_kl": lambda u: u * np.log(u) - (u - 1),
    "reverse_kl": lambda u: -np.log(u) + (u - 1),
    "0.5*jeffreys": lambda u: 0.5 * (u - 1) * np.log(u),
    "2*jensen_shannon(0.5)": lambda u: (
        u * np.log(u) - (1 + u) * np.log(1 + u) + (u + 1) * np.log(2)
    ),
    "arithmetic_geometric": lambda u: (1 + u) * np.log((1 + u) / np.sqrt(u)) - (1 + u) * np.log(2),
    "total_variation": lambda u: 0.5 * np.abs(u - 1),
    "forward_chi2": lambda u: (u - 1) ** 2,
    "2*squared_hellinger": lambda u: (np.sqrt(u) - 1) ** 2,
    "triangular": lambda u: (u - 1) ** 2 / (1 + u),
    "t_power(2.5)": lambda u: u**2.5 - 1 - 2.5 * (u - 1),
    "log1p_abs": lambda u: u ** np.sign(u - 1) - 1,
    "modified_gan": lambda u: np.log1p(u) - np.log(u) - np.log(2) + 0.5 * (u - 1),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("spec", TFP)
def test_every_csiszar_function_of_tfp_is_here(spec):
    u = np.array([1e-3, 0.2, 0.8, 1.5, 20.0, 1e3])
    np.testing.assert_allclose(f_member(spec).f(u), TFP[spec](u), rtol=1e-10)


@pytest.mark.parametrize(
    "spec",
    [
        "skewed(forward_kl, skew=0.3)",
        "skewed(renyi(2), skew=0.3)",
        "tempered(forward_kl, temperature=4, power=2)",
        "tempered(0.5*total_variation + 2*forward_kl, temperature=0.5, power=1)",
        "hoelder(exponent=3, power=0.5)",
        "log_variance('uniform')",
        "clipped_alpha(alpha=0.3, clip=4)",
        "adaptive_alpha(alpha_min=-0.5, alpha_max=2, clip=3)",
    ],
)
def test_specifications_read_back(spec):
    assert dv.get(spec) == dv.get(dv.get(spec).name)
    assert dv.get(spec).name == spec


def test_specifications_of_sums():
    assert dv.get("symmetrized(forward_kl)").name == "0.5*forward_kl + 0.5*reverse_kl"
    assert dv.get("chi2_kl").name == "reverse_kl + reverse_chi2"
    assert dv.get("cressie_read(1)").name == "2*alpha(2)"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tempered(forward_kl)", "tempered needs temperature and power"),
        ("tempered(forward_kl, temperature=0, power=2)", "temperature=0 must be positive"),
        ("skewed(forward_kl, skew=1)", r"skew=1 is outside \[0, 1\)"),
        ("skewed(forward_kl, skw=0.1)", "skewed has no parameter 'skw'; did you mean skew"),
        ("symmetrized(0.5)", "takes one divergence"),
        ("tsallis(-1)", "order=-1 must be positive"),
    ],
)
def test_wrong_specifications_say_what_is_wrong(spec, message):
    with pytest.raises(ValueError, match=message):
        dv.get(spec)
