"""Any objective whose tokens know nothing of each other, from hidden states and heads: no form of its own is needed."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from divax.divergences import TopKCache
from divax.divergences.fused_linear import (
    Implementation,
    chosen_walk,
    common_vocabulary,
    make_plan,
)
from divax.divergences.linear_head import LinearLogits, linear_logits
from divax.divergences.token_walk import Operands
from divax.divergences.walk_gradients import one_shot, two_phase, weighted_sum
from divax.objectives.arguments import as_labels, live_weights
from divax.objectives.distillation_rows import DistillationObjective, DistillationRows
from divax.objectives.hidden_logits import CombinedLogits, HiddenLogits
from divax.objectives.hidden_rows import HiddenRows
from divax.objectives.reduction import Reduction, coefficients, each_token
from divax.objectives.weighted import Weighted

_Function = TypeVar("_Function", bound=Callable[..., Any])


def token_by_token(function: _Function) -> _Function:
    """Says of a function of logits that each token's loss and metrics are of its own row alone.

    An `OfLogits` of it is then taken from hidden states and heads where logits are many. The function has a keyword
    `reduction`, linear in the rows, and with `each_token` it returns losses and metrics of every token.

    Args:
        function: of `student_logits`, `teacher_logits`, `labels`, `mask` and `reduction`.

    Returns:
        The function itself.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax.objectives import OfLogits, token_by_token, token_mean
        >>> @token_by_token
        ... def squares(*, student_logits, teacher_logits, labels, mask, reduction=token_mean):
        ...     rows = jnp.sum((student_logits - teacher_logits) ** 2, -1)
        ...     return reduction(rows, mask), {}
        >>> OfLogits(squares).takes_hidden
        True
    """
    vars(function)["by_token"] = True
    return function


class _TokenObjective(DistillationObjective, Protocol):
    """An objective with a reduction that can be taken for another."""

    @property
    def reduction(self) -> Reduction: ...

    def reduced_by(self, reduction: Reduction, /) -> DistillationObjective: ...


def objective_from_hidden(
    objective: _TokenObjective,
    rows: HiddenRows,
    *,
    vocab_size: int | None = None,
    chunk: int | None = None,
    implementation: Implementation | None = None,
) -> tuple[Weighted, dict[str, Weighted]]:
    r"""An objective of tokens from hidden states and heads, its gradients formed while a chunk's logits are there.

    .. math:: \sum_t c_t\, l(s_t, t_t, y_t), \qquad s_t = h_t W

    with the coefficients of the objective's reduction, which must be linear in the losses. The objective is asked for the
    losses of a chunk of tokens, `[1, C, V]` logits at a time, so that three products with the student's head and one with
    each teacher's are all there are, where recomputing the logits (`jax.checkpoint`) takes four and two.

    Args:
        objective: by tokens; with `each_token` as its reduction it returns every token's loss and metrics.
        rows: states, heads, labels, mask.
        vocab_size: the tokenizer's size, where heads are padded.
        chunk: tokens at a time; None chooses.
        implementation: "reference" has all logits at once; "fast" and "lean" both are by chunks of tokens; None chooses.

    Returns:
        The loss and the metrics of the objective.

    Raises:
        ValueError: shapes or vocabularies that do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax.objectives import HiddenLogits, HiddenRows, LabelCrossEntropy, objective_from_hidden
        >>> student = HiddenLogits(hidden=jnp.eye(3), head=jnp.zeros((3, 4)))
        >>> rows = HiddenRows(
        ...     student=student, teacher=None, labels=jnp.array([0, 1, -100]), mask=jnp.ones(3)
        ... )
        >>> loss, _ = objective_from_hidden(LabelCrossEntropy(), rows, chunk=2, implementation="fast")
        >>> round(float(loss.mean()), 4)  # log 4
        1.3863

    Source: gradients in the forward pass of chunks: P. Hsu et al., "Liger Kernel: Efficient Triton Kernels for LLM
    Training", arXiv:2410.10989.
    """
    problem = _problem(rows, vocab_size or getattr(objective, "vocab_size", None))
    live = problem.live
    walk = chosen_walk(implementation, live.size, problem.vocab_size, None)
    if walk is None:
        return objective(rows.dense(problem.vocab_size))
    arrays, whole = array_parts(objective)
    of_chunk = functools.partial(_losses, whole)
    plan, operands = problem.planned(of_chunk, jax.lax.stop_gradient(arrays), None, chunk)
    found = one_shot(walk, plan, operands, coefficients(objective.reduction, live).reshape(-1))
    loss = Weighted(found.total, objective.reduction(jnp.zeros_like(live), live).count)
    metrics = {
        name: Weighted(weighted_sum(weights, values), jnp.sum(weights))
        for name, (values, weights) in found.extras.items()
    }
    return loss, metrics


def tokens_from_hidden(
    function: Callable[..., Any],
    rows: HiddenRows,
    *,
    per_token: Any = None,
    vocab_size: int | None = None,
    chunk: int | None = None,
    implementation: Implementation | None = None,
) -> Any:
    """What a function finds of every token, to be used in any way: its gradients take a second walk over the tokens.

    For objectives of whole completions, which are made of log-probs and divergences of their tokens.

    Args:
        function: of `DistillationRows` `[1, C]` without writers and of the same rows of `per_token`, to a pytree of
            `[1, C]`, each token by itself; it closes over no arrays.
        rows: states, heads, labels, mask.
        per_token: a pytree of `[B, T]`, without gradient.
        vocab_size: the tokenizer's size, where heads are padded.
        chunk: tokens at a time; None chooses.
        implementation: as in `objective_from_hidden`.

    Returns:
        The pytree of `[B, T]`, 0 where a token does not count.

    Raises:
        ValueError: shapes or vocabularies that do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax.objectives import HiddenLogits, HiddenRows, tokens_from_hidden
        >>> student = HiddenLogits(hidden=jnp.eye(3), head=jnp.eye(3))
        >>> rows = HiddenRows(
        ...     student=student, teacher=None, labels=jnp.array([0, 1, -100]), mask=jnp.ones(3)
        ... )
        >>> largest = lambda rows, _: rows.student_logits.max(-1)
        >>> tokens_from_hidden(largest, rows, chunk=2, implementation="fast").tolist()
        [1.0, 1.0, 0.0]
    """
    problem = _problem(rows, vocab_size)
    live = problem.live
    walk = chosen_walk(implementation, live.size, problem.vocab_size, None)
    held = jax.lax.stop_gradient(per_token)
    if walk is None:
        found = function(rows.dense(problem.vocab_size), held)
    else:
        plan, operands = problem.planned(functools.partial(_found, function), (), held, chunk)
        flat = two_phase(walk, plan, operands)
        found = jax.tree.map(lambda x: x.reshape(live.shape), flat)
    return jax.tree.map(lambda x: jnp.where(live != 0, x, 0), found)


class _Problem(NamedTuple):
    """Rows of states, checked.

    Attributes:
        rows: as they are.
        live: weights `[B, T]`.
        sides: teachers and student.
        vocab_size: that all have.
    """

    rows: HiddenRows
    live: jax.Array
    sides: tuple[LinearLogits, ...]
    vocab_size: int

    def planned(self, of_chunk, arrays: Any, per_token: Any, chunk: int | None):
        """A walk's plan and operands; `of_chunk` gets the arrays, the chunk's rows, and theirs of `per_token`."""
        rows, axes = self.rows, self.live.ndim
        combined = rows.teacher if isinstance(rows.teacher, CombinedLogits) else None
        cache = rows.teacher if isinstance(rows.teacher, TopKCache) else None
        shares = None if combined is None else combined.weights
        held = (rows.labels, rows.mask, rows.sampler_logps), cache, shares, per_token
        flat = jax.tree.map(lambda x: jnp.asarray(x).reshape(-1, *x.shape[axes:]), held)
        of_logits = functools.partial(_of_logits, of_chunk, combined)
        counts = self.live.reshape(-1) != 0
        plan = make_plan(of_logits, None, self.vocab_size, chunk, None)
        return plan, Operands(arrays, self.sides, flat, counts)


def _problem(rows: HiddenRows, vocab_size: int | None) -> _Problem:
    live = live_weights(rows.labels.shape, as_labels(rows.labels), rows.mask, "hidden")
    counts = live.reshape(-1) != 0
    sides = (*_teachers(rows, counts), _side(rows.student, "student", counts))
    size = common_vocabulary(sides, vocab_size)
    _check_combined(rows.teacher, size)
    return _Problem(rows, live, sides, size)


def _of_logits(of_chunk: Any, combined: Any, arrays: Any, logits: tuple[jax.Array, ...], held: Any):
    """Of a chunk, as one row of tokens."""
    known, cache, shares, per_token = held
    *teachers, student = logits
    teacher = cache if not teachers else teachers[0]
    if combined is not None:
        teacher = combined.of_parts(teachers, shares)
    row = jax.tree.map(lambda x: x[None], (student, teacher, *known))
    own = jax.tree.map(lambda x: x[None], per_token)
    return jax.tree.map(lambda x: x[0], of_chunk(arrays, DistillationRows(*row), own))


def _losses(whole: Any, arrays: Any, rows: DistillationRows, _: Any):
    """Losses and metrics of its tokens."""
    losses, metrics = whole(arrays).reduced_by(each_token)(rows)
    return losses.total, {name: (one.total, one.count) for name, one in metrics.items()}


def _found(function: Any, _: Any, rows: DistillationRows, per_token: Any):
    """What a function finds of its tokens."""
    return function(rows, per_token), None


def _check_combined(teacher: Any, size: int) -> None:
    if not isinstance(teacher, CombinedLogits):
        return
    teacher.check_weights()
    if teacher.sizes != {size}:
        found = ", ".join(str(one) for one in sorted(teacher.sizes))
        raise ValueError(
            f"several teachers are combined over all of their vocabularies, which must be the {size} tokens, got {found}:"
            f" pass vocab_size={size} where they are combined"
        )


def _teachers(rows: HiddenRows, counts: jax.Array) -> list[LinearLogits]:
    teacher = jax.lax.stop_gradient(rows.teacher)
    if isinstance(teacher, CombinedLogits):
        return [_side(part, "teacher", counts) for part in teacher.parts]
    return [_side(teacher, "teacher", counts)] if isinstance(teacher, HiddenLogits) else []


def _side(made: HiddenLogits, whose: str, counts: jax.Array) -> LinearLogits:
    return linear_logits(made.hidden, made.head, f"{whose}_hidden", f"{whose}_head", counts)


def array_parts(value: Any) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """The arrays of a value, and how to put it together again; everything else is a constant.

    Example:
        >>> import jax.numpy as jnp
        >>> arrays, whole = array_parts((jnp.ones(2), "word", 3.0))
        >>> len(arrays), whole([0])
        (1, (0, 'word', 3.0))
    """
    leaves, structure = jax.tree.flatten(value)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array | np.ndarray)]

    def whole(arrays):
        filled = list(leaves)
        for place, array in zip(places, arrays, strict=True):
            filled[place] = array
        return structure.unflatten(filled)

    return [leaves[place] for place in places], whole
