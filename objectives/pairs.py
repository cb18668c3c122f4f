"""Log-ratios of the two completions of each preference pair."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


class LogRatios(NamedTuple):
    """`s = log(policy/reference)` of both completions; 0 wherever the pair's weight is 0.

    Attributes:
        chosen: `[B]`.
        rejected: `[B]`.
        weights: `[B]`.
    """

    chosen: jax.Array
    rejected: jax.Array
    weights: jax.Array


def log_ratios(*, policy, reference, lengths, weights: ArrayLike | None) -> LogRatios:
    """Checks the arrays of a pair and forms both log-ratios, per token if lengths are given.

    Args:
        policy: (chosen, rejected) log-probs `[B]`.
        reference: the same of the reference, or a pair of `None`; gradients stop here.
        lengths: the same of the completions' lengths, or a pair of `None`.
        weights: `[B]` or `None`.

    Raises:
        ValueError: a shape is wrong, or only one of two that belong together is there.
    """
    chosen, rejected = (
        floats(side, f"{name}_logps") for side, name in zip(policy, _SIDES, strict=True)
    )
    if chosen.ndim != 1:
        raise ValueError(
            f"chosen_logps must be [B], one summed log-prob per pair, got shape {chosen.shape}"
        )
    check_shape(rejected, "rejected_logps", chosen)
    live = jnp.ones_like(chosen) if weights is None else floats(weights, "weights")
    check_shape(live, "weights", chosen)
    sides = []
    for index, side in enumerate((chosen, rejected)):
        name = _SIDES[index]
        ratio = silence(side, live)
        if _both_or_none(reference, "reference_{}_logps"):
            ratio -= _held(reference[index], f"reference_{name}_logps", chosen, live)
        if _both_or_none(lengths, "{}_lengths"):
            ratio /= jnp.maximum(_held(lengths[index], f"{name}_lengths", chosen, live), 1)
        sides.append(ratio)
    return LogRatios(*sides, live)


_SIDES = ("chosen", "rejected")


def completion_log_ratios(
    logps: ArrayLike, reference_logps: ArrayLike, weights: ArrayLike | None
) -> tuple[jax.Array, jax.Array]:
    """`log(policy/reference)` `[B]` of single completions, 0 where the weight is 0; and the weights.

    Gradients stop at the reference.

    Raises:
        ValueError: a shape is not `[B]`.
    """
    policy = floats(logps, "logps")
    if policy.ndim != 1:
        raise ValueError(f"logps must be [B], one summed log-prob each, got shape {policy.shape}")
    live = jnp.ones_like(policy) if weights is None else floats(weights, "weights")
    check_shape(live, "weights", policy)
    return silence(policy, live) - _held(reference_logps, "reference_logps", policy, live), live


def floats(value: ArrayLike, name: str) -> jax.Array:
    """Numbers in the working precision."""
    array = jnp.asarray(value)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise TypeError(f"{name} must be real numbers, got {array.dtype}")
    return array.astype(jnp.result_type(float))


def check_shape(value: jax.Array, name: str, like: jax.Array) -> None:
    """One number per pair."""
    if value.shape != like.shape:
        raise ValueError(f"{name} must have one number per row, {like.shape}, got {value.shape}")


def silence(value: jax.Array, weights: jax.Array) -> jax.Array:
    """Zeros in place of the numbers of rows that do not count: 0 * NaN would be NaN."""
    return jnp.where(weights != 0, value, 0)


def _held(value: ArrayLike, name: str, like: jax.Array, live: jax.Array) -> jax.Array:
    array = floats(jax.lax.stop_gradient(value), name)
    check_shape(array, name, like)
    return silence(array, live)


def _both_or_none(pair, name: str) -> bool:
    given = [side is not None for side in pair]
    if given[0] != given[1]:
        there, missing = (_SIDES if given[0] else _SIDES[::-1])[:2]
        raise ValueError(
            f"{name.format(there)} needs {name.format(missing)} beside it: pass both or neither"
        )
    return given[0]
