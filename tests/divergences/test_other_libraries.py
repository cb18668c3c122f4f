"""Against what other libraries say: TFP's Csiszár functions, SciPy, and POT's optimal transport.

Scale conventions of TFP (`tfp.vi`, which writes the same f(u), u = p/q, as a function of log u): its Jensen–Shannon and
squared Hellinger functions are twice ours, its Jeffreys half of ours; without `self_normalized=True` its functions are
off by c·(u − 1), and Jensen–Shannon, arithmetic–geometric and modified GAN are not 0 at u = 1 (the last one never is).

TFP's last release, 0.25, cannot be imported with JAX 0.10 (`jax.interpreters.xla` has no `pytype_aval_mappings`): this is
tested with its nightly builds, which need no TensorFlow.
"""

import inspect
import math
import types
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from members import f_member
from scipy.spatial import distance

from divax import divergences as dv

pytestmark = pytest.mark.usefixtures("x64")
RNG = np.random.default_rng(5)
LOG_U = np.linspace(-12, 12, 97)
T, S = RNG.normal(0, 2, (2, 40, 7))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


P, Q = softmax(T), softmax(S)


# ---- TensorFlow Probability ----------------------------------------------------------------------------------------


class Csiszar(NamedTuple):
    """A function of TFP's: scale·ours + at_one + slope·(u − 1).

    Attributes:
        name: in `tfp.vi`.
        member: ours.
        scale: theirs over ours.
        at_one: their value at u = 1.
        slope: their derivative there.
        options: of theirs.
    """

    name: str
    member: str
    scale: float = 1.0
    at_one: float = 0.0
    slope: float = 0.0
    options: dict[str, Any] = {}  # noqa: RUF012


LOG_2, STANDARD = math.log(2), {"self_normalized": True}
CSISZAR = [
    *(
        Csiszar("amari_alpha", f"alpha({a})", options=STANDARD | {"alpha": a})
        for a in (-1.5, 0.0, 0.5, 1.0, 3.0)
    ),
    Csiszar("amari_alpha", "alpha(0.5)", slope=-2, options={"alpha": 0.5}),
    Csiszar("kl_forward", "forward_kl", options=STANDARD),
    Csiszar("kl_forward", "forward_kl", slope=1),
    Csiszar("kl_reverse", "reverse_kl", options=STANDARD),
    Csiszar("kl_reverse", "reverse_kl", slope=-1),
    Csiszar("jensen_shannon", "jensen_shannon", 2, options=STANDARD),
    Csiszar("jensen_shannon", "jensen_shannon", 2, -2 * LOG_2, -LOG_2),
    Csiszar("arithmetic_geometric", "arithmetic_geometric", options=STANDARD),
    Csiszar("arithmetic_geometric", "arithmetic_geometric", 1, 2 * LOG_2, LOG_2),
    Csiszar("total_variation", "total_variation"),
    Csiszar("pearson", "forward_chi2"),
    Csiszar("chi_square", "forward_chi2", slope=2),
    Csiszar("squared_hellinger", "squared_hellinger", 2),
    Csiszar("triangular", "triangular"),
    *(
        Csiszar("t_power", f"t_power({t})", options=STANDARD | {"t": t})
        for t in (-1.0, 0.3, 0.5, 2.0)
    ),
    Csiszar("t_power", "t_power(2.0)", slope=2, options={"t": 2.0}),
    Csiszar("log1p_abs", "log1p_abs"),
    Csiszar("jeffreys", "jeffreys", 0.5),
    Csiszar("modified_gan", "modified_gan", at_one=LOG_2, options=STANDARD),
    Csiszar("modified_gan", "modified_gan", at_one=LOG_2, slope=-0.5),
]
IDS = [f"{one.name}({', '.join(f'{k}={v}' for k, v in one.options.items())})" for one in CSISZAR]
every_function = pytest.mark.parametrize("one", CSISZAR, ids=IDS)


@pytest.fixture(scope="module")
def vi() -> types.ModuleType:
    """TFP's variational inference on JAX."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it uses what JAX is about to remove
        try:
            return pytest.importorskip("tensorflow_probability.substrates.jax.vi")
        except AttributeError as error:  # or what JAX has removed
            pytest.skip(f"this TFP does not work with this JAX: {error}")


def theirs(vi, one):
    """f as a function of log u."""

    def f(log_u):
        # Their code mixes dtypes and ranks freely.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return getattr(vi, one.name)(log_u, **one.options)

    return f


def test_every_csiszar_function_of_tfp_is_here(vi):
    found = {
        name
        for name, value in vars(vi).items()
        if inspect.isfunction(value) and next(iter(inspect.signature(value).parameters)) == "logu"
    }
    rest = {"dual_csiszar_function", "symmetrized_csiszar_function"}
    assert found == {one.name for one in CSISZAR} | rest


@every_function
def test_generators_and_their_derivatives_are_tfps(vi, one):
    div, f, u = f_member(one.member), theirs(vi, one), np.exp(LOG_U)
    kink = LOG_U == 0
    linear, size = one.at_one + one.slope * (u - 1), 1 + u
    # Theirs cancels near u = 1, where it is a difference of terms of size 1 + u.
    want = np.asarray(f(jnp.asarray(LOG_U))) - linear
    got = one.scale * np.asarray(div.f(u))
    np.testing.assert_allclose(got / size, want / size, rtol=1e-9, atol=1e-14)
    by_log_u = jax.vmap(jax.grad(f))(jnp.asarray(LOG_U))
    want = np.asarray(by_log_u) / u - one.slope
    got = one.scale * np.asarray(div.df(u))
    smooth = ~kink | div.smooth
    np.testing.assert_allclose(got[smooth], want[smooth], rtol=1e-8, atol=1e-9)


@every_function
def test_divergences_are_expectations_of_tfps_functions(vi, one):
    div, log_u = dv.get(one.member), np.log(P) - np.log(Q)
    expectation = np.sum(Q * np.asarray(theirs(vi, one)(jnp.asarray(log_u))), -1)
    np.testing.assert_allclose(
        one.scale * np.asarray(div(T, S)) + one.at_one, expectation, rtol=1e-11, atol=1e-13
    )


@pytest.mark.parametrize("name", ["kl_forward", "kl_reverse", "pearson", "triangular"])
def test_duals_and_symmetrizations_are_tfps(vi, name):
    one = next(one for one in CSISZAR if one.name == name)
    div, f, log_u = f_member(one.member), theirs(vi, one), jnp.asarray(LOG_U)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        dual = vi.dual_csiszar_function(log_u, f)
        symmetrized = vi.symmetrized_csiszar_function(log_u, f)
    u = np.exp(LOG_U)
    np.testing.assert_allclose(div.dual().f(u), dual, rtol=1e-9, atol=1e-9)
    ours = dv.symmetrized(div)
    assert isinstance(ours, dv.AbstractFDivergence)
    np.testing.assert_allclose(ours.f(u), symmetrized, rtol=1e-9, atol=1e-9)


# ---- SciPy -----------------------------------------------------------------------------------------------------------


def test_the_root_of_jensen_shannon_is_scipys_distance():
    got = np.sqrt(np.asarray(dv.JensenShannon()(T, S)))
    want = [distance.jensenshannon(p, q) for p, q in zip(P, Q, strict=True)]
    np.testing.assert_allclose(got, want, rtol=1e-12)


# ---- POT -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ot() -> types.ModuleType:
    """Python Optimal Transport, in NumPy."""
    return pytest.importorskip("ot")


POINTS = RNG.normal(size=(7, 2))
COST = np.linalg.norm(POINTS[:, None] - POINTS[None], axis=-1)
ROWS = range(4)


def relative_entropy(x, y):
    """Σ x·log(x/y) − x + y."""
    return np.sum(x * np.log(x / y) - x + y)


def entropic_cost(plan, p, q, epsilon):
    """⟨P, C⟩ + ε·KL(P ‖ p⊗q) of a plan."""
    return np.sum(plan * COST) + epsilon * relative_entropy(plan, np.outer(p, q))


def test_wasserstein_on_the_line_is_pots_exact_transport(ot):
    places = np.cumsum(RNG.uniform(0.1, 1, 7))
    cost = np.abs(places[:, None] - places[None])
    div = dv.Wasserstein1(positions=jnp.asarray(places))
    want = [ot.emd2(p, q, cost) for p, q in zip(P, Q, strict=True)]
    np.testing.assert_allclose(div(T, S), want, rtol=1e-12)


@pytest.mark.parametrize(("epsilon", "debiased"), [(0.1, False), (0.5, False), (0.5, True)])
def test_sinkhorn_is_the_objective_at_pots_plan(ot, epsilon, debiased):
    cost = jnp.asarray(COST)
    div = dv.Sinkhorn(
        epsilon=epsilon, cost=cost, debiased=debiased, tolerance=1e-12, max_iterations=20_000
    )

    def objective(p, q):
        plan = ot.sinkhorn(
            p, q, COST, epsilon, "sinkhorn_log", numItermax=20_000, stopThr=1e-12, warn=False
        )
        return entropic_cost(plan, p, q, epsilon)

    want = np.asarray([objective(P[i], Q[i]) for i in ROWS])
    if debiased:
        want -= [0.5 * (objective(P[i], P[i]) + objective(Q[i], Q[i])) for i in ROWS]
    rows = slice(len(ROWS))
    np.testing.assert_allclose(div(T[rows], S[rows]), want, rtol=1e-9)


def test_annealed_sinkhorn_approaches_pots_exact_transport(ot):
    """Within ε·log V: OT ≤ OT_ε ≤ OT + ε·KL(P ‖ p⊗q) for the exact plan P, and that KL is at most an entropy."""
    exact, rows = np.asarray([ot.emd2(P[i], Q[i], COST) for i in ROWS]), slice(len(ROWS))
    errors = []
    for epsilon in (0.02, 0.002):
        div = dv.AnnealedSinkhorn(epsilon=epsilon, cost=jnp.asarray(COST), max_iterations=20_000)
        errors.append(np.abs(np.asarray(div(T[rows], S[rows])) - exact).max())
        assert errors[-1] < epsilon * math.log(COST.shape[-1])
    assert errors[1] < 0.2 * errors[0]


@pytest.mark.parametrize("rho", [0.1, 1.0, 10.0])
def test_unbalanced_sinkhorn_is_the_objective_at_pots_plan(ot, rho):
    epsilon, rows = 0.2, slice(len(ROWS))
    div = dv.UnbalancedSinkhorn(
        epsilon=epsilon, rho=rho, cost=jnp.asarray(COST), tolerance=1e-13, max_iterations=20_000
    )

    def objective(p, q):
        plan = ot.unbalanced.sinkhorn_unbalanced(
            p, q, COST, epsilon, rho, numItermax=20_000, stopThr=1e-14, reg_type="kl"
        )
        marginals = relative_entropy(plan.sum(1), p) + relative_entropy(plan.sum(0), q)
        return entropic_cost(plan, p, q, epsilon) + rho * marginals

    want = [objective(P[i], Q[i]) for i in ROWS]
    np.testing.assert_allclose(div.solve(T[rows], S[rows]).value, want, rtol=1e-9)
