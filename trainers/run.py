"""What a run leaves behind: a log and checkpoints in a directory, or nothing."""

import abc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from divax.trainers.checkpoint import Checkpoints
from divax.trainers.errors import NonFiniteError
from divax.trainers.metrics_log import MetricsLog
from divax.trainers.run_directory import check, claim
from divax.trainers.state import TrainState

METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"


class AbstractRun(abc.ABC):
    """Where a loop restores from and reports to."""

    @abc.abstractmethod
    def restore(self, fresh: TrainState) -> TrainState:
        """The newest saved state, or the fresh one."""

    @abc.abstractmethod
    def log(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Records numbers of a step."""

    @abc.abstractmethod
    def save(self, step: int, state: TrainState) -> None:
        """Starts a checkpoint."""

    @abc.abstractmethod
    def close(self) -> str:
        """Finishes what was started; tells where the newest state is."""


class UnsavedRun(AbstractRun):
    """A run that leaves nothing.

    Example:
        >>> UnsavedRun().close()
        'nothing is saved without a run directory'
    """

    def restore(self, fresh: TrainState) -> TrainState:
        """The fresh state."""
        return fresh

    def log(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Records nothing."""

    def save(self, step: int, state: TrainState) -> None:
        """Saves nothing."""

    def close(self) -> str:
        """Says so."""
        return "nothing is saved without a run directory"


class SavedRun(AbstractRun):
    """A run in a directory: `config.json`, `metrics.jsonl`, `checkpoints/`.

    In a run of several processes the first one writes the configuration and the log, and all of
    them write their shards of the checkpoints.

    Args:
        directory: see `claim`.
        config: see `claim`.
        keep: how many checkpoints are kept.
        clock: tells the seconds that the log states.

    Example:
        >>> import tempfile
        >>> SavedRun(tempfile.mkdtemp(), {}, keep=1).close()
        'no checkpoint was written'
    """

    def __init__(
        self,
        directory: str | Path,
        config: dict[str, Any],
        keep: int,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._is_first = jax.process_index() == 0
        self._directory = (claim if self._is_first else check)(directory, config)
        self._log = MetricsLog(self._directory / METRICS)
        self._checkpoints = Checkpoints(self._directory / CHECKPOINTS, keep)
        self._clock, self._start = clock, clock()

    def restore(self, fresh: TrainState) -> TrainState:
        """The newest saved state, with the log rewound to it; or the fresh one."""
        latest = self._checkpoints.latest()
        state = fresh if latest is None else self._checkpoints.restore(fresh)
        if self._is_first:
            self._log.rewind(latest or 0)
        return state

    def log(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Appends a line to `metrics.jsonl`."""
        if self._is_first:
            seconds = round(self._clock() - self._start, 3)
            self._log.append({"step": step, "kind": kind, **values, "seconds": seconds})

    def save(self, step: int, state: TrainState) -> None:
        """Starts a checkpoint.

        Raises:
            NonFiniteError: the state is not finite.
        """
        if self._checkpoints.latest() == step:
            return
        if not bool(_all_finite((state.params, state.opt_state))):
            raise NonFiniteError(f"step {step}: parameters are not finite; stopped")
        self._checkpoints.save(step, state)

    def close(self) -> str:
        """Waits for the last checkpoint; tells where it is."""
        with self._checkpoints as checkpoints:
            checkpoints.wait()
            latest = checkpoints.latest()
        if latest is None:
            return "no checkpoint was written"
        return f"the last good checkpoint is step {latest} in {self._directory}"


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.stack([jnp.isfinite(x).all() for x in floats]).all() if floats else jnp.array(True)
