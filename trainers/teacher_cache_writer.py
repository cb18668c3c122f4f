"""Writing a teacher cache: shard by shard, each whole or not at all, resumed behind the last one."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from divax.divergences import TopKCache, cache_top_k
from divax.trainers.batch import Batch
from divax.trainers.errors import Interrupted, RunError
from divax.trainers.interruption import polite_stop
from divax.trainers.model import Model, predict
from divax.trainers.reference_cache import fingerprint
from divax.trainers.teacher_cache import TeacherCache
from divax.trainers.teacher_cache_manifest import (
    CacheSettings,
    Manifest,
    check_settings,
    read_manifest,
    tokenizer_fingerprint,
)
from divax.trainers.teacher_cache_part import PartWriting, mask_kind
from divax.trainers.teacher_cache_shards import id_dtype, row_bytes
from divax.trainers.token_logits import of_token_logits

#: Size of a shard, unless its number of rows is given.
_SHARD_BYTES = 16 << 20


def write_teacher_cache(
    directory: str | Path,
    *,
    teacher: Model,
    params: Any,
    batches: Iterable[Batch],
    tokenizer: str | Sequence[str | bytes],
    k: int = 64,
    temperature: float = 1.0,
    dtype: Literal["float16", "float32"] = "float16",
    data: str = "rows",
    append: bool = False,
    vocab_size: int | None = None,
    rows_per_shard: int | None = None,
    progress: Callable[[int], Any] = lambda rows: None,
) -> TeacherCache:
    """Runs a teacher over batches of text, and keeps its K likeliest tokens at every position.

    Shards are written whole or not at all, and never again; the manifest counts them when all are
    there. The same call after a kill, a stop or a full disk reads what the finished shards hold,
    compares it with the batches, and goes on behind it: the files are those of a call that was
    never stopped. On a finished cache it only compares.

    Args:
        directory: missing, empty, or a cache of the same teacher and settings.
        teacher: the model.
        params: its parameters.
        batches: the rows, all of one length; those that no loss counts, such as padding, are left out.
        tokenizer: the tokenizer's pieces, in the order of their ids, or a fingerprint of them.
        k: tokens kept at every position.
        temperature: T of softmax(t / T); the loss must have the same.
        dtype: of the stored log-probs. float16 rounds one by at most |log p| / 2048.
        data: what the rows are called; a cache has no two parts of one name.
        append: whether further rows may be added to a cache that holds others.
        vocab_size: the tokenizer's size, where the teacher pads it.
        rows_per_shard: rows of a full shard. Default: what makes 16 MiB.
        progress: is given the number of rows that are done.

    Returns:
        The finished cache.

    Raises:
        RunError: the directory holds something else, or cannot be written (the disk is full: what
            is whole is kept), there are no rows, or a token lies outside the vocabulary.
        NonFiniteError: the teacher gave NaN; the row is named, and the whole shards before it kept.
        Interrupted: SIGINT or SIGTERM; whole shards are kept.
        ValueError: K or the temperature is out of range, or a batch is unlike the first.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> from divax import trainers as tr
        >>> table = tr.Model(init=lambda key: 0, apply=lambda params, tokens: params[tokens])
        >>> corpus = [tr.Batch(tokens=jnp.array([[0, 1, 2], [3, 2, 1]]))]
        >>> cache = tr.write_teacher_cache(
        ...     tempfile.mkdtemp(), teacher=table, params=9 * jnp.eye(4), batches=corpus, k=2,
        ...     tokenizer=["a", "b", "c", "d"],
        ... )
        >>> cache.manifest.rows, cache.counted, round(cache.mean_coverage, 3)
        (2, 4, 1.0)
    """
    directory, stream = Path(directory), iter(batches)
    first = next(stream, None)
    if first is None:
        raise RunError(f"{directory}: nothing to cache: the data has no rows")
    settings = _settings(
        teacher, params, first, tokenizer, k, temperature, dtype, vocab_size, rows_per_shard
    )
    manifest = read_manifest(directory) or Manifest(settings, (), ())
    if rows_per_shard is None:
        settings = dataclasses.replace(settings, rows_per_shard=manifest.settings.rows_per_shard)
    check_settings(directory, manifest.settings, settings)
    score = jax.jit(functools.partial(_top_k, teacher, settings))
    writing = PartWriting(directory, manifest, data, append, lambda batch: score(params, batch))
    with polite_stop() as stop:
        for batch in itertools.chain([first], stream):
            writing.add(batch)
            progress(writing.done)
            if stop.signal_number is not None:
                raise Interrupted(
                    f"stopped by a signal; {writing.kept()}; the same command goes on there",
                    stop.signal_number,
                )
        writing.finish()
    return TeacherCache.open(directory)


def _settings(
    teacher, params, first, tokenizer, k, temperature, dtype, vocab_size, rows_per_shard
) -> CacheSettings:
    if dtype not in ("float16", "float32"):
        raise ValueError(f"dtype must be float16 or float32, got {dtype!r}")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
    shape = jax.eval_shape(lambda params: predict(teacher, params, first), params).shape
    vocab_size = shape[-1] if vocab_size is None else vocab_size
    if not 1 <= vocab_size <= shape[-1]:
        raise ValueError(f"vocab_size={vocab_size} of a teacher with {shape[-1]} logits")
    if not 1 <= k <= vocab_size:
        raise ValueError(f"k={k} tokens cannot be kept of a vocabulary of {vocab_size}")
    settings = CacheSettings(
        vocab_size=vocab_size,
        k=k,
        temperature=float(temperature),
        dtype=dtype,
        length=shape[1],
        mask=mask_kind(first),
        segments=first.segment_ids is not None,
        rows_per_shard=0,
        tokenizer=tokenizer_fingerprint(tokenizer),
        teacher=fingerprint(params),
    )
    if rows_per_shard is None:
        rows_per_shard = max(1, _SHARD_BYTES // row_bytes(settings))
    if rows_per_shard < 1:
        raise ValueError(f"rows_per_shard must be at least 1, got {rows_per_shard}")
    return dataclasses.replace(settings, rows_per_shard=rows_per_shard)


def _top_k(
    teacher: Model, settings: CacheSettings, params: Any, batch: Batch
) -> tuple[TopKCache, jax.Array]:
    """What is stored, and where the teacher gave no distribution."""
    return of_token_logits(functools.partial(_kept, settings), teacher, params, batch)


def _kept(settings: CacheSettings, logits: jax.Array) -> tuple[TopKCache, jax.Array]:
    logits = logits[..., : settings.vocab_size]
    top = cache_top_k(logits / settings.temperature, k=settings.k)
    log_probs = top.logits - top.logsumexp[..., None]
    assert top.log_tail is not None
    broken = jnp.isnan(top.log_tail) | jnp.isnan(log_probs).any(axis=-1)
    # What stands where nothing counts is harmless.
    log_probs = jnp.where(broken[..., None], -np.log(2.0 * settings.k), log_probs)
    log_tail = jnp.where(broken, -np.log(2.0), top.log_tail)
    stored = TopKCache(
        ids=top.ids.astype(id_dtype(settings.vocab_size)),
        logits=log_probs.astype(settings.dtype),
        logsumexp=jnp.zeros(broken.shape, jnp.float32),
        log_tail=log_tail.astype(jnp.float32),
    )
    return stored, broken
