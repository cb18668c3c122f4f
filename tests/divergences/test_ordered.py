"""Wasserstein-1 and Cramér against SciPy; EMO and ULD against sums, linear programming and permutations."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats

from divax import divergences as dv

EMBEDDINGS = np.random.default_rng(9).normal(size=(7, 4))
EVERY = {
    "wasserstein1": dv.Wasserstein1(positions=jnp.asarray([0.0, 2.0, -1.0, 3.5, 1.0, 5.0, 4.0])),
    "cramer": dv.Cramer(positions=jnp.asarray([0.0, 2.0, -1.0, 3.5, 1.0, 5.0, 4.0])),
    "emo": dv.EMO(embeddings=jnp.asarray(EMBEDDINGS, jnp.float32)),
    "debiased_emo": dv.DebiasedEMO(embeddings=jnp.asarray(EMBEDDINGS, jnp.float32)),
    "uld": dv.universal_logit_distance,
}


def rows(seed=0, shape=(4, 7), scale=1.5):
    return np.random.default_rng(seed).normal(0, scale, (2, *shape))


def softmax(z):
    z = np.exp(z - z.max(-1, keepdims=True))
    return z / z.sum(-1, keepdims=True)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("sorted_support", [True, False])
def test_scipy_agrees_on_the_ordered_support(sorted_support):
    t, s = rows()
    positions = None if sorted_support else np.random.default_rng(2).normal(0, 3, 7)
    places = np.arange(7.0) if positions is None else positions
    positions = None if positions is None else jnp.asarray(positions)
    call = jax.jit(lambda div, t, s: div(t, s))
    w1 = call(dv.Wasserstein1(positions=positions), t, s)
    cramer = call(dv.Cramer(positions=positions), t, s)
    for i, (p, q) in enumerate(zip(softmax(t), softmax(s), strict=True)):
        assert float(w1[i]) == pytest.approx(
            stats.wasserstein_distance(places, places, p, q), rel=1e-12
        )
        assert float(cramer[i]) == pytest.approx(
            stats.energy_distance(places, places, p, q) ** 2 / 2, rel=1e-12
        )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", EVERY)
def test_gradients_are_difference_quotients(name):
    t, s = (jnp.asarray(side) for side in rows(1))
    div = EVERY[name]
    directions = rows(3)
    total = jax.jit(lambda t, s: jnp.sum(div(t, s)))
    for side, gradient in enumerate(jax.jit(jax.grad(total, (0, 1)))(t, s)):
        step = [1e-6 * directions[side] * (i == side) for i in (0, 1)]
        quotient = float(total(t + step[0], s + step[1]) - total(t - step[0], s - step[1])) / 2e-6
        assert float(jnp.sum(gradient * directions[side])) == pytest.approx(quotient, rel=1e-6)
        np.testing.assert_allclose(jnp.sum(gradient, -1), 0, atol=1e-14)


@pytest.mark.usefixtures("x64")
def test_the_wasserstein_gradient_is_the_reverse_cumulative_sign():
    t, s = rows(2, (7,))
    p, q = softmax(t), softmax(s)
    sign = np.append(np.sign(np.cumsum(q - p))[:-1], 0.0)
    by_q = np.cumsum(sign[::-1])[::-1]
    want = q * (by_q - q @ by_q)
    np.testing.assert_allclose(jax.grad(dv.Wasserstein1(), 1)(t, s), want, atol=1e-15)


@pytest.mark.parametrize("name", EVERY)
def test_impossible_tokens_equal_rows_and_overflow_never_make_nan(name):
    inf = np.inf
    t = jnp.asarray(
        [
            [0.0, -inf, 1.0, -inf, 0.0, 2.0, 1.0],
            [0.0, *[-inf] * 6],
            [-inf] * 7,
            [1e4, -1e4, 0.0, -inf, 0.0, 0.0, 0.0],
            [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        ],
        jnp.float32,
    )
    s = jnp.asarray(
        [
            [-inf, -inf, 1.0, 3.0, 0.0, 2.0, 1.0],
            [*[-inf] * 6, 0.0],
            [0.0] * 7,
            [-1e4, 1e4, 0.0, 0.0, -inf, 0.0, 0.0],
            [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        ],
        jnp.float32,
    )
    div = EVERY[name]
    value, gradients = jax.jit(
        lambda t, s: (div(t, s), jax.grad(lambda t, s: jnp.sum(div(t, s)), (0, 1))(t, s))
    )(t, s)
    assert np.all(np.isfinite(value))
    assert np.all(np.asarray(value) >= 0)
    assert np.all(np.isfinite(gradients))
    assert value[2] == 0
    if name != "emo":
        assert value[4] == 0
        assert not np.any(np.asarray(gradients)[:, 4])
    assert jax.eval_shape(div, t.astype(jnp.bfloat16), s).dtype == jnp.float32


def test_the_distance_keeps_its_digits_near_equality():
    """At a logit difference of 1e-4 in float32, against double precision."""
    t, s = rows(5, (1000,))
    t, s = np.float32(t), np.float32(t + 1e-4 * s)
    gap = np.cumsum(softmax(np.float64(t)) - softmax(np.float64(s)))
    assert float(dv.Wasserstein1()(t, s)) == pytest.approx(np.abs(gap).sum(), rel=1e-4)
    assert float(dv.Cramer()(t, s)) == pytest.approx((gap**2).sum(), rel=2e-4)


def cosine_cost():
    units = EMBEDDINGS / np.linalg.norm(EMBEDDINGS, axis=1, keepdims=True)
    return 1 - units @ units.T


@pytest.mark.usefixtures("x64")
def test_emo_is_the_independent_coupling_an_upper_bound_of_transport_and_exact_for_one_hot():
    t, s = rows(6, (7,))
    p, q, cost = softmax(t), softmax(s), cosine_cost()
    emo = dv.EMO(embeddings=jnp.asarray(EMBEDDINGS))
    assert float(emo(t, s)) == pytest.approx(p @ cost @ q, rel=1e-12)

    def transport(p):
        equal = np.vstack([np.kron(np.eye(7), np.ones(7)), np.kron(np.ones(7), np.eye(7))])
        plan = optimize.linprog(cost.ravel(), A_eq=equal, b_eq=np.concatenate([p, q]))
        return float(np.asarray(plan.fun))

    assert float(emo(t, s)) > transport(p) + 0.01
    one_hot = np.full(7, -np.inf)
    one_hot[3] = 0
    assert float(emo(one_hot, s)) == pytest.approx(transport(np.eye(7)[3]), rel=1e-9)
    assert float(emo(t, t)) > 0.1
    debiased = dv.DebiasedEMO(embeddings=jnp.asarray(EMBEDDINGS))
    assert float(debiased(t, s)) == pytest.approx(-(p - q) @ cost @ (p - q), rel=1e-12)
    zero_row = dv.EMO(embeddings=jnp.zeros((7, 2)))
    assert float(zero_row(t, s)) == pytest.approx(1, rel=1e-12)
    assert np.all(np.isfinite(jax.grad(lambda e: dv.EMO(embeddings=e)(t, s))(jnp.zeros((7, 2)))))


def test_emo_s_training_loss_has_the_value_of_the_likelihood():
    both = jax.value_and_grad(lambda x: dv.balanced_with_likelihood(x**2, 5 * x))(3.0)
    assert [float(v) for v in both] == [9.0, pytest.approx(0.5 * (6 + 9 / 15 * 5))]
    assert float(dv.balanced_with_likelihood(jnp.asarray(2.0), jnp.asarray(0.0))) == 2


@pytest.mark.usefixtures("x64")
def test_uld_is_the_best_permutation_across_vocabularies():
    rng = np.random.default_rng(8)
    t, s = rng.normal(0, 2, 5), rng.normal(0, 2, 4)
    p, q = softmax(t), np.append(softmax(s), 0)
    want = min(np.abs(p - q[list(order)]).sum() for order in itertools.permutations(range(5)))
    assert float(dv.universal_logit_distance(t, s)) == pytest.approx(want, rel=1e-12)
    assert float(dv.universal_logit_distance(s, t)) == pytest.approx(want, rel=1e-12)
    assert float(dv.universal_logit_distance(t, t[::-1])) == 0  # label-blind
    batch = dv.universal_logit_distance(np.stack([t, t]), s)
    np.testing.assert_allclose(batch, [want, want], rtol=1e-12)


def test_names_duals_and_wrong_input():
    assert dv.get("wasserstein1") == dv.Wasserstein1()
    assert dv.get("cramer").dual() == dv.Cramer()
    with pytest.raises(ValueError, match=r"positions have shape \(3,\), but 5 atoms need \(5,\)"):
        dv.Cramer(positions=jnp.zeros(3))(jnp.zeros(5), jnp.zeros(5))
    with pytest.raises(ValueError, match=r"embeddings have shape \(7, 4\), but a vocabulary of 5"):
        EVERY["emo"](jnp.zeros(5), jnp.zeros(5))
    with pytest.raises(TypeError, match="logits must be floating point, got int32"):
        dv.universal_logit_distance(jnp.zeros(5, jnp.int32), jnp.zeros(5))


@pytest.mark.parametrize("cls", [dv.Wasserstein1, dv.Cramer])
@pytest.mark.parametrize("positions", [None, [0.0, 5.0, 1.0, 2.5, 9.0, 4.0]])
def test_the_top_tokens_keep_their_places(x64, cls, positions):
    """Renormalised top-K is the distance of the kept tokens at their own positions, whatever order they are kept in."""
    rng = np.random.default_rng(3)
    t, s = rng.normal(0, 2, (2, 4, 6))
    div = cls(positions=None if positions is None else jnp.asarray(positions))
    got = dv.TopKRenormalized(inner=div, k=3)(t, s)
    for row in range(4):
        kept = np.sort(np.argsort(-t[row])[:3])
        places = (np.arange(6.0) if positions is None else np.asarray(positions))[kept]
        want = cls(positions=jnp.asarray(places))(t[row, kept], s[row, kept])
        assert float(got[row]) == pytest.approx(float(want), rel=1e-12)
    with pytest.raises(ValueError, match="no place for the bucket of all other tokens"):
        dv.TopK(inner=div, k=3)(t, s)
