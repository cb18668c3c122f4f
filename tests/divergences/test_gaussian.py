"""Estimators and bounds from samples of two Gaussians, against closed forms and with stated confidence.

Every comparison is a z-score: the distance from the closed form in standard errors, which are those of the sample itself.
A normal mean is beyond 4.5 of them with probability 7e-6. That holds for means of terms with a fourth moment only (else
the sample's own error is too small too often): the model is so little wider than the target that (q/p)^k has one under
the target for all k < 1.44. Each comparison has samples of its own; with 62 of them one choice of keys in 2000 would fail,
and the keys are fixed.
"""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from members import f_member

from divax import divergences as dv

pytestmark = pytest.mark.usefixtures("x64")
CONFIDENCE = 4.5
TARGET, MODEL, BEHAVIOUR = (0.5, 1.0), (0.0, 1.1), (0.2, 1.5)
GROUPS, EACH = 100, 2_000


# ---- closed forms of D(N(m1, s1²), N(m2, s2²)) -----------------------------------------------------------------------


def kl(one, other):
    (m1, s1), (m2, s2) = one, other
    return np.log(s2 / s1) + (s1**2 + (m1 - m2) ** 2) / (2 * s2**2) - 0.5


def renyi(order, one, other):
    """log ∫ p^a q^{1−a}/(a − 1), +inf where the integral diverges."""
    (m1, s1), (m2, s2) = one, other
    v = (1 - order) * s1**2 + order * s2**2
    if v <= 0:
        return np.inf
    spread = np.log(s2 / s1) + np.log(s2**2 / v) / (2 * (order - 1))
    return spread + order * (m1 - m2) ** 2 / (2 * v)


def alpha(order, one, other):
    """(∫ p^a q^{1−a} − 1)/(a(a − 1))."""
    return np.expm1((order - 1) * renyi(order, one, other)) / (order * (order - 1))


def chi2(one, other):
    """∫ p²/q − 1, finite for 2·s2² > s1²."""
    (m1, s1), (m2, s2) = one, other
    v = 2 * s2**2 - s1**2
    return s2**2 / (s1 * np.sqrt(v)) * np.exp((m1 - m2) ** 2 / v) - 1 if v > 0 else np.inf


def hellinger(one, other):
    """1 − ∫ √(pq)."""
    (m1, s1), (m2, s2) = one, other
    v = s1**2 + s2**2
    return 1 - np.sqrt(2 * s1 * s2 / v) * np.exp(-((m1 - m2) ** 2) / (4 * v))


CLOSED = {
    "forward_kl": kl,
    "reverse_kl": lambda one, other: kl(other, one),
    "forward_chi2": chi2,
    "squared_hellinger": hellinger,
    "alpha(0.3)": lambda one, other: alpha(0.3, one, other),
    "alpha(1.5)": lambda one, other: alpha(1.5, one, other),
    "alpha(-0.3)": lambda one, other: alpha(-0.3, one, other),
}


def log_density(x, gaussian):
    m, s = gaussian
    return -0.5 * ((x - m) / s) ** 2 - jnp.log(s) - 0.5 * np.log(2 * np.pi)


@pytest.mark.parametrize("spec", CLOSED)
def test_the_closed_forms_are_the_integrals(spec):
    """On a grid of step 1e-3, whose trapezoidal rule is exact to rounding for such functions."""
    x = np.arange(-20, 20, 1e-3)
    p, q = (np.asarray(log_density(x, one)) for one in (TARGET, MODEL))
    f = np.asarray(f_member(spec).f(np.exp(p - q)))
    assert np.sum(np.exp(q) * f) * 1e-3 == pytest.approx(CLOSED[spec](TARGET, MODEL), rel=1e-9)


# ---- estimators ------------------------------------------------------------------------------------------------------

LIGHT = ("reverse_kl", "squared_hellinger", "alpha(0.3)", "alpha(-0.3)")
CASES = [
    *((spec, "target", "standard", "pathwise") for spec in CLOSED),
    *((spec, "model", "standard", "score") for spec in CLOSED),
    *((spec, "model", "tail", "importance") for spec in ("reverse_kl", "squared_hellinger")),
    *((spec, "behaviour", "standard", "importance") for spec in CLOSED),
    ("reverse_kl", "model", "control_variate", "score"),
    ("forward_kl", "target", "standard", "score"),
]


def own(key, *case):
    """A key for this case alone."""
    return jax.random.fold_in(key, zlib.crc32(repr(case).encode()))


def z_score(each, want):
    """Standard errors between the mean and what is wanted, and one standard error."""
    error = np.std(each) / np.sqrt(np.size(each))
    return (np.mean(each) - want) / error, error


@pytest.mark.parametrize(("spec", "samples", "value", "gradient"), CASES)
def test_estimates_and_their_gradients_are_the_closed_forms(key, spec, samples, value, gradient):
    """The gradient is by the model's mean, its closed form by central differences of the value's."""
    drawn_by = {"target": TARGET, "model": MODEL, "behaviour": BEHAVIOUR}[samples]
    key = own(key, spec, samples, value, gradient)
    x = drawn_by[0] + drawn_by[1] * jax.random.normal(key, (GROUPS * EACH,))
    options: dict[str, Any] = {"samples": samples, "value": value, "gradient": gradient}
    if samples == "behaviour":
        options["behaviour_logps"] = log_density(x, BEHAVIOUR)
    if spec not in LIGHT and samples != "target":
        options["allow_heavy_tails"] = True  # bounded ratios: the target is the narrower Gaussian

    def each(mean):
        return dv.estimate(
            f_member(spec),
            target_logps=log_density(x, TARGET),
            model_logps=log_density(x, (mean, MODEL[1])),
            **options,
        )

    values, slopes = jax.jvp(each, (MODEL[0],), (1.0,))
    closed, h = CLOSED[spec], 1e-5
    want, other = closed(TARGET, MODEL), closed(MODEL, TARGET)
    z, error = z_score(values, want)
    assert abs(z) < CONFIDENCE
    assert error < 0.03 * want
    if spec != "squared_hellinger":  # all others notice if the two sides are exchanged
        assert abs(z_score(values, other)[0]) > CONFIDENCE
    up, down = (closed(TARGET, (MODEL[0] + step, MODEL[1])) for step in (h, -h))
    slope = (up - down) / (2 * h)
    z, error = z_score(slopes, slope)
    assert abs(z) < CONFIDENCE
    assert error < 0.05 * abs(slope)


WIDE, NARROW = (0.3, 1.5), (0.0, 1.0)


def test_an_infinite_chi2_is_refused_and_never_settles_when_insisted_on(key):
    assert chi2(WIDE, NARROW) == np.inf
    x = NARROW[0] + NARROW[1] * jax.random.normal(key, (GROUPS * EACH,))
    given: dict[str, Any] = {
        "target_logps": log_density(x, WIDE),
        "model_logps": log_density(x, NARROW),
        "samples": "model",
        "value": "standard",
        "gradient": "none",
    }
    with pytest.raises(ValueError, match="allow_heavy_tails=True"):
        dv.estimate(dv.ForwardChi2(), **given)

    def largest_share(target, model):
        x = model[0] + model[1] * jax.random.normal(key, (GROUPS * EACH,))
        given.update(target_logps=log_density(x, target), model_logps=log_density(x, model))
        each = dv.estimate(dv.ForwardChi2(), allow_heavy_tails=True, **given)
        return float(each.max() / each.sum())

    assert largest_share(TARGET, MODEL) < 1e-3
    assert largest_share(WIDE, NARROW) > 0.02  # one of 200 000 samples


def test_the_bound_of_an_infinite_chi2_grows_without_limit():
    """By quadrature: cut at c, the optimal critic p/q bounds by about c^0.2, as q(p/q > c) = c^−1.8 up to logarithms."""
    x = np.arange(-14, 14, 1e-3)
    p, q = (np.asarray(log_density(x, one)) for one in (WIDE, NARROW))
    bounds = [
        float(
            dv.chi2_bound(
                target_critic=critic,
                model_critic=critic,
                target_weights=np.exp(p),
                model_weights=np.exp(q),
            )
        )
        for critic in (np.minimum(np.exp(p - q), cut) for cut in (1e1, 1e4, 1e7, 1e10))
    ]
    assert np.all(np.diff(np.log(bounds)) > np.log(2))


# ---- bounds ----------------------------------------------------------------------------------------------------------


def log_ratio(x):
    return log_density(x, TARGET) - log_density(x, MODEL)


def f_gan(spec):
    return lambda **critics: dv.f_gan_bound(f_member(spec), **critics), CLOSED[spec](TARGET, MODEL)


def of_order(order):
    return lambda **critics: dv.renyi_bound(order, **critics), renyi(order, TARGET, MODEL)


BOUNDS = {
    **{f"f-GAN {spec}": f_gan(spec) for spec in CLOSED},  # of forward_kl: NWJ
    "Donsker–Varadhan": (dv.donsker_varadhan_bound, kl(TARGET, MODEL)),
    "Rényi 0.5": of_order(0.5),
    "Rényi 1.5": of_order(1.5),
    "Rényi 2.5": of_order(2.5),
    "HCR": (
        lambda target_critic, model_critic: dv.chi2_bound(
            target_critic=jnp.exp(target_critic), model_critic=jnp.exp(model_critic)
        ),
        chi2(TARGET, MODEL),
    ),
}


def bound_from_samples(key, bound, critic):
    """The bound of all samples, and its standard error from the spread of the bounds of groups of them."""
    keys = jax.random.split(key)
    x, y = (
        m + s * jax.random.normal(k, (GROUPS, EACH))
        for (m, s), k in zip((TARGET, MODEL), keys, strict=True)
    )
    whole = bound(target_critic=critic(x).ravel(), model_critic=critic(y).ravel())
    groups = np.asarray(bound(target_critic=critic(x), model_critic=critic(y)))
    return float(whole), groups.std() / np.sqrt(GROUPS)


@pytest.mark.parametrize("name", BOUNDS)
def test_bounds_are_met_by_the_optimal_critic_and_by_no_other(key, name):
    (bound, want), key = BOUNDS[name], own(key, name)
    value, error = bound_from_samples(key, bound, log_ratio)
    assert abs(value - want) < CONFIDENCE * error
    assert error < 0.03 * want
    for critic in (lambda x: 0.3 * jnp.cos(2 * x), lambda x: log_ratio(x) + 0.8 * jnp.sin(3 * x)):
        value, error = bound_from_samples(key, bound, critic)
        assert value + CONFIDENCE * error < want
