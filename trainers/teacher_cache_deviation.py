"""How far the log-probs of a cache are from those that a teacher gives now."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from divax.trainers.batch import Batch
from divax.trainers.model import Model, predict
from divax.trainers.teacher_cache_manifest import CacheSettings
from divax.trainers.teacher_cache_shards import counted_positions
from divax.trainers.token_logits import of_token_logits

#: Below it a log-prob is impossible, whether it is stored as −1e30 or, in float16, as −inf.
_IMPOSSIBLE = -1e4


class Deviation(NamedTuple):
    """Differences of log-probs, in nats, over the positions that count.

    Attributes:
        worst: the largest.
        beyond_storage: the largest part of one that the rounding of the storage does not explain:
            half a unit in the last place, |log p| / 2048 in float16.
        slack: what another order of summation may do: 1e-3, or two units in the last place of the
            largest logit where logits are narrower than float32.

    Example:
        >>> Deviation(worst=1e-3, beyond_storage=1e-5, slack=1e-3).worst
        0.001
    """

    worst: float
    beyond_storage: float
    slack: float


def deviation(batch: Batch, settings: CacheSettings, model: Model, params: Any) -> Deviation:
    """Runs a model on cached rows, and compares.

    Args:
        batch: rows of a cache, with their teacher's.
        settings: the cache's.
        model: the teacher.
        params: its parameters.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> from divax import trainers as tr
        >>> table = tr.Model(init=lambda key: 0, apply=lambda params, tokens: params[tokens])
        >>> cache = tr.write_teacher_cache(
        ...     tempfile.mkdtemp(), teacher=table, params=jnp.eye(4), k=2, tokenizer="letters",
        ...     batches=[tr.Batch(tokens=jnp.array([[0, 1, 2]]))],
        ... )
        >>> deviation(cache.rows([0]), cache.settings, table, jnp.eye(4)).beyond_storage < 1e-6
        True
    """
    cache = batch.teacher
    assert cache is not None
    score = jax.jit(functools.partial(_score, model, settings))
    # Without the teacher's arrays the program is that of any batch.
    rows = Batch(batch.tokens, batch.mask, batch.segment_ids)
    kept, tail, slack = map(np.asarray, score(params, rows, cache.ids))
    stored = np.asarray(cache.logits).astype(np.float64)
    unit = 2.0**-11 if settings.dtype == "float16" else 2.0**-24
    # float16 is subnormal below 2^-14, with steps of 2^-24.
    rounding = np.maximum(unit * np.abs(_possible(stored)), 2.0**-25)
    heads = np.abs(_possible(stored) - _possible(kept))
    tails = np.abs(_possible(np.asarray(cache.log_tail)) - _possible(tail))
    counts = counted_positions(*map(_array, (batch.tokens, batch.mask, batch.segment_ids)))
    heads, tails, rounding = heads[counts], tails[counts], rounding[counts]
    # A maximum of NaN is NaN, and not below any tolerance.
    return Deviation(
        worst=float(np.maximum(heads.max(initial=0), tails.max(initial=0))),
        beyond_storage=float(np.maximum((heads - rounding).max(initial=0), tails.max(initial=0))),
        slack=max(1e-3, float(slack)),
    )


def _score(
    model: Model, settings: CacheSettings, params: Any, batch: Batch, ids: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log-probs of the ids, the log of what all others have, and what rounding of logits may do."""
    of_logits = functools.partial(_score_logits, settings)
    kept, tail, largest = of_token_logits(of_logits, model, params, batch, ids)
    dtype = jax.eval_shape(lambda params: predict(model, params, batch), params).dtype
    narrow = jnp.finfo(dtype).bits < 32
    eps = 2 * float(jnp.finfo(dtype).eps) / settings.temperature if narrow else 0.0
    return kept, tail, eps * jnp.max(largest)


def _score_logits(settings: CacheSettings, logits: jax.Array, ids: jax.Array):
    """Of each token the first two, and its largest logit in size."""
    logits = logits[..., : settings.vocab_size]
    largest = jnp.max(jnp.where(jnp.isfinite(logits), jnp.abs(logits), 0), -1)
    log_probs = jax.nn.log_softmax(logits / settings.temperature)
    others = jnp.put_along_axis(log_probs, ids, -jnp.inf, axis=-1, inplace=False)
    tail = jax.nn.logsumexp(others, axis=-1)
    return jnp.take_along_axis(log_probs, ids, axis=-1), tail, largest


def _possible(log_probs: np.ndarray) -> np.ndarray:
    return np.maximum(log_probs.astype(np.float64), _IMPOSSIBLE)


def _array(x: Any) -> Any:
    return None if x is None else np.asarray(x)
