"""`ObjectiveCase`: an objective, inputs to try it on, and what each of them is."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ObjectiveCase:
    """An objective with example inputs, as `check_objective` tries it.

    The inputs are a small batch, the batch on the first axis, on which the loss is finite and smooth: some hundred
    numbers are plenty. A value that is no array (a divergence, a reduction, a flag) is bound by `functools.partial`.

    Attributes:
        objective: called with the inputs as keyword arguments; returns `(Weighted, metrics)`.
        inputs: arrays by name; lists and numbers become arrays.
        differentiated: the name or names of the inputs that are trained, `[B, ...]` or of any other shape.
        mask: the name of the weights of rows, `[B]` or `[B, T]`, or None where there are none. Inputs whose leading
            axes are the mask's hold a masked row's content.
        held_fixed: the name or names of floating inputs to which no gradient may flow, such as a teacher's logits.
        batched: the inputs that have the batch axis; empty for those whose first axis is as long as the mask's (or
            that of the first differentiated one).
        known_exceptions: laws that the objective is not meant to obey, by name, each with the reason, such as
            `{"gradient": "a surrogate: only its gradient means something"}`.
        name: for messages; by default the objective's own.

    Raises:
        ValueError: a name that is not among the inputs (the nearest is offered), nothing differentiated, a mask that
            counts nothing, or batched inputs whose first axes differ.
        TypeError: an input that is no array, or a differentiated or fixed one that is not floating.

    Example:
        >>> import numpy as np
        >>> from divax import objectives
        >>> case = objectives.ObjectiveCase(
        ...     objective=objectives.cross_entropy,
        ...     inputs=dict(logits=np.zeros((2, 3, 4)), labels=np.ones((2, 3), int), mask=np.ones((2, 3))),
        ...     differentiated="logits", mask="mask",
        ... )
        >>> case.name, sorted(case.batched)
        ('cross_entropy', ['labels', 'logits', 'mask'])
    """

    objective: Callable[..., tuple[Any, Any]]
    inputs: Mapping[str, Any]
    differentiated: tuple[str, ...] | str
    mask: str | None = None
    held_fixed: tuple[str, ...] | str = ()
    batched: tuple[str, ...] = ()
    known_exceptions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    name: str = ""

    def __post_init__(self):
        inputs = {name: _as_array(name, value) for name, value in self.inputs.items()}
        trained, fixed = _names(self.differentiated), _names(self.held_fixed)
        mask = () if self.mask is None else (self.mask,)
        for name in (*trained, *fixed, *mask, *self.batched):
            _check_known(name, inputs)
        if not trained:
            raise ValueError("differentiated names no input: there is no gradient to check")
        for name in (*trained, *fixed):
            if not jnp.issubdtype(inputs[name].dtype, jnp.floating):
                raise TypeError(f"{name} has no gradient: it is {inputs[name].dtype}")
        if self.mask is not None and not np.any(inputs[self.mask]):
            raise ValueError(f"{self.mask} counts no row: there is nothing to check")
        values = {
            "inputs": MappingProxyType(inputs),
            "differentiated": trained,
            "held_fixed": fixed,
            "batched": _batched(inputs, self.mask or trained[0], self.batched),
            "name": self.name or _name_of(self.objective),
        }
        for field, value in values.items():
            object.__setattr__(self, field, value)


def _names(names: tuple[str, ...] | str) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _as_array(name: str, value: Any) -> np.ndarray:
    array = np.asarray(value)
    if not any(jnp.issubdtype(array.dtype, kind) for kind in (jnp.number, jnp.bool_)):
        raise TypeError(
            f"{name} must be an array of numbers, got {type(value).__name__}; bind anything else with functools.partial"
        )
    return array


def _check_known(name: str, inputs: Mapping[str, np.ndarray]) -> None:
    if name not in inputs:
        near = difflib.get_close_matches(name, inputs, n=3, cutoff=0.0)
        raise ValueError(f"{name!r} is not among the inputs; did you mean {', '.join(near)}?")


def _batched(
    inputs: Mapping[str, np.ndarray], leader: str, named: tuple[str, ...]
) -> tuple[str, ...]:
    sizes = {name: value.shape[0] for name, value in inputs.items() if value.ndim}
    if not named:
        return tuple(name for name, size in sizes.items() if size == sizes.get(leader))
    different = {sizes.get(name, 0) for name in named}
    if len(different) > 1:
        raise ValueError(f"batched inputs need one length of the first axis, got {different}")
    return named


def _name_of(objective: Any) -> str:
    # functools.partial has the function that it binds in `func`.
    inner = getattr(objective, "func", objective)
    return getattr(inner, "__name__", type(inner).__name__)
