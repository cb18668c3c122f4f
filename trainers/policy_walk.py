"""The loss of a policy whose tokens count by themselves, and its gradient in one walk over them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from divax.divergences import divergence as frozen_pytree
from divax.objectives import (
    AbstractRegularizer,
    AbstractSurrogate,
    Clipped,
    PolicyGradientMethod,
    PublishedPenalty,
    Regularizer,
    Reinforce,
    RpgClipped,
    TokenStatistics,
    Weighted,
    WeightedReinforce,
    policy_gradient,
    token_loss_and_statistics,
)
from divax.trainers.sharding import rows_over_devices
from divax.trainers.token_streams import TokenStreams, UnreadStreams, at_own_places


def by_token(method: PolicyGradientMethod) -> bool:
    """Whether a token's loss depends on no other token's log-prob.

    Example:
        >>> from divax import objectives
        >>> by_token(objectives.grpo()), by_token(objectives.gspo())
        (True, False)
    """
    known = isinstance(method.surrogate, Reinforce | WeightedReinforce | Clipped | RpgClipped)
    if not known or getattr(method.surrogate, "span", "token") != "token":
        return False
    penalty = None if method.penalty_in_credit else method.regularizer
    if penalty is None:
        return True
    own = isinstance(penalty, PublishedPenalty) or getattr(penalty, "level", None) == "token"
    return own and penalty.in_loss and isinstance(penalty, PublishedPenalty | Regularizer)


class Held(NamedTuple):
    """What is known of each token beside its log-prob now, `[B, T]` at the tokens' own places.

    Attributes:
        advantages: of `Credit`.
        penalty_weights: likewise.
        mask: which tokens count.
        old_logps: under the policy that drew them.
        reference_logps: under the reference, or None.
        sample_weights: the sampler's correction.

    Example:
        >>> Held._fields[:2]
        ('advantages', 'penalty_weights')
    """

    advantages: jax.Array
    penalty_weights: jax.Array
    mask: jax.Array
    old_logps: jax.Array
    reference_logps: jax.Array | None
    sample_weights: jax.Array


@frozen_pytree
class TokenRows:
    """`policy_gradient` of single tokens, before any reduction.

    Attributes:
        surrogate: of the advantages.
        regularizer: in the loss, or None.
        entropy_weight: of the entropies, or None where they do not count.
    """

    surrogate: AbstractSurrogate
    regularizer: AbstractRegularizer | None
    entropy_weight: Any

    def __call__(self, found: TokenStatistics, held: Held) -> jax.Array:
        """The losses `[C]`."""
        row = lambda x: None if x is None else x[None]  # noqa: E731
        bonus = {}
        if self.entropy_weight is not None:
            bonus = {"entropies": row(found.entropies), "entropy_weight": self.entropy_weight}
        loss, _ = policy_gradient(
            model_logps=row(found.log_probs),
            advantages=row(held.advantages),
            mask=row(held.mask),
            old_logps=row(held.old_logps),
            reference_logps=row(held.reference_logps),
            divergences=row(found.divergences),
            surrogate=self.surrogate,
            regularizer=self.regularizer,
            penalty_weights=row(held.penalty_weights),
            sample_weights=row(held.sample_weights),
            reduction=_as_they_are,
            **bonus,
        )
        return loss.total[0]


def _as_they_are(values: jax.Array, mask: jax.Array) -> Weighted:
    return Weighted(values, mask)


def loss_and_streams(
    method: PolicyGradientMethod,
    unread: UnreadStreams,
    held: Held,
    *,
    entropies: bool,
    mesh: Mesh | None = None,
) -> tuple[Weighted, TokenStreams]:
    """The method's loss, with its gradient, and the streams that it is made of, without.

    Args:
        method: one whose tokens count by themselves.
        unread: states and heads of the policy, and of the reference where the method needs divergences.
        held: what is known of the tokens.
        entropies: whether they are in the loss.
        mesh: over whose devices the rows are split.

    Returns:
        What `method.loss` of the streams is, and the streams.
    """
    rows = TokenRows(
        surrogate=method.surrogate,
        regularizer=None if method.penalty_in_credit else method.regularizer,
        entropy_weight=method.entropy_weight if entropies else None,
    )
    before = jax.tree.map(lambda x: jnp.roll(x, -1, axis=1), held)

    def of_rows(some, everywhere):
        (states, held), (whole, rows, reduction) = some, everywhere
        loss, found = token_loss_and_statistics(
            rows,
            per_token=held,
            mask=held.mask,
            reduction=reduction,
            **unread.arguments(states, whole),
        )
        return jax.tree.map(lambda x: x[None], loss), found

    everywhere = unread.whole, rows, method.reduction
    loss, found = rows_over_devices(of_rows, mesh, (unread.rows, before), everywhere)
    return jax.tree.map(lambda x: jnp.sum(x, 0), loss), at_own_places(found)
