"""Measures of a classifier, alone and against its teacher, as sums that merge over batches."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from divax.objectives import token_mean
from divax.trainers.evaluation import comparison_sums, prediction_sums
from divax.trainers.examples import Examples
from divax.trainers.model import Model
from divax.trainers.two_heads import main_logits


def classifier_sums(logits: jax.Array, examples: Examples) -> dict[str, Any]:
    r"""The sums of `prediction_sums`, and that of `brier`.

    The Brier score is :math:`\sum_c (q_c - 1_{c=y})^2`, in [0, 2].

    Args:
        logits: `[B, V]`.
        examples: their labels and mask.

    Example:
        >>> import jax.numpy as jnp
        >>> examples = Examples(inputs=jnp.zeros((2, 1)), labels=jnp.array([0, -100]))
        >>> sums = classifier_sums(jnp.zeros((2, 4)), examples)
        >>> float(sums["brier"].mean()), float(sums["brier"].count)  # (3/4)² + 3 (1/4)²
        (0.75, 1.0)
    """
    labels, mask = examples.targets()
    live = jnp.where((mask != 0)[:, None], logits, 0).astype(jnp.result_type(float))
    onehot = jax.nn.one_hot(labels, live.shape[-1], dtype=live.dtype)
    brier = jnp.sum(jnp.square(jax.nn.softmax(live) - onehot), axis=-1)
    return {**prediction_sums(logits, examples), "brier": token_mean(brier, mask)}


def evaluation_sums(student: Model) -> Callable[..., dict[str, Any]]:
    """What a trainer of classifiers sums up over an evaluation batch.

    Args:
        student: the model; of two heads the main one is measured.

    Returns:
        `(state, examples, teacher=None, frozen=None) -> sums`; without a teacher those of
        `classifier_sums` alone, with one those of `comparison_sums` and the teacher's own as well.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax.trainers.state import TrainState
        >>> linear = Model(init=lambda key: jnp.eye(2), apply=lambda w, x: x @ w)
        >>> state = TrainState(jnp.eye(2), None, None, None)
        >>> examples = Examples(inputs=jnp.eye(2), labels=jnp.array([0, 1]))
        >>> sorted(evaluation_sums(linear)(state, examples))
        ['accuracy', 'brier', 'calibration', 'nll']
    """

    def sums(state, examples, teacher=None, frozen=None):
        del frozen
        logits = main_logits(student.apply(state.params, examples.inputs))
        found = classifier_sums(logits, examples)
        if teacher is None:
            return found
        held = teacher.given(state.params, state.opt_state)(examples)
        of_teacher = {"teacher": classifier_sums(held, examples)}
        return {**found, **comparison_sums(logits, held, examples), **of_teacher}

    return sums
