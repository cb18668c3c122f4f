"""Checkpoints of the whole state: Orbax, asynchronous and atomic, behind four methods."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from divax.trainers.errors import RunError
from divax.trainers.layout import layout


class Checkpoints:
    """The newest checkpoints of one run, in one directory.

    A checkpoint is written beside its place and renamed when complete, so a killed process leaves
    the older ones whole. Arrays come back with the shardings of the state they are restored for.

    Args:
        directory: where they lie; made if missing.
        keep: how many of the newest are kept.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> with Checkpoints(tempfile.mkdtemp(), keep=1) as checkpoints:
        ...     checkpoints.save(3, {"w": jnp.ones(2)})
        ...     checkpoints.wait()
        ...     step, state = checkpoints.latest(), checkpoints.restore({"w": jnp.zeros(2)})
        >>> step, state["w"].tolist()
        (3, [1.0, 1.0])
    """

    def __init__(self, directory: str | Path, keep: int = 2):
        import orbax.checkpoint as ocp

        self._ocp = ocp
        self._directory = Path(directory).absolute()
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def latest(self) -> int | None:
        """The newest complete checkpoint's step; `None` if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any) -> None:
        """Starts writing a pytree of arrays; returns before it is written."""
        # Copied first: on CPU the writer would read the very buffers that the next step donates.
        leaves = [jnp.copy(_as_array(leaf)) for leaf in jax.tree.leaves(state)]
        args = self._ocp.args
        self._manager.save(
            step,
            args=args.Composite(
                state=args.StandardSave(leaves), layout=args.JsonSave(layout(state))
            ),
        )

    def wait(self) -> None:
        """Returns when everything is on disk."""
        self._manager.wait_until_finished()

    def restore(self, like: Any) -> Any:
        """The newest checkpoint, with the structure and the shardings of `like`.

        Raises:
            RunError: there is none, or it holds other arrays than `like`.
        """
        step, args = self.latest(), self._ocp.args
        if step is None:
            raise RunError(f"{self._directory}: holds no checkpoint")
        found = self._manager.restore(step, args=args.Composite(layout=args.JsonRestore()))
        self._check_layout(found["layout"], layout(like))
        leaves, structure = jax.tree.flatten(like)
        arrays = [_as_array(leaf) for leaf in leaves]
        target = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for x in arrays]
        found = self._manager.restore(step, args=args.Composite(state=args.StandardRestore(target)))
        restored = [_like(leaf, x) for leaf, x in zip(leaves, found["state"], strict=True)]
        return jax.tree.unflatten(structure, restored)

    def _check_layout(self, found: dict[str, str], expected: dict[str, str]) -> None:
        for name in [*expected, *found]:
            if found.get(name) != expected.get(name):
                raise RunError(
                    f"{self._directory}: the checkpoint is of another configuration: "
                    f"{name} is {found.get(name, 'missing')} there and "
                    f"{expected.get(name, 'missing')} here; choose another run directory"
                )


def _is_key(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _as_array(leaf: jax.Array) -> jax.Array:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _like(leaf: jax.Array, array: jax.Array) -> jax.Array:
    if not _is_key(leaf):
        return array
    return jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf))
