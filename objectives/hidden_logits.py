"""Logits that nobody has computed: states before a head, and the head."""

import jax

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
