"""MMD, energy distance and Cauchy–Schwarz of samples against SciPy, loops over pairs, and Gaussian closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from divax import divergences as dv

KERNELS = {
    "rbf": (dv.RBFKernel(bandwidth=0.7), lambda r: np.exp(-(r**2) / (2 * 0.49))),
    "laplace": (dv.LaplaceKernel(bandwidth=0.7), lambda r: np.exp(-r / 0.7)),
    "imq": (dv.IMQKernel(bandwidth=0.7), lambda r: (1 + r**2 / 0.49) ** -0.5),
    "energy": (dv.EnergyKernel(), lambda r: -r),
    "several": (
        dv.multi_bandwidth(dv.RBFKernel, 0.7, factors=(0.5, 2.0)),
        lambda r: 0.5 * (np.exp(-(r**2) / (2 * 0.1225)) + np.exp(-(r**2) / (2 * 1.96))),
    ),
}


def samples(n=7, m=5, d=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)), rng.normal(0.4, 1.2, size=(m, d))


def pairs(kernel, x, y, *, itself=True):
    """The mean of a kernel over pairs, one at a time."""
    values = [
        kernel(np.linalg.norm(a - b))
        for i, a in enumerate(x)
        for j, b in enumerate(y)
        if itself or i != j
    ]
    return np.mean(values)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", KERNELS)
def test_both_statistics_are_the_sums_over_pairs_and_their_gradients_difference_quotients(name):
    kernel, textbook = KERNELS[name]
    x, y = samples()
    biased = pairs(textbook, x, x) + pairs(textbook, y, y) - 2 * pairs(textbook, x, y)
    unbiased = (
        pairs(textbook, x, x, itself=False)
        + pairs(textbook, y, y, itself=False)
        - 2 * pairs(textbook, x, y)
    )
    direction = np.random.default_rng(1).normal(size=y.shape)
    for function, want in ((dv.biased_mmd, biased), (dv.unbiased_mmd, unbiased)):
        call = jax.jit(lambda y, f=function: f(x, y, kernel=kernel))
        assert float(call(y)) == pytest.approx(want, rel=1e-12)
        slope = float(jnp.sum(jax.jit(jax.grad(call))(y) * direction))
        quotient = float(call(y + 1e-6 * direction) - call(y - 1e-6 * direction)) / 2e-6
        assert slope == pytest.approx(quotient, rel=1e-7)


@pytest.mark.usefixtures("x64")
def test_scipy_s_energy_distance_is_the_root():
    x, y = samples(40, 30, 1)
    want = stats.energy_distance(x[:, 0], y[:, 0])
    assert float(dv.energy_distance(x, y)) == pytest.approx(want**2, rel=1e-12)


@pytest.mark.usefixtures("x64")
def test_the_statistics_estimate_the_gaussian_closed_form(key):
    """MMD² of N(0, 1) and N(Δ, s²) under an RBF kernel; the unbiased mean over 400 draws is within 4 standard errors."""
    delta, s, sigma = 0.8, 1.5, 0.9
    table = lambda v, gap: sigma / np.sqrt(sigma**2 + v) * np.exp(-(gap**2) / (2 * (sigma**2 + v)))  # noqa: E731
    want = table(2.0, 0.0) + table(2 * s**2, 0.0) - 2 * table(1 + s**2, delta)
    noise = jax.random.normal(key, (2, 400, 30, 1), jnp.float64)
    x, y = noise[0], delta + s * noise[1]
    kernel = dv.RBFKernel(bandwidth=sigma)
    both = jax.jit(
        jax.vmap(
            lambda x, y: (dv.unbiased_mmd(x, y, kernel=kernel), dv.biased_mmd(x, y, kernel=kernel))
        )
    )
    unbiased, biased = (np.asarray(v) for v in both(x, y))
    assert abs(unbiased.mean() - want) < 4 * unbiased.std() / 20
    assert unbiased.min() < 0  # as the docstring says
    assert biased.min() >= 0
    bias = (1 - table(2.0, 0.0)) / 30 + (1 - table(2 * s**2, 0.0)) / 30
    assert abs(biased.mean() - want - bias) < 4 * biased.std() / 20


def test_coinciding_and_distant_points_are_harmless():
    """Equal samples: 0 and finite gradients under the kinked kernels; float32 near-duplicates keep their digits."""
    x = jnp.asarray(samples()[0], jnp.float32)
    for kernel, _ in KERNELS.values():
        value, gradient = jax.jit(
            jax.value_and_grad(lambda y, k=kernel: dv.biased_mmd(x, y, kernel=k))
        )(x)
        assert float(value) == pytest.approx(0, abs=1e-7)
        assert np.all(np.isfinite(gradient))
    far = jax.value_and_grad(lambda y: dv.biased_mmd(x, y, kernel=dv.RBFKernel(bandwidth=1.0)))
    value, gradient = far(x + 1e4)
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))
    a, b = jnp.asarray([[1000.0]], jnp.float32), jnp.asarray([[1000.0 + 2**-7]], jnp.float32)
    assert float(dv.energy_distance(a, b)) == 2 * 2**-7
    # 1 − k is 3e-13, far below what float32 resolves next to 1.
    close = float(dv.biased_mmd(a, b, kernel=dv.RBFKernel(bandwidth=1e4)))
    assert close == pytest.approx((2**-7 / 1e4) ** 2, rel=1e-5)


def test_median_bandwidth_sees_no_gradient_and_bandwidths_may_be_traced():
    x, y = (jnp.asarray(v, jnp.float32) for v in samples())
    points = np.concatenate([x, y])
    lengths = [np.linalg.norm(a - b) for i, a in enumerate(points) for b in points[:i]]
    assert float(dv.median_bandwidth(x, y)) == pytest.approx(np.median(lengths), rel=1e-6)
    assert not np.any(jax.grad(lambda y: dv.median_bandwidth(x, y))(y))
    assert float(dv.median_bandwidth(x[:1], x[:1])) == 1
    traced = jax.jit(lambda b: dv.biased_mmd(x, y, kernel=dv.RBFKernel(bandwidth=b)))
    assert float(traced(0.7)) == pytest.approx(
        float(dv.biased_mmd(x, y, kernel=KERNELS["rbf"][0])), rel=1e-5
    )
    assert np.isfinite(jax.grad(traced)(0.7))
    with pytest.raises(ValueError, match="RBFKernel: bandwidth=-1 must be positive"):
        dv.RBFKernel(bandwidth=-1)
    with pytest.raises(ValueError, match=r"samples \[7, 3\] and \[5, 2\] differ"):
        dv.biased_mmd(x, y[:, :2], kernel=dv.EnergyKernel())
    with pytest.raises(ValueError, match="two points on each side, got 7 and 1"):
        dv.unbiased_mmd(x, y[:1], kernel=dv.EnergyKernel())


@pytest.mark.usefixtures("x64")
def test_noise_adaptive_mmd_is_the_u_statistic_of_its_kernel_and_the_witness_its_slope():
    x, y = samples()
    weights = np.random.default_rng(5).normal(size=(3, 4))
    features = lambda z, t: jnp.tanh((z / (1 + t)) @ weights)  # noqa: E731
    t = jnp.asarray(0.3)
    phi = lambda z: np.tanh(z / 1.3 @ weights)  # noqa: E731
    u, v = phi(x) @ phi(x).T, phi(y) @ phi(y).T
    want = (u.sum() - np.trace(u)) / 42 + (v.sum() - np.trace(v)) / 20
    want -= 2 * (phi(x) @ phi(y).T).mean()
    got = dv.noise_adaptive_mmd(x, y, noise_level=t, features=features)
    assert float(got) == pytest.approx(want, rel=1e-12)
    witness = dv.noise_adaptive_witness(x[:2], x, y, noise_level=t, features=features)
    np.testing.assert_allclose(
        witness, phi(x[:2]) @ phi(x).T.mean(1) - phi(x[:2]) @ phi(y).T.mean(1), rtol=1e-12
    )


@pytest.mark.usefixtures("x64")
def test_cauchy_schwarz_is_that_of_the_kernel_density_estimates():
    """By quadrature of the two Parzen densities, whose bandwidth is the kernel's over √2."""
    x, y = samples(6, 5, 1)
    sigma = 0.8
    density = lambda z, data: stats.norm.pdf(z, data[:, 0], sigma / np.sqrt(2)).mean()  # noqa: E731
    integral = lambda a, b: integrate.quad(  # noqa: E731
        lambda z: density(z, a) * density(z, b), -12, 12, epsabs=1e-13, limit=400
    )[0]
    want = -np.log(integral(x, y)) + 0.5 * np.log(integral(x, x)) + 0.5 * np.log(integral(y, y))
    kernel = dv.RBFKernel(bandwidth=sigma)
    call = jax.jit(lambda y: dv.sample_cauchy_schwarz(x, y, kernel=kernel))
    assert float(call(y)) == pytest.approx(want, rel=1e-9)
    assert float(call(x)) == pytest.approx(0, abs=1e-14)
    direction = np.ones_like(y)
    quotient = float(call(y + 1e-6) - call(y - 1e-6)) / 2e-6
    assert float(jnp.sum(jax.grad(call)(y) * direction)) == pytest.approx(quotient, rel=1e-7)
    far = float(call(y + 1e3))
    assert np.isfinite(far)
    assert far > 1e5
    assert np.all(np.isfinite(jax.grad(call)(y + 1e3)))


@pytest.mark.usefixtures("x64")
def test_conditional_cauchy_schwarz_is_the_published_sum():
    rng = np.random.default_rng(3)
    x_p, y_p, x_q, y_q = (rng.normal(size=shape) for shape in ((6, 2), (6, 1), (5, 2), (5, 1)))
    gram = lambda a, b, s: np.exp(  # noqa: E731
        -np.sum((a[:, None] - b[None]) ** 2, -1) / (2 * s**2)
    )
    k, l_ = (lambda a, b: gram(a, b, 0.9)), (lambda a, b: gram(a, b, 0.6))
    pp = np.sum((k(x_p, x_p) * l_(y_p, y_p)).sum(1) / k(x_p, x_p).sum(1) ** 2)
    qq = np.sum((k(x_q, x_q) * l_(y_q, y_q)).sum(1) / k(x_q, x_q).sum(1) ** 2)
    pq = np.sum((k(x_p, x_q) * l_(y_p, y_q)).sum(1) / (k(x_p, x_p).sum(1) * k(x_p, x_q).sum(1)))
    qp = np.sum((k(x_q, x_p) * l_(y_q, y_p)).sum(1) / (k(x_q, x_q).sum(1) * k(x_q, x_p).sum(1)))
    call = jax.jit(
        lambda x_q, y_q: dv.conditional_cauchy_schwarz(
            target_inputs=x_p,
            target_outputs=y_p,
            model_inputs=x_q,
            model_outputs=y_q,
            input_kernel=dv.RBFKernel(bandwidth=0.9),
            output_kernel=dv.RBFKernel(bandwidth=0.6),
        )
    )
    assert float(call(x_q, y_q)) == pytest.approx(0.5 * np.log(pp * qq / (pq * qp)), rel=1e-11)
    assert float(call(x_p, y_p)) == pytest.approx(0, abs=1e-14)
    assert np.isfinite(call(x_q + 1e4, y_q))  # every kernel value underflows
    assert np.all(np.isfinite(jax.grad(call, 1)(x_q + 1e4, y_q)))


@pytest.mark.usefixtures("x64")
def test_vocabulary_mmd_is_the_quadratic_form_with_the_closed_form_gradient():
    rng = np.random.default_rng(4)
    t, s = rng.normal(0, 2, (2, 3, 8))
    embeddings = rng.normal(size=(8, 4))
    gram = embeddings @ embeddings.T
    p, q = (np.exp(z) / np.exp(z).sum(-1, keepdims=True) for z in (t, s))
    div = dv.VocabularyMMD(embeddings=jnp.asarray(embeddings))
    value, gradient = jax.jit(jax.value_and_grad(lambda s: jnp.sum(div(t, s))))(s)
    want = np.einsum("bi,ij,bj->b", p - q, gram, p - q)
    assert float(value) == pytest.approx(want.sum(), rel=1e-12)
    w = (q - p) @ gram
    np.testing.assert_allclose(
        gradient, 2 * q * (w - (q * w).sum(-1, keepdims=True)), rtol=1e-10, atol=1e-14
    )
    # Cancellation-free: at a perturbation of 1e-9 the value is quadratic, to nine digits.
    step = rng.normal(size=8)
    slope = q[0] * (step - q[0] @ step)
    tiny = float(div(s[0], s[0] + 1e-9 * step))
    assert tiny == pytest.approx(1e-18 * slope @ gram @ slope, rel=1e-6)
    masked_t, masked_s = (
        jnp.asarray(t[0]).at[:2].set(-jnp.inf),
        jnp.asarray(s[0]).at[1:4].set(-jnp.inf),
    )
    assert np.all(np.isfinite(jax.grad(div, (0, 1))(masked_t, masked_s)))
    with pytest.raises(ValueError, match=r"embeddings have shape \(8, 4\), but a vocabulary of 5"):
        div(jnp.zeros(5), jnp.zeros(5))
