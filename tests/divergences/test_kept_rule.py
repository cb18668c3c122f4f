"""Second derivatives through loops, of what a GPU or TPU does with given logits: the rule of a reading is not lost."""

import jax
import jax.numpy as jnp
import numpy as np

from divax import divergences as dv
from divax.divergences import f_divergence, row_wise
from divax.divergences.kept_rule import differentiated_as
from divax.objectives.logit_rows import soften

RNG = np.random.default_rng(9)
TARGET = RNG.normal(0, 2, (2, 3, 40))
MODEL = TARGET + RNG.normal(1, 1, TARGET.shape)
DOT = RNG.normal(0, 1, TARGET.shape)


def forward_over_reverse(total, model, dot):
    return jax.jvp(jax.grad(total), (model,), (dot,))[1]


def reverse_over_reverse(total, model, dot):
    return jax.grad(lambda s: jnp.vdot(jax.grad(total)(s), dot))(model)


# Member, mode, and the derivative of its value by log q as NumPy writes it.
CASES = [
    (dv.ForwardKL(), reverse_over_reverse, lambda p, q: -p),
    (dv.Alpha(alpha=0.3), forward_over_reverse, lambda p, q: p**0.3 * q**0.7 / -0.3),
    (dv.JensenShannon(), forward_over_reverse, lambda p, q: q / 2 * np.log(2 * q / (p + q))),
    (dv.Renyi(order=0.5), forward_over_reverse, lambda p, q: -normal(np.sqrt(p * q))),
]


def normal(weights):
    return weights / weights.sum(-1, keepdims=True)


def gradient(slope, model):
    p, q = normal(np.exp(TARGET)), normal(np.exp(model))
    return slope(p, q) - q * slope(p, q).sum(-1, keepdims=True)


def in_turn(div, model):
    """In turns of rows, each row of a turn by itself."""
    return jnp.sum(jax.lax.map(lambda pair: jax.vmap(div)(*pair), (TARGET, model)))


def test_hessian_vector_products_through_a_loop(monkeypatch):
    """As NumPy's central differences of the gradient."""
    for module in (f_divergence, row_wise):
        monkeypatch.setattr(module, "by_machine", lambda here, there, div, *xs: there(*xs))
    with jax.enable_x64(True):
        for div, mode, slope in CASES:
            total = lambda s, div=div: in_turn(div, s)  # noqa: E731
            found = jax.jit(lambda s, dot, mode=mode, total=total: mode(total, s, dot))(MODEL, DOT)
            ends = [gradient(slope, MODEL + step * DOT) for step in (1e-5, -1e-5)]
            np.testing.assert_allclose(found, (ends[0] - ends[1]) / 2e-5, 1e-6, 1e-9)


def _cube(power, scale, x):
    return scale * x**power, x > 0


@differentiated_as(_cube)
def _opaque(power, scale, x):
    return jax.pure_callback(
        lambda scale, x: (scale * x**power, x > 0),
        jax.eval_shape(lambda: _cube(power, scale, x)),
        scale,
        x,
        vmap_method="expand_dims",
    )


def test_a_function_that_jax_cannot_differentiate():
    """Mapped, in a loop, and with an output that has no tangent."""

    def total(scale, x):
        value, positive = jax.vmap(lambda *one: jax.checkpoint(_opaque, static_argnums=0)(3, *one))(
            scale, x
        )
        return jnp.sum(jnp.where(positive, value, 0))

    def looped(scale, x):
        return jnp.sum(jax.lax.map(lambda pair: total(*pair), (scale, x)))

    scale, x = jnp.ones((2, 3)), jnp.array([[1.0, -2.0, 3.0], [0.5, 1.0, -1.0]])
    twice = jax.grad(lambda *pair: jnp.sum(jax.grad(looped, 1)(*pair)), (0, 1))
    by_scale, by_x = jax.jit(twice)(scale, x)
    np.testing.assert_allclose(by_scale, jnp.where(x > 0, 3 * x**2, 0), 1e-6)
    np.testing.assert_allclose(by_x, jnp.where(x > 0, 6 * x, 0), 1e-6)


def test_a_temperature_of_impossible_tokens_in_a_loop():
    """−∞/T has no derivative by T, in no order, also where JAX divides what a first derivative keeps."""
    logits = jnp.array([[0.5, -jnp.inf, 2.0], [1.0, 0.0, -jnp.inf]])

    def total(temperature, rows):
        return jnp.sum(jnp.where(jnp.isfinite(rows), jnp.exp(soften(rows, temperature)), 0))

    twice = lambda of: jax.grad(lambda T: jnp.sum(jax.grad(of)(T)))(jnp.array([2.0, 0.5]))  # noqa: E731
    found = twice(lambda T: jnp.sum(jax.lax.map(lambda one: total(*one), (T, logits))))
    T = np.array([[2.0], [0.5]])
    x = np.where(np.isfinite(logits), logits, 0)
    np.testing.assert_allclose(found, (np.exp(x / T) * (x**2 / T**4 + 2 * x / T**3)).sum(-1), 1e-5)
