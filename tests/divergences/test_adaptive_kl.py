"""AKL against a row-by-row NumPy transcription, and its head against exhaustive search."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divax import divergences as dv


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def numpy_akl(t, s, mass, reference):
    p, q = softmax(t), softmax(s)
    order = sorted(range(len(p)), key=lambda i: -p[i])
    head, total = set(), 0.0
    for rank, i in enumerate(order):
        inside = (total + p[i] <= mass or rank == 0) if reference else total < mass
        if not inside:
            break
        head.add(i)
        total += p[i]
    gap = np.abs(p - q)
    w = sum(gap[i] for i in head) / gap.sum()
    return w * np.sum(p * np.log(p / q)) + (1 - w) * np.sum(q * np.log(q / p)), w


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("mass", [0.2, 0.5, 0.9])
def test_value_and_gradient_against_numpy(reference, mass):
    rng = np.random.default_rng(2)
    t, s = rng.normal(0, 2, (2, 20, 9))
    div = dv.AdaptiveKL(head_mass=mass, compat="reference" if reference else None)
    value = div(t, s)
    gradient = jax.grad(lambda s: jnp.sum(div(t, s)))(jnp.asarray(s))
    for row in range(20):
        want, w = numpy_akl(t[row], s[row], mass, reference)
        assert float(value[row]) == pytest.approx(want, rel=1e-12)
        p, q = softmax(t[row]), softmax(s[row])
        reverse = np.log(q / p)
        closed = w * (q - p) + (1 - w) * q * (reverse - q @ reverse)
        np.testing.assert_allclose(gradient[row], closed, rtol=1e-9, atol=1e-13)


def test_the_head_is_the_smallest_set_that_reaches_the_mass():
    rng = np.random.default_rng(0)
    for _ in range(30):
        t = rng.normal(0, 1.5, 6).astype(np.float32)
        mask = np.asarray(dv.head_mask(jnp.asarray(t), 0.6))
        p = softmax(t.astype(np.float64))
        sizes = [k for k in range(1, 7) if max(sum(c) for c in itertools.combinations(p, k)) >= 0.6]
        assert mask.sum() == min(sizes)
        assert p[mask].min() >= p[~mask].max()


def test_the_crossing_token_is_where_the_two_cuts_differ():
    t = jnp.log(jnp.asarray([0.45, 0.3, 0.15, 0.1]))
    assert dv.head_mask(t, 0.5).tolist() == [True, True, False, False]
    assert dv.head_mask(t, 0.5, crossing_token_in_head=False).tolist() == [
        True,
        False,
        False,
        False,
    ]


def test_equal_rows_give_zero_and_finite_gradients():
    t = jnp.linspace(-1, 1, 5)
    value, gradient = jax.value_and_grad(lambda s: dv.AdaptiveKL()(t, s))(t)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def sorted_head(p, mass, crossing):
    """The same by sorting, in NumPy's double precision."""
    head = np.zeros(p.shape, bool)
    for row, probabilities in enumerate(p.astype(np.float64)):
        order = np.argsort(-probabilities, kind="stable")
        through = np.cumsum(probabilities[order])
        before = np.concatenate([[0.0], through[:-1]])
        inside = before < mass if crossing else (through <= mass) | (np.arange(len(order)) == 0)
        head[row, order] = inside
    return head


def test_the_head_needs_no_sorting():
    """Random rows, rows of ties, peaked rows, impossible tokens: as by sorting, for masses off any partial sum."""
    rng = np.random.default_rng(5)
    rows = [rng.normal(0, scale, (6, 37)) for scale in (0.1, 1.0, 3.0, 30.0)]
    rows += [rng.integers(0, 3, (6, 37)).astype(float), np.zeros((1, 37))]
    logits = np.concatenate(rows).astype(np.float32)
    logits[2, 5:20] = -np.inf
    p = np.asarray(jax.nn.softmax(jnp.asarray(logits), -1))
    heads = jax.jit(
        lambda mass: [
            dv.head_mask(jnp.asarray(logits), mass, crossing_token_in_head=crossing)
            for crossing in (True, False)
        ]
    )
    for mass in (0.0523, 0.3137, 0.5071, 0.9011, 0.9973):
        for crossing, head in zip((True, False), heads(jnp.float32(mass)), strict=True):
            np.testing.assert_array_equal(head, sorted_head(p, np.float32(mass), crossing))
