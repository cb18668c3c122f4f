"""One update from micro-batches: sums of gradients over sums of counts, divided once.

A mean of micro-batch means is the gradient of another loss when the micro-batches hold different
numbers of tokens. Totals and counts add up exactly, so 1 x 8 and 8 x 1 are the same step.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from divax.objectives import Weighted
from divax.trainers.state import TrainState

Metrics = dict[str, Weighted]
LossFn = Callable[..., tuple[Weighted, Metrics]]


def make_step(
    loss_fn: LossFn, optimizer: optax.GradientTransformation, micro_batches: int = 1
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """A pure step `(state, batch, *frozen) -> (state, metrics)`; the caller jits it.

    The update uses `grad(sum of loss.total) / max(sum of loss.count, 1)` over the micro-batches,
    accumulated in float32 and cast to the parameters' dtype.

    Args:
        loss_fn: `(params, batch, key, *frozen) -> (Weighted, {name: Weighted})`. `frozen` are
            pytrees that the step takes and does not differentiate: a teacher, a reference policy,
            the divergence.
        optimizer: any Optax transformation.
        micro_batches: how many parts the leading axis of every batch array is split into; part m
            holds rows m, m + micro_batches, ..., so that a sharded batch stays where it is.

    Returns:
        The step; its metrics are `loss`, the loss's own, `grad_norm`, and `learning_rate` where
        the optimizer's state states one (`optax.inject_hyperparams`).

    Raises:
        ValueError: `micro_batches` is below 1 or does not divide the batch.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from divax.objectives import Weighted
        >>> def loss_fn(params, batch, key):
        ...     return Weighted(jnp.sum((params - batch) ** 2), jnp.float32(batch.size)), {}
        >>> step = make_step(loss_fn, optax.sgd(0.5), micro_batches=2)
        >>> state = TrainState.create(jnp.float32(0.0), optax.sgd(0.5), jax.random.key(0))
        >>> state, metrics = step(state, jnp.array([1.0, 2.0, 3.0, 6.0]))
        >>> float(state.params), float(metrics["loss"])
        (3.0, 12.5)
    """
    if micro_batches < 1:
        raise ValueError(f"micro_batches must be at least 1, got {micro_batches}")

    def step(state: TrainState, batch: Any, *frozen: Any):
        key = jax.random.fold_in(state.key, state.step)
        grads, loss, metrics = mean_gradient(
            loss_fn, state.params, batch, key, frozen, micro_batches=micro_batches
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        report = {"loss": loss.mean(), **{name: value.mean() for name, value in metrics.items()}}
        report["grad_norm"] = optax.tree.norm(grads)
        report |= stated_learning_rate(opt_state)
        return TrainState(params, opt_state, state.step + 1, state.key), report

    return step


def mean_gradient(
    loss_fn: LossFn,
    params: Any,
    batch: Any,
    key: jax.Array,
    frozen: tuple[Any, ...] = (),
    *,
    micro_batches: int = 1,
) -> tuple[Any, Weighted, Metrics]:
    """The gradient of `loss.total / max(loss.count, 1)` over micro-batches, and the sums.

    Args:
        loss_fn: as in `make_step`.
        params: what is differentiated.
        batch: its arrays have the rows as leading axis.
        key: of the step.
        frozen: pytrees that are not differentiated.
        micro_batches: parts that the rows are split into.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from divax.objectives import Weighted
        >>> def loss_fn(params, batch, key):
        ...     return Weighted(params * jnp.sum(batch), jnp.float32(batch.size)), {}
        >>> batch = jnp.array([1.0, 3.0])
        >>> float(mean_gradient(loss_fn, jnp.float32(0), batch, jax.random.key(0))[0])
        2.0
    """
    if micro_batches == 1:
        return _gradient_of_mean(loss_fn, params, batch, key, frozen)
    grads, loss, metrics = _accumulate(loss_fn, params, batch, key, frozen, micro_batches)
    scale = 1 / jnp.maximum(loss.count, 1)
    grads = jax.tree.map(lambda g, p: (g * scale.astype(g.dtype)).astype(p.dtype), grads, params)
    return grads, loss, metrics


def _gradient_of_mean(loss_fn, params, batch, key, frozen):
    """Without parts the mean itself is differentiated: a scalar is divided, and not every gradient."""

    def mean(params):
        loss, metrics = loss_fn(params, batch, jax.random.fold_in(key, 0), *frozen)
        return loss.total / jnp.maximum(jax.lax.stop_gradient(loss.count), 1), (loss, metrics)

    grads, (loss, metrics) = jax.grad(mean, has_aux=True)(params)
    return grads, loss, metrics


def _accumulate(loss_fn, params, batch, key, frozen, micro_batches):
    """Sums over the micro-batches of the gradient of the total, the loss and the metrics."""

    def total(params, part, key):
        loss, metrics = loss_fn(params, part, key, *frozen)
        return loss.total, (loss, metrics)

    def sums(part, index):
        grads, (loss, metrics) = jax.grad(total, has_aux=True)(
            params, part, jax.random.fold_in(key, index)
        )
        return jax.tree.map(widen, grads), loss, metrics

    parts = jax.tree.map(lambda x: split_rows(x, micro_batches), batch)
    first = jax.tree.map(lambda x: x[0], parts)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(sums, first, 0))

    def add(running, part_and_index):
        return jax.tree.map(jnp.add, running, sums(*part_and_index)), None

    return jax.lax.scan(add, zeros, (parts, jnp.arange(micro_batches)))[0]


def widen(x: jax.Array) -> jax.Array:
    """At least float32, in which sums over micro-batches keep their digits."""
    return x if x.dtype.itemsize >= 4 else x.astype(jnp.float32)


def stated_learning_rate(opt_state: Any) -> dict[str, jax.Array]:
    """`learning_rate`, where the optimizer's state states one."""
    for path, value in optax.tree.get_all_with_path(opt_state, "learning_rate"):
        # A parameter, or a schedule's own state, may have the same name.
        if any(getattr(entry, "name", None) == "hyperparams" for entry in path):
            return {"learning_rate": jnp.asarray(value)}
    return {}


def split_rows(x: jax.Array, micro_batches: int) -> jax.Array:
    """`[rows, ...]` to `[micro_batches, rows / micro_batches, ...]`; part m holds rows m, m + micro_batches, ..."""
    rows = x.shape[0]
    if rows % micro_batches:
        raise ValueError(f"{micro_batches} micro-batches do not divide a batch of {rows} rows")
    # Strided, not contiguous: splitting [rows / micro, micro] keeps a sharded leading axis local.
    return jnp.swapaxes(x.reshape(rows // micro_batches, micro_batches, *x.shape[1:]), 0, 1)
