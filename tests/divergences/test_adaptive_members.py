"""BD-KD's gate and AlphaNet's adaptive α against row-by-row NumPy transcriptions."""

import compiled
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divax import divergences as dv

INF = np.inf
RNG = np.random.default_rng(5)
T, S = RNG.normal(0, 2, (2, 20, 6))
# A flat target and a peaked model: there mode covering is the worse of the two.
T[10:] *= 0.1
S[10:] *= 2.5


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


@pytest.mark.usefixtures("x64")
def test_the_entropy_gate():
    div = dv.EntropyGatedKL(emphasis=3.0)
    value, gradient, sides = compiled.value(div, T, S), compiled.gradients(div, T, S)[1], set()
    for row in range(len(T)):
        p, q = softmax(T[row]), softmax(S[row])
        wider = -p @ np.log(p) > -q @ np.log(q)
        forward, reverse = (3, 1) if wider else (1, 3)
        sides.add(wider)
        want = forward * p @ np.log(p / q) + reverse * q @ np.log(q / p)
        assert float(value[row]) == pytest.approx(want, rel=1e-12)
        slope = reverse * q * (np.log(q / p) - q @ np.log(q / p)) + forward * (q - p)
        np.testing.assert_allclose(gradient[row], slope, rtol=1e-10, atol=1e-14)
    assert len(sides) == 2
    np.testing.assert_allclose(compiled.value(div, S, T), value, rtol=1e-12)
    np.testing.assert_allclose(4 * compiled.value(div.normalized(), T, S), value, rtol=1e-12)


def oracle_alpha(p, q, a):
    if a == 1:
        return p @ np.log(p / q)
    if a == 0:
        return q @ np.log(q / p)
    return (np.sum(p**a * q ** (1 - a)) - 1) / (a * (a - 1))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("ends", [(-1.0, 1.0), (0.0, 2.0), (-0.5, 0.5)])
def test_adaptive_alpha_is_the_larger_one_and_descends_it(ends):
    div = dv.AdaptiveAlpha(alpha_min=ends[0], alpha_max=ends[1])
    value, gradient, chosen = compiled.value(div, T, S), compiled.gradients(div, T, S)[1], set()
    direction = RNG.normal(size=S.shape)
    up, down = (compiled.value(div, T, S + h * direction) for h in (1e-6, -1e-6))
    np.testing.assert_allclose(
        np.sum(np.asarray(gradient) * direction, -1), (up - down) / 2e-6, rtol=1e-5, atol=1e-7
    )
    for row in range(len(T)):
        both = [oracle_alpha(softmax(T[row]), softmax(S[row]), a) for a in ends]
        chosen.add(int(np.argmax(both)))
        assert float(value[row]) == pytest.approx(max(both), rel=1e-10)
    assert len(chosen) == 2


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("alpha", [-1.0, -0.5, 0.5, 2.0])
def test_the_clipped_gradient_is_alphanets(alpha):
    """AlphaNet's surrogate −Σ sg(q·min(u^α, c)/α)·log q, with c = 5, differentiated by hand."""
    gradient = compiled.gradients(dv.ClippedAlpha(alpha=alpha, clip=5.0), T, S)[1]
    clipped = 0
    for row in range(len(T)):
        p, q = softmax(T[row]), softmax(S[row])
        weight = np.minimum((p / q) ** alpha, 5.0) / alpha
        clipped += np.sum((p / q) ** alpha > 5)
        want = -(q * weight - q * (q @ weight))
        np.testing.assert_allclose(gradient[row], want, rtol=1e-10, atol=1e-13)
    assert clipped > 5


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("div", [dv.ClippedAlpha(alpha=-1.0), dv.AdaptiveAlpha(clip=5.0)])
def test_the_clipped_gradient_descends_the_value(div):
    direction = RNG.normal(size=S.shape)
    up, down = (compiled.value(div, T, S + h * direction) for h in (1e-6, -1e-6))
    slope = np.sum(np.asarray(compiled.gradients(div, T, S)[1]) * direction, -1)
    np.testing.assert_allclose(slope, (up - down) / 2e-6, rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("x64")
def test_the_clip_is_off_by_default_and_for_equal_alphas_nothing_adapts():
    whole, clipped = dv.AdaptiveAlpha(), dv.AdaptiveAlpha(clip=5.0)
    assert np.all(compiled.value(clipped, T, S) <= compiled.value(whole, T, S) * (1 + 1e-12))
    assert np.any(compiled.value(clipped, T, S) < 0.9 * compiled.value(whole, T, S))
    one = dv.AdaptiveAlpha(alpha_min=0.3, alpha_max=0.3)
    np.testing.assert_allclose(
        compiled.value(one, T, S), compiled.value(dv.Alpha(alpha=0.3), T, S), rtol=1e-12
    )
    far = dv.AdaptiveAlpha(clip=1e200)
    np.testing.assert_allclose(compiled.value(far, T, S), compiled.value(whole, T, S), rtol=1e-12)


@pytest.mark.parametrize(
    "div", [dv.EntropyGatedKL(), dv.AdaptiveAlpha(), dv.AdaptiveAlpha(clip=5.0)]
)
def test_no_nan_and_exact_zeros(div):
    wild = RNG.normal(0, 3, (2, 60, 5)).astype(np.float32)
    wild[:, 40:] *= 3e3
    wild[RNG.random(wild.shape) < 0.35] = -INF
    wild[:, 0], wild[0, 1, 2], wild[0, 2:6] = -INF, INF, wild[1, 2:6]
    value, gradient = compiled.value(div, *wild), compiled.gradients(div, *wild)[1]
    assert not np.any(np.isnan(value))
    assert np.all(value >= 0)
    assert np.all(value[2:6] == 0)
    assert np.all(np.isfinite(gradient))
    np.testing.assert_array_equal(gradient[2:6], 0)


def test_the_entropy_of_impossible_tokens():
    assert float(dv.entropy(jnp.asarray([0.0, 0.0, -INF]))) == pytest.approx(np.log(2))
    assert float(dv.entropy(jnp.asarray([-INF, -INF]))) == 0
    assert np.all(np.isfinite(jax.grad(dv.entropy)(jnp.asarray([0.0, 1.0, -INF]))))


def test_wrong_parameters_say_so():
    with pytest.raises(ValueError, match="clip=1 is outside"):
        dv.AdaptiveAlpha(clip=1)
    with pytest.raises(ValueError, match=r"emphasis=0\.5 is outside"):
        dv.EntropyGatedKL(emphasis=0.5)
