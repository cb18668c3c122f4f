"""The loop: steps, log, evaluation and checkpoints, resumed where it was stopped."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from divax.trainers.errors import Interrupted, NonFiniteError, RunError
from divax.trainers.interruption import Stop, polite_stop
from divax.trainers.layout import layout
from divax.trainers.recorder import Recorder
from divax.trainers.run import AbstractRun, SavedRun, UnsavedRun
from divax.trainers.state import TrainState
from divax.trainers.trainer import Trainer


def fit(
    trainer: Trainer,
    batches: Callable[[int], Any],
    *,
    steps: int,
    key: jax.Array,
    run_dir: str | Path | None = None,
    config: dict[str, Any] | None = None,
    evaluate_every: int | None = None,
    eval_batches: Sequence[Any] = (),
    checkpoint_every: int | None = None,
    keep: int = 2,
    log_every: int = 1,
    description: str = "",
) -> TrainState:
    """Trains for a number of steps, and goes on from the newest checkpoint if there is one.

    A process that is killed at any moment, and started again with the same arguments, ends with
    the same bits as one never killed: parameters, optimizer, and metrics but for their `seconds`.

    Args:
        trainer: init, step and evaluate.
        batches: `batches(step) -> batch`, a pure function, so that the data's position is the
            step; every batch has the shapes and dtypes of the first.
        steps: the step to stop at.
        key: the seed of the parameters and of every step.
        run_dir: where `config.json`, `metrics.jsonl` and `checkpoints/` go; `None` leaves nothing.
        config: what distinguishes this run; a directory of another configuration is refused.
        evaluate_every: steps between evaluations on `eval_batches`; `None`: only after the last.
        eval_batches: what is evaluated; none: no evaluation.
        checkpoint_every: steps between checkpoints; `None`: only the last state.
        keep: how many checkpoints are kept.
        log_every: steps between lines of training metrics.
        description: names the run in the progress bar, which shows in a terminal only.

    Returns:
        The state after `steps` steps.

    Raises:
        NonFiniteError: the loss, gradient or parameters became infinite or NaN; the step is named
            and the last good checkpoint kept.
        RunError: the run directory cannot be used, or its run is past `steps`.
        ValueError: a batch has another shape than the first.
        Interrupted: SIGINT or SIGTERM; with a run directory the state is saved.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from divax import trainers as tr
        >>> table = tr.Model(
        ...     init=lambda key: jnp.zeros((4, 4)), apply=lambda params, tokens: params[tokens]
        ... )
        >>> trainer = tr.language_model(model=table, optimizer=optax.sgd(1.0))
        >>> batch = tr.Batch(tokens=jnp.array([[0, 1, 2, 3]]))
        >>> state = tr.fit(trainer, lambda step: batch, steps=5, key=jax.random.key(0))
        >>> int(state.step)
        5
    """
    loop = _Loop(trainer, batches, steps, evaluate_every, eval_batches, checkpoint_every, log_every)
    # Before anything is written: a wrong first batch must not leave a directory behind.
    fresh = trainer.init(key)
    run = UnsavedRun() if run_dir is None else SavedRun(run_dir, config or {}, keep)
    try:
        state = run.restore(fresh)
        if int(state.step) > steps:
            raise RunError(f"{run_dir}: the run is at step {int(state.step)}, past steps = {steps}")
        with polite_stop() as stop, _progress_bar(steps, int(state.step), description) as bar:
            state = loop.run(state, run, bar, stop)
    except NonFiniteError as error:
        raise NonFiniteError(f"{error}; {run.close()}") from error
    except BaseException:
        run.close()
        raise
    where = run.close()
    if stop.signal_number is not None and int(state.step) < steps:
        raise Interrupted(
            f"stopped by a signal after step {int(state.step)} of {steps}; {where}"
            + ("" if run_dir is None else "; the same command resumes there"),
            stop.signal_number,
        )
    return state


class _Loop:
    def __init__(
        self, trainer, batches, steps, evaluate_every, eval_batches, checkpoint_every, log_every
    ):
        for name, value in (
            ("evaluate_every", evaluate_every),
            ("checkpoint_every", checkpoint_every),
            ("log_every", log_every),
        ):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self._trainer, self._batches, self._steps = trainer, batches, steps
        self._evaluate_every, self._eval_batches = evaluate_every, eval_batches
        self._checkpoint_every, self._log_every = checkpoint_every, log_every

    def run(self, state: TrainState, run: AbstractRun, bar: Any, stop: Stop) -> TrainState:
        def write(step, values):
            bar.set_postfix(loss=f"{values['loss']:.4f}", refresh=False)
            if step % self._log_every == 0:
                run.log("train", step, values)

        recorder, shapes = Recorder(write), None
        for step in range(int(state.step), self._steps):
            batch = self._batches(step)
            shapes = _check_shapes(step, batch, shapes)
            state, metrics = self._trainer.step(state, batch)
            recorder.add(step + 1, metrics)
            bar.update()
            self._after_step(step + 1, state, recorder, run, stopping=stop.signal_number)
            if stop.signal_number is not None:
                break
        recorder.drain()
        return state

    def _after_step(self, step, state, recorder, run, stopping):
        last = step == self._steps
        evaluates = self._eval_batches and (last or _due(step, self._evaluate_every))
        saves = last or stopping or _due(step, self._checkpoint_every)
        if evaluates or saves:
            # A state is evaluated or saved only once its own loss is known to be finite.
            recorder.drain()
        if evaluates:
            run.log("eval", step, self._trainer.evaluate(state, self._eval_batches))
        if saves:
            run.save(step, state)


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _check_shapes(step: int, batch: Any, shapes: Any) -> Any:
    found = [f"{name} {shape}" for name, shape in layout(batch).items()]
    if shapes is not None and found != shapes:
        raise ValueError(
            f"the batch of step {step} is {', '.join(found)}, and the run's first was "
            f"{', '.join(shapes)}: pad batches to one shape, or every shape compiles anew"
        )
    return found


def _progress_bar(steps: int, done: int, description: str) -> Any:
    from tqdm.auto import tqdm

    return tqdm(
        total=steps, initial=done, desc=description, disable=not sys.stderr.isatty(), leave=False
    )
