"""One update under a loss that couples the rows of a batch, exact however the batch is split.

A soft minimum, a sort, an anchor or a risk over the batch is not a sum over its rows, so gradients
of micro-batches cannot be added up. Two passes are exact: the first forms every row's statistics
without a gradient; the loss of all of them together gives each statistic its cotangent; the second
pass pulls the cotangents back, one micro-batch at a time. The price is a second forward pass, the
memory is that of one micro-batch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from divax.objectives import Weighted
from divax.trainers.state import TrainState
from divax.trainers.step import split_rows, stated_learning_rate, widen

#: `(params, rows, *frozen) -> statistics`, a pytree of `[B, ...]` arrays.
RowsFn = Callable[..., Any]
#: `(statistics, batch, *frozen) -> (Weighted, {name: Weighted})`.
BatchLossFn = Callable[..., tuple[Weighted, dict[str, Weighted]]]


def make_coupled_step(
    rows_fn: RowsFn,
    loss_fn: BatchLossFn,
    optimizer: optax.GradientTransformation,
    *,
    rows_of: Callable[[Any], Any],
    micro_batches: int = 1,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """A pure step `(state, batch, *frozen) -> (state, metrics)`; the caller jits it.

    Args:
        rows_fn: statistics of rows, each row by itself.
        loss_fn: the loss of all rows' statistics together; `loss.mean()` is differentiated.
        optimizer: any Optax transformation.
        rows_of: the part of a batch whose arrays have the rows as leading axis.
        micro_batches: parts that the rows are split into.

    Returns:
        The step; metrics as those of `make_step`.

    Raises:
        ValueError: `micro_batches` is below 1 or does not divide the rows.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> step = make_coupled_step(  # least the log of the mean of exp: not a sum over rows
        ...     rows_fn=lambda params, rows: params * rows,
        ...     loss_fn=lambda values, batch: (
        ...         Weighted(jax.nn.logsumexp(values), jnp.float32(1)), {}
        ...     ),
        ...     optimizer=optax.sgd(1.0), rows_of=lambda batch: batch, micro_batches=2,
        ... )
        >>> state = TrainState.create(jnp.float32(0.0), optax.sgd(1.0), jax.random.key(0))
        >>> float(step(state, jnp.array([1.0, 2.0, 3.0, 6.0]))[0].params)  # minus their mean
        -3.0
    """
    if micro_batches < 1:
        raise ValueError(f"micro_batches must be at least 1, got {micro_batches}")

    def step(state: TrainState, batch: Any, *frozen: Any):
        rows = rows_of(batch)

        def mean_loss(statistics):
            loss, metrics = loss_fn(statistics, batch, *frozen)
            return loss.mean(), (loss, metrics)

        if micro_batches == 1:
            through = lambda params: mean_loss(rows_fn(params, rows, *frozen))  # noqa: E731
            grads, (loss, metrics) = jax.grad(through, has_aux=True)(state.params)
        else:
            grads, (loss, metrics) = _two_passes(
                rows_fn, mean_loss, state.params, rows, frozen, micro_batches
            )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        report = {"loss": loss.mean(), **{name: value.mean() for name, value in metrics.items()}}
        report["grad_norm"] = optax.tree.norm(grads)
        report |= stated_learning_rate(opt_state)
        return TrainState(params, opt_state, state.step + 1, state.key), report

    return step


def _two_passes(rows_fn, mean_loss, params, rows, frozen, micro_batches: int):
    parts = jax.tree.map(lambda x: split_rows(x, micro_batches), rows)
    of_part = lambda params, part: rows_fn(params, part, *frozen)  # noqa: E731
    statistics = jax.lax.map(lambda part: of_part(params, part), parts)
    cotangents, aux = jax.grad(mean_loss, has_aux=True)(jax.tree.map(_join, statistics))
    cotangents = jax.tree.map(lambda x: split_rows(x, micro_batches), cotangents)
    zeros = jax.tree.map(lambda p: widen(jnp.zeros_like(p)), params)

    def add(running, part_and_cotangent):
        part, cotangent = part_and_cotangent
        _, pullback = jax.vjp(lambda params: of_part(params, part), params)
        return jax.tree.map(lambda r, g: r + widen(g), running, pullback(cotangent)[0]), None

    grads, _ = jax.lax.scan(add, zeros, (parts, cotangents))
    return jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params), aux


def _join(x: jax.Array) -> jax.Array:
    """Undoes `split_rows`, whose part m holds rows m, m + parts, ..."""
    return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])
