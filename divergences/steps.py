"""Equal steps over many items: the loops of every walk over tokens and vocabularies."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Steps:
    """Equal steps over `total` items; the last one starts early enough to end with the items.

    Nothing is padded, and nothing needs a program of its own for a rest: what the last step has in common with the
    one before is not `fresh` in it, and counts once. Steps of equal size leave little of that.

    Attributes:
        total: items.
        size: of a step.
        count: of steps.
    """

    total: int
    size: int
    count: int

    def start(self, index: jax.Array | int) -> jax.Array | int:
        """Of step `index`."""
        if self.count == 1:
            return 0
        return jnp.minimum(index * self.size, self.total - self.size)

    def fresh(self, index: jax.Array | int) -> jax.Array:
        """Boolean `[size]`: items that no step before has seen."""
        if self.total % self.size == 0:
            return jnp.ones(self.size, bool)
        return self.start(index) + jnp.arange(self.size, dtype=jnp.int32) >= index * self.size

    def fold(self, body: Callable[[Any, Any], Any], carry: Any) -> Any:
        """`body(index, carry)` for every step; without a loop where there is one.

        Not `fori_loop`: of that, differentiation takes out what does not vary, and keeps it for all steps at once.
        """
        if self.count == 1:
            return body(0, carry)
        step = lambda state: (state[0] + 1, body(*state))  # noqa: E731
        more = lambda state: state[0] < self.count  # noqa: E731
        return jax.lax.while_loop(more, step, (jnp.int32(0), carry))[1]


def steps_of(total: int, size: int, multiple: int = 1) -> Steps:
    """Equal steps of at most `size`, rounded up to a multiple where they are longer than that."""
    size = max(1, min(size, total))
    count = -(-total // size)
    even = -(-total // count)
    even = even if even < multiple else min(-(-even // multiple) * multiple, total)
    return Steps(total, even, -(-total // even))


def added_up(steps: Steps, of: Callable[[Any], Any]) -> Any:
    """Σ over the steps."""
    if steps.count == 1:
        return of(0)
    return steps.fold(lambda j, sums: jax.tree.map(jnp.add, sums, of(j)), zeros_of(lambda: of(0)))


def zeros_of(of: Callable[[], Any]) -> Any:
    """Zeros like what a function would return."""
    return jax.tree.map(lambda one: jnp.zeros(one.shape, one.dtype), jax.eval_shape(of))
