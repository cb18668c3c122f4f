"""The regularised optimum against KKT conditions in arbitrary precision, closed forms, SciPy and finite differences."""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
import scipy.optimize
from members import f_member
from oracles import categorical

from divax import divergences as dv

SPECS = [
    "reverse_kl",
    "forward_kl",
    "jeffreys",
    "jensen_shannon(0.5)",
    "jensen_shannon(0.1)",
    "alpha(0.3)",
    "alpha(0.5)",
    "alpha(2.0)",
    "alpha(-1.0)",
    "forward_chi2",
    "reverse_chi2",
    "squared_hellinger",
    "triangular",
    "skew_forward_kl(0.1)",
    "skew_reverse_kl(0.1)",
]
SOLVE = jax.jit(dv.regularized_argmax)  # compiled once per member and shape, whatever β and α
BETAS = [0.01, 0.3, 5.0]


def problem(size, seed=0, spread=1.0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(size), spread * rng.standard_normal(size)


def implied_reward(spec, log_ratio, beta):
    """β·(u·f(1/u))′ at u = policy/reference, from the textbook generator at 50 digits."""
    with mp.workdps(50):
        f = categorical.generator(spec)[0]
        u = mp.exp(mp.mpf(float(log_ratio)))
        dual = lambda v: v * f(1 / v)  # noqa: E731
        return float(beta * mp.diff(dual, u, h=mp.mpf(10) ** -15 * u))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("beta", [0.01, 1.0])
@pytest.mark.parametrize("spec", SPECS)
def test_the_conditions_of_optimality_hold(spec, beta):
    """The problem is concave, so these conditions are sufficient: reward − β·(dual generator)′ is λ wherever there is
    mass, and at most λ where there is none; the probabilities sum to one."""
    rewards, logits = problem(6)
    best = SOLVE(rewards, logits, f_member(spec), beta)
    log_ref = logits - np.logaddexp.reduce(logits)
    policy = np.exp(np.asarray(best.log_probs))
    assert policy.sum() == pytest.approx(1, abs=1e-12)
    for reward, l, ref in zip(rewards, np.asarray(best.log_probs), log_ref, strict=True):
        if np.isfinite(l):
            gap = reward - implied_reward(spec, l - ref, beta) - float(best.multiplier)
            assert abs(gap) < 1e-9 * (1 + abs(reward) + beta * np.exp(abs(l - ref)))
        else:
            floor = float(f_member(spec).limits.link_floor)
            assert reward - beta * floor <= float(best.multiplier) + 1e-9


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("beta", BETAS)
def test_reverse_kl_is_a_softmax(beta):
    rewards, logits = problem(40)
    log_ref = logits - np.logaddexp.reduce(logits)
    best = SOLVE(rewards, logits, dv.ReverseKL(), beta)
    free_energy = beta * np.logaddexp.reduce(log_ref + rewards / beta)
    want = log_ref + rewards / beta - free_energy / beta
    np.testing.assert_allclose(best.log_probs, want, rtol=1e-12, atol=1e-11)
    assert float(best.value) == pytest.approx(free_energy, rel=1e-12)
    assert float(best.multiplier) == pytest.approx(free_energy, rel=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("beta", [0.05, 0.3, 2.0])
def test_reverse_chi2_is_a_weighted_sparsemax(beta):
    """β/2·Σ(q − p)²/p has the optimum p·max(0, 1 + (r − λ)/β), with λ from the sorted active set."""
    rewards, logits = problem(12, seed=3)
    p = np.exp(logits - np.logaddexp.reduce(logits))
    order, multiplier = np.argsort(-rewards), np.nan
    for size in range(len(p), 0, -1):
        chosen = order[:size]
        mass = p[chosen].sum()
        multiplier = (p[chosen] @ rewards[chosen] + beta * (mass - 1)) / mass
        if np.all(1 + (rewards[chosen] - multiplier) / beta > 0):
            break
    want = p * np.maximum(0, 1 + (rewards - multiplier) / beta)
    best = SOLVE(rewards, logits, 0.5 * dv.ReverseChi2(), beta)
    np.testing.assert_allclose(np.exp(best.log_probs), want, atol=1e-12)
    assert float(best.multiplier) == pytest.approx(multiplier, rel=1e-10)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("spec", ["forward_kl", "jensen_shannon(0.5)", "triangular", "jeffreys"])
def test_no_policy_that_scipy_finds_is_better(spec):
    rewards, logits = problem(4, seed=1)
    f, _ = categorical.generator(spec)
    p = np.exp(logits - np.logaddexp.reduce(logits))
    beta = 0.5

    def loss(q):
        q = np.maximum(q, 1e-12)
        return -(q @ rewards) + beta * float(
            sum(b * f(mp.mpf(a / b)) for a, b in zip(p, q, strict=True))
        )

    found = scipy.optimize.minimize(
        loss,
        p,
        method="SLSQP",
        bounds=[(1e-12, 1)] * 4,
        constraints=[{"type": "eq", "fun": lambda q: q.sum() - 1}],
        options={"ftol": 1e-13, "maxiter": 300},
    )
    best = SOLVE(rewards, logits, f_member(spec), beta)
    np.testing.assert_allclose(np.exp(best.log_probs), found.x, atol=2e-5)
    assert float(best.value) == pytest.approx(-found.fun, abs=1e-9)
    assert float(best.value) >= -found.fun - 1e-12


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec != "jeffreys"])
def test_float32_agrees_with_float64_at_small_beta(spec):
    """The float32 answer to the float32 problem: 500 tokens, the best of them rare in the reference."""
    beta = 0.01
    rewards, logits = (x.astype(np.float32) for x in problem(500, spread=4.0))
    best = SOLVE(rewards, logits, f_member(spec), beta)
    with jax.enable_x64(True):
        wide = [x.astype(np.float64) for x in (rewards, logits)]
        want = SOLVE(*wide, f_member(spec), float(np.float32(beta)))
    assert np.exp(best.log_probs).sum() == pytest.approx(1, abs=2e-6)
    difference = np.abs(np.exp(np.asarray(best.log_probs)) - np.exp(np.asarray(want.log_probs)))
    assert difference.sum() < 1e-4
    assert float(best.value) == pytest.approx(float(want.value), rel=2e-6, abs=2e-6)
    assert float(best.multiplier) == pytest.approx(float(want.multiplier), rel=1e-4, abs=1e-5)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "spec",
    ["reverse_kl", "alpha(0.3)", "jensen_shannon(0.1)", "reverse_chi2", "2*squared_hellinger"],
)
def test_every_derivative_is_that_of_the_solution(spec):
    rewards, logits = problem(5, seed=2)
    div, beta, step = f_member(spec), 0.7, 1e-5
    leaves, structure = jax.tree.flatten(div)
    leaves = [jnp.asarray(leaf, jnp.float64) for leaf in leaves]

    @jax.jit
    def solve(rewards, logits, beta, leaves):
        best = dv.regularized_argmax(rewards, logits, jax.tree.unflatten(structure, leaves), beta)
        return jnp.exp(best.log_probs), best.multiplier, best.value

    at = (jnp.asarray(rewards), jnp.asarray(logits), jnp.asarray(beta), leaves)
    rng = np.random.default_rng(4)
    for moved in range(4):
        direction = [jax.tree.map(jnp.zeros_like, x) for x in at]
        direction[moved] = jax.tree.map(
            lambda x: jnp.asarray(rng.uniform(0.5, 1, x.shape)), at[moved]
        )
        direction = tuple(direction)
        _, got = jax.jvp(solve, at, direction)
        ends = [
            solve(*jax.tree.map(lambda x, v, h=sign * step: x + h * v, at, direction))
            for sign in (1, -1)
        ]
        want = [(a - b) / (2 * step) for a, b in zip(*ends, strict=True)]
        for have, expected in zip(got, want, strict=True):
            np.testing.assert_allclose(have, expected, rtol=1e-6, atol=1e-8)
    back = jax.grad(lambda r: solve(r, *at[1:])[2])(at[0])
    np.testing.assert_allclose(back, solve(*at)[0], atol=1e-12)


def test_impossible_tokens_and_empty_rows():
    rewards = jnp.array([[1.0, 9.0, 0.0], [1.0, -jnp.inf, 0.0], [1.0, 2.0, 3.0]])
    logits = jnp.array([[0.0, -jnp.inf, 0.0], [0.0, 0.0, 0.0], [-jnp.inf] * 3])
    small = dv.regularized_argmax(jnp.array([1.0, 0.0]), jnp.zeros(2), dv.ForwardKL(), 0.3)

    def both(rewards, logits):
        best = dv.regularized_argmax(rewards, logits, dv.ForwardKL(), 0.3)
        return best.value.sum() + jnp.exp(best.log_probs[..., 0]).sum(), best

    (_, best), slopes = jax.jit(jax.value_and_grad(both, (0, 1), has_aux=True))(rewards, logits)
    for row in range(2):
        np.testing.assert_allclose(best.log_probs[row, ::2], small.log_probs, rtol=1e-6)
        assert best.log_probs[row, 1] == -jnp.inf
        assert float(best.value[row]) == pytest.approx(float(small.value), rel=1e-6)
    assert np.all(np.asarray(best.log_probs[2]) == -np.inf)
    assert float(best.value[2]) == float(best.multiplier[2]) == 0
    assert all(np.isfinite(slope).all() for slope in slopes)
    assert float(slopes[0][0, 1]) == float(slopes[0][1, 1]) == 0


@pytest.mark.parametrize("spec", ["reverse_kl", "forward_kl", "reverse_chi2", "alpha(0.5)"])
def test_extreme_rewards_stay_finite(spec):
    rewards = jnp.array([1e4, 0.0, -1e4, 1e4])
    best = SOLVE(rewards, jnp.array([-50.0, 0.0, 3.0, -60.0]), f_member(spec), 0.01)
    assert np.exp(best.log_probs).sum() == pytest.approx(1, abs=1e-5)
    assert not np.isnan(np.asarray(best.log_probs)).any()
    assert np.isfinite(best.value)


def test_a_constant_reward_leaves_the_reference_alone():
    logits = jnp.array([0.3, -1.0, 2.0])
    for spec in ("reverse_kl", "alpha(0.5)", "reverse_chi2"):
        best = SOLVE(jnp.full(3, 7.0), logits, f_member(spec), 0.1)
        np.testing.assert_allclose(best.log_probs, dv.log_softmax(logits), atol=1e-5)
        assert float(best.value) == pytest.approx(7, rel=1e-6)


def test_beta_and_alpha_are_traced_once():
    traces = []

    @jax.jit
    def solve(beta, alpha):
        traces.append(1)
        rewards, logits = jnp.array([1.0, 0.0]), jnp.zeros(2)
        return dv.regularized_argmax(rewards, logits, dv.Alpha(alpha=alpha), beta).log_probs

    for alpha in (-1.0, 0.0, 0.5, 1.0, 2.0):
        want = dv.regularized_argmax(
            jnp.array([1.0, 0.0]), jnp.zeros(2), dv.Alpha(alpha=alpha), 0.2
        )
        np.testing.assert_allclose(solve(0.2, alpha), want.log_probs, atol=2e-6)
    assert len(traces) == 1


def test_dro_weights_of_examples_that_count():
    losses = jnp.array([2.0, 1.0, 0.0, 9.0])
    counted = jnp.array([True, True, True, False])
    weights = dv.dro_weights(losses, dv.ReverseKL(), 0.5, where=counted)
    np.testing.assert_allclose(weights[:3], jax.nn.softmax(losses[:3] / 0.5), rtol=1e-5)
    assert float(weights[3]) == 0


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"divergence": np.zeros(2)}, TypeError, "must be a divergence such as .*, got ndarray"),
        ({"divergence": dv.AdaptiveKL()}, TypeError, "adaptive_kl.* is not an f-divergence"),
        ({"divergence": dv.TotalVariation()}, ValueError, "total_variation has a kink"),
        ({"beta": 0.0}, ValueError, r"beta=0\.0 must be positive"),
        ({"rewards": np.zeros(3)}, ValueError, "do not broadcast"),
    ],
)
def test_wrong_input_is_explained(change, kind, message):
    right = {
        "rewards": np.zeros(2, np.float32),
        "reference_logits": np.zeros(2, np.float32),
        "divergence": dv.ReverseKL(),
        "beta": 1.0,
    }
    with pytest.raises(kind, match=message):
        dv.regularized_argmax(**{**right, **change})
