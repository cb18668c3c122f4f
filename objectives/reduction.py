"""Reductions: per-token values and a mask to a `Weighted`, exact over any split of the batch.

| reduction | mean over one batch | used by |
|---|---|---|
| `token_mean` | sum(m·l) / max(sum(m), 1) | language-model and distillation losses |
| `sequence_mean` | mean over sequences of the token mean of each | GRPO as published |
| `constant_sum` | mean over sequences of sum(m·l) / constant | Dr. GRPO |

`each_token` reduces nothing: it leaves every token's own loss.
"""

from typing import Protocol

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.objectives.arguments import is_static
from divax.objectives.weighted import Weighted


class Reduction(Protocol):
    """What an objective accepts as `reduction`: values and mask of one shape to a `Weighted`.

    `token_mean` and `sequence_mean` are such functions; `functools.partial` makes one of
    `constant_sum`. A reduction of your own must add up over any split of the batch.

    Example:
        >>> from functools import partial
        >>> from divax.objectives import Reduction, constant_sum
        >>> reduction: Reduction = partial(constant_sum, constant=1024.0)
    """

    def __call__(self, values: jax.Array, mask: jax.Array, /) -> Weighted:
        """Reduces `values`, weighted by `mask`."""
        ...


def token_mean(values: ArrayLike, mask: ArrayLike) -> Weighted:
    r"""Mean over tokens: every unmasked token of the whole batch weighs the same.

    .. math:: \sum_{bt} m_{bt} l_{bt} \,/\, \max(\sum_{bt} m_{bt}, 1)

    Args:
        values: Per-token values, any shape (`[B, T]` for sequences, `[B]` for single decisions).
        mask: Weights of the same shape, bool, integer or float; where the weight is 0 the value
            may be anything, NaN and infinity included, and neither it nor its gradient counts.

    Returns:
        `Weighted` with the weighted sum and the sum of the weights.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax.objectives import token_mean
        >>> mask = jnp.array([[1, 1], [1, 0]])
        >>> float(token_mean(jnp.array([[1.0, 2.0], [6.0, jnp.nan]]), mask).mean())
        3.0
    """
    products, weights = _masked(values, mask)
    return Weighted(total=jnp.sum(products), count=jnp.sum(weights))


def sequence_mean(values: ArrayLike, mask: ArrayLike) -> Weighted:
    r"""Mean over sequences of the token mean of each: every sequence weighs the same.

    .. math:: \frac1N \sum_b \sum_t m_{bt} l_{bt} \,/\, \max(\sum_t m_{bt}, 1)

    `N` counts the rows that have an unmasked token, so rows of padding change nothing. A row of
    packed documents counts as one sequence.

    Args:
        values: Per-token values `[..., T]`, time on the last axis.
        mask: Weights of the same shape, as in `token_mean`.

    Returns:
        `Weighted` with the sum of the per-sequence means and the number of non-empty sequences.

    Raises:
        ValueError: If the shapes differ or there is no time axis.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax.objectives import sequence_mean
        >>> mask = jnp.array([[1, 1], [1, 0]])
        >>> float(sequence_mean(jnp.array([[1.0, 3.0], [6.0, 0.0]]), mask).mean())
        4.0
    """
    products, weights = _masked(values, mask, time=True)
    lengths = jnp.sum(weights, axis=-1)
    means = jnp.sum(products, axis=-1) / jnp.maximum(lengths, 1)
    return Weighted(total=jnp.sum(means), count=_non_empty(weights))


def constant_sum(values: ArrayLike, mask: ArrayLike, constant: ArrayLike) -> Weighted:
    r"""Token sum over a constant, averaged over sequences: no length enters the weights.

    .. math:: \frac1N \sum_b \frac1c \sum_t m_{bt} l_{bt}

    `c` is a fixed scale such as the longest completion allowed; unlike the two means it gives an
    unbiased policy gradient. `N` counts the rows that have an unmasked token.

    Args:
        values: Per-token values `[..., T]`, time on the last axis.
        mask: Weights of the same shape, as in `token_mean`.
        constant: The positive scale `c`; may be traced.

    Returns:
        `Weighted` with the weighted sum over `c` and the number of non-empty sequences.

    Raises:
        ValueError: If the shapes differ, there is no time axis, or `constant` is a number ≤ 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax.objectives import constant_sum
        >>> mask = jnp.array([[1, 1], [1, 0]])
        >>> float(constant_sum(jnp.array([[1.0, 3.0], [6.0, 0.0]]), mask, 4.0).mean())
        1.25

    Reference:
        Liu et al., "Understanding R1-Zero-Like Training: A Critical Perspective",
        arXiv:2503.20783 (Dr. GRPO).
    """
    if is_static(constant) and not constant > 0:
        raise ValueError(f"constant must be positive, got {constant}")
    products, weights = _masked(values, mask, time=True)
    total = jnp.sum(products) / jnp.asarray(constant, products.dtype)
    return Weighted(total=total, count=_non_empty(weights))


def each_token(values: ArrayLike, mask: ArrayLike) -> Weighted:
    r"""No reduction: the values and their weights as they are, so that an objective returns the losses of its tokens.

    Its metrics are left so as well. `total` and `count` have then the shape of the tokens, and `mean()` means nothing.

    Args:
        values: Per-token values, any shape.
        mask: Weights of the same shape.

    Returns:
        A `Weighted` of both.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax.objectives import cross_entropy, each_token
        >>> labels = jnp.array([0, 1, -100])
        >>> loss, _ = cross_entropy(logits=jnp.eye(3), labels=labels, reduction=each_token)
        >>> [round(float(row), 4) for row in loss.total], loss.count.tolist()
        ([0.5514, 0.5514, 1.0986], [1.0, 1.0, 0.0])
    """
    values, mask = jnp.asarray(values), jnp.asarray(mask)
    dtype = jnp.result_type(float)
    return Weighted(total=values.astype(dtype), count=mask.astype(dtype))


def of_metrics(reduction: Reduction) -> Reduction:
    """How an objective's metrics are reduced: means over tokens, unless nothing is."""
    return each_token if reduction is each_token else token_mean


def coefficients(reduction: Reduction, mask: jax.Array) -> jax.Array:
    """The weight of each token in the total: a linear reduction is Σ coefficient·row, which its gradient tells."""
    return jax.grad(lambda rows: reduction(rows, mask).total)(jnp.zeros_like(mask))


def _masked(
    values: ArrayLike, mask: ArrayLike, *, time: bool = False
) -> tuple[jax.Array, jax.Array]:
    """`(weight * value, weight)` in float32 or better, exactly 0 where the weight is 0."""
    values, mask = jnp.asarray(values), jnp.asarray(mask)
    if values.shape != mask.shape:
        raise ValueError(
            f"values and mask must have one shape, got {values.shape} and {mask.shape}; "
            "a mask has one weight per token"
        )
    if time and values.ndim == 0:
        raise ValueError("this reduction sums over time on the last axis, but values is a scalar")
    dtype = jnp.result_type(float)
    weights = mask.astype(dtype)
    # The select comes before the product: 0 * NaN would be NaN.
    return jnp.where(weights != 0, values.astype(dtype), 0) * weights, weights


def _non_empty(weights: jax.Array) -> jax.Array:
    """The number of rows with a non-zero weight."""
    return jnp.sum(jnp.any(weights != 0, axis=-1), dtype=weights.dtype)
