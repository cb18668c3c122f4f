"""What the objectives on teacher's logits share: rows that are checked, silenced, softened, split."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from divax.divergences import log_softmax
from divax.divergences.kept_rule import differentiated_as
from divax.objectives.arguments import (
    as_labels,
    as_scalar,
    check_logits,
    is_static,
    live_weights,
    silence_rows,
)
from divax.objectives.reduction import Reduction, of_metrics
from divax.objectives.vocabulary import equal_vocabularies
from divax.objectives.weighted import Weighted


class LogitRows(NamedTuple):
    """Two models on the same rows; zeros wherever the row's weight is 0.

    Attributes:
        student: `[..., V]`, float32 or better.
        teacher: the same, without gradient.
        labels: `[...]` int32; 0 wherever there is none.
        live: weights `[...]`.
    """

    student: jax.Array
    teacher: jax.Array
    labels: jax.Array
    live: jax.Array


def logit_rows(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    labels: ArrayLike | None,
    mask: ArrayLike | None,
    vocab_size: int | None,
) -> LogitRows:
    """Checks the arrays of a student and its teacher, and takes out whatever does not count.

    Raises:
        ValueError: a shape or a vocabulary does not match.
        TypeError: logits are not floating, or labels not integers.
    """
    student = floating_logits(student_logits, "student_logits")
    teacher = floating_logits(teacher_logits, "teacher_logits")
    check_same_rows(teacher, "teacher_logits", student)
    student, teacher = equal_vocabularies(student, jax.lax.stop_gradient(teacher), vocab_size)
    ids = None if labels is None else as_labels(labels)
    live = live_weights(student.shape[:-1], ids, mask, "student_logits")
    silent = jnp.zeros(live.shape, jnp.int32) if ids is None else jnp.maximum(ids, 0)
    return LogitRows(silence_rows(student, live), silence_rows(teacher, live), silent, live)


def floating_logits(logits: ArrayLike, name: str) -> jax.Array:
    """Logits in float32 or better."""
    array = jnp.asarray(logits)
    check_logits(array, name)
    return array.astype(jnp.result_type(float))


def check_same_rows(logits: jax.Array, name: str, student: jax.Array) -> None:
    """Every model has seen the same rows."""
    if logits.shape[:-1] != student.shape[:-1]:
        raise ValueError(
            f"student_logits {student.shape} and {name} {logits.shape} must agree in every axis "
            "but the last: run both models on the same rows"
        )


def check_two_classes(logits: jax.Array, objective: str) -> None:
    """There is a class beside the label."""
    if logits.shape[-1] < 2:
        raise ValueError(f"{objective} needs at least two classes, got one")


def positive(value: ArrayLike, name: str) -> jax.Array:
    """A positive scalar, checked where it is a plain number."""
    if is_static(value) and not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")
    return as_scalar(value, name)


def weight(value: ArrayLike, name: str) -> jax.Array:
    """A weight >= 0, checked where it is a plain number."""
    if is_static(value) and not 0 <= value < math.inf:
        raise ValueError(f"{name} must be at least 0 and finite, got {value}")
    return as_scalar(value, name)


def weigh(weight: jax.Array, rows: jax.Array) -> jax.Array:
    """`weight * rows`, 0 where the weight is 0 and the row infinite."""
    return weight * jnp.where((weight == 0) & jnp.isinf(rows), 0, rows)


def soften(logits: jax.Array, temperature: jax.Array) -> jax.Array:
    """`logits / T`, where the gradient with respect to T is 0 and not NaN at -inf logits."""
    return _soften(None, logits, temperature)


@jax.custom_jvp
def _divided(logits: jax.Array, temperature: jax.Array) -> jax.Array:
    # Nothing but the division: a comparison beside it, a GPU would write down.
    return logits / temperature


@differentiated_as(lambda _, *operands: _divided(*operands))
def _soften(_: None, logits: jax.Array, temperature: jax.Array) -> jax.Array:
    return logits / temperature


@functools.partial(_divided.defjvp, symbolic_zeros=True)
def _soften_jvp(primals, tangents):
    logits, temperature = primals
    softened, (dot, temperature_dot) = soften(logits, temperature), tangents
    tangent = jnp.zeros_like(softened)
    if not isinstance(dot, SymbolicZero):
        tangent += dot / temperature
    if not isinstance(temperature_dot, SymbolicZero):
        slope = jnp.where(logits == -jnp.inf, 0, logits) / temperature**2
        tangent -= slope * temperature_dot
    return softened, tangent


def is_label(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Where `[..., V]` is the label's own class."""
    ids = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    return ids == labels[..., None]


def others(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The logits `[..., V]` without the label's, in whose place is -inf."""
    return jnp.where(is_label(logits, labels), -jnp.inf, logits)


def label_or_not(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Logits `[..., 2]` of the label's class and of all others together."""
    picked = jnp.sum(jnp.where(is_label(logits, labels), logits, 0), -1)
    picked = jnp.where(labels < logits.shape[-1], picked, -jnp.inf)
    return jnp.stack([picked, jax.nn.logsumexp(others(logits, labels), axis=-1)], axis=-1)


def soft_cross_entropy(probs: jax.Array, logits: jax.Array) -> jax.Array:
    """`-sum_c p_c log softmax(logits)_c` per row; a class of `p_c = 0` counts for nothing."""
    log_probs = log_softmax(logits)
    return -jnp.sum(probs * jnp.where(probs > 0, log_probs, 0), axis=-1)


def token_means(
    rows: dict[str, jax.Array], live: jax.Array, reduction: Reduction
) -> dict[str, Weighted]:
    """Metrics beside a loss of that reduction: means over the rows that count, without gradient."""
    mean = of_metrics(reduction)
    return {name: mean(jax.lax.stop_gradient(row), live) for name, row in rows.items()}
