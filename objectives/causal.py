"""`align_causal`: which token each position of a causal model is to predict, and whether."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

#: The label of a position that is not to be learned, as everywhere in the field.
IGNORED_LABEL = -100


class CausalTargets(NamedTuple):
    """The targets of a causal language model, aligned with its logits `[..., T, V]`.

    Attributes:
        labels: `[..., T]` int32: the next token, or -100 where the mask is 0.
        mask: `[..., T]` float32 weights (float64 under x64): the weight of the *target* token.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax.objectives import CausalTargets
        >>> targets = CausalTargets(labels=jnp.array([[5, -100]]), mask=jnp.array([[1.0, 0.0]]))
    """

    labels: jax.Array
    mask: jax.Array


def align_causal(
    tokens: ArrayLike, mask: ArrayLike | None = None, segment_ids: ArrayLike | None = None
) -> CausalTargets:
    """Shifts tokens and mask left by one, so that position `t` is paired with token `t + 1`.

    Position `t` counts with the weight `mask[t + 1]` of its target, and not at all where it is the
    last one, where the target belongs to another segment (the last token of a packed document must
    not predict the first of the next), or where the target is negative (-100). The logits are left
    as they are, `[..., T, V]`: slicing them would copy the largest array of the step.

    Args:
        tokens: `[..., T]` integers, the tokens that the model reads; or a copy of them with -100
            at the tokens that are not to be learned.
        mask: `[..., T]` weights of the tokens *as targets* (bool, integer or float): 0 for padding
            and prompts. Default: every token counts.
        segment_ids: `[..., T]` integers that tell the documents of a packed row apart. No id means
            padding: padding is what the mask says it is.

    Returns:
        `CausalTargets(labels, mask)`, each `[..., T]`.

    Raises:
        TypeError: If tokens or segment ids are not integers.
        ValueError: If the shapes differ or there is no time axis.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax.objectives import align_causal
        >>> tokens, segments = jnp.array([[7, 8, 9, 4, 5], [1, 1, 1, 2, 2]])[:, None]
        >>> labels, mask = align_causal(tokens, segment_ids=segments)
        >>> labels.tolist(), mask.tolist()
        ([[8, 9, -100, 5, -100]], [[1.0, 1.0, 0.0, 1.0, 0.0]])
    """
    tokens = jnp.asarray(tokens)
    _check(tokens, "tokens", tokens.shape, integers=True)
    weights = jnp.ones(tokens.shape, bool) if mask is None else jnp.asarray(mask)
    _check(weights, "mask", tokens.shape, integers=False)

    target_weights = _shift_left(weights.astype(jnp.result_type(float)), 0)
    # int32 first: bytes are often uint8, which has no -100.
    labels = _shift_left(tokens.astype(jnp.int32), IGNORED_LABEL)
    counted = (labels >= 0) & (target_weights != 0)
    if segment_ids is not None:
        segment_ids = jnp.asarray(segment_ids)
        _check(segment_ids, "segment_ids", tokens.shape, integers=True)
        counted &= _shift_left(segment_ids, 0) == segment_ids
    return CausalTargets(
        labels=jnp.where(counted, labels, IGNORED_LABEL), mask=jnp.where(counted, target_weights, 0)
    )


def _shift_left(values: jax.Array, last: int) -> jax.Array:
    return jnp.concatenate([values[..., 1:], jnp.full_like(values[..., :1], last)], axis=-1)


def _check(values: jax.Array, name: str, shape: tuple[int, ...], *, integers: bool) -> None:
    if integers and not jnp.issubdtype(values.dtype, jnp.integer):
        raise TypeError(f"{name} must be integers, got {values.dtype}")
    if values.ndim == 0:
        raise ValueError(f"{name} needs a time axis [..., T], got a scalar")
    if values.shape != shape:
        raise ValueError(f"{name} must have the shape of tokens {shape}, got {values.shape}")
