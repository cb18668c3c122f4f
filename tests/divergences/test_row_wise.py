"""Members outside the f-family: values, gradients, masks and limits against textbook definitions in 60 digits."""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from oracles import beyond_f

from divax import divergences as dv

INF = np.inf
MEMBERS = {
    "renyi": [{"order": a} for a in (0.3, 0.5, 0.999, 1.0, 1.0001, 2.0, 7.0)],
    "bhattacharyya": [{}],
    "gamma": [{"gamma": g} for g in (0.0, 1e-4, 0.5, 1.0, 3.0)],
    "cauchy_schwarz": [{}],
    "hoelder": [{"exponent": a, "power": g} for a, g in ((2.0, 2.0), (1.5, 1.0), (4.0, 0.5))],
    "beta": [{"beta": b} for b in (0.0, 1e-3, 0.5, 1.0, 2.5)],
    "alpha_beta": [
        {"alpha": a, "beta": b}
        for a, b in (
            *(
                (0.5, 0.5),
                (0.8, 0.3),
                (2.0, -0.5),
                (-0.4, 1.9),
                (1.0, 0.0),
                (0.0, 0.7),
                (0.6, -0.6),
            ),
            *((0.0, 0.0), (-0.7, 0.7), (1e-5, 0.5), (0.5, 1e-6), (0.5, -0.5 + 1e-6), (-0.3, -0.4)),
        )
    ],
    "geometric_js": [{"target_weight": w} for w in (0.5, 0.1, 0.9)],
    "log_variance": [{"reference": r} for r in ("model", "target", "uniform")],
}
CASES = [(name, parameters) for name, sets in MEMBERS.items() for parameters in sets]
IDS = [f"{name}-{'-'.join(map(str, p.values()))}" for name, p in CASES]
CLASSES = {
    cls.spec_name: cls
    for cls in (
        *(dv.Renyi, dv.Bhattacharyya, dv.Gamma, dv.CauchySchwarz, dv.Hoelder, dv.Beta),
        *(dv.AlphaBeta, dv.GeometricJS, dv.LogVariance),
    )
}
every_member = pytest.mark.parametrize(("name", "parameters"), CASES, ids=IDS)


# Five tokens, one batch: random, nearly equal, peaked, and every kind of mismatch of supports.
RNG = np.random.default_rng(11)
RANDOM = [
    (t := RNG.normal(0, scale, 5), t + RNG.normal(0, gap, 5))
    for scale, gap in ((1.0, 1.0), (0.5, 1e-3), (3.0, 3.0), (2.0, 0.1))
]
MASKED = [
    ([1.0, -INF, 0.5, -0.2, 0.1], [0.3, -INF, 1.4, 2.0, -0.3]),
    ([1.0, -INF, 0.5, -0.2, 0.1], [0.3, 0.7, 0.1, 2.0, -0.3]),
    ([1.0, 0.4, 0.5, -0.2, 0.1], [0.3, 0.7, -INF, 2.0, -0.3]),
    ([1.0, -INF, 0.5, -0.2, 0.1], [0.3, 0.7, -INF, 2.0, -0.3]),
    ([0.2, -INF, -INF, -INF, -INF], [0.3, 0.7, 0.4, 2.0, -0.3]),
    ([0.2, 0.5, -INF, -INF, -INF], [-INF, -INF, 0.4, 2.0, -0.3]),
]
TARGETS, MODELS = (np.array(rows) for rows in zip(*RANDOM, *MASKED, strict=True))


def oracle(name, target, model, parameters):
    return beyond_f.value(name, list(map(float, target)), list(map(float, model)), **parameters)


@pytest.mark.usefixtures("x64")
@every_member
def test_values_in_double_precision(name, parameters):
    got = CLASSES[name](**parameters)(jnp.asarray(TARGETS), jnp.asarray(MODELS))
    want = [float(oracle(name, t, s, parameters)) for t, s in zip(TARGETS, MODELS, strict=True)]
    np.testing.assert_allclose(got, want, rtol=1e-12)


@every_member
def test_values_in_single_precision(name, parameters):
    """Against the oracle at the float32 logits and parameters, which is what float arithmetic allows."""
    targets, models = TARGETS.astype(np.float32), MODELS.astype(np.float32)
    got = CLASSES[name](**parameters)(jnp.asarray(targets), jnp.asarray(models))
    exact = {k: float(np.float32(v)) if k != "reference" else v for k, v in parameters.items()}
    want = [float(oracle(name, t, s, exact)) for t, s in zip(targets, models, strict=True)]
    np.testing.assert_allclose(got, want, rtol=2e-6)


@pytest.mark.usefixtures("x64")
@every_member
def test_gradients_by_sixty_digit_differences(name, parameters):
    by = jax.grad(lambda *rows: jnp.sum(CLASSES[name](**parameters)(*rows)), argnums=(0, 1))
    both = by(jnp.asarray(TARGETS), jnp.asarray(MODELS))
    for row, (target, model) in enumerate(zip(TARGETS, MODELS, strict=True)):
        assert all(np.all(np.isfinite(gradient[row])) for gradient in both)
        if mp.isinf(oracle(name, target, model, parameters)):
            continue
        if name == "log_variance" and parameters["reference"] != "uniform":
            continue  # the reference is frozen: it has a test of its own
        for side, gradient in enumerate(both):
            want = [float(x) for x in beyond_f.gradient(name, target, model, side, 50, **parameters)]
            size = max(map(abs, want))
            np.testing.assert_allclose(gradient[row], want, rtol=1e-11, atol=1e-12 * size + 1e-15)


@pytest.mark.usefixtures("x64")
@every_member
def test_curvature_is_the_high_temperature_limit(name, parameters):
    div = CLASSES[name](**parameters)
    if div.curvature is None:
        with pytest.raises(ValueError, match="has no curvature"):
            div.normalized()
        return
    target, model = (jnp.asarray(x[0]) for x in (TARGETS, MODELS))
    want = np.var(TARGETS[0] - MODELS[0]) / 2
    for temperature in (1e4,):
        tempered = div.normalized()(target / temperature, model / temperature)
        assert float(tempered * temperature**2) == pytest.approx(want, rel=1e-3)


@pytest.mark.usefixtures("x64")
@every_member
def test_duals_jit_vmap_and_second_derivatives(name, parameters):
    div = CLASSES[name](**parameters)
    t, s = jnp.asarray(TARGETS), jnp.asarray(MODELS)
    np.testing.assert_allclose(div.dual()(t, s), div(s, t), rtol=1e-11)
    np.testing.assert_allclose(jax.jit(jax.vmap(div))(t, s), div(t, s), rtol=1e-12)
    by = jax.jit(jax.grad(lambda t, s: jnp.sum(div(t, s)), argnums=(0, 1)))
    finite = np.isfinite(np.asarray(div(t, s)))[:, None]
    direction = jnp.asarray(RNG.normal(size=s.shape))
    for side in (0, 1):
        if name == "log_variance" and (side, parameters["reference"]) != (1, "uniform"):
            continue  # a frozen reference makes the second derivative one-sided
        hvp = jax.jvp(lambda x: by(*((x, s) if side == 0 else (t, x)))[side], ((t, s)[side],), (direction,))[1]
        assert np.all(np.isfinite(hvp))
        ends = [by(*((t + h, s) if side == 0 else (t, s + h)))[side] for h in (1e-6 * direction, -1e-6 * direction)]
        difference = (ends[0] - ends[1]) / 2e-6
        np.testing.assert_allclose(
            np.where(finite, hvp, 0), np.where(finite, difference, 0), rtol=2e-5, atol=1e-7
        )
