"""P7: transport problems in a batch, value and gradient by the costs, against OTT-JAX under vmap and against logarithms."""

import functools

import jax
import jax.numpy as jnp

from divax import divergences as dv
from divax.benchmarks.measure import Asked, timed

SIZE, ITERATIONS = 32, 102


def rows(quick):
    keys = jax.random.split(jax.random.key(0))
    return [jax.random.normal(key, (32 if quick else 256, SIZE, 64)) for key in keys]


def cost(x, y):
    p, q = jax.nn.softmax(x), jax.nn.softmax(y)
    return jnp.sum(jnp.abs(p[:, :, None] - q[:, None, :]), -1)


def divax(epsilon, tolerance, quick, solve=dv.sinkhorn_potentials):
    def value(costs):
        even = jnp.zeros(costs.shape[:-1])
        most = ITERATIONS if tolerance < 0 else 2000
        stop = {"max_iterations": most, "tolerance": tolerance}
        return jnp.sum(solve(even, even, epsilon=epsilon, cost=costs, **stop).value)

    return timed(jax.value_and_grad(value), cost(*rows(quick)))


def ott(epsilon, threshold, quick):
    from ott.geometry import geometry
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import sinkhorn

    fixed = {"min_iterations": 100, "max_iterations": 100} if threshold < 0 else {}
    solver = sinkhorn.Sinkhorn(threshold=threshold, **fixed)

    def one(cost):
        problem = linear_problem.LinearProblem(geometry.Geometry(cost_matrix=cost, epsilon=epsilon))
        return solver(problem).reg_ot_cost

    value = lambda costs: jnp.sum(jax.vmap(one)(costs))  # noqa: E731
    return timed(jax.value_and_grad(value), cost(*rows(quick)))


def errors(epsilon, quick):
    """Against logarithms in double precision, after as many iterations."""
    with jax.enable_x64(True):
        x, y = (a[:16].astype(jnp.float32) for a in rows(quick))

        def both(dtype, solve):
            def value(x, y):
                even = jnp.zeros(x.shape[:-1], dtype)
                stop = {"max_iterations": 2000, "tolerance": 1e-5}
                return solve(even, even, epsilon=epsilon, cost=cost(x, y), **stop).value

            a, b = x.astype(dtype), y.astype(dtype)
            return value(a, b), jax.grad(lambda x: jnp.sum(value(x, b)))(a)

        values, gradient = both(jnp.float32, dv.sinkhorn_potentials)
        exact, slope = both(jnp.float64, dv.annealed_potentials)
        return {
            "value": float(jnp.max(jnp.abs(values - exact))),
            "gradient": float(jnp.max(jnp.abs(gradient - slope))),
        }


CASES = {
    f"{name} {epsilon}": functools.partial(how, epsilon, *more)
    for epsilon in (0.1, 0.01)
    for name, how, *more in (
        ("divax fixed", divax, -1.0),
        ("ott fixed", ott, -1.0),
        ("divax converged", divax, 1e-3),
        ("ott converged", ott, 1e-3),
        ("errors", errors),
    )
}


FASTER = {("fixed", 0.1): 4, ("converged", 0.1): 4, ("fixed", 0.01): None, ("converged", 0.01): 8}
BARS = (
    *(
        Asked("P7", f"Sinkhorn ε={epsilon}, {how}: times as fast as OTT-JAX",
              f"ott {how} {epsilon}", f"divax {how} {epsilon}", target=target, asked="at least")
        for (how, epsilon), target in FASTER.items()
    ),
    *(
        Asked("P7", f"Sinkhorn ε={epsilon}: error of the {key}", f"errors {epsilon}", None, key, 1e-5)
        for epsilon in (0.1, 0.01)
        for key in ("value", "gradient")
    ),
)  # fmt: skip
