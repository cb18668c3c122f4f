"""Costs from embeddings against SciPy; transport on the top tokens of a vocabulary against NumPy's own Sinkhorn."""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.special import logsumexp

from divax import divergences as dv
from divax.divergences.ground_cost import Metric

SCIPY = {
    "euclidean": lambda rows: cdist(rows, rows, "euclidean"),
    "squared_euclidean": lambda rows: cdist(rows, rows, "sqeuclidean"),
    "cosine": lambda rows: cdist(rows, rows, "cosine"),
}
METRICS = get_args(Metric)


def softmax(logits):
    return np.exp(logits - logsumexp(logits, axis=-1, keepdims=True))


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def transport(p, q, cost, epsilon):
    """OT_ε of two vectors of probabilities, by alternating in logarithms; zeros are left out."""
    cost, p, q = cost[np.ix_(p > 0, q > 0)], p[p > 0], q[q > 0]
    g, plan = np.zeros(len(q)), np.outer(p, q)
    for _ in range(100_000):
        f = -epsilon * logsumexp((g - cost) / epsilon, b=q, axis=1)
        g = -epsilon * logsumexp((f[:, None] - cost) / epsilon, b=p[:, None], axis=0)
        plan = np.exp((f[:, None] + g - cost) / epsilon) * np.outer(p, q)
        if np.abs(plan.sum(1) - p).sum() < 1e-11:
            break
    return np.sum(plan * cost) + epsilon * np.sum(plan * np.log(plan / np.outer(p, q)))


def debiased(p, q, cost, epsilon):
    own = transport(p, p, cost, epsilon) + transport(q, q, cost, epsilon)
    return transport(p, q, cost, epsilon) - 0.5 * own


def union_of_top(t, s, k):
    return sorted({*np.argsort(-t)[:k].tolist(), *np.argsort(-s)[:k].tolist()})


def on_union(p, ids, tail):
    """Probabilities of the ids: with all others as one more atom, or renormalised."""
    return np.append(p[ids], 1 - p[ids].sum()) if tail else p[ids] / p[ids].sum()


def value_and_gradients(div):
    def both(t, s):
        value, pullback = jax.vjp(div, t, s)
        return value, *pullback(jnp.ones_like(value))

    return jax.jit(both)


# ---- the cost ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
def test_the_cost_is_scipy_s(metric: Metric):
    embeddings = np.random.default_rng(0).normal(size=(7, 5))
    want = SCIPY[metric](embeddings)
    with jax.enable_x64(True):
        matrix = dv.EmbeddingCost(embeddings=jnp.asarray(embeddings), metric=metric).matrix()
        np.testing.assert_allclose(matrix, want, rtol=1e-13, atol=1e-15)
    single = dv.EmbeddingCost(embeddings=jnp.asarray(embeddings, jnp.float32), metric=metric)
    np.testing.assert_allclose(single.matrix(), want, rtol=2e-6, atol=1e-13)
    ids = jnp.asarray([[3, 0, 3], [6, 1, 2]])
    points = unit(embeddings) if metric == "cosine" else embeddings
    for row, among in zip(np.asarray(ids), single.among(ids, tail=True), strict=True):
        np.testing.assert_allclose(among[:3, :3], want[np.ix_(row, row)], rtol=2e-6, atol=1e-13)
        apart = np.linalg.norm(points[row] - points.mean(0), axis=1)
        from_tail = {"euclidean": apart, "squared_euclidean": apart**2, "cosine": 0.5 * apart**2}
        np.testing.assert_allclose(among[3, :3], from_tail[metric], rtol=3e-6)
        assert among[3, 3] == 0


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_duplicates_cost_nothing_and_neighbours_far_out_are_told_apart(metric: Metric, dtype):
    """‖x‖² + ‖y‖² − 2⟨x, y⟩ would be −0.1 or so here, and its root NaN."""
    rng = np.random.default_rng(1)
    base = 1000 + rng.normal(size=(4, 64))
    rows = jnp.asarray(np.concatenate([base, base, base + 0.125 * rng.normal(size=(4, 64))]), dtype)
    cost = dv.EmbeddingCost(embeddings=rows, metric=metric)
    matrix = cost.matrix()
    assert matrix.dtype == jnp.float32
    assert bool(jnp.all(matrix >= 0))
    assert not np.any(matrix[np.r_[:12, :4], np.r_[:12, 4:8]])
    exact = np.asarray(rows).astype(np.float64)
    # Unit rows in float32 are right to 6e-8 in every component, and no cost can be better than they are.
    rtol, atol = (1e-5, 1e-9) if metric == "cosine" else (1e-6, 0.0)
    np.testing.assert_allclose(matrix, SCIPY[metric](exact), rtol=rtol, atol=atol)
    gradient = jax.grad(lambda c: jnp.sum(c.matrix()))(cost).embeddings
    assert bool(jnp.all(jnp.isfinite(gradient)))


def test_a_row_of_zeros_is_at_the_origin():
    cost = dv.EmbeddingCost(embeddings=jnp.asarray([[0.0, 0.0], [3.0, 0.0]]), metric="cosine")
    assert cost.matrix().tolist() == [[0, 0.5], [0.5, 0]]


# ---- on few tokens -----------------------------------------------------------------------------------------------


def problem(vocabulary=12, batch=3, seed=2):
    rng = np.random.default_rng(seed)
    t, s = rng.normal(0, 1.5, (2, batch, vocabulary))
    return t, s, rng.normal(size=(vocabulary, 3))


@pytest.mark.usefixtures("x64")
def test_keeping_every_token_is_the_dense_problem():
    """Also with impossible tokens, in sums, and for a gathered matrix; a row of nothing is worth nothing."""
    t, s, embeddings = problem(vocabulary=6, batch=5)
    t[1, 2], s[1, 4], t[2, 3], s[2, 3] = (-np.inf,) * 4
    t[3, 1:], s[3, :5], t[4] = -np.inf, -np.inf, -np.inf
    matrix = jnp.asarray(cdist(embeddings, embeddings))
    solver = {"epsilon": 0.5, "tolerance": 1e-11, "max_iterations": 5000}

    def transport_with(cost):
        return 0.5 * dv.JensenShannon() + 2.0 * dv.Sinkhorn(cost=cost, debiased=False, **solver)

    cost = dv.EmbeddingCost(embeddings=jnp.asarray(embeddings))
    dense = jax.jit(lambda t, s: transport_with(matrix)(t, s))(t, s)
    assert dense[4] == 0
    value, *gradients = value_and_gradients(dv.TopK(inner=transport_with(cost), k=6))(t, s)
    np.testing.assert_allclose(value, dense, rtol=1e-10)
    for gradient, logits in zip(gradients, (t, s), strict=True):
        assert np.all(np.isfinite(gradient))
        assert not np.any(np.asarray(gradient)[np.isneginf(logits)])
    of_matrix = dv.TopKRenormalized(inner=transport_with(matrix), k=6, keep="union")
    np.testing.assert_allclose(jax.jit(lambda t, s: of_matrix(t, s))(t, s), dense, rtol=1e-10)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("metric", "tail"), [("cosine", True), ("squared_euclidean", False)])
def test_the_union_of_both_tops_is_numpy_s(metric: Metric, tail):
    """Value row by row; gradient by central differences, the moved rows part of the same batch."""
    t, s, embeddings = problem()
    epsilon, k = 0.3 if metric == "cosine" else 1.0, 4
    cost = dv.EmbeddingCost(embeddings=jnp.asarray(embeddings), metric=metric)
    solver = {"epsilon": epsilon, "cost": cost, "tolerance": 1e-12, "max_iterations": 5000}
    if tail:
        div = dv.TopK(inner=dv.AnnealedSinkhorn(**solver), k=k, keep="union")
    else:
        div = dv.TopKRenormalized(inner=dv.Sinkhorn(debiased=False, **solver), k=k, keep="union")
    h, (dt, ds) = 1e-6, np.random.default_rng(5).normal(size=(2, *t.shape))
    targets = np.stack([t, t + h * dt, t - h * dt, t, t])
    models = np.stack([s, s, s, s + h * ds, s - h * ds])
    value, by_target, by_model = value_and_gradients(div)(targets, models)
    quotients = (value[1] - value[2]) / (2 * h), (value[3] - value[4]) / (2 * h)
    slopes = np.sum(by_target[0] * dt, -1), np.sum(by_model[0] * ds, -1)
    np.testing.assert_allclose(slopes, quotients, rtol=1e-6, atol=1e-8)

    points = unit(embeddings) if metric == "cosine" else embeddings
    sizes = set()
    for row in range(3):
        ids = union_of_top(t[row], s[row], k)
        sizes.add(len(ids))
        p, q = softmax(t[row]), softmax(s[row])
        kept = [points[ids], points.mean(0)[None]] if tail else [points[ids]]
        p, q = (on_union(x, ids, tail) for x in (p, q))
        squared = SCIPY["squared_euclidean"](np.concatenate(kept))
        matrix = 0.5 * squared if metric == "cosine" else squared
        want = (debiased if tail else transport)(p, q, matrix, epsilon)
        assert float(value[0, row]) == pytest.approx(want, rel=1e-8)
    assert max(sizes) > k
    assert min(sizes) < 2 * k  # so that some token is in both lists


def test_a_vocabulary_of_150_000_in_float32_and_little_memory():
    vocabulary, k, epsilon = 150_000, 16, 0.3
    rng = np.random.default_rng(6)
    t = rng.normal(0, 4, (2, vocabulary)).astype(np.float32)
    s = t + rng.normal(0, 2, t.shape).astype(np.float32)
    s[:, :70_000] = -np.inf
    embeddings = rng.normal(size=(vocabulary, 8)).astype(np.float32)
    cost = dv.EmbeddingCost(embeddings=jnp.asarray(embeddings), metric="cosine")
    inner = dv.AnnealedSinkhorn(epsilon=epsilon, cost=cost)

    def loss(cost_embeddings, t, s):
        given = jax.tree.map(lambda _: cost_embeddings, cost)
        held = dv.AnnealedSinkhorn(epsilon=inner.epsilon, cost=given)
        value = dv.TopK(inner=held, k=k, keep="union")(t, s)
        return jnp.sum(value), value

    step = jax.jit(jax.value_and_grad(loss, argnums=2, has_aux=True))
    compiled = step.lower(embeddings, t, s).compile()
    # A few arrays of [2, V] and one of [V]; a single [V, V] would be 90 GB.
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 10 * t.nbytes
    (_, value), gradient = compiled(embeddings, t, s)
    units = unit(embeddings.astype(np.float64))
    for row in range(2):
        ids = union_of_top(t[row], s[row], k)
        p, q = (softmax(x[row].astype(np.float64)) for x in (t, s))
        points = np.concatenate([units[ids], units.mean(0)[None]])
        p, q = (on_union(x, ids, tail=True) for x in (p, q))
        want = debiased(p, q, 0.5 * SCIPY["squared_euclidean"](points), epsilon)
        assert float(value[row]) == pytest.approx(want, rel=1e-4)
    assert np.all(np.isfinite(gradient))
    assert not np.any(np.asarray(gradient)[:, :70_000])
    assert np.abs(gradient).sum() > 0.05
    np.testing.assert_allclose(np.sum(gradient, -1), 0, atol=1e-6)


def test_wrong_input_is_named():
    zeros = jnp.zeros(5)
    with pytest.raises(ValueError, match=r"metric='cosin' is none of .*did you mean 'cosine'\?"):
        dv.EmbeddingCost(embeddings=jnp.zeros((5, 2)), metric="cosin")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"embeddings must be \[V, d\], got shape \(5,\)"):
        dv.EmbeddingCost(embeddings=zeros)
    short = dv.Sinkhorn(cost=dv.EmbeddingCost(embeddings=jnp.zeros((4, 2))))
    other = dv.Sinkhorn(cost=jnp.zeros((4, 4)))
    for div, message in (
        (dv.TopK(inner=short, k=2), r"a vocabulary of 5 needs \(5, d\)"),
        (short, r"a vocabulary of 5 needs \(5, 5\)"),
        (dv.TopKRenormalized(inner=other, k=2), r"a vocabulary of 5 needs \(5, 5\)"),
        (dv.TopK(inner=dv.Sinkhorn(cost=jnp.zeros((5, 5))), k=2), "bucket.*TopKRenormalized"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(div, zeros, zeros)
