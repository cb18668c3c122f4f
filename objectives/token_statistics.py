"""Log-probs, entropies and divergences to a reference of given tokens from hidden states, in one walk over them."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences import AbstractFDivergence, LinearHead, VocabularySharding
from divax.divergences.fused_linear import (
    Implementation,
    chosen_walk,
    common_vocabulary,
    dense_outputs,
    make_plan,
)
from divax.divergences.linear_head import linear_logits
from divax.divergences.token_walk import Operands, Plan
from divax.divergences.walk_gradients import Walk, one_shot, two_phase
from divax.objectives.arguments import as_labels, as_scalar, is_static, live_weights
from divax.objectives.reduction import Reduction, coefficients, token_mean
from divax.objectives.token_form import TokenForm, TokenStatistics, statistics_of_logits
from divax.objectives.weighted import Weighted

TokenLoss = Callable[[TokenStatistics, Any], jax.Array]
"""Statistics `[C]` and what else is known of the tokens, to losses `[C]`, token by token."""


def token_statistics(
    *,
    hidden: ArrayLike,
    head: ArrayLike | LinearHead,
    labels: ArrayLike,
    reference_hidden: ArrayLike | None = None,
    reference_head: ArrayLike | LinearHead | None = None,
    divergence: Any = None,
    temperature: ArrayLike = 1.0,
    vocab_size: int | None = None,
    chunk: int | None = None,
    vocab_chunk: int | None = None,
    implementation: Implementation | None = None,
    sharding: VocabularySharding | None = None,
) -> TokenStatistics:
    r"""Per token, the label's log-prob, the entropy, and a divergence from a reference, to be used in any way.

    .. math:: \log q_t(y_t), \quad H(q_t), \quad D(p_t, q_t), \qquad q_t = \mathrm{softmax}(h_t W / T)

    For losses whose derivative by a token's log-prob depends on other tokens (DPO, GSPO: on the whole sequence), so that
    the gradient takes a second walk, unless the head is frozen and the log-probs alone are used. Where it depends on the
    token alone, `token_loss` needs one.

    Args:
        hidden: `[..., H]`, the states before the head.
        head: `[H, V]` or a `LinearHead`.
        labels: integers `[...]`; where negative, everything is 0 and has no gradient.
        reference_hidden: `[..., H']`, with `divergence`; gets no gradient.
        reference_head: likewise.
        divergence: D, the reference first; None for none.
        temperature: T > 0 of both.
        vocab_size: the tokenizer's size, where a head is padded.
        chunk: tokens at a time; None chooses.
        vocab_chunk: tokens of the vocabulary at a time; None chooses.
        implementation: as in `divergences.fused_linear_rows`.
        sharding: of the heads over devices, likewise.

    Returns:
        `TokenStatistics` of `[...]`.

    Raises:
        ValueError: shapes that do not fit together, or a reference without a divergence.

    Example:
        >>> import jax.numpy as jnp
        >>> found = token_statistics(
        ...     hidden=jnp.ones((2, 3, 4)), head=jnp.zeros((4, 5)), labels=jnp.full((2, 3), 1)
        ... )
        >>> found.log_probs.shape, round(float(found.entropies[0, 0]), 4)  # log 5
        ((2, 3), 1.6094)
    """
    sides = (hidden, head), (reference_hidden, reference_head)
    options = (vocab_size, chunk, vocab_chunk, implementation, sharding)
    plan, operands, walk = _problem(sides, labels, None, divergence, temperature, None, options)
    rows = dense_outputs(plan, operands) if walk is None else two_phase(walk, plan, operands)
    shape = jnp.shape(labels)
    return jax.tree.map(lambda row: jnp.where(operands.live, row, 0).reshape(shape), rows)


def token_loss(
    loss: TokenLoss,
    *,
    hidden: ArrayLike,
    head: ArrayLike | LinearHead,
    labels: ArrayLike,
    mask: ArrayLike | None = None,
    per_token: Any = None,
    reference_hidden: ArrayLike | None = None,
    reference_head: ArrayLike | LinearHead | None = None,
    divergence: Any = None,
    temperature: ArrayLike = 1.0,
    reduction: Reduction = token_mean,
    vocab_size: int | None = None,
    chunk: int | None = None,
    vocab_chunk: int | None = None,
    implementation: Implementation | None = None,
    sharding: VocabularySharding | None = None,
) -> Weighted:
    r"""A loss of every token's own statistics, reduced, its gradients formed in one walk over the tokens.

    .. math:: \sum_t m_t\, \ell(\log q_t(y_t), H(q_t), D(p_t, q_t), x_t)

    Token-level policy gradients are such losses (PPO, GRPO, DAPO with any per-token penalty): three products with the
    head, none of them twice.

    Args:
        loss: ℓ, of `TokenStatistics` `[C]` and the same rows of `per_token`; a function that closes over no arrays, or a
            frozen pytree (a `jax.tree_util.Partial`) that holds them, which get no gradient.
        hidden: as in `token_statistics`.
        head: likewise.
        labels: integers `[...]`; rows with a negative one are masked.
        mask: weights `[...]`.
        per_token: x, a pytree of `[...]` (advantages, old log-probs, …), without gradient.
        reference_hidden: as in `token_statistics`.
        reference_head: likewise.
        divergence: likewise.
        temperature: likewise.
        reduction: linear in the values.
        vocab_size: likewise.
        chunk: likewise.
        vocab_chunk: likewise.
        implementation: as in `divergences.fused_linear`.
        sharding: likewise.

    Returns:
        The loss.

    Raises:
        ValueError: as `token_statistics`.

    Example:
        >>> import jax.numpy as jnp
        >>> surrogate = lambda found, advantages: -advantages * found.log_probs
        >>> loss = token_loss(
        ...     surrogate, hidden=jnp.ones((2, 3)), head=jnp.zeros((3, 5)), labels=jnp.zeros(2, int),
        ...     per_token=jnp.array([1.0, 3.0]), implementation="fast",
        ... )
        >>> round(float(loss.mean()), 4)  # 2 log 5
        3.2189
    """
    return token_loss_and_statistics(
        loss,
        hidden=hidden,
        head=head,
        labels=labels,
        mask=mask,
        per_token=per_token,
        reference_hidden=reference_hidden,
        reference_head=reference_head,
        divergence=divergence,
        temperature=temperature,
        reduction=reduction,
        vocab_size=vocab_size,
        chunk=chunk,
        vocab_chunk=vocab_chunk,
        implementation=implementation,
        sharding=sharding,
    )[0]


def token_loss_and_statistics(
    loss: TokenLoss,
    *,
    hidden: ArrayLike,
    head: ArrayLike | LinearHead,
    labels: ArrayLike,
    mask: ArrayLike | None = None,
    per_token: Any = None,
    reference_hidden: ArrayLike | None = None,
    reference_head: ArrayLike | LinearHead | None = None,
    divergence: Any = None,
    temperature: ArrayLike = 1.0,
    reduction: Reduction = token_mean,
    vocab_size: int | None = None,
    chunk: int | None = None,
    vocab_chunk: int | None = None,
    implementation: Implementation | None = None,
    sharding: VocabularySharding | None = None,
) -> tuple[Weighted, TokenStatistics]:
    """`token_loss`, and the statistics that the walk meets on its way, without gradient: for metrics.

    Args:
        loss: as in `token_loss`, like everything else.
        hidden: `[..., H]`.
        head: `[H, V]` or a `LinearHead`.
        labels: integers `[...]`.
        mask: weights `[...]`.
        per_token: a pytree of `[...]`.
        reference_hidden: `[..., H']`.
        reference_head: likewise.
        divergence: D.
        temperature: T.
        reduction: linear in the values.
        vocab_size: of the tokenizer.
        chunk: tokens at a time.
        vocab_chunk: tokens of the vocabulary at a time.
        implementation: as in `divergences.fused_linear`.
        sharding: likewise.

    Returns:
        The loss and `TokenStatistics` of `[...]`, 0 where the label is negative.

    Raises:
        ValueError: as `token_statistics`.

    Example:
        >>> import jax.numpy as jnp
        >>> loss, found = token_loss_and_statistics(
        ...     lambda found, _: -found.log_probs, hidden=jnp.ones((2, 3)), head=jnp.zeros((3, 5)),
        ...     labels=jnp.zeros(2, int), implementation="fast",
        ... )
        >>> bool(jnp.allclose(loss.total, -found.log_probs.sum()))
        True
    """
    ids = as_labels(labels)
    live = live_weights(ids.shape, ids, mask, "hidden")
    flat = jax.tree.map(lambda x: jnp.asarray(x).reshape(-1, *jnp.shape(x)[live.ndim :]), per_token)
    # What holds for the states holds for these: a row that does not count may hold NaN.
    flat = jax.tree.map(lambda x: _silenced(x, live.reshape(-1) != 0), flat)
    sides = (hidden, head), (reference_hidden, reference_head)
    options = (vocab_size, chunk, vocab_chunk, implementation, sharding)
    labels = jnp.where(live != 0, ids, -1)
    loss = jax.lax.stop_gradient(_as_pytree(loss))
    plan, operands, walk = _problem(sides, labels, flat, divergence, temperature, loss, options)
    if walk is None:
        params = (*operands.params[:2], None)
        found = dense_outputs(plan, operands._replace(params=params))
        total = reduction(loss(found, flat).reshape(live.shape), live)
    else:
        sums, _, found = one_shot(walk, plan, operands, coefficients(reduction, live).reshape(-1))
        total = Weighted(sums, reduction(jnp.zeros_like(live), live).count)
    found = jax.lax.stop_gradient(found)
    own = jax.tree.map(lambda row: jnp.where(operands.live, row, 0).reshape(live.shape), found)
    return total, own


def _as_pytree(loss: TokenLoss) -> Any:
    """The loss; a plain function has no arrays inside."""
    known = dataclasses.is_dataclass(loss) or isinstance(loss, jax.tree_util.Partial)
    return loss if known else jax.tree_util.Partial(loss)


def _silenced(x: jax.Array, counts: jax.Array) -> jax.Array:
    return jnp.where(counts.reshape(-1, *(1,) * (x.ndim - 1)), x, jnp.zeros((), x.dtype))


def _problem(
    sides: Any,
    labels: ArrayLike,
    per_token: Any,
    divergence: Any,
    temperature: ArrayLike,
    loss: Any,
    options: tuple[Any, ...],
) -> tuple[Plan, Operands, Walk | None]:
    (hidden, head), (reference_hidden, reference_head) = sides
    vocab_size, chunk, vocab_chunk, implementation, sharding = options
    hidden, ids = jnp.asarray(hidden), as_labels(labels)
    if ids.shape != hidden.shape[:-1]:
        raise ValueError(f"labels must be {hidden.shape[:-1]}, one per state, got {ids.shape}")
    flat = ids.reshape(-1)
    live = flat >= 0
    models = (linear_logits(hidden, head, "hidden", "head", live),)
    if (divergence is None) != (reference_hidden is None) or (divergence is None) != (
        reference_head is None
    ):
        raise ValueError(
            "divergence, reference_hidden and reference_head come together, or none of them"
        )
    if divergence is not None:
        reference = jnp.asarray(reference_hidden)
        if reference.shape[:-1] != ids.shape:
            raise ValueError(f"reference_hidden must be {ids.shape} states, got {reference.shape}")
        held = jax.lax.stop_gradient((reference, reference_head))
        models = (linear_logits(*held, "reference_hidden", "reference_head", live), *models)
    size = common_vocabulary(models, vocab_size)
    plain = is_static(temperature) and temperature == 1
    params = (divergence, None if plain else as_scalar(temperature, "temperature"), loss)
    full = all(side.bias is None for side in models)
    known = divergence is None or isinstance(divergence, AbstractFDivergence)
    form = functools.partial(_form, full) if known else None
    plan = make_plan(_outputs, form, size, chunk, vocab_chunk)
    operands = Operands(params, models, (flat, per_token), live)
    return plan, operands, chosen_walk(implementation, flat.size, size, sharding)


def _form(full: bool, params: Any) -> TokenForm:
    divergence, temperature, loss = params
    return TokenForm(divergence=divergence, temperature=temperature, loss=loss, full=full)


def _outputs(params: Any, logits: tuple[jax.Array, ...], rows: Any):
    found, loss = statistics_of_logits(params, logits, rows), params[2]
    return (found, None) if loss is None else (loss(found, rows[1]), found)
