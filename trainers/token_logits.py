"""What is made of each token's logits, without those of all tokens at once."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from divax.divergences.fused_linear import default_chunk
from divax.objectives import HiddenLogits
from divax.trainers.batch import Batch
from divax.trainers.implementation import implementation_for
from divax.trainers.model import Model, hidden_logits, predict


def of_token_logits(
    function: Callable[..., Any], model: Model, params: Any, batch: Batch, *per_token: Any
) -> Any:
    """A function of a model's logits, each token's result of its own logits alone.

    Where the model exposes its states and its head and has more than 4 million logits on the batch, a chunk of tokens is
    read at a time.

    Args:
        function: of logits `[..., V]`, float32 or better, and what is known of the same tokens, to a pytree of `[..., ...]`.
        model: the model.
        params: its parameters.
        batch: the tokens.
        per_token: pytrees of `[B, T, ...]`.

    Returns:
        The pytree, `[B, T, ...]`.

    Example:
        >>> import jax.numpy as jnp
        >>> model = Model(
        ...     init=lambda key: jnp.eye(4), apply=lambda params, tokens: params[tokens] @ params,
        ...     hidden=lambda params, tokens: params[tokens], head=lambda params: params,
        ... )
        >>> batch = Batch(tokens=jnp.array([[2, 0, 1]]))
        >>> of_token_logits(lambda logits: logits.argmax(-1), model, jnp.eye(4), batch).tolist()
        [[2, 0, 1]]
    """
    if implementation_for(model, params, batch.tokens, None, None) == "reference":
        logits = predict(model, params, batch)
        narrow = jnp.finfo(logits.dtype).bits < 32
        return function(logits.astype(jnp.float32) if narrow else logits, *per_token)
    made = hidden_logits(model, params, batch)
    assert made is not None
    tokens = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (made.hidden, per_token))

    def of_token(token):
        states, own = token
        return function(HiddenLogits(hidden=states, head=made.head).logits(), *own)

    chunk = default_chunk(made.vocab_size)
    found = jax.lax.map(of_token, tokens, batch_size=chunk)
    return jax.tree.map(lambda x: x.reshape(*batch.tokens.shape, *x.shape[1:]), found)
