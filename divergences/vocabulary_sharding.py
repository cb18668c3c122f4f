"""Walks over hidden states whose heads are spread over devices: row scalars travel, and one gradient of the states."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from divax.divergences.linear_head import LinearLogits
from divax.divergences.token_walk import Operands, Plan, Walked
from divax.divergences.vocabulary_shard import Shard


@dataclasses.dataclass(frozen=True)
class VocabularySharding:
    """How heads lie on devices, and hidden states: the vocabulary over some axes of a mesh, the tokens over others.

    What takes one computes on every device with its own columns of the heads, a chunk of tokens at a time. Two all-reduces
    of a few scalars per token make the rows of all devices one, a third adds up the gradient of the hidden states, and
    each device has the gradient of its own columns. No logits and no part of a head travel. So it is for f-divergences,
    and what else is a sum over the vocabulary: token statistics, distillation; where another divergence or a gradient by
    its parameters needs whole rows, each device gets its share of a chunk's by an all-to-all.

    Attributes:
        mesh: the devices.
        vocabulary: the mesh's axis, or axes, over which the heads' columns lie, biases and adapters with them; the number
            of columns is a multiple of their devices, the same for all heads.
        tokens: over which the first axis of states, labels and masks lies; None where every device has all tokens. The
            gradient of the heads is then summed over these, as always in data-parallel training.

    Raises:
        ValueError: an axis that the mesh does not have, or one named twice.

    Example:
        >>> import jax
        >>> from divax import divergences as dv
        >>> mesh = jax.make_mesh((1, 1), ("data", "model"))
        >>> dv.VocabularySharding(mesh, vocabulary="model", tokens="data").devices
        1

    Source: the scheme for cross-entropy is M. Shoeybi et al., "Megatron-LM: Training Multi-Billion Parameter Language
    Models Using Model Parallelism", arXiv:1909.08053, §3.
    """

    mesh: Mesh
    vocabulary: str | tuple[str, ...]
    tokens: str | tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        named = [*self.vocabulary_axes, *self.token_axes]
        unknown = [axis for axis in named if axis not in self.mesh.axis_names]
        if unknown or not self.vocabulary_axes or len(set(named)) < len(named):
            raise ValueError(
                f"vocabulary={self.vocabulary!r} and tokens={self.tokens!r} must be different axes of the mesh"
                f" {self.mesh.axis_names}"
            )

    @property
    def vocabulary_axes(self) -> tuple[str, ...]:
        """As a tuple."""
        return _as_axes(self.vocabulary)

    @property
    def token_axes(self) -> tuple[str, ...]:
        """As a tuple, empty where there are none."""
        return _as_axes(self.tokens)

    @property
    def devices(self) -> int:
        """Over which the vocabulary is spread."""
        return math.prod(self.mesh.shape[axis] for axis in self.vocabulary_axes)


def _as_axes(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
    if axes is None:
        return ()
    return (axes,) if isinstance(axes, str) else tuple(axes)


@dataclasses.dataclass(frozen=True)
class ShardedWalk:
    """A walk that every device takes with its own columns of the heads.

    Attributes:
        walk: `walk_tokens` or `walk_vocabulary`.
        sharding: how everything lies.
    """

    walk: Callable[..., Walked]
    sharding: VocabularySharding

    def __call__(
        self, plan: Plan, operands: Operands, cotangents: Any = None, wanted: tuple[bool, ...] = ()
    ) -> Walked:
        """As of all devices' columns together.

        Raises:
            ValueError: heads or tokens that do not divide over the devices, or heads of different sizes.
        """
        leaves = jax.tree.leaves((operands.params, operands.sides))
        wanted = wanted or (False,) * len(leaves)
        rows, params = P(self.sharding.token_axes or None), P()
        sides = tuple(_side_specs(side, self.sharding) for side in operands.sides)
        specs = Operands(params, sides, rows, rows)
        asked = _asked_specs(operands, sides, wanted)
        of_shard = functools.partial(
            _of_shard, self.walk, self._local(plan, operands), self.sharding, wanted, asked
        )
        in_specs = specs, rows
        if AxisType.Explicit in self.sharding.mesh.axis_types:
            place = lambda spec, x: jax.reshard(x, NamedSharding(self.sharding.mesh, spec))  # noqa: E731
            spread = lambda spec, tree: jax.tree.map(functools.partial(place, spec), tree)  # noqa: E731
            is_spec = lambda x: isinstance(x, P)  # noqa: E731
            operands, cotangents = jax.tree.map(
                spread, in_specs, (operands, cotangents), is_leaf=is_spec
            )
        outputs, extras, found = jax.shard_map(
            of_shard,
            mesh=self.sharding.mesh,
            in_specs=in_specs,
            out_specs=(rows, rows, asked),
            check_vma=False,
        )(operands, cotangents)
        gradients = iter(found)
        return Walked(outputs, extras, [next(gradients) if want else None for want in wanted])

    def _local(self, plan: Plan, operands: Operands) -> Plan:
        """The plan of one device."""
        devices = self.sharding.devices
        sizes = {side.vocab_size for side in operands.sides}
        if len(sizes) > 1 or min(sizes) % devices:
            raise ValueError(
                f"heads of {', '.join(map(str, sorted(sizes)))} columns cannot be spread over {devices} devices: pad"
                " all to one multiple of these and pass vocab_size=<the tokenizer's size>"
            )
        tokens = math.prod(self.sharding.mesh.shape[axis] for axis in self.sharding.token_axes)
        if operands.live.size % tokens:
            raise ValueError(
                f"{operands.live.size} tokens cannot be spread over {tokens} devices: pad and mask them"
            )
        columns = min(sizes) // devices
        shard = Shard(self.sharding.vocabulary_axes, devices, columns, plan.vocab_size)
        return dataclasses.replace(plan, vocab_size=columns, shard=shard)


def _side_specs(side: LinearLogits, sharding: VocabularySharding) -> LinearLogits:
    """Where the leaves of a side lie."""
    vocabulary, tokens = sharding.vocabulary_axes, sharding.token_axes or None
    return LinearLogits(
        inputs=tuple(P(tokens, None) for _ in side.inputs),
        weights=tuple(P(vocabulary, None) if tied else P(None, vocabulary) for tied in side.tied),
        bias=None if side.bias is None else P(vocabulary),  # type: ignore[arg-type]
        softcap=None if side.softcap is None else P(),  # type: ignore[arg-type]
        tied=side.tied,
    )


def _asked_specs(operands: Operands, sides: Any, wanted: tuple[bool, ...]) -> list[P]:
    """Of the gradients that are wanted."""
    is_spec = lambda x: isinstance(x, P)  # noqa: E731
    specs = [P()] * len(jax.tree.leaves(operands.params)) + jax.tree.leaves(sides, is_leaf=is_spec)
    return [spec for spec, want in zip(specs, wanted, strict=True) if want]


def _of_shard(walk, plan, sharding, wanted, asked, operands, cotangents):
    outputs, extras, gradients = walk(plan, operands, cotangents, wanted)
    found = [gradient for gradient in gradients if gradient is not None]
    axes = (*sharding.vocabulary_axes, *sharding.token_axes)
    # Whoever has a part of the tokens or columns has a part of the sum.
    missing = [tuple(axis for axis in axes if not _lies_over(spec, axis)) for spec in asked]
    summed = [
        jax.lax.psum(one, over) if over else one for one, over in zip(found, missing, strict=True)
    ]
    return outputs, extras, summed


def _lies_over(spec: P, axis: str) -> bool:
    return any(axis in _as_axes(entry) for entry in spec)
