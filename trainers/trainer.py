"""A trainer: an init and a step over an explicit state, like an Optax transformation."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from divax.trainers.sharding import automatic, place_batch, place_state, state_sharding
from divax.trainers.state import TrainState


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Three functions; `tr.distillation` and `tr.language_model` make them, `tr.fit` runs them.

    Attributes:
        init: `init(key) -> TrainState`, sharded if the trainer has a mesh.
        step: `step(state, batch) -> (state, metrics)`, one jitted call. The state is donated:
            use the one that comes back. The metrics are scalars on the device.
        evaluate: `evaluate(state, batches) -> {name: number}`, over the whole iterable.

    Example:
        >>> import jax
        >>> Trainer(init=lambda key: key, step=lambda s, b: (s, {}), evaluate=lambda s, bs: {})
        Trainer(...)
    """

    init: Callable[[jax.Array], TrainState]
    step: Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]
    evaluate: Callable[[TrainState, Iterable[Any]], dict[str, float]]


def make_trainer(
    *,
    init_params: Callable[[jax.Array], Any],
    step: Callable[..., tuple[TrainState, dict[str, jax.Array]]],
    sums: Callable[..., Any],
    summarise: Callable[[Iterable[Any]], dict[str, float]],
    optimizer: optax.GradientTransformation,
    frozen: tuple[Any, ...] = (),
    mesh: Mesh | None = None,
    keep: Callable[[Any], Any] = lambda opt_state: opt_state,
) -> Trainer:
    """Jits and places pure functions: the thin shell around every trainer of this package.

    Args:
        init_params: `init_params(key) -> params`.
        step: `(state, batch, *frozen) -> (state, metrics)`, see `make_step`.
        sums: `(state, batch, *frozen) -> sums` of one evaluation batch.
        summarise: all the batches' sums, on the host, to numbers.
        optimizer: the one that `step` updates with.
        frozen: pytrees that are passed to every step as arguments: never donated, never compiled
            in as constants, so that a new value needs no new compilation.
        mesh: a JAX mesh; batches are split over all of its axes, parameters over `"fsdp"`.
        keep: the optimizer's first state to all that is kept beside the parameters.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from divax import trainers as tr
        >>> from divax.objectives import Weighted
        >>> optimizer = optax.sgd(0.5)
        >>> def loss_fn(params, batch, key):
        ...     return Weighted(jnp.sum((params - batch) ** 2), jnp.float32(batch.size)), {}
        >>> trainer = tr.make_trainer(
        ...     init_params=lambda key: jnp.float32(0),
        ...     step=tr.make_step(loss_fn, optimizer),
        ...     sums=lambda state, batch: loss_fn(state.params, batch, None)[0].total,
        ...     summarise=lambda totals: {"error": float(sum(totals))},
        ...     optimizer=optimizer,
        ... )
        >>> state, _ = trainer.step(trainer.init(jax.random.key(0)), jnp.array([1.0, 3.0]))
        >>> trainer.evaluate(state, [jnp.array([2.0]), jnp.array([3.0])])
        {'error': 1.0}
    """

    def create(key):
        params_key, run_key = jax.random.split(key)
        state = TrainState.create(init_params(params_key), optimizer, run_key)
        return dataclasses.replace(state, opt_state=keep(state.opt_state))

    if mesh is None:
        init, train = jax.jit(create), _Keyless(step)
        measure = jax.jit(sums)
    else:
        mesh = automatic(mesh)
        everywhere = NamedSharding(mesh, PartitionSpec())
        layout = jax.tree.map(
            lambda x: state_sharding(mesh, x.shape), jax.eval_shape(create, jax.random.key(0))
        )
        init = jax.jit(create, out_shardings=layout)
        train = _Keyless(step, out_shardings=(dataclasses.replace(layout, key=None), everywhere))
        measure = jax.jit(sums, out_shardings=everywhere)
        frozen = jax.tree.map(lambda x: place_state(x, mesh) if hasattr(x, "shape") else x, frozen)

    def evaluate(state: TrainState, batches: Iterable[Any]) -> dict[str, float]:
        return summarise(
            jax.device_get(measure(state, place_batch(batch, mesh), *frozen)) for batch in batches
        )

    return Trainer(
        init=init,
        step=lambda state, batch: train(state, place_batch(batch, mesh), *frozen),
        evaluate=evaluate,
    )


class _Keyless:
    """A jitted step, the run's key handed round it: it never changes, and costs a fifth of a small step on its way through.

    The key's numbers are looked up once, for the key object that every state of a run shares.
    """

    def __init__(self, step: Callable[..., Any], **options: Any):
        self._seen: tuple[Any, Any] = (None, None)

        def keyless(state: TrainState, numbers: jax.Array, impl: Any, batch: Any, *frozen: Any):
            key = numbers if impl is None else jax.random.wrap_key_data(numbers, impl=impl)
            after, metrics = step(dataclasses.replace(state, key=key), batch, *frozen)
            return dataclasses.replace(after, key=None), metrics

        self._jitted = jax.jit(keyless, donate_argnums=0, static_argnums=2, **options)

    def __call__(self, state: TrainState, batch: Any, *frozen: Any):
        key: Any = state.key
        numbers, impl = self._numbers(key)
        nothing: Any = None
        moving = TrainState(state.params, state.opt_state, state.step, nothing)
        after, metrics = self._jitted(moving, numbers, impl, batch, *frozen)
        return TrainState(after.params, after.opt_state, after.step, key), metrics

    def _numbers(self, key: Any) -> tuple[Any, Any]:
        seen, found = self._seen
        if seen is not key:
            typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
            found = (key, None)
            if typed:
                found = jax.random.key_data(key), jax.random.key_impl(key)
            if not isinstance(key, jax.core.Tracer):
                self._seen = key, found
        return found
