"""Sinkhorn against OTT-JAX, a convex solver, linear programming and closed limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog

from divax import divergences as dv

pytestmark = pytest.mark.usefixtures("x64")


def problem(size=6, seed=0):
    rng = np.random.default_rng(seed)
    t, s = rng.normal(0, 1.5, (2, size))
    points = rng.normal(size=(size, 2))
    cost = np.linalg.norm(points[:, None] - points[None, :], axis=-1)
    return jnp.asarray(t), jnp.asarray(s), jnp.asarray(cost)


def exact_transport(t, s, cost):
    p, q = np.asarray(jax.nn.softmax(t)), np.asarray(jax.nn.softmax(s))
    n = len(p)
    rows = np.kron(np.eye(n), np.ones(n))
    columns = np.kron(np.ones(n), np.eye(n))
    solution = linprog(
        np.asarray(cost).ravel(), A_eq=np.vstack([rows, columns]), b_eq=np.concatenate([p, q])
    )
    return float(np.asarray(solution.fun))


def ott_cost(t, s, cost, epsilon):
    # OTT imports a library that warns of its own end; its answer is what is wanted here.
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ott.geometry import geometry
        from ott.problems.linear import linear_problem
        from ott.solvers.linear import sinkhorn

        geom = geometry.Geometry(cost_matrix=cost, epsilon=epsilon)
        prob = linear_problem.LinearProblem(geom, a=jax.nn.softmax(t), b=jax.nn.softmax(s))
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            out = sinkhorn.Sinkhorn(threshold=1e-12, max_iterations=20_000)(prob)
    return np.asarray(out.reg_ot_cost).item()


@pytest.mark.parametrize("epsilon", [0.05, 0.3, 2.0])
def test_the_value_is_ott_jax_s(epsilon):
    t, s, cost = problem()
    div = dv.Sinkhorn(
        epsilon=epsilon, cost=cost, debiased=False, tolerance=1e-12, max_iterations=20_000
    )
    assert bool(div.solve(t, s).converged)
    assert float(div(t, s)) == pytest.approx(ott_cost(t, s, cost, epsilon), rel=1e-9)


def test_debiased_is_zero_at_equality_and_undebiased_is_not():
    t, _, cost = problem()
    assert float(dv.Sinkhorn(epsilon=0.1, cost=cost)(t, t)) == pytest.approx(0, abs=1e-9)
    assert float(dv.Sinkhorn(epsilon=0.1, cost=cost, debiased=False)(t, t)) > 0.01


def test_small_epsilon_is_transport_and_large_epsilon_half_the_energy_distance():
    t, s, cost = problem()
    sharp = dv.Sinkhorn(epsilon=0.002, cost=cost, max_iterations=50_000)
    assert float(sharp(t, s)) == pytest.approx(exact_transport(t, s, cost), rel=2e-2)
    p, q = jax.nn.softmax(t), jax.nn.softmax(s)
    energy = -0.5 * float((p - q) @ cost @ (p - q))
    assert float(dv.Sinkhorn(epsilon=1e4, cost=cost)(t, s)) == pytest.approx(energy, rel=1e-3)


def test_the_zero_one_cost_without_a_matrix_equals_the_matrix():
    t, s, _ = problem()
    matrix = 1 - jnp.eye(6)
    for epsilon in (0.05, 0.5):
        free, full = (dv.Sinkhorn(epsilon=epsilon, cost=c, tolerance=1e-11) for c in (None, matrix))
        assert float(free(t, s)) == pytest.approx(float(full(t, s)), rel=1e-8)
        np.testing.assert_allclose(jax.grad(free, 1)(t, s), jax.grad(full, 1)(t, s), atol=1e-8)
    sharp = dv.Sinkhorn(epsilon=0.01, debiased=False, max_iterations=20_000)
    assert float(sharp(t, s)) == pytest.approx(float(dv.TotalVariation()(t, s)), abs=0.03)


@pytest.mark.parametrize("debiased", [True, False])
def test_gradients_by_finite_differences_for_logits_cost_and_epsilon(debiased):
    t, s, cost = problem()

    def value(t, s, cost, epsilon):
        return dv.Sinkhorn(
            epsilon=epsilon, cost=cost, debiased=debiased, tolerance=1e-13, max_iterations=50_000
        )(t, s)

    arguments = (t, s, cost, jnp.asarray(0.2))
    gradients = jax.grad(value, argnums=(0, 1, 2, 3))(*arguments)
    rng = np.random.default_rng(4)
    for i, gradient in enumerate(gradients):
        direction = jnp.asarray(rng.normal(size=arguments[i].shape))
        move = lambda h, i=i, direction=direction: value(  # noqa: E731
            *(a + h * direction if j == i else a for j, a in enumerate(arguments))
        )
        difference = (move(1e-5) - move(-1e-5)) / 2e-5
        assert float(jnp.sum(gradient * direction)) == pytest.approx(
            float(difference), rel=1e-6, abs=1e-9
        )
    forward = jax.jvp(lambda s: value(t, s, cost, arguments[3]), (s,), (jnp.ones_like(s) * s,))[1]
    assert float(forward) == pytest.approx(float(jnp.sum(gradients[1] * s)), rel=1e-9)


def test_impossible_tokens_are_harmless():
    t, s, cost = problem()
    t, s = t.at[1].set(-jnp.inf), s.at[jnp.asarray([1, 4])].set(-jnp.inf)
    div = dv.Sinkhorn(
        epsilon=0.1, cost=cost, debiased=False, tolerance=1e-12, max_iterations=20_000
    )
    keep = jnp.asarray([0, 2, 3, 4, 5])
    solved = div.solve(t, s)
    assert np.all(np.isfinite(solved.f))
    assert np.all(np.isfinite(solved.g))
    assert float(solved.value) == pytest.approx(
        ott_cost(t[keep], s[keep], cost[keep][:, keep], 0.1), rel=1e-8
    )
    gradient = jax.grad(div, 1)(t, s)
    assert np.all(np.isfinite(gradient))
    assert gradient[1] == gradient[4] == 0


def test_convergence_is_reported():
    t, s, cost = problem()
    unfinished = dv.Sinkhorn(epsilon=0.01, cost=cost, max_iterations=3).solve(t, s)
    assert not bool(unfinished.converged)
    assert int(unfinished.iterations) == 3
    assert float(unfinished.error) > 1e-3
    finished = dv.Sinkhorn(epsilon=0.5, cost=cost).solve(t, s)
    assert bool(finished.converged)
    assert float(finished.error) <= 1e-6


def test_batches_converge_together():
    t, s, cost = problem()
    batch = jnp.stack([t, s, t + s]), jnp.stack([s, t, t - s])
    div = dv.Sinkhorn(epsilon=0.2, cost=cost)
    np.testing.assert_allclose(
        div(*batch), [div(a, b) for a, b in zip(*batch, strict=True)], rtol=1e-5
    )


def test_a_cost_of_the_wrong_size_is_named():
    with pytest.raises(
        ValueError, match=r"cost has shape \(3, 3\), but a vocabulary of 6 needs \(6, 6\)"
    ):
        dv.Sinkhorn(cost=jnp.ones((3, 3)))(*problem()[:2])


def test_scaling_vectors_and_logarithms_agree():
    """Random and impossible masses, one cost and costs of rows, ε from blurred to a hundredth of the cost."""
    rng = np.random.default_rng(4)
    p, q = rng.normal(0, 4, (2, 6, 9))
    p[0, 3], q[1, 2:5], q[3] = -np.inf, -np.inf, (50.0, *np.zeros(8))
    own = rng.uniform(0, 1, (6, 9, 9))
    stop = {"tolerance": 1e-10, "max_iterations": 20000}

    @jax.jit
    def solve(epsilon, cost):
        vectors = dv.sinkhorn_potentials(p, q, epsilon=epsilon, cost=cost, **stop)
        return vectors, dv.annealed_potentials(p, q, epsilon=epsilon, cost=cost, **stop)

    for epsilon in (0.5, 0.05, 0.01):
        vectors, logarithms = solve(epsilon, own)
        assert bool(jnp.all(vectors.converged & logarithms.converged))
        np.testing.assert_allclose(vectors.value, logarithms.value, atol=1e-9)
        assert bool(jnp.all(jnp.isfinite(vectors.f)) & jnp.all(jnp.isfinite(vectors.g)))


def test_a_column_that_vanishes_from_the_first_plan_is_found_again():
    """Costs of the columns alone, of which exp(−C/ε) is 0 for one: the plan is p⊗q, its value Σ q·C."""
    with jax.enable_x64(False):
        cost = jnp.broadcast_to(jnp.array([0.0, 3.0, 0.1]), (3, 3))
        p, q = jnp.log(jnp.array([0.2, 0.5, 0.3])), jnp.log(jnp.array([0.6, 0.3, 0.1]))
        solved = dv.sinkhorn_potentials(p, q, epsilon=0.01, cost=cost, tolerance=1e-5)
        assert bool(solved.converged)
        assert int(solved.iterations) < 40
        np.testing.assert_allclose(solved.value, 0.91, rtol=1e-5)
