"""The keys and values that a transformer has computed, so that it computes them once."""

import dataclasses

import jax
import jax.numpy as jnp

from divax.trainers.decoding import write_rows


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Rotated keys and values of every layer; slot t of a row holds the row's position t.

    A row of `lengths[b]` tokens fills the slots below that number. What lies in the others is
    never read: a query sees the slots up to its own position, and those it has itself written.

    Attributes:
        keys: `[layers, B, T, kv_heads, head_width]`.
        values: `[layers, B, T, kv_heads, head_width]`.
        lengths: `[B]` int32, the tokens that each row has read.

    Example:
        >>> cache = KVCache.empty(layers=2, batch_size=3, length=8, heads=1, width=4)
        >>> cache.keys.shape, cache.lengths.tolist()
        ((2, 3, 8, 1, 4), [0, 0, 0])
    """

    keys: jax.Array
    values: jax.Array
    lengths: jax.Array

    @classmethod
    def empty(
        cls,
        *,
        layers: int,
        batch_size: int,
        length: int,
        heads: int,
        width: int,
        dtype: str = "float32",
    ) -> "KVCache":
        """The cache of rows that have read nothing."""
        zeros = jnp.zeros((layers, batch_size, length, heads, width), dtype)
        return cls(zeros, zeros, jnp.zeros(batch_size, jnp.int32))

    def next_positions(self, count: int) -> jax.Array:
        """The positions `[B, count]` of the tokens that come next.

        Raises:
            ValueError: there are more of them than slots.
        """
        slots = self.keys.shape[2]
        if count > slots:
            raise ValueError(
                f"a cache for {slots} tokens cannot take {count}: give init_cache the length of "
                "the prompt and its completion together"
            )
        return self.lengths[:, None] + jnp.arange(count, dtype=jnp.int32)[None]

    def attend(
        self,
        layer: int,
        positions: jax.Array,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
    ) -> tuple[jax.Array, "KVCache"]:
        """Stores a layer's new keys and values, and attends to all that it holds.

        Args:
            layer: which layer.
            positions: `[B, S]`, of the new tokens.
            query: `[B, S, heads, head_width]`.
            key: `[B, S, kv_heads, head_width]`.
            value: `[B, S, kv_heads, head_width]`.

        Returns:
            What was read, shaped as the query, and the cache; `lengths` are left as they were.
        """
        keys = write_rows(self.keys[layer], key, positions)
        values = write_rows(self.values[layer], value, positions)
        slots = jnp.arange(keys.shape[1], dtype=jnp.int32)
        visible = slots[None, None, None, :] <= positions[:, None, :, None]
        read = jax.nn.dot_product_attention(query, keys, values, mask=visible)
        stored = dataclasses.replace(
            self, keys=self.keys.at[layer].set(keys), values=self.values.at[layer].set(values)
        )
        return read, stored
