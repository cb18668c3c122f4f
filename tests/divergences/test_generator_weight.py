"""h(r) = r²f″(r) against the published table, and the gradient identity that it is there for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from members import f_member
from scipy import integrate

from divax import divergences as dv

R = np.array([1e-3, 0.2, 0.9, 1.0, 1.3, 7.0, 1e3])
TABLE = {
    "reverse_kl": lambda r: np.ones_like(r),
    "forward_kl": lambda r: r,
    "2*jensen_shannon(0.5)": lambda r: r / (r + 1),
    "squared_hellinger": lambda r: np.sqrt(r) / 4,
    "jeffreys": lambda r: 1 + r,
    "forward_chi2": lambda r: 2 * r**2,
    "reverse_chi2": lambda r: 2 / r,
    "2*skewed(reverse_kl, skew=0.5)": lambda r: 1 / (r + 1),  # f-distill's softened reverse KL
    "alpha(0.3)": lambda r: r**0.3,
    "interpolated_js(0.2)": lambda r: r / (0.2 * r + 0.8),
    "skew_forward_kl(0.1)": lambda r: 0.9**2 * r / (0.1 * r + 0.9) ** 2,
    "skew_reverse_kl(0.1)": lambda r: (0.9 * r / (0.9 * r + 0.1)) ** 2,
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("spec", TABLE)
def test_the_table(spec):
    weight = dv.generator_weight(dv.get(spec), np.log(R))
    np.testing.assert_allclose(weight, TABLE[spec](R), rtol=1e-11)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "spec", ["forward_kl", "reverse_kl", "jensen_shannon", "alpha(0.3)", "triangular"]
)
def test_it_is_the_gradient_of_the_divergence_by_a_generator(spec):
    """p = N(0, 1), q = N(m, s²), x = m + s·z: −E_z[h·(∇log p − ∇log q)] is dD/dm, D by quadrature."""
    div, m, s = f_member(spec), 0.4, 0.8
    grid = np.linspace(-12, 12, 20_001)

    def log_normal(x, mean, scale):
        return -0.5 * ((x - mean) / scale) ** 2 - np.log(scale)

    def divergence(mean):
        log_q = log_normal(grid, mean, s)
        f = np.asarray(div.f(np.exp(log_normal(grid, 0, 1) - log_q)))
        return integrate.simpson(np.exp(log_q) * f, x=grid) / np.sqrt(2 * np.pi)

    z, x = grid, m + s * grid
    scores = -x - (-(x - m) / s**2)
    weight = dv.generator_weight(div, log_normal(x, 0, 1) - log_normal(x, m, s))
    expected = integrate.simpson(np.exp(-0.5 * z**2) * weight * scores, x=z) / np.sqrt(2 * np.pi)
    slope = (divergence(m + 1e-4) - divergence(m - 1e-4)) / 2e-4
    assert -float(expected) == pytest.approx(slope, rel=1e-6)


def test_it_is_computed_in_the_logarithm():
    far = jnp.asarray([-500.0, 500.0])
    assert dv.generator_weight(dv.JensenShannon(), far).tolist() == [0.0, 0.5]
    assert not np.any(
        np.isnan(jax.vmap(jax.grad(lambda x: dv.generator_weight(dv.JensenShannon(), x)))(far))
    )


def test_a_divergence_without_a_generator_is_refused():
    with pytest.raises(TypeError, match="needs an f-divergence; renyi"):
        dv.generator_weight(dv.Renyi(order=2.0), 0.0)
