"""Laws of an objective's values: what it returns, sums over a split batch, order, compilation, half precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from divax.divergences.law import close, law
from divax.objectives.law import Arrays, ObjectiveTrial, call, near
from divax.objectives.weighted import Weighted


def _one_batch_row(trial: ObjectiveTrial) -> str | None:
    return None if trial.batch_size > 1 else "the example's batch has fewer than two rows"


@law("the loss is a Weighted of finite float32 scalars, count ≥ 0, and so is every metric")
def weighted(trial: ObjectiveTrial) -> None:
    """In single precision, as the objective will be used."""
    with jax.enable_x64(False):
        inputs = trial.inputs(np.float32)
        # Types are known without computing anything.
        jax.eval_shape(
            lambda inputs: _require_weighted(trial, trial.case.objective(**inputs)), inputs
        )
        for name, value in trial.evaluate(inputs).values.items():
            trial.require(np.isfinite(value), name, inputs, got=value)
            if name == "count" or name.endswith(".count"):
                trial.require(value >= 0, name, inputs, got=value)


def _require_weighted(trial: ObjectiveTrial, returned: Any) -> None:
    inputs = trial.inputs(np.float32)
    pair = isinstance(returned, tuple) and len(returned) == 2
    trial.require(pair, f"it returned {type(returned).__name__}, no (loss, metrics)", inputs)
    loss, metrics = returned
    mapping = isinstance(metrics, Mapping)
    trial.require(mapping, f"the metrics are {type(metrics).__name__}, no mapping", inputs)
    for name, one in {"the loss": loss, **metrics}.items():
        trial.require(isinstance(one, Weighted), f"{name} is {type(one).__name__}", inputs)
        for part in ("total", "count"):
            value = jnp.asarray(getattr(one, part))
            ok = value.shape == () and value.dtype == jnp.float32
            trial.require(ok, f"{part} of {name} is {value.dtype}{list(value.shape)}", inputs)


@law("jit changes no value")
def jit_equals_eager(trial: ObjectiveTrial) -> None:
    """Compiled against plain evaluation."""
    inputs = trial.inputs()
    got = trial.evaluate(inputs).values
    for name, want in call(trial.case, inputs).items():
        trial.require(near(got[name], want), name, inputs, got=got[name], want=want)


@law("totals and counts of the parts of a batch add up to those of the whole", _one_batch_row)
def additive(trial: ObjectiveTrial) -> None:
    """Over two halves, or single rows where their number is odd; each part has its rows' gradient."""
    inputs, size = trial.inputs(), trial.batch_size
    step = size // 2 if size % 2 == 0 else 1
    slices = [slice(at, at + step) for at in range(0, size, step)]
    whole = trial.evaluate(inputs)
    parts = [trial.evaluate(trial.with_batch(inputs, pick)) for pick in slices]
    for name, want in whole.values.items():
        got = sum(part.values[name] for part in parts)
        trial.require(near(got, want), f"{name} of the parts", inputs, got=got, want=want)
    for name, want in whole.gradients.items():
        found = [part.gradients[name] for part in parts]
        got = np.concatenate(found) if name in trial.case.batched else sum(found)
        claim = f"gradient by {name} of the parts"
        trial.require(near(got, want), claim, inputs, got=got, want=want)


@law("permuting the batch changes no value and permutes the gradient", _one_batch_row)
def permutation(trial: ObjectiveTrial) -> None:
    """One permutation of every batched input."""
    inputs = trial.inputs()
    order = np.roll(trial.rng.permutation(trial.batch_size), 1)
    moved = trial.with_batch(inputs, order)
    want, got = trial.evaluate(inputs), trial.evaluate(moved)
    _require_same(trial, moved, got, want.values, trial.with_batch(want.gradients, order), "order")


@law("vmap over stacked inputs is the objective of each")
def vmap(trial: ObjectiveTrial) -> None:
    """Three batches that differ in the order of their rows and, slightly, in what is differentiated."""
    inputs = trial.inputs()
    stack = []
    for turn in range(3):
        turned = trial.with_batch(inputs, np.roll(np.arange(trial.batch_size), turn))
        move = trial.direction(turned)
        stack.append({**turned, **{name: turned[name] + 1e-3 * move[name] for name in move}})
    for one, got in zip(stack, trial.evaluate_stack(stack), strict=True):
        want = trial.evaluate(one)
        _require_same(trial, one, got, want.values, want.gradients, "under vmap")


def _require_same(
    trial: ObjectiveTrial, inputs: Arrays, got: Any, values: Arrays, gradients: Arrays, claim: str
) -> None:
    for name, want in values.items():
        found = got.values[name]
        trial.require(near(found, want), f"{name} {claim}", inputs, got=found, want=want)
    for name, want in gradients.items():
        found = got.gradients[name]
        trial.require(
            near(found, want), f"gradient by {name} {claim}", inputs, got=found, want=want
        )


@law("bfloat16 inputs are upcast: the loss is float32, that of the same numbers in float32")
def half_precision(trial: ObjectiveTrial) -> None:
    """Every floating input with an axis, the mask aside."""
    with jax.enable_x64(False):
        rounded = trial.inputs(np.float32, halves=jnp.bfloat16)
        halves = trial.inputs(jnp.bfloat16)
        for name, value in rounded.items():
            if value.ndim == 0 or name == trial.case.mask:
                halves[name] = value
        got, want = trial.evaluate(halves), trial.evaluate(rounded)
        for part in ("total", "count"):
            found, wanted = got.values[part], want.values[part]
            trial.require(found.dtype == np.float32, f"the {part} is {found.dtype}", rounded)
            # Sums in another order cost a few float32 roundings; arithmetic in bfloat16 costs 1e-3.
            ok = close(found, wanted, 2e-5, 2e-5)
            trial.require(ok, f"{part} differs", rounded, got=found, want=wanted)
