"""A divergence between two sets of samples, from a critic trained on one part of them and judged on the other."""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from divax.divergences import AbstractDivergence, estimate_bound
from divax.divergences.numerics import is_traced
from divax.trainers.errors import NonFiniteError
from divax.trainers.model import Model

Sides = tuple[jax.Array, jax.Array]
"""Samples of the target, and of the model."""


class TrainedCritic(NamedTuple):
    """What `train_critic` returns.

    Attributes:
        estimate: the bound on the validation samples, which the critic has not seen.
        standard_error: of the estimate, given the critic.
        curve: the bound on each step's batch before its update, `[steps]`; of training samples, so it may exceed the
            divergence where the critic learns them by heart.
        params: of the critic, after the last step.

    Example:
        >>> TrainedCritic._fields
        ('estimate', 'standard_error', 'curve', 'params')
    """

    estimate: jax.Array
    standard_error: jax.Array
    curve: jax.Array
    params: Any


@functools.cache
def mlp_critic(features: int, *, width: int = 64, layers: int = 2) -> Model:
    """A small multilayer perceptron, `[..., features]` to one number per sample.

    SiLU between the layers; computed in float32. Standardise the samples: divergences do not change, training does.

    Args:
        features: size of a sample.
        width: size of the hidden layers.
        layers: number of hidden layers.

    Returns:
        The critic as a `Model`; its parameters are a dictionary.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> critic = mlp_critic(3)
        >>> critic.apply(critic.init(jax.random.key(0)), jnp.zeros((5, 3))).shape
        (5,)
    """
    shapes = list(itertools.pairwise([features, *[width] * layers, 1]))
    ends = np.cumsum([inputs * outputs for inputs, outputs in shapes]).tolist()

    def init(key: jax.Array) -> dict[str, Any]:
        # One draw for all layers: each would be compiled on its own.
        kernels = jnp.split(jax.random.uniform(key, (ends[-1],), jnp.float32, -1, 1), ends[:-1])
        return {
            f"layer_{i}": {
                # Variance 1/inputs, as LeCun's initialisation has it.
                "kernel": np.sqrt(3 / shape[0]).item() * kernel.reshape(shape),
                "bias": jnp.zeros(shape[1], jnp.float32),
            }
            for i, (kernel, shape) in enumerate(zip(kernels, shapes, strict=True))
        }

    def apply(params: dict[str, Any], samples: jax.Array) -> jax.Array:
        x = samples.astype(jnp.float32)
        for i in range(len(shapes)):
            layer = params[f"layer_{i}"]
            x = (jax.nn.silu(x) if i else x) @ layer["kernel"]
            x = x + jnp.broadcast_to(layer["bias"], x.shape)
        return x[..., 0]

    return Model(init=init, apply=apply)


def train_critic(
    bound: Callable[..., jax.Array],
    target_samples: ArrayLike,
    model_samples: ArrayLike,
    *,
    optimizer: optax.GradientTransformation,
    steps: int,
    key: jax.Array,
    batch_size: int = 256,
    validation_fraction: float = 0.5,
    critic: Model | None = None,
) -> TrainedCritic:
    """Maximises a variational bound of a divergence between two distributions that are known by samples only.

    Both sets are split at random; the critic ascends the bound on batches of one part (drawn with replacement) and the
    bound on the other part is reported. For a fixed critic the f-GAN bound is an average over samples, whose expectation
    is at most the divergence however much the critic has overfitted: the estimate exceeds the divergence by chance
    only, of the size of its standard error. Bounds with a logarithm or a ratio of averages are biased upwards besides, by
    O(1/M), less than that. The estimate falls short by what the critic lacks: a small one does not prove the
    distributions equal.

    All steps are one compiled loop, without a transfer to the host. It is compiled anew for other shapes, optimizers,
    critics, and numbers of steps; not for other hyper-parameters of the divergence.

    Args:
        bound: `donsker_varadhan_bound`, `chi2_bound`, `functools.partial(f_gan_bound, JensenShannon())`,
            `functools.partial(renyi_bound, 0.5)`, or any function with their arguments.
        target_samples: `[N, ...]`, independent draws.
        model_samples: `[M, ...]`, likewise, of the same shape and dtype but for their number.
        optimizer: any Optax transformation.
        steps: number of updates.
        key: of the split, the parameters and the batches.
        batch_size: samples of each side in a batch.
        validation_fraction: the part of each side that is held out, in (0, 1).
        critic: a `Model` whose `apply(params, samples)` gives one number per sample; None is `mlp_critic` of their size.

    Returns:
        The estimate, its standard error, the training curve and the parameters.

    Raises:
        ValueError: samples that do not fit together or are too few, or a setting out of range.
        TypeError: a divergence instead of its bound.
        NonFiniteError: the bound became infinite or NaN.

    Example:
        >>> import jax, optax
        >>> from divax import divergences as dv, trainers as tr
        >>> x, y = jax.random.normal(jax.random.key(0), (2, 4000, 1))  # and KL(N(1, 1) ‖ N(0, 1)) = ½
        >>> trained = tr.train_critic(dv.donsker_varadhan_bound, x + 1, y,
        ...                           optimizer=optax.sgd(0.3), steps=200, key=jax.random.key(1))
        >>> abs(float(trained.estimate) - 0.5) < 3 * float(trained.standard_error) < 0.15
        True

    Source: M. I. Belghazi et al., "MINE: Mutual Information Neural Estimation", arXiv:1801.04062, alg. 1; S. Nowozin,
    B. Cseke, R. Tomioka, "f-GAN", arXiv:1606.00709, §3; on held-out critics, D. McAllester, K. Stratos, "Formal
    Limitations on the Measurement of Mutual Information", arXiv:1811.04251.
    """
    target, model = jnp.asarray(target_samples), jnp.asarray(model_samples)
    _check_settings(bound, steps, batch_size, validation_fraction)
    _check_samples(target, model)
    if critic is None:
        critic = _default_critic(target)
    held_out = tuple(_held_out(x.shape[0], validation_fraction) for x in (target, model))
    result = _train(
        _as_pytree(bound),
        target,
        model,
        key,
        critic=critic,
        optimizer=optimizer,
        steps=steps,
        batch_size=batch_size,
        held_out=held_out,
    )
    _check_finite(result)
    return result


@functools.partial(
    jax.jit, static_argnames=("critic", "optimizer", "steps", "batch_size", "held_out")
)
def _train(
    bound, target, model, key, *, critic, optimizer, steps, batch_size, held_out
) -> TrainedCritic:
    split_key, init_key, batch_key = jax.random.split(key, 3)
    validation, training = _split(split_key, (target, model), held_out)

    def values(params, samples):
        return {
            f"{side}_critic": critic.apply(params, x)
            for side, x in zip(("target", "model"), samples, strict=True)
        }

    def step(state, key):
        params, opt_state = state
        batch = _draw(key, training, batch_size)
        loss, slope = jax.value_and_grad(lambda params: -bound(**values(params, batch)))(params)
        updates, opt_state = optimizer.update(slope, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), -loss

    params = critic.init(init_key)
    start = params, optimizer.init(params)
    (params, _), curve = jax.lax.scan(step, start, jax.random.split(batch_key, steps))
    estimate = estimate_bound(bound, **values(params, validation))
    return TrainedCritic(estimate.value, estimate.standard_error, curve, params)


def _split(key: jax.Array, sides: Sides, held_out: tuple[int, int]) -> tuple[Sides, Sides]:
    """Validation and training samples, at random: the order in which they came may mean something."""
    keys = jax.random.split(key)
    target, model = (jax.random.permutation(k, x) for k, x in zip(keys, sides, strict=True))
    n, m = held_out
    return (target[:n], model[:m]), (target[n:], model[m:])


def _draw(key: jax.Array, sides: Sides, count: int) -> Sides:
    """As many samples of each side, with replacement."""
    target, model = sides
    sizes = jnp.array([[target.shape[0]], [model.shape[0]]])
    ids = jax.random.randint(key, (2, count), 0, sizes)
    return target[ids[0]], model[ids[1]]


def _as_pytree(bound: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The bound as an argument of a compiled function: the hyper-parameters that it is bound to are traced."""
    if isinstance(bound, functools.partial):
        return jax.tree_util.Partial(bound.func, *bound.args, **bound.keywords)
    return jax.tree_util.Partial(bound)


def _default_critic(samples: jax.Array) -> Model:
    if samples.ndim != 2 or not jnp.issubdtype(samples.dtype, jnp.floating):
        raise ValueError(
            f"the default critic takes floating-point samples [N, d], got {samples.dtype} {list(samples.shape)}: "
            "write x[:, None] for scalars, or give a critic of your own"
        )
    return mlp_critic(samples.shape[1])


def _held_out(count: int, fraction: float) -> int:
    held_out = round(count * fraction)
    if min(held_out, count - held_out) < 2:
        raise ValueError(
            f"{count} samples with validation_fraction={fraction:g} leave {count - held_out} to train on and {held_out}"
            " to validate on; both need at least 2"
        )
    return held_out


def _check_settings(bound: Any, steps: int, batch_size: int, validation_fraction: float) -> None:
    if isinstance(bound, AbstractDivergence):
        kind = type(bound).__name__
        raise TypeError(
            f"bound={kind}() is a divergence of logits; its bound from samples is functools.partial(f_gan_bound, {kind}())"
        )
    for name, value in (("steps", steps), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not 0 < validation_fraction < 1:
        raise ValueError(f"validation_fraction={validation_fraction} is outside (0, 1)")


def _check_samples(target: jax.Array, model: jax.Array) -> None:
    if target.ndim == 0 or target.shape[1:] != model.shape[1:] or target.dtype != model.dtype:
        raise ValueError(
            f"target_samples are {target.dtype} {list(target.shape)} and model_samples {model.dtype} {list(model.shape)}: "
            "all axes but the first, and the dtypes, must agree"
        )


def _check_finite(result: TrainedCritic) -> None:
    if is_traced(result.estimate):
        return
    estimate, curve = float(result.estimate), np.asarray(result.curve)
    if np.isfinite(curve).all() and np.isfinite(estimate):
        return
    bad = np.flatnonzero(~np.isfinite(curve))
    where = (
        f"of step {bad[0] + 1} is {curve[bad[0]]}" if bad.size else f"on validation is {estimate}"
    )
    raise NonFiniteError(
        f"the bound {where}: check the samples for infinities, lower the learning rate or clip the gradient, or take a"
        " bound with lighter tails (Jensen-Shannon, Hellinger)"
    )
