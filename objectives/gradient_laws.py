"""Laws of an objective's gradient and its mask: what flows, what must not, and that a masked row is no row."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from divax.divergences.law import law
from divax.objectives.law import (
    Arrays,
    Evaluation,
    ObjectiveTrial,
    call,
    equal,
    gradient_names,
)

STEP = 1e-5
"""Of central differences: truncation and rounding are both about 1e-10 of the value's own scale."""

DIRECTIONS = 8
"""A gradient that is wrong in one number is wrong along almost every direction."""

GARBAGE = (np.nan, np.inf, -np.inf, 1e30, -1e30)


def _without_mask(trial: ObjectiveTrial) -> str | None:
    return None if trial.case.mask is not None else "no mask is named"


def _one_row(trial: ObjectiveTrial) -> str | None:
    assert trial.case.mask is not None
    return "the mask has one row only" if trial.case.inputs[trial.case.mask].size == 1 else None


def _without_fixed(trial: ObjectiveTrial) -> str | None:
    return None if trial.case.held_fixed else "no input is named as held fixed"


@law("the gradient of the total is its derivative: central differences along random directions")
def gradient(trial: ObjectiveTrial) -> None:
    """In all differentiated inputs together."""
    inputs = trial.inputs()
    at = trial.evaluate(inputs)
    for _ in range(DIRECTIONS):
        direction = trial.direction(inputs)
        ends = [
            trial.evaluate(
                {**inputs, **{n: inputs[n] + sign * STEP * v for n, v in direction.items()}}
            ).values["total"]
            for sign in (1, -1)
        ]
        want = (ends[0] - ends[1]) / (2 * STEP)
        # Not the product: 0 · ∞ is NaN, and at an impossible token's −inf only the gradient 0 is right.
        terms = [np.sum(at.gradients[n] * v) for n, v in direction.items()]
        got = sum(terms)
        allowed = 1e-6 * (
            1e-3 + np.abs(at.values["total"]) + np.abs(want) + max(map(np.abs, terms))
        )
        shown = {f"direction_of_{name}": value for name, value in direction.items()}
        trial.require(
            np.abs(got - want) <= allowed, "they differ", inputs, got=got, want=want, **shown
        )


@law(
    "a masked row has exactly no influence, whatever it holds, and no gradient",
    _without_mask,
    _one_row,
)
def masked_rows(trial: ObjectiveTrial) -> None:
    """NaN, ±∞ and huge numbers in masked rows leave every bit of value and gradient alone."""
    inputs, masked = trial.partly_masked(trial.inputs())
    want = trial.evaluate(inputs)
    _require_no_gradient(trial, inputs, want, masked)
    for garbage in GARBAGE:
        filled = _filled(trial, inputs, masked, garbage)
        got = trial.evaluate(filled)
        for name, value in want.values.items():
            claim = f"{name} moved with {garbage} in masked rows"
            found = got.values[name]
            trial.require(equal(found, value), claim, filled, got=found, want=value)
        for name, value in want.gradients.items():
            claim = f"gradient by {name} moved with {garbage} in masked rows"
            found = got.gradients[name]
            trial.require(equal(found, value), claim, filled, got=found, want=value)


def _filled(
    trial: ObjectiveTrial, inputs: Arrays, masked: np.ndarray, garbage: float
) -> dict[str, np.ndarray]:
    """The inputs with garbage in what masked rows hold; integers get an extreme one, as after a wrong cast."""
    filled = dict(inputs)
    for name in _of_rows(trial, inputs, masked):
        value = inputs[name].copy()
        if jnp.issubdtype(value.dtype, jnp.floating):
            value[masked] = garbage
        elif jnp.issubdtype(value.dtype, jnp.integer):
            value[masked] = np.iinfo(value.dtype).max if garbage > 0 else -100
        filled[name] = value
    return filled


def _of_rows(trial: ObjectiveTrial, inputs: Arrays, masked: np.ndarray) -> list[str]:
    rows = [name for name, x in inputs.items() if x.shape[: masked.ndim] == masked.shape]
    return [name for name in rows if name in trial.case.batched and name != trial.case.mask]


def _require_no_gradient(
    trial: ObjectiveTrial, inputs: Arrays, found: Evaluation, masked: np.ndarray
) -> None:
    for name in _of_rows(trial, inputs, masked):
        if name in found.gradients:
            slope = found.gradients[name][masked]
            claim = f"gradient by {name} in masked rows"
            trial.require(slope == 0, claim, inputs, got=slope)


@law("a batch with every row masked has loss 0, count 0 and gradient 0", _without_mask)
def all_masked(trial: ObjectiveTrial) -> None:
    """Also where its rows hold NaN, as padding may."""
    mask = trial.case.mask
    assert mask is not None
    inputs = trial.inputs()
    inputs[mask] = np.zeros_like(inputs[mask])
    masked = np.ones(inputs[mask].shape, bool)
    for one in (inputs, _filled(trial, inputs, masked, np.nan)):
        found = trial.evaluate(one)
        for name, value in found.values.items():
            trial.require(value == 0, name, one, got=value)
        for name, value in found.gradients.items():
            trial.require(value == 0, f"gradient by {name}", one, got=value)


@law("no gradient flows to what is held fixed", _without_fixed)
def held_fixed(trial: ObjectiveTrial) -> None:
    """Exactly zero, on the example and on it slightly moved."""
    inputs = trial.inputs()
    moved = {name: inputs[name] + 1e-2 * v for name, v in trial.direction(inputs).items()}
    for one in (inputs, {**inputs, **moved}):
        found = trial.evaluate(one)
        for name in trial.case.held_fixed:
            slope = found.gradients[name]
            trial.require(slope == 0, f"gradient by {name}", one, gradient=slope)


@law("neither the metrics nor the count carry a gradient")
def no_gradient_in_metrics(trial: ObjectiveTrial) -> None:
    """Exactly zero along a random direction of everything that has derivatives."""
    inputs = trial.inputs()
    active = {name: inputs[name] for name in gradient_names(trial.case)}
    along = {name: trial.rng.standard_normal(value.shape) for name, value in active.items()}
    values = functools.partial(_count_and_metrics, trial, inputs)
    _, slopes = jax.jvp(jax.jit(values), (active,), (along,))
    for name, slope in slopes.items():
        trial.require(np.asarray(slope == 0), f"derivative of {name}", inputs, got=slope)


def _count_and_metrics(trial: ObjectiveTrial, inputs: Arrays, active: Arrays) -> dict:
    values = call(trial.case, {**inputs, **active})
    return {name: value for name, value in values.items() if name != "total"}
