"""What a trainer needs to know of a model: pure functions of its parameters."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax

from divax.divergences import LinearHead
from divax.objectives import HiddenLogits
from divax.trainers.batch import Batch
from divax.trainers.decoding import Decoding
from divax.trainers.examples import Examples


@dataclasses.dataclass(frozen=True)
class Model:
    """A language model as pure functions; any library with a pytree of parameters fits.

    Attributes:
        init: `init(key) -> params`.
        apply: `apply(params, tokens) -> logits`, `[B, T]` integers to `[B, T, V]`; takes
            `segment_ids=` as well if it is to see packed batches, and `prefix_ids=` if their
            documents may share a prefix; see `Batch`.
        hidden: `hidden(params, tokens) -> [B, T, D]`, the states before the vocabulary head.
        head: `head(params) -> [D, V]`, so that `hidden @ head` are the logits; or a
            `divergences.LinearHead` with a bias, a soft cap, an adapter or a tied embedding. With
            both, trainers take losses from states and head, and never have all logits at once.
        decode: how it reads token by token, with a cache; without it, `sample` reads the whole
            prefix again for every token, which gives the same samples.
        context: the longest sequence that it takes; `None` is no limit.

    Example:
        A Flax Linen module is one line away,
        `Model(init=lambda key: net.init(key, tokens), apply=net.apply)`, and so is a dictionary:

        >>> import jax, jax.numpy as jnp
        >>> table = Model(
        ...     init=lambda key: {"logits": jax.random.normal(key, (256, 256))},
        ...     apply=lambda params, tokens: params["logits"][tokens],
        ... )
        >>> params = table.init(jax.random.key(0))
        >>> table.apply(params, jnp.zeros((2, 8), jnp.int32)).shape
        (2, 8, 256)
    """

    init: Callable[[jax.Array], Any]
    apply: Callable[..., Any]
    hidden: Callable[..., jax.Array] | None = None
    head: Callable[[Any], jax.Array | LinearHead] | None = None
    decode: Decoding | None = None
    context: int | None = None


def predict(model: Model, params: Any, batch: Batch | Examples) -> jax.Array:
    """The model's logits on a batch, `[B, T, V]`; of examples what a classifier returns, `[B, V]`.

    Args:
        model: the model.
        params: its parameters.
        batch: the tokens; `segment_ids` and `prefix_ids` are handed on when there are any. Or
            examples, whose inputs are.

    Raises:
        ValueError: the batch is packed and the model's `apply` takes no `segment_ids`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> table = Model(init=lambda key: jnp.eye(4), apply=lambda params, tokens: params[tokens])
        >>> predict(table, jnp.eye(4), Batch(tokens=jnp.zeros((2, 3), jnp.int32))).shape
        (2, 3, 4)
    """
    return _run(model.apply, "apply", params, batch)


def hidden_states(model: Model, params: Any, batch: Batch) -> jax.Array:
    """The states before the vocabulary head on a batch, `[B, T, D]`.

    Args:
        model: a model that exposes `hidden`.
        params: its parameters.
        batch: the tokens; `segment_ids` are handed on when there are any.

    Raises:
        ValueError: the model has no `hidden`, or the batch is packed and it takes no `segment_ids`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = Model(
        ...     init=lambda key: jnp.eye(4), apply=lambda params, tokens: params[tokens] @ params,
        ...     hidden=lambda params, tokens: params[tokens], head=lambda params: params,
        ... )
        >>> hidden_states(model, jnp.eye(4), Batch(tokens=jnp.zeros((2, 3), jnp.int32))).shape
        (2, 3, 4)
    """
    if model.hidden is None:
        raise ValueError("the model exposes no hidden(params, tokens)")
    return _run(model.hidden, "hidden", params, batch)


def hidden_logits(model: Model, params: Any, batch: Batch | Examples) -> HiddenLogits | None:
    """The model's logits on a batch as states and a head; `None` if it does not expose both.

    Args:
        model: the model.
        params: its parameters.
        batch: the tokens; `segment_ids` are handed on when there are any.

    Raises:
        ValueError: the batch is packed and the model's `hidden` takes no `segment_ids`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = Model(
        ...     init=lambda key: jnp.eye(4), apply=lambda params, tokens: params[tokens] @ params,
        ...     hidden=lambda params, tokens: params[tokens], head=lambda params: params,
        ... )
        >>> made = hidden_logits(model, jnp.eye(4), Batch(tokens=jnp.zeros((2, 3), jnp.int32)))
        >>> made.hidden.shape, made.logits().shape
        ((2, 3, 4), (2, 3, 4))
    """
    if model.hidden is None or model.head is None:
        return None
    states = _run(model.hidden, "hidden", params, batch)
    return HiddenLogits(hidden=states, head=model.head(params))


def _run(
    function: Callable[..., Any], name: str, params: Any, batch: Batch | Examples
) -> jax.Array:
    read, given = batch.arguments()
    for argument in given:
        if argument not in inspect.signature(function).parameters:
            raise ValueError(
                f"the batch has {argument}, but the model's {name}(params, tokens) takes none: "
                f"give it a {argument} argument, or unpack the batch"
            )
    return function(params, read, **given)


def parameter_count(params: Any) -> int:
    """The number of scalars in a pytree of parameters.

    Example:
        >>> import jax.numpy as jnp
        >>> parameter_count({"kernel": jnp.zeros((3, 4)), "bias": jnp.zeros(4)})
        16
    """
    return sum(leaf.size for leaf in jax.tree.leaves(params))
