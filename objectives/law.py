"""How one law is tried on one objective: its inputs and their variants, its evaluations and its verdict."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from divax.divergences.law import AbstractTrial, Law
from divax.objectives.case import ObjectiveCase

Arrays = Mapping[str, np.ndarray]


class Evaluation(NamedTuple):
    """What an objective returned, as NumPy arrays.

    Attributes:
        values: the loss's total and count, and the leaves of the metrics, by name.
        gradients: of the total, by the differentiated and the fixed inputs, by name.
    """

    values: dict[str, Any]
    gradients: dict[str, Any]


def call(case: ObjectiveCase, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The loss's total and count, and the leaves of the metrics, by name."""
    loss, metrics = case.objective(**inputs)
    leaves = jax.tree_util.tree_leaves_with_path(metrics)
    named = {f"metrics{jax.tree_util.keystr(at)}": leaf for at, leaf in leaves}
    return {"total": loss.total, "count": loss.count, **named}


def gradient_names(case: ObjectiveCase) -> tuple[str, ...]:
    """The inputs by which derivatives are taken."""
    return tuple(dict.fromkeys((*case.differentiated, *case.held_fixed)))


def evaluate(case: ObjectiveCase, inputs: Mapping[str, Any]) -> Evaluation:
    """Values and gradients, for arrays or tracers."""
    active = {name: inputs[name] for name in gradient_names(case)}

    def total(active):
        values = call(case, {**inputs, **active})
        return values["total"], values

    gradients, values = jax.grad(total, has_aux=True)(active)
    return Evaluation(values, gradients)


_evaluate_compiled = jax.jit(evaluate, static_argnums=0)
_evaluate_stack = jax.jit(
    lambda case, inputs: jax.vmap(functools.partial(evaluate, case))(inputs), static_argnums=0
)


class ObjectiveTrial(AbstractTrial):
    """One law tried on one objective; floating inputs are in double precision unless said otherwise.

    Attributes:
        case: the objective on trial.
    """

    def __init__(self, of: Law, case: ObjectiveCase, seed: int):
        super().__init__(of, seed)
        self.case = case

    @property
    def subject(self) -> str:
        """The objective's name."""
        return self.case.name

    @property
    def batch_size(self) -> int:
        """Length of the batch axis; 0 if no input has one."""
        return self.case.inputs[self.case.batched[0]].shape[0] if self.case.batched else 0

    def inputs(self, dtype: Any = np.float64, halves: Any = None) -> dict[str, np.ndarray]:
        """The example, its floating inputs in `dtype`; those that are rows, the mask aside, rounded to `halves`."""

        def convert(name: str, value: np.ndarray) -> np.ndarray:
            if not jnp.issubdtype(value.dtype, jnp.floating):
                return value
            rounded = halves is not None and value.ndim and name != self.case.mask
            return value.astype(halves).astype(dtype) if rounded else value.astype(dtype)

        return {name: convert(name, value) for name, value in self.case.inputs.items()}

    def evaluate(self, inputs: Arrays) -> Evaluation:
        """Values and gradients, compiled once per set of shapes."""
        return _to_numpy(_evaluate_compiled(self.case, dict(inputs)))

    def evaluate_stack(self, stack: list[Arrays]) -> list[Evaluation]:
        """The same for several sets of inputs at once, under `vmap`."""
        stacked = {name: np.stack([inputs[name] for inputs in stack]) for name in stack[0]}
        found = _to_numpy(_evaluate_stack(self.case, stacked))
        return [jax.tree.map(lambda x, i=i: x[i], found) for i in range(len(stack))]

    def with_batch(self, inputs: Arrays, pick: Any) -> dict[str, np.ndarray]:
        """The inputs with the batch axis indexed by `pick`."""
        return {
            name: value[pick] if name in self.case.batched else value
            for name, value in inputs.items()
        }

    def partly_masked(self, inputs: Arrays) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The inputs with about a third of the rows masked besides those that are, never all; and which are."""
        assert self.case.mask is not None
        mask = inputs[self.case.mask].copy()
        live = np.argwhere(mask)
        dropped = self.rng.permutation(live)[: max(1, len(live) // 3)]
        if len(live) > 1:
            mask[tuple(dropped.T)] = 0
        return {**inputs, self.case.mask: mask}, np.asarray(mask == 0)

    def direction(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Normal numbers for every differentiated input, 0 where that is infinite."""
        return {
            name: np.where(
                np.isfinite(inputs[name]), self.rng.standard_normal(inputs[name].shape), 0
            )
            for name in self.case.differentiated
        }

    def require(self, ok: Any, claim: str, inputs: Arrays, **shown: Any) -> None:
        """Counts the cases and raises `BrokenLaw` unless all are ok.

        Args:
            ok: boolean, any shape.
            claim: what should have held, for the message.
            inputs: those of the objective, shown whole.
            **shown: what to show besides, first.
        """
        ok = np.asarray(ok)
        self.cases += ok.size
        if not ok.all():
            shown = {name: np.asarray(value) for name, value in shown.items()}
            raise self.broken(claim, {**shown, **inputs})


def _to_numpy(found: Evaluation) -> Evaluation:
    return jax.tree.map(np.asarray, found)


def equal(got: Any, want: Any) -> np.ndarray:
    """The same bits up to the sign of zero, NaN included."""
    got, want = np.asarray(got), np.asarray(want)
    return (got == want) | ((got != got) & (want != want))


def near(got: Any, want: Any) -> np.ndarray:
    """Equal up to the rounding of float64 sums in another order; equal infinities are near, NaN is not."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    finite = np.abs(want[np.isfinite(want)])
    return np.isclose(got, want, rtol=1e-9, atol=1e-10 * max(1.0, finite.max(initial=0.0)))
