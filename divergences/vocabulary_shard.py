"""One device's part of a vocabulary, inside a walk that all devices take together: what they tell one another."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Shard:
    """Columns of the vocabulary that are here; by default all of them (`WHOLE`), and nobody to tell.

    Attributes:
        axes: of the mesh, over which the vocabulary is spread.
        devices: along them.
        columns: on each.
        vocab_size: tokens that count; those after them are padding.
    """

    axes: tuple[str, ...] = ()
    devices: int = 1
    columns: int = 0
    vocab_size: int = 0

    @property
    def padded(self) -> bool:
        """Whether some columns do not count."""
        return self.devices * self.columns > self.vocab_size

    def ids(self, columns: jax.Array) -> jax.Array:
        """Of columns of this device, the tokens; −1 where they are padding."""
        if self.devices == 1:
            return columns
        ids = columns + jax.lax.axis_index(self.axes) * jnp.int32(self.columns)
        return jnp.where(ids < self.vocab_size, ids, -1) if self.padded else ids

    def whole_rows(self, logits: jax.Array) -> jax.Array:
        """Of everybody's columns `[C, columns]` this device's share of the rows, `[⌈C/devices⌉, V]`, by an all-to-all."""
        if self.devices == 1:
            return logits
        return jax.lax.all_to_all(self._even(logits), self.axes, 0, 1, tiled=True)

    def own_columns(self, by: jax.Array, count: int) -> jax.Array:
        """The way back, for gradients: `[C, columns]`."""
        if self.devices == 1:
            return by
        return jax.lax.all_to_all(by, self.axes, 1, 0, tiled=True)[:count]

    def own_rows(self, tree: Any) -> Any:
        """The same share of the rows of arrays `[C, ...]` that everybody has."""
        if self.devices == 1:
            return tree
        index = jax.lax.axis_index(self.axes)

        def own(x: jax.Array) -> jax.Array:
            even = self._even(x)
            size = len(even) // self.devices
            return jax.lax.dynamic_slice_in_dim(even, index * size, size)

        return jax.tree.map(own, tree)

    def all_rows(self, tree: Any, count: int) -> Any:
        """Everybody's shares `[⌈C/devices⌉]` as `[C]`, in one all-reduce."""
        if self.devices == 1 or not jax.tree.leaves(tree):
            return tree
        flat, unpack = _packed(tree)
        slots = self._slots(flat)
        return unpack(slots.reshape(-1, flat.shape[-1])[:count])

    def _even(self, x: jax.Array) -> jax.Array:
        """With zeros to as many rows as all devices can share."""
        return jnp.pad(x, ((0, -len(x) % self.devices), *((0, 0),) * (x.ndim - 1)))

    def _slots(self, flat: jax.Array) -> jax.Array:
        """What all devices have, `[devices, ...]`: everybody fills a slot of zeros, and an all-reduce adds them up."""
        slots = jnp.zeros((self.devices, *flat.shape), flat.dtype)
        index = jax.lax.axis_index(self.axes)
        slots = jax.lax.dynamic_update_index_in_dim(slots, flat, index, 0)
        return jax.lax.psum(slots, self.axes)

    def merged(self, merge: Callable[[Any, Any], Any], first: Any) -> Any:
        """The first readings `[C]` of all devices, in the vocabulary's order, as one.

        One all-reduce brings them, of whatever they are; only the form knows how to merge them.
        """
        if self.devices == 1:
            return first
        flat, unpack = _packed(first)
        slots = self._slots(flat)
        add = lambda i, all_: merge(all_, unpack(slots[i]))  # noqa: E731
        return jax.lax.fori_loop(1, self.devices, add, unpack(slots[0]))

    def summed(self, sums: Any) -> Any:
        """Σ over the devices, one all-reduce for all of them."""
        if self.devices == 1 or not jax.tree.leaves(sums):
            return sums
        flat, unpack = _packed(sums)
        return unpack(jax.lax.psum(flat, self.axes))


WHOLE = Shard()


def _packed(tree: Any) -> tuple[jax.Array, Callable[[jax.Array], Any]]:
    """The leaves `[C]` or `[C, 1]` as one array `[C, k]`, and the way back; integers below 2²⁴ stay exact."""
    leaves, structure = jax.tree.flatten(tree)
    floating = [leaf.dtype for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    dtype = max(floating, key=lambda one: one.itemsize)
    flat = jnp.stack([leaf.reshape(-1).astype(dtype) for leaf in leaves], -1)

    def unpack(flat: jax.Array) -> Any:
        parts = [
            flat[:, i].reshape(-1, *leaf.shape[1:]).astype(leaf.dtype)
            for i, leaf in enumerate(leaves)
        ]
        return jax.tree.unflatten(structure, parts)

    return flat, unpack
