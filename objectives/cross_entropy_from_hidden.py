"""Cross-entropy from hidden states and a head: the logits never exist for all tokens at once."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences import LinearHead, VocabularySharding
from divax.divergences.fused_linear import (
    Implementation,
    chosen_walk,
    common_vocabulary,
    make_plan,
)
from divax.divergences.linear_head import linear_logits
from divax.divergences.most_likely import most_likely
from divax.divergences.token_walk import Operands
from divax.divergences.walk_gradients import one_shot
from divax.objectives.arguments import as_labels, live_weights
from divax.objectives.cross_entropy import cross_entropy, cross_entropy_rows
from divax.objectives.label_form import LabelForm
from divax.objectives.reduction import Reduction, coefficients, token_mean
from divax.objectives.weighted import Weighted


def cross_entropy_from_hidden(
    *,
    hidden: ArrayLike,
    head: ArrayLike | LinearHead,
    labels: ArrayLike,
    mask: ArrayLike | None = None,
    vocab_size: int | None = None,
    reduction: Reduction = token_mean,
    chunk: int | None = None,
    vocab_chunk: int | None = None,
    implementation: Implementation | None = None,
    sharding: VocabularySharding | None = None,
) -> tuple[Weighted, dict[str, Weighted]]:
    r"""`cross_entropy` of `hidden @ head`, its gradients formed in one walk over the tokens.

    .. math:: l = -\log \mathrm{softmax}(h W)_y

    Three products with the head, none of them twice; `objectives.token_loss` is the same of other functions of a label's
    log-prob, without the accuracy.

    Args:
        hidden: `[..., H]`, the states before the head.
        head: `[H, V]` or a `LinearHead`.
        labels: integers `[...]`; rows with a negative one (-100 by convention) are masked.
        mask: weights `[...]`; where it is 0, neither the loss nor its gradient depends on the row.
        vocab_size: the tokenizer's size, where the head is padded.
        reduction: rows and mask to a `Weighted`, linear in the rows.
        chunk: tokens at a time; None chooses.
        vocab_chunk: tokens of the vocabulary at a time; None chooses.
        implementation: "reference", "fast", "lean" or None, as in `divergences.fused_linear`.
        sharding: of the head over devices, likewise.

    Returns:
        The loss, and the metric `"accuracy"`.

    Raises:
        ValueError: as `cross_entropy` and `divergences.fused_linear`.
        TypeError: likewise.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax.objectives import cross_entropy, cross_entropy_from_hidden
        >>> states, labels = jnp.eye(3), jnp.array([0, 2, -100])
        >>> loss, metrics = cross_entropy_from_hidden(
        ...     hidden=states, head=jnp.eye(3), labels=labels, chunk=2, implementation="fast"
        ... )
        >>> dense, _ = cross_entropy(logits=states, labels=labels)
        >>> round(float(loss.mean() - dense.mean()), 5), float(metrics["accuracy"].mean())
        (0.0, 0.5)

    Source: the loss without its logits, E. Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models",
    arXiv:2411.09009.
    """
    states, ids = jnp.asarray(hidden), as_labels(labels)
    live = live_weights(states.shape[:-1], ids, mask, "hidden")
    counts = live.reshape(-1) != 0
    side = linear_logits(states, head, "hidden", "head", counts)
    size = common_vocabulary((side,), vocab_size)
    walk = chosen_walk(implementation, live.size, size, sharding)
    if walk is None:
        rows = side.rows_at(0, live.size, counts)
        logits = rows.capped(rows.raw())[:, :size].reshape(*live.shape, size)
        return cross_entropy(logits=logits, labels=ids, mask=live, reduction=reduction)
    plan = make_plan(_rows, lambda params: LabelForm(), size, chunk, vocab_chunk)
    operands = Operands((), (side,), ids.reshape(-1), counts)
    total, _, extras = one_shot(walk, plan, operands, coefficients(reduction, live).reshape(-1))
    loss = Weighted(total=total, count=reduction(jnp.zeros_like(live), live).count)
    return loss, {"accuracy": token_mean(extras["accuracy"], live.reshape(-1))}


def _rows(params: Any, logits: tuple[jax.Array, ...], labels: jax.Array):
    """Loss and metric of a chunk, where its form does not serve: for derivatives by a cap."""
    rows = cross_entropy_rows(logits[0], labels)
    return rows, {"accuracy": (most_likely(logits[0]) == labels).astype(rows.dtype)}
