"""Autoregressive sampling: read the prompts once, then one token per step, in one jitted call."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from divax.trainers.batch import Batch
from divax.trainers.decoding import recomputing
from divax.trainers.model import Model
from divax.trainers.sampling_arguments import check_key, check_prompts, check_settings
from divax.trainers.sharding import automatic, place_batch
from divax.trainers.truncation import sampler_logits


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Samples:
    """Prompts with their sampled completions, and what the samples were worth when drawn.

    Every row starts at position 0 with its prompt; its completion follows without a gap, and then
    come zeros: the layout of a `Batch` with one document per row, whatever the prompts' padding.
    Everything `[B, T]` stands at the token's own position, T = P + max_new_tokens, as a `Batch`'s
    mask does; `jnp.roll(samples.model_logps, -1, axis=1)` stands where `align_causal` puts the
    label (the first token is always the prompt's, so nothing wraps around).

    Attributes:
        tokens: `[B, T]` int32.
        mask: `[B, T]` float32, 1 at the completion, its stop token included, and 0 elsewhere.
        sampler_logps: `[B, T]`, log-prob of each completion token under the distribution that it
            was drawn from: tempered and truncated, 0 everywhere at temperature 0. In nats.
        model_logps: `[B, T]`, its log-prob under the model: temperature 1, nothing truncated.
        prompt_lengths: `[B]` int32.
        completion_lengths: `[B]` int32, the stop token included.
        stopped: `[B]` bool, whether a stop token ended the completion; else it was cut off.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from divax import trainers as tr
        >>> table = tr.Model(init=lambda key: jnp.eye(4), apply=lambda params, tokens: params[tokens])
        >>> samples = tr.sample(
        ...     table, jnp.eye(4), jnp.array([[1, 2]]), jax.random.key(0), max_new_tokens=2
        ... )
        >>> samples.mask.tolist(), samples.batch.tokens.shape
        ([[0.0, 0.0, 1.0, 1.0]], (1, 4))
    """

    tokens: jax.Array
    mask: jax.Array
    sampler_logps: jax.Array
    model_logps: jax.Array
    prompt_lengths: jax.Array
    completion_lengths: jax.Array
    stopped: jax.Array

    @property
    def batch(self) -> Batch:
        """The samples as a batch whose completions are the targets."""
        return Batch(tokens=self.tokens, mask=self.mask)


def sample(
    model: Model,
    params: Any,
    prompts: ArrayLike,
    key: jax.Array,
    *,
    prompt_mask: ArrayLike | None = None,
    max_new_tokens: int,
    temperature: ArrayLike = 1.0,
    top_k: ArrayLike | None = None,
    top_p: ArrayLike | None = None,
    stop_token: ArrayLike | Sequence[int] | None = None,
    vocab_size: int | None = None,
    mesh: Mesh | None = None,
) -> Samples:
    """Draws one completion per prompt, token by token, from `sampler_logits` of the model.

    The token at position t of row b is argmax(logits + Gumbel noise), with the noise of
    `fold_in(key of row b, t)`. So a row's sample depends on its own prompt and key alone: not on
    the other rows, the padding or the mesh; and a completion that was cut off goes on as it would
    have, if it is given back as a prompt. (Other shapes may round the logits otherwise, which can
    turn a near tie.)

    The loop ends on the device as soon as every row has stopped. New values of the settings need
    no new compilation; new shapes, another `Model` object, or a setting that becomes `None` do.

    Args:
        model: with `decode`, every token costs one position; without, the whole prefix.
        params: its parameters.
        prompts: `[B, P]` integers.
        key: one key, folded with each row's number; or a key per row `[B]`.
        prompt_mask: `[B, P]`, nonzero at the prompts' tokens: padding may be on either side.
        max_new_tokens: at most so many tokens per row.
        temperature: at least 0, which is greedy.
        top_k: see `sampler_logits`.
        top_p: see `sampler_logits`.
        stop_token: an id, or several `[S]`: a row's completion ends with the first one drawn.
        vocab_size: ids from there on are padding of the vocabulary and are never drawn.
        mesh: a JAX mesh: rows are split over all of its axes, and every device holds the whole
            parameters, gathered once per call and not once per token: then the devices exchange
            nothing but whether all rows have stopped.

    Raises:
        TypeError: prompts, `top_k` or `stop_token` that are not integers; an untyped key.
        ValueError: no prompt, an empty one, one too long for the model's context; a setting out
            of its range. Traced values are not checked.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from divax import trainers as tr
        >>> model = tr.transformer(tr.TransformerConfig(vocab_size=16, width=8, heads=2, kv_heads=1))
        >>> params = model.init(jax.random.key(0))
        >>> samples = tr.sample(
        ...     model,
        ...     params,
        ...     jnp.array([[1, 2, 3], [4, 0, 0]]),
        ...     jax.random.key(1),
        ...     prompt_mask=jnp.array([[1, 1, 1], [1, 0, 0]]),
        ...     max_new_tokens=5,
        ...     temperature=0.7,
        ... )
        >>> samples.tokens.shape, samples.prompt_lengths.tolist()
        ((2, 8), [3, 1])

    Source: Gumbel-max: Maddison, Tarlow and Minka, arXiv:1411.0030, section 2.
    """
    prompts = jnp.asarray(prompts)
    mask = jnp.ones(prompts.shape, bool)
    if prompt_mask is not None:
        mask = jnp.asarray(prompt_mask).astype(bool)
    stops = np.asarray(stop_token) if isinstance(stop_token, Sequence) else stop_token
    check_prompts(prompts, mask, max_new_tokens=max_new_tokens, context=model.context)
    check_key(key, prompts.shape[0])
    check_settings(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        stop_token=stops,
        vocab_size=vocab_size,
    )
    if key.ndim == 0:
        key = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(prompts.shape[0]))
    rows = (prompts.astype(jnp.int32), mask, key)
    if mesh is not None:
        mesh = automatic(mesh)
        params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
        rows = place_batch(rows, mesh)
    real, whole = jnp.result_type(float), jnp.int32
    settings = _Settings(
        temperature=jnp.asarray(temperature).astype(real),
        top_k=_as(top_k, whole),
        top_p=_as(top_p, real),
        stop_token=_as(stops, whole),
    )
    return _sample(model, params, *rows, settings, max_new_tokens, vocab_size)


class _Settings(NamedTuple):
    temperature: jax.Array
    top_k: jax.Array | None
    top_p: jax.Array | None
    stop_token: jax.Array | None


class _Drawn(NamedTuple):
    """One token per row, `[B]`; or all of them, `[B, max_new_tokens]`."""

    tokens: jax.Array
    sampler_logps: jax.Array
    model_logps: jax.Array


class _Progress(NamedTuple):
    step: jax.Array
    last: jax.Array
    drawn: _Drawn
    lengths: jax.Array
    stopped: jax.Array
    cache: Any


@functools.partial(jax.jit, static_argnames=("model", "max_new_tokens", "vocab_size"))
def _sample(model, params, prompts, mask, keys, settings, max_new_tokens, vocab_size) -> Samples:
    prompts, prompt_lengths = _left_aligned(prompts, mask)
    batch_size, width = prompts.shape
    decoding = model.decode or recomputing(model)

    def advance(progress: _Progress, logits, cache) -> _Progress:
        logits = logits if vocab_size is None else logits[:, :vocab_size]
        one = _draw(logits, keys, prompt_lengths + progress.step, settings)
        return _record(progress, one, cache, settings.stop_token)

    def body(progress: _Progress) -> _Progress:
        one_each = jnp.ones_like(prompt_lengths)
        tokens = progress.last[:, None]
        return advance(progress, *decoding.extend(params, progress.cache, tokens, one_each))

    def going(progress: _Progress):
        return (progress.step < max_new_tokens) & ~jnp.all(progress.stopped)

    cache = decoding.init_cache(params, batch_size, width + max_new_tokens)
    logits, cache = decoding.extend(params, cache, prompts, prompt_lengths)
    start = advance(_nothing(prompt_lengths, max_new_tokens), logits, cache)
    end = jax.lax.while_loop(going, body, start)
    return _assemble(prompts, prompt_lengths, end)


def _left_aligned(prompts, mask):
    """The tokens that count, moved to the left in their order, zeros behind them; their number."""
    # The sort is stable: it moves False, what counts, before True.
    order = jnp.argsort(~mask, axis=1, stable=True)
    lengths = jnp.sum(mask, axis=1, dtype=jnp.int32)
    kept = jnp.arange(prompts.shape[1], dtype=jnp.int32)[None] < lengths[:, None]
    return jnp.where(kept, jnp.take_along_axis(prompts, order, axis=1), 0), lengths


def _nothing(prompt_lengths, max_new_tokens) -> _Progress:
    nobody = jnp.zeros_like(prompt_lengths)
    tokens = jnp.zeros((prompt_lengths.shape[0], max_new_tokens), jnp.int32)
    logps = tokens.astype(jnp.result_type(float))
    drawn = _Drawn(tokens, logps, logps)
    return _Progress(jnp.zeros((), jnp.int32), nobody, drawn, nobody, nobody.astype(bool), None)


def _draw(logits, keys, positions, settings: _Settings) -> _Drawn:
    logits = logits.astype(jnp.result_type(float))
    sampler = sampler_logits(
        logits, temperature=settings.temperature, top_k=settings.top_k, top_p=settings.top_p
    )
    tokens = jax.vmap(jax.random.categorical)(
        jax.vmap(jax.random.fold_in)(keys, positions), sampler
    )

    def logps(of):
        return jnp.take_along_axis(jax.nn.log_softmax(of), tokens[:, None], axis=1)[:, 0]

    return _Drawn(tokens.astype(jnp.int32), logps(sampler), logps(logits))


def _record(progress: _Progress, one: _Drawn, cache, stop_token) -> _Progress:
    live = ~progress.stopped
    one = _Drawn(*(jnp.where(live, x, jnp.zeros_like(x)) for x in one))
    drawn = _Drawn(
        *(
            jax.lax.dynamic_update_index_in_dim(all_of_them, x, progress.step, axis=1)
            for all_of_them, x in zip(progress.drawn, one, strict=True)
        )
    )
    stopped = progress.stopped
    if stop_token is not None:
        stopped |= live & jnp.isin(one.tokens, stop_token)
    lengths = progress.lengths + live.astype(jnp.int32)
    return _Progress(progress.step + 1, one.tokens, drawn, lengths, stopped, cache)


def _assemble(prompts, prompt_lengths, end: _Progress) -> Samples:
    """Puts each completion right behind its prompt."""
    width = prompts.shape[1]
    positions = jnp.arange(width + end.drawn.tokens.shape[1], dtype=jnp.int32)[None]
    number = positions - prompt_lengths[:, None]
    completion = (number >= 0) & (number < end.lengths[:, None])
    # Where a row's token lies in [prompts | completions].
    source = jnp.where(number < 0, positions, width + jnp.where(completion, number, 0))

    def gather(before, after, where):
        both = jnp.take_along_axis(jnp.concatenate([before, after], axis=1), source, axis=1)
        return jnp.where(where, both, jnp.zeros_like(both))

    blank = jnp.zeros(prompts.shape, end.drawn.model_logps.dtype)
    return Samples(
        tokens=gather(prompts, end.drawn.tokens, completion | (number < 0)),
        mask=completion.astype(jnp.float32),
        sampler_logps=gather(blank, end.drawn.sampler_logps, completion),
        model_logps=gather(blank, end.drawn.model_logps, completion),
        prompt_lengths=prompt_lengths,
        completion_lengths=end.lengths,
        stopped=end.stopped,
    )


def _as(value, dtype):
    return None if value is None else jnp.asarray(value).astype(dtype)
