"""The log-variance divergence from one reduction, as a GPU or TPU takes it."""

import jax
import jax.numpy as jnp
import numpy as np

from divax import divergences as dv
from divax.divergences import row_wise
from tests.divergences.test_order_reading import rows
from tests.divergences.test_row_reduce import CASES, close

MEMBERS = [dv.LogVariance(reference=one) for one in ("model", "target", "uniform")]


def elsewhere(monkeypatch):
    monkeypatch.setattr(row_wise, "by_machine", lambda here, there, div, *xs: there(*xs))


def first_order(target, model):
    """Values and gradients of two members, of rows with finite values, and of the others' finite parts."""
    weights = jnp.cos(jnp.arange(18.0).reshape(6, 3))

    def of(div):
        values, pull = jax.vjp(div, target, model)
        return values, pull(weights.astype(values.dtype))

    return [of(div) for div in MEMBERS[::2]]


def second_order(target, model):
    total = lambda t, s: jnp.sum(jnp.tanh(MEMBERS[0](t, s)))  # noqa: E731
    return jax.jvp(jax.grad(total, argnums=(0, 1)), (target, model), (model, target))


def test_the_same_numbers_in_double(monkeypatch):
    with jax.enable_x64(True):
        target, model = (np.concatenate([case[side] for case in CASES]) for side in (0, 1))
        pairs = target, model, CASES[0][0][0], CASES[0][1][0]
        both = lambda t, s, a, b: (first_order(t, s), second_order(a, b))  # noqa: E731
        want = jax.jit(lambda *pairs: both(*pairs))(*pairs)
        elsewhere(monkeypatch)
        close(jax.jit(lambda *pairs: both(*pairs))(*pairs), want, 1e-11)


def oracle(reference, target, model):
    """Value and gradient by the model's logits of one row, and its largest weight, from softmax probabilities."""
    t, s = (np.asarray(x, np.float64) for x in (target, model))
    common = np.isfinite(t) & np.isfinite(s)
    one_sided = {"model": np.isfinite(s), "target": np.isfinite(t)}.get(
        reference, np.isfinite(s) | np.isfinite(t)
    )
    logits = {"model": s, "target": t, "uniform": np.zeros_like(s)}[reference][common]
    r = np.exp(logits - logits.max())
    r, gap = r / r.sum(), t[common] - s[common]
    away = gap - r @ gap
    gradient = np.zeros_like(t)
    gradient[common] = -2 * r * away
    return np.inf if np.any(one_sided & ~common) else r @ away**2, gradient, r.max()


def test_close_and_far_models_in_single(monkeypatch):
    """Gradients to a log-ratio's rounding, values better; 0 for equal models."""
    elsewhere(monkeypatch)
    target, model = rows()

    def both(target, model):
        total = lambda s, div: (jnp.sum(div(target, s)), div(target, s))  # noqa: E731
        return [
            (jax.value_and_grad(total, has_aux=True)(model, div), div(target, target))
            for div in MEMBERS
        ]

    for div, (found, equal) in zip(MEMBERS, jax.jit(both)(target, model), strict=True):
        assert not np.any(equal)
        (_, values), slopes = found
        for row in range(len(target)):
            want, slope, most = oracle(div.reference, target[row], model[row])
            assert np.isinf(want) == np.isinf(values[row])
            if np.isfinite(want):
                assert abs(values[row] - want) <= 2e-5 * want + 1e-30
            error = np.abs(slopes[row] - slope).max()
            # Two weights times a few roundings of log-probabilities near −8.
            assert error <= 4e-6 * most + 1e-5 * np.abs(slope).max()
