"""Unbalanced, annealed and batch-wise transport against OTT-JAX, linear programming and the published loop."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment, linprog

from divax import divergences as dv

pytestmark = pytest.mark.usefixtures("x64")


def problem(size=6, seed=0):
    rng = np.random.default_rng(seed)
    t, s = rng.normal(0, 1.5, (2, size))
    points = rng.normal(size=(size, 2))
    return t, s, np.linalg.norm(points[:, None] - points[None, :], axis=-1)


def softmax(z):
    z = np.exp(z - z.max(-1, keepdims=True))
    return z / z.sum(-1, keepdims=True)


def directional(function, arguments, which, seed=4):
    """(gradient along a direction, central difference along it)."""
    direction = np.random.default_rng(seed).normal(size=np.shape(arguments[which]))
    gradient = jax.jit(jax.grad(function, which))(*arguments)
    moved = [
        float(function(*(a + h * direction if i == which else a for i, a in enumerate(arguments))))
        for h in (1e-5, -1e-5)
    ]
    return float(jnp.sum(gradient * direction)), (moved[0] - moved[1]) / 2e-5


# ---- unbalanced ----------------------------------------------------------------------------------------------------


def ott_unbalanced(a, b, cost, epsilon, rho):
    # OTT imports a library that warns of its own end; its answer is what is wanted here.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ott.geometry import geometry
        from ott.problems.linear import linear_problem
        from ott.solvers.linear import sinkhorn

        # Its entropy is relative to the counting measure; ε·KL(P ‖ a⊗b) is that less ε·⟨P, log a ⊕ log b⟩.
        relative = cost - epsilon * (np.log(a)[:, None] + np.log(b)[None, :])
        geom = geometry.Geometry(cost_matrix=jnp.asarray(relative), epsilon=epsilon)
        tau = rho / (rho + epsilon)
        prob = linear_problem.LinearProblem(geom, a=a, b=b, tau_a=tau, tau_b=tau)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            out = sinkhorn.Sinkhorn(threshold=1e-13, max_iterations=20_000)(prob)
    return np.asarray(out.f), np.asarray(out.g)


def primal(a, b, cost, epsilon, rho, f, g):
    """The objective that is minimised, term by term, at the plan of two potentials."""
    plan = np.exp((f[:, None] + g[None, :] - cost) / epsilon) * np.outer(a, b)
    kl = lambda x, y: np.sum(x * np.log(x / y) - x + y)  # noqa: E731
    return (
        np.sum(plan * cost)
        + epsilon * kl(plan, np.outer(a, b))
        + rho * kl(plan.sum(1), a)
        + rho * kl(plan.sum(0), b)
    )


def test_unbalanced_is_ott_s_plan_and_the_primal_value_for_any_masses():
    t, s, cost = problem()
    a, b = 2.5 * softmax(t), 0.7 * softmax(s)
    solve = jax.jit(
        lambda la, lb, c, e, r: dv.unbalanced_potentials(
            la, lb, epsilon=e, rho=r, cost=c, tolerance=1e-13, max_iterations=20_000
        )
    )
    for epsilon, rho in ((0.1, 0.5), (0.3, 3.0)):
        solved = solve(np.log(a), np.log(b), cost, epsilon, rho)
        assert bool(solved.converged)
        f, g = ott_unbalanced(a, b, cost, epsilon, rho)
        np.testing.assert_allclose(solved.f, f, atol=1e-8)
        np.testing.assert_allclose(solved.g, g, atol=1e-8)
        want = primal(a, b, cost, epsilon, rho, np.asarray(solved.f), np.asarray(solved.g))
        assert float(solved.value) == pytest.approx(want, rel=1e-10)


def test_unbalanced_gradients_and_its_balanced_limit():
    t, s, cost = problem(5)

    @jax.jit
    def value(t, s, cost, epsilon, rho):
        div = dv.UnbalancedSinkhorn(
            epsilon=epsilon, rho=rho, cost=cost, tolerance=1e-11, max_iterations=5000
        )
        return div(t, s)

    arguments = (t, s, cost, np.asarray(0.2), np.asarray(0.8))
    for which in range(5):
        slope, quotient = directional(value, arguments, which)
        assert slope == pytest.approx(quotient, rel=1e-6, abs=1e-9)
    balanced = dv.Sinkhorn(epsilon=0.2, cost=jnp.asarray(cost), tolerance=1e-12)
    assert float(value(t, s, cost, 0.2, 1e6)) == pytest.approx(float(balanced(t, s)), rel=1e-5)
    assert float(value(t, s, cost, 0.2, 0.05)) < float(value(t, s, cost, 0.2, 0.5))
    assert float(value(t, t, cost, 0.2, 0.5)) == pytest.approx(0, abs=1e-12)


def test_a_large_rho_converges_as_fast_as_the_balanced_problem():
    """Without the shift the total mass would take ρ/ε iterations, ten thousand here."""
    t, s, cost = problem()
    a, b = np.log(2 * softmax(t)), np.log(softmax(s))
    solved = dv.unbalanced_potentials(a, b, epsilon=0.2, rho=2000.0, cost=cost, tolerance=1e-9)
    assert bool(solved.converged)
    assert int(solved.iterations) < 300


# ---- annealed ------------------------------------------------------------------------------------------------------


def exact_transport(t, s, cost):
    p, q = softmax(t), softmax(s)
    n = len(p)
    equal = np.vstack([np.kron(np.eye(n), np.ones(n)), np.kron(np.ones(n), np.eye(n))])
    solution = linprog(cost.ravel(), A_eq=equal, b_eq=np.concatenate([p, q]))
    return float(np.asarray(solution.fun))


def test_annealing_finds_the_same_answer_and_reaches_sharp_transport_in_fewer_iterations():
    t, s, cost = problem(12, 5)
    sizes = {}
    for epsilon in (0.2, 0.002):
        options = {"epsilon": epsilon, "cost": cost, "tolerance": 1e-9, "max_iterations": 40_000}
        plain = dv.sinkhorn_potentials(t, s, **options)
        annealed = dv.annealed_potentials(t, s, **options)
        assert bool(plain.converged)
        assert bool(annealed.converged)
        assert float(annealed.value) == pytest.approx(float(plain.value), rel=1e-8)
        sizes[epsilon] = int(annealed.iterations), int(plain.iterations)
    assert sizes[0.002][0] < sizes[0.002][1]
    sharp = dv.annealed_potentials(t, s, epsilon=2e-4, cost=cost, max_iterations=20_000)
    assert float(sharp.value) == pytest.approx(exact_transport(t, s, cost), rel=2e-3)


def test_self_transport_is_that_of_a_convex_solver_and_converges_where_alternating_does_not():
    """The alternating iteration's value on this problem is off by 3e-7 after 20 000 steps."""
    t, _, cost = problem(5)
    solved = dv.self_potentials(t, epsilon=0.1, cost=cost, tolerance=1e-12)
    assert bool(solved.converged)
    assert int(solved.iterations) < 200
    p, f = softmax(t), np.asarray(solved.f)
    plan = np.outer(p, p) * np.exp((f[:, None] + f[None, :] - cost) / 0.1)
    np.testing.assert_allclose(plan.sum(0), p, atol=1e-12)
    want = np.sum(plan * cost) + 0.1 * np.sum(plan * np.log(plan / np.outer(p, p)))
    assert float(solved.value) == pytest.approx(want, rel=1e-12)


def test_annealed_gradients_and_limits():
    t, s, cost = problem(5)

    @jax.jit
    def value(t, s, cost, epsilon):
        div = dv.AnnealedSinkhorn(epsilon=epsilon, cost=cost, tolerance=1e-11, max_iterations=5000)
        return div(t, s)

    for which in range(4):
        slope, quotient = directional(value, (t, s, cost, np.asarray(0.1)), which)
        assert slope == pytest.approx(quotient, rel=1e-6, abs=1e-9)
    zero_one = dv.AnnealedSinkhorn(epsilon=0.002, max_iterations=20_000)(t, s)
    assert float(zero_one) == pytest.approx(float(dv.TotalVariation()(t, s)), abs=0.01)


@pytest.mark.parametrize("cls", [dv.UnbalancedSinkhorn, dv.AnnealedSinkhorn])
def test_impossible_tokens_are_harmless(cls):
    inf = np.inf
    t = np.array([[0.0, -inf, 1.0, 2.0], [0.0, -inf, -inf, -inf], [-inf] * 4, [1.0, 2.0, 3.0, 4.0]])
    s = np.array([[-inf, -inf, 1.0, 2.0], [-inf, -inf, -inf, 0.0], [0.0] * 4, [1.0, 2.0, 3.0, 4.0]])
    div = cls(epsilon=0.3)
    value, gradients = jax.jit(
        lambda t, s: (div(t, s), jax.grad(lambda t, s: jnp.sum(div(t, s)), (0, 1))(t, s))
    )(t, s)
    assert np.all(np.isfinite(value))
    assert np.all(np.isfinite(gradients))
    assert value[2] == 0
    assert float(value[3]) == pytest.approx(0, abs=1e-9)
    assert float(value[1]) > 0.1
    keep = jnp.asarray([0, 2, 3])
    assert float(value[0]) == pytest.approx(float(div(t[0, keep], s[0, keep])), abs=1e-6)


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="UnbalancedSinkhorn: rho=0 must be positive and finite"):
        dv.UnbalancedSinkhorn(rho=0)
    with pytest.raises(ValueError, match=r"AnnealedSinkhorn: decay=1.5 is outside \(0, 1\)"):
        dv.AnnealedSinkhorn(decay=1.5)
    with pytest.raises(
        ValueError, match=r"cost has shape \(2, 2\), but a vocabulary of 3 needs \(3, 3\)"
    ):
        dv.unbalanced_potentials(
            jnp.zeros(3), jnp.zeros(3), epsilon=1.0, rho=1.0, cost=jnp.zeros((2, 2))
        )
    with pytest.raises(ValueError, match=r"\[B, V\] of one shape, got \(3, 2\) and \(2, 2\)"):
        dv.batch_sinkhorn(jnp.zeros((3, 2)), jnp.zeros((2, 2)))


# ---- SinKD -----------------------------------------------------------------------------------------------------------


def batches(seed=0, shape=(5, 4)):
    return np.random.default_rng(seed).normal(0, 2, (2, *shape))


def published(target, model):
    """A transcription of the reference code's arithmetic: cdist, exp, twenty normalisations, sum."""
    p, q = softmax(target / 2), softmax(model / 2)
    cost = np.array([[np.abs(a - b).sum() for b in p] for a in q])
    plan = np.exp(-cost / 0.1)
    for _ in range(20):
        plan = plan / plan.sum(axis=1, keepdims=True)
        plan = plan / plan.sum(axis=0, keepdims=True)
    return float((plan * cost).sum())


def test_the_published_loss_and_its_defects():
    t, s = batches()
    call = jax.jit(dv.sinkd_as_published)
    assert float(call(t, s)) == pytest.approx(published(t, s), rel=1e-11)
    slope, quotient = directional(call, (t, s), 1)
    assert slope == pytest.approx(quotient, rel=1e-6)
    assert float(call(t, t)) > 0.1
    assert np.linalg.norm(jax.jit(jax.grad(call, 1))(t, t)) > 1e-3
    assert float(call(t, s[::-1])) == pytest.approx(float(call(t, s)), rel=1e-6)


def test_the_corrected_loss_has_none_of_them():
    t, s = batches()
    call = jax.jit(
        lambda t, s, mismatch, epsilon: dv.batch_sinkhorn(
            t, s, epsilon=epsilon, mismatch=mismatch, tolerance=1e-12, max_iterations=20_000
        )
    )
    for which, argument in ((0, "target"), (1, "model")):
        slope, quotient = directional(lambda t, s: call(t, s, 1.0, 0.2), (t, s), which)
        assert slope == pytest.approx(quotient, rel=1e-5), argument
    assert float(call(t, t, 1.0, 0.2)) == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(jax.jit(jax.grad(call, 1))(t, t, 1.0, 0.2), 0, atol=1e-9)
    permuted = s[::-1]
    assert float(call(t, permuted, 0.0, 0.2)) == pytest.approx(float(call(t, s, 0.0, 0.2)))
    assert float(call(t, t[::-1], 0.5, 0.2)) > 0.2
    # ε → 0: the best assignment of samples, and from mismatch = 2 on that of every sample to itself.
    p, q = softmax(t), softmax(s)
    cost = np.abs(q[None] - p[:, None]).sum(-1) + 0.3 * (1 - np.eye(5))
    rows, columns = linear_sum_assignment(cost)
    assert float(call(t, s, 0.3, 2e-3)) == pytest.approx(cost[rows, columns].mean(), rel=1e-2)
    paired = np.abs(p - q).sum(-1).mean()
    assert float(call(t, s, 2.0, 2e-3)) == pytest.approx(paired, rel=1e-2)
    twice = call(np.concatenate([t, t]), np.concatenate([s, s]), 0.0, 0.2)
    assert float(twice) == pytest.approx(float(call(t, s, 0.0, 0.2)), rel=1e-9)  # a mean


def test_samples_left_out_do_not_count():
    t, s = batches()
    keep = np.array([True, False, True, True, False])
    call = jax.jit(lambda t, s, w: dv.batch_sinkhorn(t, s, epsilon=0.2, where=w))
    broken = np.where(keep[:, None], s, np.nan)
    want = float(dv.batch_sinkhorn(t[keep], s[keep], epsilon=0.2))
    assert float(call(t, s, keep)) == pytest.approx(want, abs=1e-6)
    assert float(call(t, broken, keep)) == pytest.approx(want, abs=1e-6)
    gradient = jax.jit(jax.grad(call, 1))(t, s, keep)
    assert np.all(np.isfinite(gradient))
    assert not np.any(np.asarray(gradient)[~keep])
    assert float(call(t, s, np.zeros(5, bool))) == 0
