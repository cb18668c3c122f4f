"""What a sampler may be asked for: one sentence for each thing that it may not."""

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike


def check_prompts(
    prompts: jax.Array, mask: jax.Array, *, max_new_tokens: int, context: int | None
) -> None:
    """Raises unless every row holds a token and the context has room for its completion.

    What is traced, or lies on another host, is checked by its shape alone.

    Example:
        >>> import jax.numpy as jnp
        >>> check_prompts(jnp.zeros((0, 4), int), jnp.ones((0, 4), bool), max_new_tokens=1, context=None)
        Traceback (most recent call last):
        ValueError: no prompts: tokens [B, P] have the shape (0, 4)
    """
    if prompts.ndim != 2:
        raise ValueError(f"prompts must be tokens [B, P], got the shape {prompts.shape}")
    if not jnp.issubdtype(prompts.dtype, jnp.integer):
        raise TypeError(f"prompts must be integers, got {prompts.dtype}")
    if 0 in prompts.shape:
        raise ValueError(f"no prompts: tokens [B, P] have the shape {prompts.shape}")
    if mask.shape != prompts.shape:
        raise ValueError(
            f"prompt_mask must have the shape of the prompts {prompts.shape}, got {mask.shape}"
        )
    if operator.index(max_new_tokens) < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    width = prompts.shape[1]
    if context is not None and width + max_new_tokens > context:
        raise ValueError(
            f"prompts of {width} tokens and {max_new_tokens} new ones do not fit into the model's "
            f"context of {context}: shorten the prompts or lower max_new_tokens"
        )
    tokens, real = _known(prompts), _known(mask)
    if real is not None and not real.any(axis=1).all():
        row = int(np.flatnonzero(~real.any(axis=1))[0])
        raise ValueError(f"prompt {row} is empty: begin it with a token such as a separator")
    if tokens is not None and real is not None and (tokens[real] < 0).any():
        raise ValueError(
            f"prompts hold the token {tokens[real].min()}: mask what is not to be read"
        )


def check_key(key: Any, rows: int) -> None:
    """Raises unless `key` is a typed key, or one for each row.

    Example:
        >>> import jax
        >>> check_key(jax.random.key(0), rows=4)
    """
    if not (hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        raise TypeError(f"key must come from jax.random.key(seed), got {type(key).__name__}")
    if key.shape not in ((), (rows,)):
        raise ValueError(f"key must be one key, or one for each of {rows} rows, got {key.shape}")


def check_settings(
    *,
    temperature: ArrayLike,
    top_k: ArrayLike | None,
    top_p: ArrayLike | None,
    stop_token: ArrayLike | None,
    vocab_size: int | None = None,
) -> None:
    """Raises unless the settings that are known describe a distribution.

    Example:
        >>> check_settings(temperature=-1.0, top_k=None, top_p=None, stop_token=None)
        Traceback (most recent call last):
        ValueError: temperature must be finite and at least 0, got -1.0
    """
    for name, value in {"temperature": temperature, "top_k": top_k, "top_p": top_p}.items():
        if value is not None and np.shape(value) != ():
            raise ValueError(f"{name} must be a scalar, got the shape {np.shape(value)}")
    for name, value in {"top_k": top_k, "stop_token": stop_token}.items():
        if value is not None and not jnp.issubdtype(jnp.result_type(value), jnp.integer):
            raise TypeError(f"{name} must be an integer, got {value!r}")
    if vocab_size is not None and operator.index(vocab_size) < 1:
        raise ValueError(f"vocab_size must be at least 1, got {vocab_size}")
    known = _known(temperature)
    if known is not None and not 0 <= known < np.inf:
        raise ValueError(f"temperature must be finite and at least 0, got {temperature}")
    known = _known(top_k)
    if known is not None and known < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}; None keeps all tokens")
    known = _known(top_p)
    if known is not None and not 0 < known <= 1:
        raise ValueError(f"top_p must be in (0, 1], got {top_p}")
    if stop_token is not None and np.ndim(stop_token) > 1:
        raise ValueError(
            f"stop_token must be one id or a list, got the shape {np.shape(stop_token)}"
        )
    known = _known(stop_token)
    if known is not None and (known < 0).any():
        raise ValueError(f"stop_token must be a token's id, got {stop_token}")


def _known(value: Any) -> np.ndarray | None:
    """The value where it can be read here and now."""
    if value is None or isinstance(value, Tracer):
        return None
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        return None
    return np.asarray(value)
