"""Any objective whose tokens know nothing of each other, from hidden states and heads: no form of its own is needed."""

import functools
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

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
from divax.divergences.walk_gradients import one_shot, weighted_sum
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
        >>> OfLogits(squares).by_token
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
        >>> from divax.objectives import HiddenLogits, HiddenRows, OfLogits, dkd, objective_from_hidden
        >>> student, teacher = (HiddenLogits(hidden=k * jnp.eye(3), head=jnp.eye(3)) for k in (1.0, 2.0))
        >>> rows = HiddenRows(
        ...     student=student, teacher=teacher, labels=jnp.array([0, 1, -100]), mask=jnp.ones(3)
        ... )
        >>> loss, _ = objective_from_hidden(OfLogits(dkd), rows, chunk=2, implementation="fast")
        >>> dense, _ = OfLogits(dkd)(rows.dense())
        >>> round(float(loss.mean() - dense.mean()), 5)
        0.0

    Source: gradients in the forward pass of chunks: P. Hsu et al., "Liger Kernel: Efficient Triton Kernels for LLM
    Training", arXiv:2410.10989.
    """
    lead = rows.labels.shape
    live = live_weights(lead, as_labels(rows.labels), rows.mask, "hidden")
    counts = live.reshape(-1) != 0
    combined = rows.teacher if isinstance(rows.teacher, CombinedLogits) else None
    sides = (*_teachers(rows, counts), _side(rows.student, "student", counts))
    wanted = vocab_size or getattr(objective, "vocab_size", None)
    size = common_vocabulary(sides, wanted)
    _check_combined(combined, size)
    walk = chosen_walk(implementation, live.size, size, None)
    if walk is None:
        return objective(rows.dense(size))
    known = (rows.labels, rows.mask, rows.sampler_logps)
    cache = rows.teacher if isinstance(rows.teacher, TopKCache) else None
    shares = None if combined is None else combined.weights
    flat = jax.tree.map(
        lambda x: jnp.asarray(x).reshape(-1, *x.shape[len(lead) :]), (known, cache, shares)
    )
    arrays, whole = array_parts(objective)
    plan = make_plan(functools.partial(_tokens, whole, combined), None, size, chunk, None)
    operands = Operands(jax.lax.stop_gradient(arrays), sides, flat, counts)
    found = one_shot(walk, plan, operands, coefficients(objective.reduction, live).reshape(-1))
    loss = Weighted(found.total, objective.reduction(jnp.zeros_like(live), live).count)
    metrics = {
        name: Weighted(weighted_sum(weights, values), jnp.sum(weights))
        for name, (values, weights) in found.extras.items()
    }
    return loss, metrics


def _tokens(whole: Any, combined: Any, arrays: Any, logits: tuple[jax.Array, ...], rows: Any):
    """Losses and metrics of a chunk."""
    (labels, mask, sampler_logps), cache, shares = rows
    *teachers, student = logits
    teacher = cache if not teachers else teachers[0]
    if combined is not None:
        teacher = combined.of_parts(teachers, shares)
    chunk = jax.tree.map(lambda x: x[None], (student, teacher, labels, mask, sampler_logps))
    losses, metrics = whole(arrays).reduced_by(each_token)(DistillationRows(*chunk))
    extras = {name: (one.total[0], one.count[0]) for name, one in metrics.items()}
    return losses.total[0], extras


def _check_combined(combined: CombinedLogits | None, size: int) -> None:
    if combined is not None and any(part.vocab_size != size for part in combined.parts):
        found = ", ".join(str(part.vocab_size) for part in combined.parts)
        raise ValueError(
            f"several teachers are combined over all of their vocabularies, which must be the {size} tokens, got {found}:"
            " cut their heads, or combine their logits"
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
