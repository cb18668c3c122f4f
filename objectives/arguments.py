"""Checks of what a caller passes, at trace time: one clear line instead of a shape error inside."""

from typing import TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


def is_static(value: object) -> TypeGuard[float]:
    """Whether a hyper-parameter is a plain number, whose value can be looked at while tracing."""
    return isinstance(value, int | float | np.number)


def check_logits(logits: jax.Array, name: str) -> None:
    """Logits are floating and have a vocabulary axis."""
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise TypeError(f"{name} must be floating-point logits, got {logits.dtype}")
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f"{name} needs a vocabulary on the last axis, got shape {logits.shape}")


def check_rows(values: jax.Array, name: str, rows: tuple[int, ...], logits_name: str) -> None:
    """Per-row arrays have the shape of the logits without the vocabulary."""
    if values.shape == rows:
        return
    hint = ""
    if values.ndim == len(rows) and values.shape[:-1] == rows[:-1]:
        hint = "; divax.objectives.align_causal shifts labels without slicing the logits"
    raise ValueError(
        f"{name} must have one entry per row of {logits_name}, shape {rows}, got {values.shape}"
        + hint
    )


def as_scalar(value: ArrayLike, name: str) -> jax.Array:
    """A scalar hyper-parameter, plain or traced, as an array of the working precision."""
    array = jnp.asarray(value, jnp.result_type(float))
    if array.ndim != 0:
        raise ValueError(
            f"{name} must be a scalar, got shape {array.shape}; use jax.vmap to sweep several"
        )
    return array


def as_labels(labels: ArrayLike) -> jax.Array:
    """Labels as int32: bytes are often uint8, in which ids beyond 255 would wrap around."""
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels must be integers, got {labels.dtype}")
    return labels.astype(jnp.int32)


def live_weights(
    rows: tuple[int, ...], labels: jax.Array | None, mask: ArrayLike | None, logits_name: str
) -> jax.Array:
    """The weight of each row: the mask, and 0 where the label is negative (-100)."""
    weights = jnp.ones(rows, bool) if mask is None else jnp.asarray(mask)
    check_rows(weights, "mask", rows, logits_name)
    weights = weights.astype(jnp.result_type(float))
    if labels is None:
        return weights
    check_rows(labels, "labels", rows, logits_name)
    return jnp.where(labels >= 0, weights, 0)


def silence_rows(logits: jax.Array, weights: jax.Array) -> jax.Array:
    """Zeros in place of the logits of rows that do not count.

    Selecting afterwards is not enough: the gradient of a NaN that was selected away is 0 * NaN.
    """
    return jnp.where((weights != 0)[..., None], logits, jnp.zeros((), logits.dtype))
