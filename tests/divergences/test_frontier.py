"""The frontier and MAUVE against 50-digit sums and the published NumPy loop, ends, masks and gradients."""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from oracles import categorical

from divax import divergences as dv


def rows(seed=0, shape=(6,), scale=1.5):
    return np.random.default_rng(seed).normal(0, scale, (2, *shape))


def softmax(z):
    z = np.exp(z - z.max(-1, keepdims=True))
    return z / z.sum(-1, keepdims=True)


def published_mauve(p, q, scale=5.0):
    """The reference implementation's arithmetic: KLs to mixtures, both sort orders, both trapezoid areas, their mean."""

    def kl(a, b):
        inside = a > 0
        return np.sum(a[inside] * np.log(a[inside] / b[inside]))

    curve = [[0.0, np.inf]]
    for w in np.linspace(1e-6, 1 - 1e-6, 25):
        r = w * p + (1 - w) * q
        curve.append([kl(q, r), kl(p, r)])
    x, y = np.exp(-scale * np.array([*curve, [np.inf, 0.0]])).T
    by_x, by_y = np.argsort(x), np.argsort(y)
    area = lambda a, b: float(np.sum((b[1:] + b[:-1]) * np.diff(a)) / 2)  # noqa: E731
    return 0.5 * (area(x[by_x], y[by_x]) + area(y[by_y], x[by_y]))


def exact_kl_to_mixture(first, second, weight):
    """KL(first ‖ weight·first + (1 − weight)·second) from its definition, in 50 digits."""
    with mp.workdps(50):
        total = mp.mpf(0)
        for a, b in zip(first, second, strict=True):
            if a > 0:
                total += a * mp.log(a / (weight * a + (1 - weight) * b))
        return total


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("distance", [1.0, 1e-6])
def test_both_errors_keep_their_digits_however_close_the_histograms(distance):
    t, s = rows()
    s = t + distance * s
    weights = [1e-6, 0.3, 0.5, 1 - 1e-6]
    curve = jax.jit(lambda t, s: dv.divergence_frontier(t, s, weights=jnp.asarray(weights)))(t, s)
    with mp.workdps(50):
        p, q = (categorical.softmax([mp.mpf(float(x)) for x in row], 50) for row in (t, s))
        for i, weight in enumerate(map(mp.mpf, weights)):
            target = exact_kl_to_mixture(p, q, weight)
            model = exact_kl_to_mixture(q, p, 1 - weight)
            # A log-ratio of 1e-6 is the difference of logits of size one: eps/1e-6 is what the inputs leave.
            rel = 1e-12 if distance == 1.0 else 1e-9
            assert float(curve.target_error[i]) == pytest.approx(float(target), rel=rel)
            assert float(curve.model_error[i]) == pytest.approx(float(model), rel=rel)


@pytest.mark.usefixtures("x64")
def test_mauve_is_the_published_loop_s():
    t, s = rows(1, (5, 8))
    s = s.copy()
    t[1, :3] = s[1, 2:5] = -np.inf
    t[2, :4] = s[2, 4:] = -np.inf  # disjoint
    s[3] = t[3]
    values = jax.jit(lambda t, s: dv.mauve(t, s))(t, s)
    for i in range(5):
        want = published_mauve(softmax(t[i]), softmax(s[i]))
        assert float(values[i]) == pytest.approx(want, rel=1e-11), i
    assert float(values[3]) == 1
    assert float(values[2]) < 0.05
    np.testing.assert_allclose(jax.jit(dv.mauve)(s, t), values, rtol=1e-12)  # symmetric


@pytest.mark.usefixtures("x64")
def test_the_ends_are_the_two_kl_divergences():
    t, s = rows(2)
    curve = dv.divergence_frontier(t, s, weights=jnp.asarray([0.0, 1.0]))
    assert float(curve.target_error[0]) == pytest.approx(float(dv.ForwardKL()(t, s)), rel=1e-13)
    assert float(curve.model_error[1]) == pytest.approx(float(dv.ReverseKL()(t, s)), rel=1e-13)
    assert float(curve.target_error[1]) == float(curve.model_error[0]) == 0
    fine = jnp.linspace(0, 1, 41)
    curve = dv.divergence_frontier(t, s, weights=fine)
    assert bool(jnp.all(jnp.diff(curve.target_error) < 0))
    assert bool(jnp.all(jnp.diff(curve.model_error) > 0))


@pytest.mark.usefixtures("x64")
def test_the_frontier_integral_is_the_area_of_its_errors():
    """2∫(λ·KL(p‖r) + (1 − λ)·KL(q‖r))dλ by Gauss–Legendre, against Σ (p+q)/2 − pq·log(p/q)/(p − q), its closed form."""
    t, s = rows(3)
    p, q = softmax(t), softmax(s)
    nodes, masses = np.polynomial.legendre.leggauss(400)
    weights = (nodes + 1) / 2
    curve = dv.divergence_frontier(t, s, weights=jnp.asarray(weights))
    errors = weights * curve.target_error + (1 - weights) * curve.model_error
    closed = np.sum((p + q) / 2 - p * q * np.log(p / q) / (p - q))
    assert float(jnp.sum(masses * errors)) == pytest.approx(closed, rel=1e-12)


@pytest.mark.usefixtures("x64")
def test_gradients_are_difference_quotients_and_never_nan():
    t, s = rows(4)
    direction = rows(5)[0]
    call = jax.jit(lambda t, s, c: dv.mauve(t, s, scale=c))
    slope = jax.jit(jax.grad(call, (1, 2)))(t, s, 5.0)
    quotient = float(call(t, s + 1e-6 * direction, 5.0) - call(t, s - 1e-6 * direction, 5.0)) / 2e-6
    assert float(jnp.sum(slope[0] * direction)) == pytest.approx(quotient, rel=1e-6)
    quotient = float(call(t, s, 5.0 + 1e-6) - call(t, s, 5.0 - 1e-6)) / 2e-6
    assert float(slope[1]) == pytest.approx(quotient, rel=1e-6)
    inf = np.inf
    gradient = jax.jit(jax.grad(call, (0, 1)))
    for a, b in (
        ([0, 1, -inf, -inf, 0, 0], [0, -inf, 1, -inf, 0, 0]),
        ([0, 1, 2, -inf, -inf, -inf], [-inf, -inf, -inf, 0, 1, 2]),
        ([1e4, -1e4, 0, 0, 0, 0], [-1e4, 1e4, 0, 0, 0, 0]),
        ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]),
        ([-inf] * 6, [0, 1, 2, 3, 4, 5]),
    ):
        a, b = np.asarray(a, float), np.asarray(b, float)
        assert 0 <= float(call(a, b, 5.0)) <= 1
        assert np.all(np.isfinite(gradient(a, b, 5.0)))


def test_smoothed_counts():
    counts = np.array([[0, 2, 5], [1, 1, 0]])
    want = (counts + 0.5) / (counts.sum(-1, keepdims=True) + 1.5)
    np.testing.assert_allclose(np.exp(dv.smoothed_log_counts(counts)), want, rtol=1e-6)
    plain = dv.smoothed_log_counts(counts, smoothing=0.0)
    np.testing.assert_allclose(np.exp(plain), counts / counts.sum(-1, keepdims=True), rtol=1e-6)
    assert plain[0, 0] == -np.inf
    with pytest.raises(ValueError, match="points=0 must be at least 1"):
        dv.mauve(jnp.zeros(3), jnp.zeros(3), points=0)
