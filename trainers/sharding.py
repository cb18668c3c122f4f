"""Where arrays live: data parallel and fully sharded placement over JAX's own mesh."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

#: Over this mesh axis parameters are sharded; over every other axis they are replicated.
FSDP_AXIS = "fsdp"


def automatic(mesh: Mesh) -> Mesh:
    """The same mesh with every axis left to the compiler.

    `jax.make_mesh` gives explicit axes by default, under which every operation of a model would
    have to state its output's sharding.

    Example:
        >>> import jax
        >>> automatic(jax.make_mesh((1,), ("data",))).axis_names
        ('data',)
    """
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis over all axes of the mesh.

    Example:
        >>> import jax
        >>> list(batch_sharding(jax.make_mesh((1, 1), ("data", "fsdp"))).spec)
        [('data', 'fsdp')]
    """
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def state_sharding(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """The largest axis that the mesh's `fsdp` axis divides is sharded over it; else replicated.

    The rule reads nothing but the shape, so an optimizer's moments lie with their parameters.

    Example:
        >>> import jax
        >>> list(state_sharding(jax.make_mesh((1,), ("fsdp",)), (16, 64)).spec)
        [None, 'fsdp']
    """
    size = mesh.shape.get(FSDP_AXIS, 0)
    divisible = [axis for axis, length in enumerate(shape) if size and length % size == 0]
    if not divisible or math.prod(shape) == 0:
        return NamedSharding(mesh, PartitionSpec())
    largest = max(divisible, key=lambda axis: shape[axis])
    return NamedSharding(mesh, PartitionSpec(*[None] * largest, FSDP_AXIS))


def place_state(tree: Any, mesh: Mesh | None) -> Any:
    """Arrays laid out as parameters are; without a mesh they stay as they are.

    An array that somebody has already spread over axes of the mesh stays so: a teacher may be
    sharded in its own way.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> place_state(jnp.ones(4), jax.make_mesh((1,), ("fsdp",))).sharding.spec[0]
        'fsdp'
    """
    if mesh is None:
        return tree

    def place(x):
        return jax.device_put(x, _own_sharding(x, mesh) or state_sharding(mesh, x.shape))

    return jax.tree.map(place, tree)


def _own_sharding(x: Any, mesh: Mesh) -> NamedSharding | None:
    own = getattr(x, "sharding", None)
    if not isinstance(own, NamedSharding) or own.is_fully_replicated:
        return None
    if own.mesh.axis_names != mesh.axis_names or own.mesh.shape != mesh.shape:
        return None
    return NamedSharding(mesh, own.spec)


def place_batch(batch: Any, mesh: Mesh | None) -> Any:
    """A batch split over the devices by rows; without a mesh it stays as it is.

    Every process passes the whole batch and keeps its own devices' rows.

    Raises:
        ValueError: the devices do not divide the rows.

    Example:
        >>> import jax, numpy as np
        >>> place_batch(np.ones((4, 2)), jax.make_mesh((1,), ("data",))).sharding.spec[0]
        'data'
    """
    if mesh is None:
        return batch
    sharding = batch_sharding(mesh)

    def place(x):
        if x.shape[0] % mesh.size:
            raise ValueError(
                f"a batch of {x.shape[0]} rows does not divide over the mesh's {mesh.size} devices"
            )
        if jax.process_count() == 1 or isinstance(x, jax.Array):
            return jax.device_put(x, sharding)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(place, batch)


def rows_over_devices(
    function: Callable[[Any, Any], Any], mesh: Mesh | None, rows: Any, whole: Any
) -> Any:
    """`function(rows, whole)`, where each device computes its own rows and no others.

    A loop that slices sharded rows would have the compiler gather them on every device. Without a mesh, and where the
    devices do not divide the rows, it is the plain call.

    Args:
        function: of rows to rows, each by itself.
        mesh: the trainer's.
        rows: arrays whose leading axis is that of a batch.
        whole: arrays that every device has whole.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> mesh = jax.make_mesh((1,), ("data",))
        >>> rows_over_devices(jnp.multiply, mesh, jnp.arange(3), jnp.int32(2)).tolist()
        [0, 2, 4]
    """
    axes = row_axes(mesh, rows)
    if mesh is None or not axes:
        return function(rows, whole)
    split, everywhere = PartitionSpec(axes), PartitionSpec()
    own = jax.shard_map(
        function,
        mesh=automatic(mesh),
        in_specs=(split, everywhere),
        out_specs=split,
        check_vma=False,
    )
    return own(rows, whole)


def row_axes(mesh: Mesh | None, rows: Any) -> tuple[str, ...]:
    """The mesh's axes over which rows are split; none where its devices do not divide them.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> row_axes(jax.make_mesh((1,), ("data",)), jnp.arange(3)), row_axes(None, jnp.arange(3))
        (('data',), ())
    """
    if mesh is None or any(x.shape[0] % mesh.size for x in jax.tree.leaves(rows)):
        return ()
    return mesh.axis_names


def summed_over_devices(
    function: Callable[[Any, Any], Any], mesh: Mesh | None, rows: Any, whole: Any
) -> Any:
    """`function(rows, whole)`, a pytree of sums over rows, as the sum of every device's from its own.

    Args:
        function: of rows to sums over them.
        mesh: the trainer's.
        rows: as in `rows_over_devices`.
        whole: likewise.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> total = lambda rows, whole: (rows * whole).sum()
        >>> mesh = jax.make_mesh((1,), ("data",))
        >>> float(summed_over_devices(total, mesh, jnp.arange(4.0), jnp.float32(2)))
        12.0
    """

    def of_device(rows, whole):
        return jax.tree.map(lambda x: x[None], function(rows, whole))

    return jax.tree.map(lambda x: jnp.sum(x, 0), rows_over_devices(of_device, mesh, rows, whole))
