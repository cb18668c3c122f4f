"""Of many logits a chunk exists at a time; what is stored of a teacher does not change by that."""

import jax
import jax.numpy as jnp
import numpy as np
from table_teacher import stored

from divax import divergences as dv
from divax import trainers as tr
from divax.trainers.token_logits import of_token_logits

V, WIDTH, ROWS, LENGTH = 20_000, 3, 2, 600  # 24 million logits: more than are computed at once


def make_teacher():
    rng = np.random.default_rng(0)
    params = {
        "states": jnp.asarray(rng.standard_normal((V, WIDTH)), jnp.float32),
        "head": jnp.asarray(3 * rng.standard_normal((WIDTH, V)), jnp.float32),
    }
    hidden = lambda params, tokens: params["states"][tokens]  # noqa: E731
    model = tr.Model(
        init=lambda key: params,
        apply=lambda params, tokens: hidden(params, tokens) @ params["head"],
        hidden=hidden,
        head=lambda params: params["head"],
    )
    tokens = rng.integers(V, size=(ROWS, LENGTH)).astype(np.int32)
    return model, params, tr.Batch(tokens)


def test_a_cache_of_many_logits_is_exact_and_never_has_them_all(tmp_path):
    """Against NumPy in double precision, through the files."""
    model, params, batch = make_teacher()
    cache = tr.write_teacher_cache(
        tmp_path / "c", teacher=model, params=params, batches=[batch], k=4, dtype="float32",
        tokenizer="none", temperature=2.0, vocab_size=V - 7,
    )  # fmt: skip
    teacher = stored(cache.rows(range(ROWS)))
    states, head = (np.asarray(params[name], np.float64) for name in ("states", "head"))
    logits = (states[batch.tokens[0, :5]] @ head)[:, : V - 7] / 2
    log_probs = logits - np.logaddexp.reduce(logits, -1, keepdims=True)
    order = np.argsort(-log_probs, -1)
    np.testing.assert_array_equal(teacher.ids[0, :5], order[:, :4])
    ranked = np.take_along_axis(log_probs, order, -1)
    np.testing.assert_allclose(teacher.logits[0, :5], ranked[:, :4], atol=1e-5)
    tails = np.logaddexp.reduce(ranked[:, 4:], -1)
    np.testing.assert_allclose(teacher.log_tail[0, :5], tails, atol=1e-5)
    assert cache.check_teacher(model, params) < 1e-5

    def kept(params):
        return of_token_logits(lambda x: dv.cache_top_k(x, k=4), model, params, batch)

    planned = jax.jit(kept).lower(params).compile().memory_analysis()
    assert planned is not None
    assert planned.temp_size_in_bytes < 4 * ROWS * LENGTH * V
