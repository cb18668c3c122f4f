"""Adaptive KL's share of the head and the entropy gate, as a GPU or TPU takes them, against sorting in double precision."""

import jax
import jax.numpy as jnp
import numpy as np

from divax import divergences as dv
from divax.divergences import adaptive_kl, entropy_gate, f_divergence, row_mixture
from divax.divergences.head_reading import head_share
from tests.divergences.test_adaptive_kl import sorted_head
from tests.divergences.test_row_reduce import close

MASSES = np.array([0.0523, 0.5071, 0.9973])


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def rows():
    """Random rows, ties within and across parts of 512 tokens, equal tokens, impossible ones, a certain target."""
    rng = np.random.default_rng(5)
    target = [rng.normal(0, scale, (2, 1100)) for scale in (0.1, 1, 3)]
    target += [np.round(rng.normal(0, 2, (3, 1100)) * 4) / 4, np.zeros((2, 1100))]
    target = np.concatenate(target)
    target[2, 5:600], target[8, 4] = -np.inf, 90
    model = np.where(np.isfinite(target), target, 0) + rng.normal(0, 1, target.shape)
    model[:, :50] = model[:, 50:100]
    return target, model


def test_the_share_of_the_head_is_that_by_sorting():
    with jax.enable_x64(True):
        target, model = rows()
        p, q = softmax(target), softmax(model)
        gap, logits = np.abs(p - q), (jnp.asarray(target), jnp.asarray(model))
        shares = lambda crossing: jax.vmap(  # noqa: E731
            lambda mass: head_share(*logits, mass, crossing_token_in_head=crossing)
        )(MASSES)
        for crossing, found in jax.jit(
            lambda: {one: shares(one) for one in (True, False)}
        )().items():
            for mass, share in zip(MASSES, found, strict=True):
                head = sorted_head(p, mass, crossing)
                np.testing.assert_allclose(share, (gap * head).sum(-1) / gap.sum(-1), 1e-11)


def test_the_same_numbers_in_double(monkeypatch):
    """Values and gradients of the mixtures as on a CPU."""
    members = [dv.AdaptiveKL(head_mass=0.4571, compat="reference"), dv.EntropyGatedKL()]
    weights = np.cos(np.arange(11.0))

    def of(target, model):
        return [
            (value, pull(weights)) for value, pull in (jax.vjp(d, target, model) for d in members)
        ]

    with jax.enable_x64(True):
        target, model = rows()
        model[4], model[5:, :5] = target[4], -1e9
        want = jax.jit(lambda *logits: of(*logits))(target, model)
        for module in (adaptive_kl, entropy_gate, f_divergence, row_mixture):
            monkeypatch.setattr(module, "by_machine", lambda here, there, div, *xs: there(*xs))
        close(jax.jit(lambda *logits: of(*logits))(target, model), want, 1e-11)


def test_each_machine_gets_its_own_program():
    """No loop on a GPU or TPU."""
    logits = jax.ShapeDtypeStruct((64, 2**15), jnp.float32)
    traced = jax.jit(dv.AdaptiveKL()).trace(logits, logits)
    text = {
        name: traced.lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "cuda", "tpu")
    }
    assert "while" in text["cpu"]
    assert "while" not in text["cuda"] + text["tpu"]
