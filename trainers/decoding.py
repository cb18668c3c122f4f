"""How a model is run token by token: a cache of what it has read, and a function that reads on."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from divax.divergences import LinearHead

if TYPE_CHECKING:
    from divax.trainers.model import Model


@dataclasses.dataclass(frozen=True)
class Decoding:
    """Incremental decoding as two pure functions over a cache, which is any pytree of arrays.

    Attributes:
        init_cache: `init_cache(params, batch_size, length) -> cache`, for rows that have read
            nothing and will read at most `length` tokens.
        extend: `extend(params, cache, tokens, lengths) -> (logits, cache)`: every row reads the
            first `lengths[b]` (at least one) of its `tokens` `[B, S]`; what stands behind them is
            padding. The logits `[B, V]` are those after a row's last token, the only ones that
            sampling needs: a prompt of S tokens costs no `[B, S, V]`.

    Example:
        A bigram model need remember nothing:

        >>> import jax.numpy as jnp
        >>> def extend(params, cache, tokens, lengths):
        ...     return params[last_of(tokens, lengths)], cache
        >>> bigram = Decoding(init_cache=lambda params, batch_size, length: (), extend=extend)
        >>> logits, _ = bigram.extend(jnp.eye(3), (), jnp.array([[0, 2, 1]]), jnp.array([2]))
        >>> logits.tolist()
        [[0.0, 0.0, 1.0]]
    """

    init_cache: Callable[[Any, int, int], Any]
    extend: Callable[[Any, Any, jax.Array, jax.Array], tuple[jax.Array, Any]]


def recomputing(model: "Model") -> Decoding:
    """Decoding for a model without a cache: it reads the whole prefix again for every token.

    The cache is the tokens read so far, padded on the right, which a causal model does not see.
    With `hidden` and `head`, the vocabulary is met by one position per row.

    Args:
        model: a causal model.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from divax import trainers as tr
        >>> table = tr.Model(init=lambda key: jnp.eye(3), apply=lambda params, tokens: params[tokens])
        >>> decoding = recomputing(table)
        >>> cache = decoding.init_cache(jnp.eye(3), 1, 4)
        >>> logits, cache = decoding.extend(
        ...     jnp.eye(3), cache, jnp.array([[0, 2, 1]]), jnp.array([2])
        ... )
        >>> logits.tolist()
        [[0.0, 0.0, 1.0]]
    """

    def init_cache(params, batch_size, length):
        del params
        return jnp.zeros((batch_size, length), jnp.int32), jnp.zeros(batch_size, jnp.int32)

    def extend(params, cache, tokens, lengths):
        read, before = cache
        positions = before[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        read, before = write_rows(read, tokens, positions), before + lengths
        if model.hidden is None or model.head is None:
            return last_of(model.apply(params, read), before), (read, before)
        logits = through_head(last_of(model.hidden(params, read), before), model.head(params))
        return logits, (read, before)

    return Decoding(init_cache=init_cache, extend=extend)


def through_head(states: jax.Array, head: jax.Array | LinearHead) -> jax.Array:
    """The logits of some states, in the model's own precision where the head is a matrix.

    Example:
        >>> import jax.numpy as jnp
        >>> through_head(jnp.ones((2, 3)), LinearHead(weight=jnp.ones((3, 5)))).shape
        (2, 5)
    """
    return head.logits(states) if isinstance(head, LinearHead) else states @ head


def write_rows(old: jax.Array, new: jax.Array, positions: jax.Array) -> jax.Array:
    """Writes `new` `[B, S, ...]` into `old` `[B, T, ...]` at each row's own positions `[B, S]`.

    What lies past the end is dropped. The batch axis is a batching axis of the scatter, so that
    rows split over devices stay where they are.

    Example:
        >>> import jax.numpy as jnp
        >>> write_rows(jnp.zeros((1, 3), int), jnp.array([[7, 8]]), jnp.array([[2, 3]])).tolist()
        [[0, 0, 7]]
    """
    return jax.vmap(lambda row, values, at: row.at[at].set(values, mode="drop"))(
        old, new, positions
    )


def last_of(values: jax.Array, lengths: jax.Array) -> jax.Array:
    """Each row's value at its last position: `[B, S, ...]` and lengths `[B]` to `[B, ...]`.

    Example:
        >>> import jax.numpy as jnp
        >>> last_of(jnp.array([[7, 8, 9]]), jnp.array([2])).tolist()
        [8]
    """
    return jax.vmap(lambda row, length: row[length - 1])(values, lengths)
