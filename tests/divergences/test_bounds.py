"""Variational bounds: never exceeded, tight at the optimal critic, by enumeration and for Gaussians by quadrature."""

import functools

import jax
import jax.numpy as jnp
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
    "alpha(0.5)",
    "forward_chi2",
    "reverse_chi2",
    "squared_hellinger",
    "triangular",
    "skew_forward_kl(0.1)",
]
RNG = np.random.default_rng(3)
T, S = RNG.standard_normal(6), RNG.standard_normal(6)
P, Q = (np.exp(x - np.logaddexp.reduce(x)) for x in (T, S))
LOG_RATIO = np.log(P / Q)
CRITICS = LOG_RATIO + RNG.standard_normal((200, 6)) * np.repeat([0.1, 1.0, 5.0, 40.0], 50)[:, None]
pytestmark = pytest.mark.usefixtures("x64")


def on_both(critic):
    shape = np.shape(critic)
    weights = {
        "target_weights": np.broadcast_to(P, shape),
        "model_weights": np.broadcast_to(Q, shape),
    }
    return {"target_critic": critic, "model_critic": critic, **weights}


def renyi(order):
    return np.log(np.sum(P**order * Q ** (1 - order))) / (order - 1)


@pytest.mark.parametrize("spec", SPECS)
def test_f_gan_is_tight_at_the_log_ratio_and_never_exceeded(spec):
    want = float(categorical.value(spec, T, S))
    assert float(dv.f_gan_bound(f_member(spec), **on_both(LOG_RATIO))) == pytest.approx(
        want, rel=1e-12
    )
    bounds = np.asarray(dv.f_gan_bound(f_member(spec), **on_both(CRITICS)))
    assert bounds.shape == (200,)
    assert np.all(bounds <= want + 1e-12)
    assert bounds[:50].max() > 0.9 * want


@pytest.mark.parametrize("spec", SPECS)
def test_gradient_ascent_on_the_critic_ends_at_the_log_ratio(spec):
    """Stationarity of the exact bound at v = log p/q, from autodiff."""
    slope = jax.grad(lambda v: dv.f_gan_bound(f_member(spec), **on_both(v)))(jnp.asarray(LOG_RATIO))
    np.testing.assert_allclose(slope, 0, atol=1e-12)


def test_the_always_valid_form_is_the_fenchel_form():
    """E_p[T] − E_q[f*(T)] with T = f′(e^v), f* from the brute-force supremum on a grid that misses it by 1e-6 at most."""
    for spec in ("jensen_shannon(0.5)", "triangular", "reverse_chi2"):
        div, v = f_member(spec), CRITICS[3]
        critic = np.asarray(div.df(np.exp(v)))
        u = np.exp(np.linspace(-30, 30, 60_001))
        f = np.asarray(div.f(u))
        conjugate = np.array([np.max(u * t - f) for t in critic])
        want = P @ critic - Q @ conjugate
        assert float(dv.f_gan_bound(div, **on_both(v))) == pytest.approx(want, rel=1e-6, abs=1e-6)


def test_donsker_varadhan_is_tight_up_to_a_constant_and_beats_nwj():
    want = float(categorical.value("forward_kl", T, S))
    tight = dv.donsker_varadhan_bound(**on_both(LOG_RATIO + 500.0))
    assert float(tight) == pytest.approx(want, rel=1e-10)
    bounds = np.asarray(dv.donsker_varadhan_bound(**on_both(CRITICS)))
    assert np.all(bounds <= want + 1e-12)
    assert np.all(bounds >= np.asarray(dv.f_gan_bound(dv.ForwardKL(), **on_both(CRITICS))) - 1e-12)


@pytest.mark.parametrize("order", [0.4, 0.9, 1.5, 2.5])
def test_renyi_is_tight_and_never_exceeded(order):
    want = renyi(order)
    tight = dv.renyi_bound(order, **on_both(LOG_RATIO - 3.0))
    assert float(tight) == pytest.approx(want, rel=1e-10)
    assert np.all(np.asarray(dv.renyi_bound(order, **on_both(CRITICS))) <= want + 1e-10)


def test_renyi_passes_through_order_one():
    critic = CRITICS[60]
    at_one = float(dv.donsker_varadhan_bound(**on_both(critic)))
    bound = jax.jit(lambda order: dv.renyi_bound(order, **on_both(critic)))
    for step in (0.0, 1e-9, -1e-9, 1e-7, 1e-6, 1e-5):
        assert float(bound(1 + step)) == pytest.approx(at_one, abs=50 * abs(step) + 1e-9)
    assert np.isfinite(float(jax.grad(bound)(1.0)))
    slope = (float(bound(1 + 1e-3)) - float(bound(1 - 1e-3))) / 2e-3
    assert float(jax.grad(bound)(1.0)) == pytest.approx(slope, rel=1e-3)


def test_chi2_is_tight_for_any_affine_map_of_the_ratio():
    want = float(categorical.value("forward_chi2", T, S))
    bound = dv.chi2_bound(**on_both(5 - 3 * P / Q))
    assert float(bound) == pytest.approx(want, rel=1e-11)
    assert np.all(np.asarray(dv.chi2_bound(**on_both(CRITICS))) <= want + 1e-12)
    assert float(dv.chi2_bound(**on_both(np.ones(6)))) == 0
    uncovered = {"target_critic": np.ones(2), "model_critic": np.zeros(2)}
    assert float(dv.chi2_bound(**uncovered)) == np.inf


def gaussians(critic_of):
    """Critic values at Gauss–Hermite nodes of N(0.3, 1) and N(0, 1.2²), which integrate as exactly as float64 goes."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    x, y = 0.3 + nodes, 1.2 * nodes
    return {
        "target_critic": critic_of(x),
        "model_critic": critic_of(y),
        "target_weights": weights,
        "model_weights": weights,
    }


def gaussian_log_ratio(x):
    return np.log(1.2) - 0.5 * (x - 0.3) ** 2 + 0.5 * (x / 1.2) ** 2


def test_gaussian_closed_forms():
    m, s = 0.3, 1.2
    given = gaussians(gaussian_log_ratio)
    kl = np.log(s) + (1 + m**2) / (2 * s**2) - 0.5
    assert float(dv.f_gan_bound(dv.ForwardKL(), **given)) == pytest.approx(kl, rel=1e-9)
    assert float(dv.donsker_varadhan_bound(**given)) == pytest.approx(kl, rel=1e-9)
    overlap = np.sqrt(2 * s / (1 + s**2)) * np.exp(-(m**2) / (4 * (1 + s**2)))
    assert float(dv.f_gan_bound(dv.SquaredHellinger(), **given)) == pytest.approx(
        1 - overlap, rel=1e-9
    )
    v = (1 - 1.5) + 1.5 * s**2
    order = np.log(s) + np.log(s**2 / v) / (2 * 0.5) + 1.5 * m**2 / (2 * v)
    assert float(dv.renyi_bound(1.5, **given)) == pytest.approx(order, rel=1e-8)
    chi2 = s**2 / np.sqrt(2 * s**2 - 1) * np.exp(m**2 / (2 * s**2 - 1)) - 1
    ratio = gaussians(lambda x: np.exp(gaussian_log_ratio(x)))
    assert float(dv.chi2_bound(**ratio)) == pytest.approx(chi2, rel=1e-8)


def test_from_samples_the_bound_comes_within_its_standard_error():
    """Seeded: 200 000 draws; three standard errors of the two means."""
    rng = np.random.default_rng(8)
    x, y = rng.normal(0.3, 1, 200_000), rng.normal(0, 1.2, 200_000)
    kl = np.log(1.2) + (1 + 0.09) / (2 * 1.44) - 0.5
    on_x, on_y = gaussian_log_ratio(x), gaussian_log_ratio(y)
    got = float(dv.f_gan_bound(dv.ForwardKL(), target_critic=on_x, model_critic=on_y))
    error = np.sqrt(on_x.var() / x.size + np.exp(on_y).var() / y.size)
    assert abs(got - kl) < 3 * error < 0.01


STANDARD_ERRORS = {
    "f_gan": functools.partial(dv.f_gan_bound, dv.JensenShannon()),
    "donsker_varadhan": dv.donsker_varadhan_bound,
    "renyi": functools.partial(dv.renyi_bound, 0.5),
    "chi2": dv.chi2_bound,
}


@pytest.mark.parametrize("name", STANDARD_ERRORS)
def test_the_standard_error_is_the_spread_over_repeated_samples(name):
    """2000 data sets of 400 samples a side: their spread is known to 1.6 %, so 5 % is three standard errors."""
    rng = np.random.default_rng(9)
    x, y = rng.normal(0.3, 1, (2000, 400)), rng.normal(0, 1.2, (2000, 300))
    critics = {"target_critic": np.tanh(x) + 0.3 * x, "model_critic": np.tanh(y) + 0.3 * y}
    call = jax.jit(functools.partial(dv.estimate_bound, STANDARD_ERRORS[name]))
    got = call(**critics)
    assert np.std(got.value) == pytest.approx(float(np.mean(got.standard_error)), rel=0.05)
    plain = jax.jit(STANDARD_ERRORS[name])(**critics)
    np.testing.assert_allclose(got.value, plain, rtol=1e-12)


def test_standard_errors_by_hand_and_with_padding():
    rng = np.random.default_rng(10)
    on_x, on_y = rng.normal(0.3, 1, 50), rng.normal(0, 1, 70)
    call = jax.jit(functools.partial(dv.estimate_bound, dv.donsker_varadhan_bound))
    got = call(target_critic=on_x, model_critic=on_y)
    by_hand = on_x.var() / 50 + np.exp(on_y).var() / np.exp(on_y).mean() ** 2 / 70
    assert float(got.standard_error) == pytest.approx(np.sqrt(by_hand), rel=1e-12)
    padded = call(
        target_critic=np.append(on_x, np.nan),
        model_critic=np.append(on_y, np.inf),
        target_weights=np.append(np.full(50, 3.0), 0),
        model_weights=np.append(np.ones(70), 0),
    )
    np.testing.assert_allclose(padded, got, rtol=1e-12)


def test_padding_of_weight_zero_is_never_looked_at():
    critic, weights = np.array([0.2, -0.1, np.inf, np.nan]), np.array([1.0, 1.0, 0.0, 0.0])
    padded = {
        "target_critic": critic,
        "model_critic": critic,
        "target_weights": weights,
        "model_weights": weights,
    }
    plain = {"target_critic": critic[:2], "model_critic": critic[:2]}
    for bound in (dv.donsker_varadhan_bound, dv.chi2_bound):
        assert float(bound(**padded)) == pytest.approx(float(bound(**plain)), rel=1e-12, abs=1e-15)
    assert float(dv.renyi_bound(2.0, **padded)) == pytest.approx(
        float(dv.renyi_bound(2.0, **plain))
    )
    got, want = (dv.f_gan_bound(dv.JensenShannon(), **given) for given in (padded, plain))
    assert float(got) == pytest.approx(float(want), rel=1e-12)


def test_float32_survives_a_wild_critic():
    critic = np.array([200.0, -200.0], np.float32)
    both = {"target_critic": critic, "model_critic": critic}
    assert np.isfinite(dv.donsker_varadhan_bound(**both))
    assert np.isfinite(dv.renyi_bound(3.0, **both))
    for spec in ("jensen_shannon(0.5)", "squared_hellinger", "triangular"):
        bound = dv.f_gan_bound(f_member(spec), **both)
        assert bound.dtype == np.float32
        assert not np.isnan(bound)


def test_wrong_input_is_explained():
    with pytest.raises(TypeError, match=r"adaptive_kl.* is not an f-divergence"):
        dv.f_gan_bound(dv.AdaptiveKL(), target_critic=np.zeros(2), model_critic=np.zeros(2))
    with pytest.raises(ValueError, match="order=-1 must be positive"):
        dv.renyi_bound(-1.0, target_critic=np.zeros(2), model_critic=np.zeros(2))
