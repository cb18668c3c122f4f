"""What stands between hidden states and logits: a weight, a bias, a soft cap and a low-rank adapter, as one value."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences.base import divergence
from divax.divergences.numerics import Scalar


@divergence
class LinearHead:
    """The vocabulary head of a model, logits = cap·tanh((h·W + (h·A)·B + b)/cap).

    Attributes:
        weight: W, `[H, V]`; with `tied`, an embedding `[V, H]` as it is, no transposed copy of it being made.
        bias: b, `[V]`, or None. −inf rules a token out.
        softcap: cap > 0 as in Gemma 2, or None; may be traced.
        adapter: A `[H, R]` and B `[R, V]` of a low-rank adapter, or None. With a frozen weight no gradient of its size is
            ever formed.
        tied: whether the weight is `[V, H]`.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> head = dv.LinearHead(weight=jnp.ones((5, 2)), softcap=1.0, tied=True)
        >>> head.logits(jnp.ones((3, 2))).shape, round(float(head.logits(jnp.ones(2))[0]), 4)  # tanh 2
        ((3, 5), 0.964)

    Source: soft-capping: Gemma Team, "Gemma 2: Improving Open Language Models at a Practical Size", arXiv:2408.00118;
    adapters: E. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685, eq. 3.
    """

    weight: ArrayLike
    bias: ArrayLike | None = None
    softcap: Scalar | None = None
    adapter: tuple[ArrayLike, ArrayLike] | None = None
    tied: bool = dataclasses.field(default=False, metadata={"static": True})

    def logits(self, hidden: ArrayLike) -> jax.Array:
        """Logits `[..., V]` of hidden states `[..., H]`, float32 (float64 if an input is), whatever their size.

        Raises:
            ValueError: the shapes do not fit together.
            TypeError: an array is not floating point.
        """
        hidden = jnp.asarray(hidden)
        side = linear_logits(hidden, self, "hidden", "head")
        return side.capped(side.raw()).reshape(*hidden.shape[:-1], -1)


@divergence
class LinearLogits:
    """N rows of logits that have not been computed: Σ input·weight + bias, capped.

    Attributes:
        inputs: `[N, H]` for each term.
        weights: `[H, V]`, or `[V, H]` where tied.
        bias: `[V]` or None.
        softcap: scalar or None.
        tied: for each term, whether its weight is `[V, H]`.
    """

    inputs: tuple[jax.Array, ...]
    weights: tuple[jax.Array, ...]
    bias: jax.Array | None
    softcap: jax.Array | None
    tied: tuple[bool, ...] = dataclasses.field(metadata={"static": True})

    @property
    def vocab_size(self) -> int:
        """Columns of the head, padded ones included."""
        return self.weights[0].shape[0 if self.tied[0] else 1]

    @property
    def dtype(self) -> Any:
        """Of the logits and of everything computed from them."""
        arrays = [*self.inputs, *self.weights] + ([] if self.bias is None else [self.bias])
        double = any(one.dtype == jnp.float64 for one in arrays)
        return jnp.float64 if double else jnp.float32

    def raw(self) -> jax.Array:
        """Logits `[N, V]` before the cap."""
        terms = zip(self.inputs, self.weights, self.tied, strict=True)
        products = [contract(x, w, 1, 1 if tied else 0, self.dtype) for x, w, tied in terms]
        logits = sum(products[1:], start=products[0])
        return logits if self.bias is None else logits + self.bias.astype(self.dtype)[None, :]

    def capped(self, raw: jax.Array) -> jax.Array:
        """cap·tanh(raw/cap), infinities as they are."""
        return cap_logits(raw, self.softcap)

    def uncapped(self, raw: jax.Array, by: jax.Array) -> jax.Array:
        """A gradient by the capped logits as one by the raw ones."""
        return by if self.softcap is None else jax.vjp(self.capped, raw)[1](by)[0]

    def rows_at(self, start: jax.Array | int, size: int, live: jax.Array) -> LinearLogits:
        """`size` rows from `start`, with zeros as the inputs of those that are not live: NaN·0 would be NaN."""
        inputs = tuple(
            jnp.where(
                live[:, None], jax.lax.dynamic_slice_in_dim(x, start, size), jnp.zeros((), x.dtype)
            )
            for x in self.inputs
        )
        return dataclasses.replace(self, inputs=inputs)

    def columns_at(self, start: jax.Array | int, size: int) -> LinearLogits:
        """`size` tokens of the vocabulary from `start`."""
        weights = tuple(
            jax.lax.dynamic_slice_in_dim(w, start, size, 0 if tied else 1)
            for w, tied in zip(self.weights, self.tied, strict=True)
        )
        bias = None if self.bias is None else jax.lax.dynamic_slice_in_dim(self.bias, start, size)
        return dataclasses.replace(self, weights=weights, bias=bias)


def cap_logits(raw: jax.Array, softcap: jax.Array | None) -> jax.Array:
    """cap·tanh(raw/cap); the −inf of an impossible token stays."""
    if softcap is None:
        return raw
    cap, finite = softcap.astype(raw.dtype), jnp.isfinite(raw)
    return jnp.where(finite, cap * jnp.tanh(jnp.where(finite, raw, 0) / cap), raw)


def contract(x: jax.Array, y: jax.Array, x_axis: int, y_axis: int, dtype: Any) -> jax.Array:
    """Σ over one axis of each, summed in `dtype` whatever the factors' own: float32 holds products of bfloat16 exactly."""
    axes = (((x_axis,), (y_axis,)), ((), ()))
    return jax.lax.dot_general(x, y, axes, preferred_element_type=dtype)


def times_weight(by: jax.Array, weight: jax.Array, tied: bool, dtype: Any) -> jax.Array:
    """by·Wᵀ `[N, H]`, the gradient by inputs, of `[N, V]` and a term's weight."""
    # The head is the first factor: a CPU multiplies W·byᵀ an eighth faster than by·Wᵀ.
    return contract(weight, by, 0 if tied else 1, 1, dtype).T


def times_inputs(by: jax.Array, inputs: jax.Array, tied: bool, dtype: Any) -> jax.Array:
    """inputsᵀ·by, the gradient by a term's weight and like it `[H, V]`, or `[V, H]` where tied."""
    left, right = (by, inputs) if tied else (inputs, by)
    return contract(left, right, 0, 0, dtype)


def linear_logits(
    hidden: jax.Array,
    head: ArrayLike | LinearHead,
    hidden_name: str,
    head_name: str,
    live: jax.Array | None = None,
) -> LinearLogits:
    """The rows of hidden states `[..., H]` under a head, checked; `live` `[N]` says which may hold no NaN.

    Raises:
        ValueError: the shapes do not fit together.
        TypeError: an array is not floating point.
    """
    head = head if isinstance(head, LinearHead) else LinearHead(weight=head)
    weight, size = jnp.asarray(head.weight), hidden.shape[-1] if hidden.ndim else 0
    for name, array in ((hidden_name, hidden), (head_name, weight)):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"{name} must be floating point, got {array.dtype}")
    if hidden.ndim == 0 or weight.ndim != 2 or weight.shape[1 if head.tied else 0] != size:
        layout = "[V, H] (tied)" if head.tied else "[H, V]"
        hint = ""
        if weight.ndim == 2 and weight.shape[0 if head.tied else 1] == size:
            hint = (
                f"; for a head in the other layout use LinearHead(weight=..., tied={not head.tied})"
            )
        raise ValueError(
            f"{hidden_name} {hidden.shape} must end in the H of {head_name} {weight.shape}, {layout}{hint}"
        )
    flat = hidden.reshape(-1, size)
    inputs, weights, tied = (flat,), (weight,), (head.tied,)
    if head.adapter is not None:
        down, up = (jnp.asarray(factor) for factor in head.adapter)
        _check_adapter(down, up, size, weight.shape[0 if head.tied else 1], head_name)
        # A's gradient sums over all rows, so those that do not count must be gone before the product.
        safe = flat if live is None else jnp.where(live[:, None], flat, jnp.zeros((), flat.dtype))
        inputs, weights, tied = (*inputs, _lowered(safe, down)), (*weights, up), (*tied, False)
    bias = None if head.bias is None else jnp.asarray(head.bias)
    columns = weight.shape[0 if head.tied else 1]
    if bias is not None and bias.shape != (columns,):
        raise ValueError(f"the bias of {head_name} must be {(columns,)}, got {bias.shape}")
    cap = None if head.softcap is None else jnp.asarray(head.softcap)
    return LinearLogits(inputs=inputs, weights=weights, bias=bias, softcap=cap, tied=tied)


def _lowered(hidden: jax.Array, down: jax.Array) -> jax.Array:
    wide = jnp.promote_types(hidden.dtype, down.dtype)
    total = jnp.float64 if wide == jnp.float64 else jnp.float32
    return contract(hidden, down, 1, 0, total).astype(wide)


def _check_adapter(down: jax.Array, up: jax.Array, size: int, columns: int, name: str) -> None:
    if (
        down.ndim != 2
        or up.ndim != 2
        or down.shape != (size, up.shape[0])
        or up.shape[1] != columns
    ):
        raise ValueError(
            f"the adapter of {name} must be [{size}, R] and [R, {columns}], got {down.shape} and {up.shape}"
        )
