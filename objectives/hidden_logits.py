"""Logits that nobody has computed: states before a head, and the head."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from divax.divergences import LinearHead
from divax.divergences import divergence as frozen_pytree
from divax.divergences.linear_head import linear_logits


@frozen_pytree
class HiddenLogits:
    """What logits `[..., V]` are made of; a loss that reads them in parts never has them all at once.

    Attributes:
        hidden: `[..., H]`, the states before the head.
        head: `[H, V]` or a `LinearHead`.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax.objectives import HiddenLogits
        >>> made = HiddenLogits(hidden=jnp.ones((2, 3, 4)), head=jnp.ones((4, 9)))
        >>> made.vocab_size, made.logits().shape
        (9, (2, 3, 9))
    """

    hidden: jax.Array
    head: jax.Array | LinearHead

    @property
    def vocab_size(self) -> int:
        """Columns of the head, padded ones included."""
        return linear_logits(self.hidden, self.head, "hidden", "head").vocab_size

    def logits(self) -> jax.Array:
        """All of them, `[..., V]`, float32 or better."""
        head = self.head if isinstance(self.head, LinearHead) else LinearHead(weight=self.head)
        return head.logits(self.hidden)


@frozen_pytree
class CombinedLogits:
    """Logits that a function makes of those of several models, none of which anybody has computed.

    Attributes:
        parts: states and heads of M models.
        weights: `[..., M]` of every row.
        combine: of logits `[M, ..., V]` and weights `[M, ...]`, row by row; such as `mixture_of_teachers`.
        vocab_size: the tokenizer's size, to which logits are cut before; None where no head is padded.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax.objectives import CombinedLogits, HiddenLogits, mixture_of_teachers
        >>> one, other = (HiddenLogits(hidden=k * jnp.eye(3), head=jnp.eye(3)) for k in (1.0, 2.0))
        >>> both = CombinedLogits(parts=(one, other), weights=jnp.ones((3, 2)), combine=mixture_of_teachers)
        >>> both.logits().shape
        (3, 3)
    """

    parts: tuple[HiddenLogits, ...]
    weights: jax.Array
    combine: Callable[[jax.Array, jax.Array], jax.Array] = dataclasses.field(
        metadata={"static": True}
    )
    vocab_size: int | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def sizes(self) -> set[int]:
        """Numbers of logits that are combined; they must be one."""
        if self.vocab_size is not None:
            return {self.vocab_size}
        return {part.vocab_size for part in self.parts}

    def check_weights(self) -> None:
        """That every row has one for each model.

        Raises:
            ValueError: weights of another shape.
        """
        asked = (*self.parts[0].hidden.shape[:-1], len(self.parts))
        if jnp.shape(self.weights) != asked:
            raise ValueError(
                f"weights must be {asked}, one for each row and model, got {jnp.shape(self.weights)}: pass"
                f" jnp.broadcast_to(weights, {asked}) where all rows have the same"
            )

    def logits(self) -> jax.Array:
        """All of them, `[..., V]`."""
        self.check_weights()
        return self.of_parts([part.logits() for part in self.parts], self.weights)

    def of_parts(self, logits: Sequence[jax.Array], weights: jax.Array) -> jax.Array:
        """The combination of some rows of each, `[..., V]`, with weights `[..., M]`."""
        own = [rows[..., : self.vocab_size] for rows in logits]
        return self.combine(jnp.stack(own), jnp.moveaxis(weights, -1, 0))
