"""`Weighted`: a loss or metric as a sum and a count, divided once at the very end."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Weighted:
    """A weighted sum and the weight that it stands for; the value is `total / max(count, 1)`.

    Totals and counts add up exactly over micro-batches, devices and hosts, which means do not: the
    mean of the means of a batch with 3 tokens and one with 1 is another number, and another
    gradient, than the mean over the 4 tokens. So objectives return sums, whoever accumulates adds
    them with `+`, and `mean()` divides once. The same holds for gradients: differentiate `total`,
    add the gradients up, divide by the summed count.

    It is a frozen pytree, so it passes through `jit`, `grad`, `vmap`, `lax.scan` and `lax.psum`.

    Attributes:
        total: Sum of weight times value, a float32 scalar (float64 under x64).
        count: Sum of the weights, a float32 scalar (float64 under x64); float32 counts exactly up
            to 2**24 = 16.7 million tokens in one sum.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax.objectives import Weighted
        >>> long = Weighted(total=jnp.float32(6.0), count=jnp.float32(3.0))
        >>> short = Weighted(total=jnp.float32(8.0), count=jnp.float32(1.0))
        >>> float((long + short).mean())  # 14 / 4, whereas the mean of the means is 5
        3.5
        >>> float((0.5 * short).mean())
        4.0
    """

    total: jax.Array
    count: jax.Array

    # NumPy scalars on the left defer to __rmul__ instead of building an object array.
    __array_ufunc__ = None

    def mean(self) -> jax.Array:
        """`total / max(count, 1)`: zero, with zero gradient, when nothing was counted."""
        return self.total / jnp.maximum(self.count, 1)

    def __add__(self, other: "Weighted") -> "Weighted":
        if not isinstance(other, Weighted):
            return NotImplemented
        return Weighted(total=self.total + other.total, count=self.count + other.count)

    def __radd__(self, other: int) -> "Weighted":
        # sum(parts) starts from the integer 0.
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def __mul__(self, scale: ArrayLike) -> "Weighted":
        if isinstance(scale, Weighted):
            return NotImplemented
        total = jnp.asarray(self.total)
        return Weighted(total=total * jnp.asarray(scale, total.dtype), count=self.count)

    __rmul__ = __mul__
