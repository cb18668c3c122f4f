"""Impossible tokens and the three support policies: exact values. That nothing is ever NaN: test_adversarial."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from members import f_member
from oracles import categorical

from divax import divergences as dv
from divax.divergences.support import _log_total_read

INF = np.inf


@pytest.mark.parametrize("spec", ["forward_kl", "jensen_shannon", "alpha(2.0)", "renyi", "beta"])
@pytest.mark.parametrize("size", [1e2, 1e4])
def test_no_second_derivative_is_nan_for_confidently_wrong_models(spec, size):
    t = jnp.asarray([[size, 0.0, -size], [size, 0, 0], [0, 0, 0], [-size, size, 0]], jnp.float32)
    s = jnp.asarray([[-size, 0.0, size], [0, size, 0], [size, 0, 0], [-size, size, 0]], jnp.float32)
    div = dv.get(spec)
    value = div(t, s)
    assert not np.any(np.isnan(value))
    assert value[3] == 0
    for argument in (0, 1):
        assert np.all(np.isfinite(jax.grad(lambda *a: jnp.sum(div(*a)), argnums=argument)(t, s)))
    hvp = jax.jvp(jax.grad(lambda s: jnp.sum(div(t, s))), (s,), (jnp.ones_like(s),))[1]
    assert not np.any(np.isnan(hvp))


@pytest.mark.parametrize(
    "spec",
    [
        s
        for s in (*dv.names(), "alpha(-1.0)", "alpha(2.0)", "forward_kl + reverse_kl")
        if categorical.has(s)
    ],
)
def test_finite_edge_contributions_are_exact_and_policies_touch_only_infinite_ones(spec):
    t, s = [1.0, -INF, 0.5, -0.2], [0.3, 0.7, -INF, 2.0]
    div = f_member(spec)
    expected = float(categorical.value(div.name, t, s))
    value = float(div(jnp.asarray(t), jnp.asarray(s)))
    assert value == pytest.approx(expected, rel=2e-6)
    drop_target = float(div.f_at_zero) == INF  # tokens ruled out by the target
    drop_model = float(div.slope_at_infinity) == INF
    keep = [0, *([] if drop_target else [1]), *([] if drop_model else [2]), 3]
    masked = float(categorical.value(div.name, [t[i] for i in keep], [s[i] for i in keep]))
    assert float(div(jnp.asarray(t), jnp.asarray(s), support="mask")) == pytest.approx(
        masked, rel=2e-6
    )
    floored = float(div(jnp.asarray(t), jnp.asarray(s), support="floor"))
    assert np.isfinite(floored)
    if np.isfinite(expected):
        assert floored == value


def test_floor_gives_the_missing_token_a_ten_billionth():
    t, s = jnp.asarray([0.0, 0.0]), jnp.asarray([0.0, -INF])
    expected = 0.5 * np.log(0.5) + 0.5 * np.log(0.5 / 1e-10)
    assert float(dv.ForwardKL()(t, s, support="floor")) == pytest.approx(expected, rel=1e-6)


def test_where_removes_tokens_from_both_sides():
    t, s = jnp.asarray([1.0, 2.0, np.inf, 0.3]), jnp.asarray([0.5, 0.1, -4.0, 0.2])
    keep = jnp.asarray([True, True, False, True])
    # On an ordered support a token that is left out still keeps its place.
    for spec in [name for name in dv.names() if name not in ("wasserstein1", "cramer")]:
        got = dv.get(spec)(t, s, where=keep)
        np.testing.assert_allclose(got, dv.get(spec)(t[keep], s[keep]), rtol=1e-5)


def test_an_unknown_policy_is_named():
    with pytest.raises(
        ValueError, match="support='masked' is none of inf, mask, floor; did you mean 'mask'"
    ):
        dv.ForwardKL()(jnp.zeros(2), jnp.zeros(2), support="masked")  # type: ignore[arg-type]


def test_nan_logits_are_not_hidden():
    assert np.isnan(dv.ForwardKL()(jnp.asarray([0.0, np.nan]), jnp.zeros(2)))


def test_the_total_that_a_gpu_reads_once():
    """Against SciPy, with impossible tokens; of a row without a possible one, the logarithm of their number."""
    logits = np.random.default_rng(3).normal(0, 9, (3, 40)).astype(np.float32)
    logits[1, :30] = -np.inf
    expected = np.asarray(scipy.special.logsumexp(logits.astype(np.float64), axis=-1))
    logits[2], expected[2] = -np.inf, np.log(40)
    np.testing.assert_allclose(_log_total_read(jnp.asarray(logits)), expected, rtol=1e-6)
