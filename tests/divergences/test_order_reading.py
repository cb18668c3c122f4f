"""Σ p^α·q^{1−α} from one reduction, as a GPU or TPU takes it, and all that is made of it."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np

from divax import divergences as dv
from divax.divergences import f_divergence, logit_reading, row_wise
from divax.divergences.logit_reading import centres
from divax.divergences.order_reading import affinity_reading
from tests.divergences.test_row_reduce import CASES, MODEL, TARGET, close, finite

MEMBERS = [
    dv.GeometricJS(target_weight=0.3),
    dv.Beta(),
    dv.Gamma(gamma=2.0),
]
ALPHAS = np.array([-1.0, -1e-3, 0.0, 0.3, 0.5, 0.999, 1.0, 2.0])


def rows():
    """Close models, one further by a constant, badly centred ones, far ones, one-sided supports, masks, a certain target."""
    rng = np.random.default_rng(7)
    target = rng.normal(0, 2, (9, 400))
    size = np.array([1e-3, 1e-1, 1, 1e-2, 1e-2, 8, 1, 1, 1])[:, None]
    model = target + size * rng.normal(0, 1, target.shape)
    model[3] += 20
    target[4, 256:320] -= 3
    model[4, 256:320] = target[4, 256:320] - 0.5
    target[6, :9], model[6, 5:30] = -np.inf, -np.inf
    target[7, 200:], model[7, 100:300] = -1e9, -3e4
    target[8, 3] = 90
    return jnp.asarray(target, jnp.float32), jnp.asarray(model, jnp.float32)


def exact(alpha, target, model):
    """(D, log Z, Rényi, Σ q·(f − u·f′)) in 50 digits; D is infinite where nothing bounds it."""
    with mpmath.workdps(50):
        t, s = (
            [mpmath.mpf(float(z)) if np.isfinite(z) else None for z in row]
            for row in (target, model)
        )
        log_t, log_s = (
            mpmath.log(sum(mpmath.exp(z) for z in row if z is not None)) for row in (t, s)
        )
        a = mpmath.mpf(float(alpha))
        logs = [(x - log_t, y - log_s) for x, y in zip(t, s, strict=True) if None not in (x, y)]
        z = sum(mpmath.exp(a * p + (1 - a) * q) for p, q in logs)
        p_only = any(y is None and x is not None for x, y in zip(t, s, strict=True))
        q_only = any(x is None and y is not None for x, y in zip(t, s, strict=True))
        infinite = (p_only and a >= 1) or (q_only and a <= 0)
        if a in (0, 1):
            kl = sum(mpmath.exp(p if a else q) * (p - q) for p, q in logs)
            value, renyi = kl if a else -kl, kl if a else -mpmath.log(z)
        else:
            value, renyi = (z - 1) / (a * (a - 1)), mpmath.log(z) / (a - 1)
        model_slope = None if infinite else ((1 - z) / a if a else value)
        renyi = None if infinite and a == 1 else renyi
        numbers = (np.inf if infinite else value, mpmath.log(z), renyi, model_slope)
        return [np.nan if x is None else float(x) for x in numbers]


def mean_ratio(target, model):
    """E_p[t − s] over common tokens."""
    t, s = np.float64(target), np.float64(model)
    common = np.isfinite(t) & np.isfinite(s)
    p = np.where(common, np.exp(np.where(common, t, 0) - t.max(-1, keepdims=True)), 0)
    gap = np.where(common, np.where(common, t, 0) - np.where(common, s, 0), 0)
    return (p * gap).sum(-1) / p.sum(-1)


def in_parts(monkeypatch):
    """From here on, rows of 400 tokens are read in eight parts, as a GPU reads longer ones."""
    monkeypatch.setattr(logit_reading, "_PART", 60)
    gpu = lambda tokens, *, cuda, **_: cuda(tokens)  # noqa: E731
    monkeypatch.setattr(jax.lax, "platform_dependent", gpu)


def test_in_fifty_digits(monkeypatch):
    """Up to ε·(1 + (m − c)²/D) of each number, which the docstring promises, in float32."""
    in_parts(monkeypatch)
    target, model = rows()

    def found(alpha, rest):
        of = affinity_reading(alpha, rest, target, model)
        return of.value, of.log_z, of.renyi, of.slopes[1]

    alphas = ALPHAS.astype(np.float32)
    program = jax.jit(jax.vmap(found))
    pairs = alphas, np.float32(1 - np.float64(alphas))
    assert "8x9x8x50xf32" in program.lower(*pairs).as_text()
    of = np.stack(program(*pairs), -1)
    want = np.array([[exact(a, t, s) for t, s in zip(target, model, strict=True)] for a in alphas])
    np.testing.assert_array_equal(np.isinf(of[..., 0]), np.isinf(want[..., 0]))
    places = centres(target, model)
    off = mean_ratio(target, model) - np.float64(places[0] - places[1])
    for x, y in zip(np.moveaxis(of, -1, 0), np.moveaxis(want, -1, 0), strict=True):
        some = np.isfinite(x) & np.isfinite(y) & (np.abs(y) < 1e30)
        x, y = np.where(some, x, 0), np.where(some, y, 0)
        assert np.all(np.abs(x - y) <= 1e-5 * (np.abs(y) + off**2))
    same = jax.jit(lambda t: affinity_reading(0.3, 0.7, t, t).value)
    assert not np.any(same(target))


def of_each(target, model):
    """Values and gradients of members that are read like this, and of α's in one program."""
    weights = jnp.cos(jnp.arange(18.0).reshape(6, 3)).astype(target.dtype)

    def derivatives(div):
        values, pull = jax.vjp(div, target, model)
        return values, pull(jnp.where(jnp.isfinite(values), weights, 0))

    many = jax.vmap(lambda alpha: derivatives(0.7 * dv.Alpha(alpha=alpha)))
    return [derivatives(div) for div in MEMBERS], many(jnp.array([-0.5, 0.0, 0.3, 1.0, 1.5]))


def second_order(target, model):
    """Hessian-vector products."""
    total = lambda t, s: jnp.sum(jnp.tanh(finite(dv.Gamma(gamma=0.3)(t, s))))  # noqa: E731
    return jax.jvp(jax.grad(total, argnums=(0, 1)), (target, model), (model, target))


def test_the_same_numbers_in_double(monkeypatch):
    """As on a CPU: values, gradients and second derivatives."""
    with jax.enable_x64(True):
        target, model = (np.concatenate([case[side] for case in CASES]) for side in (0, 1))
        full = TARGET[0], MODEL[0]
        here = jax.jit(lambda *pairs: (of_each(*pairs[:2]), second_order(*pairs[2:])))
        want = here(target, model, *full)
        for module in (f_divergence, row_wise):
            monkeypatch.setattr(module, "by_machine", lambda here, there, div, *xs: there(*xs))
        there = jax.jit(lambda *pairs: (of_each(*pairs[:2]), second_order(*pairs[2:])))
        close(there(target, model, *full), want, 1e-11)


def test_rows_under_vmap_are_read_alike():
    """One row of a large vocabulary is not taken for a small array."""
    logits = jax.ShapeDtypeStruct((64, 2**15), jnp.float32)
    div = dv.Renyi(order=0.5)
    programs = [
        jax.jit(fun).trace(logits, logits).lower(lowering_platforms=("cuda",)).as_text()
        for fun in (div, jax.vmap(div))
    ]
    counts = [text.count("stablehlo.reduce(%") for text in programs]
    assert counts[0] == counts[1] < 6
