"""Laws of derivatives, by finite differences in double precision, and of JAX's transformations."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from divax.divergences.law import ROWS, Trial, close, law
from divax.divergences.support_laws import impossible

STEP = 1e-5
"""Of central differences: truncation and rounding are both about 1e-10 of the value's own scale."""


def _numerical_gradient(trial: Trial, pair: list[np.ndarray], side: int) -> np.ndarray:
    columns = []
    for token in range(trial.vocab_size):
        step = STEP * (np.arange(trial.vocab_size) == token)
        ahead, behind = list(pair), list(pair)
        ahead[side], behind[side] = pair[side] + step, pair[side] - step
        columns.append((trial.value(*ahead) - trial.value(*behind)) / (2 * STEP))
    return np.stack(columns, -1)


def _log_ratio(target: np.ndarray, model: np.ndarray) -> np.ndarray:
    log_p, log_q = (x - np.logaddexp.reduce(x, -1, keepdims=True) for x in (target, model))
    both = np.isfinite(log_p) & np.isfinite(log_q)
    return np.subtract(log_p, log_q, out=np.full_like(log_p, np.inf), where=both)


def _gradient_by_differences(trial: Trial, side: int) -> None:
    cases = [list(pair) for pair in trial.ordinary()]
    cases.append([impossible(trial, trial.logits()), trial.logits()])
    cases.append([trial.logits(), impossible(trial, trial.logits())])
    for pair in cases:
        value, *slopes = trial.value_and_gradients(*pair)
        # At +inf the gradient is that of the finite part; within a step of u = 1 there may be a kink.
        finite = np.isfinite(value) & ~np.any(np.abs(_log_ratio(*pair)) < 10 * STEP, -1)
        if not finite.any():
            continue
        pair = [logits[finite] for logits in pair]
        want, got = _numerical_gradient(trial, pair, side), slopes[side][finite]
        scale = 1e-6 * (1e-3 + np.abs(value[finite, None]) + np.abs(want).max(-1, keepdims=True))
        shown = {"target": pair[0], "model": pair[1], "got": got, "want": want}
        trial.require(np.abs(got - want) <= scale, "finite differences disagree", **shown)


@law("∂D/∂(model logits) is the derivative of the value")
def model_gradient(trial: Trial) -> None:
    """Central differences in float64, impossible tokens included."""
    _gradient_by_differences(trial, 1)


@law("∂D/∂(target logits) is the derivative of the value")
def target_gradient(trial: Trial) -> None:
    """Central differences in float64, impossible tokens included."""
    _gradient_by_differences(trial, 0)


def _both(trial: Trial) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    pair = jnp.asarray(trial.logits()), jnp.asarray(trial.logits())
    return pair, (jnp.asarray(trial.logits()), jnp.asarray(trial.logits()))


def _gradients(div: Any):
    return jax.grad(lambda pair: jnp.sum(div(*pair)))


@law("jvp in a direction is the gradient times the direction")
def forward_mode(trial: Trial) -> None:
    """Forward and reverse mode agree on both arguments."""
    pair, direction = _both(trial)
    _, got = jax.jvp(lambda *args: trial.div(*args), pair, direction)
    _, *slopes = trial.value_and_gradients(*(np.asarray(x) for x in pair))
    want = sum(np.sum(slope * v, -1) for slope, v in zip(slopes, direction, strict=True))
    shown = {"target": pair[0], "model": pair[1], "got": got, "want": want}
    trial.require(close(got, want, 1e-9, 1e-11), "the two modes disagree", **shown)


@law("Hessian-vector products are the derivative of the gradient, and the Hessian is symmetric")
def second_order(trial: Trial) -> None:
    """Forward over reverse, in both arguments jointly, against differences of the gradient."""
    pair, direction = _both(trial)
    other = _both(trial)[1]
    product = lambda at, along: jax.jvp(_gradients(trial.div), (at,), (along,))[1]  # noqa: E731
    got, crossed = product(pair, direction), product(pair, other)
    at, along = ([np.asarray(x) for x in arrays] for arrays in (pair, direction))
    ahead, behind = (
        trial.value_and_gradients(*(x + sign * STEP * v for x, v in zip(at, along, strict=True)))[
            1:
        ]
        for sign in (1, -1)
    )
    shown = {"target": pair[0], "model": pair[1]}
    for have, plus, minus in zip(got, ahead, behind, strict=True):
        want = (plus - minus) / (2 * STEP)
        scale = 1e-5 * (1e-2 + np.abs(want).max(-1, keepdims=True))
        ok = np.abs(have - want) <= scale
        trial.require(ok, "differences of the gradient", **shown, got=have, want=want)
    left = sum(np.sum(a * b, -1) for a, b in zip(got, other, strict=True))
    right = sum(np.sum(a * b, -1) for a, b in zip(crossed, direction, strict=True))
    ok = close(left, right, 1e-7, 1e-9)
    trial.require(ok, "the Hessian is not symmetric", **shown, got=left, want=right)


def _without_parameters(trial: Trial) -> str | None:
    return None if jax.tree.leaves(trial.div) else "it has no hyper-parameters"


@law("the derivative by the hyper-parameters is that of the value", _without_parameters)
def parameter_gradient(trial: Trial) -> None:
    """Along a random direction of all hyper-parameters together."""
    leaves, structure = jax.tree.flatten(trial.div)
    leaves = [jnp.asarray(leaf).astype(jnp.float64) for leaf in leaves]
    along = [jnp.asarray(trial.rng.uniform(0.5, 1.0, leaf.shape)) for leaf in leaves]
    target, model = trial.logits(), trial.logits()

    def moved(step):
        return jax.tree.unflatten(
            structure, [x + step * v for x, v in zip(leaves, along, strict=True)]
        )

    def value(step):
        return moved(step)(target, model)

    _, got = jax.jvp(value, (jnp.asarray(0.0),), (jnp.asarray(1.0),))
    ends = [trial.value(target, model, moved(sign * STEP)) for sign in (1, -1)]
    want = (ends[0] - ends[1]) / (2 * STEP)
    shown = {"target": target, "model": model, "got": got, "want": want}
    ok = np.abs(got - want) <= 1e-6 * (1e-2 + np.abs(want) + np.abs(ends[0]))
    trial.require(ok, "finite differences disagree", **shown)


@law("jit, vmap and traced hyper-parameters change no value")
def transformations(trial: Trial) -> None:
    """Compiled with the divergence as an argument, and row by row under vmap, against plain evaluation."""
    target, model = trial.logits(), trial.logits()
    want = np.asarray(trial.div(target, model))
    shown = {"target": target, "model": model, "want": want}
    got = trial.value(target, model)
    trial.require(close(got, want, 1e-9, 1e-12), "under jit", **shown, got=got)
    mapped = jax.vmap(lambda t, s: trial.div(t, s))(jnp.asarray(target), jnp.asarray(model))
    trial.require(mapped.shape == (ROWS,), "the shape under vmap", got=np.asarray(mapped.shape))
    trial.require(close(mapped, want, 1e-9, 1e-12), "under vmap", **shown, got=mapped)
