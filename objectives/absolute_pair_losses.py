"""Losses of a pair that read each completion's reward by itself, and so are for the reverse KL only.

With `r = beta log(policy/reference)`; `w` and `l` the rates at which a completion is seen as winner
and as loser, and nothing tying the rewards of different completions together, least at

| class | loss | least at |
|---|---|---|
| `NcaPair` | `sp(-r_w) + sp(r_w)/2 + sp(r_l)/2`, `sp` = softplus | `log(2w/(w+l))` |
| `BcoPair(anchor)` | `sp(a - r_w) + sp(r_l - a)` | `a + log(w/l)` |
| `SppoHard` | `((r_w - 1/2)/beta)^2 + ((r_l + 1/2)/beta)^2` | `(w-l)/(w+l)/2` |
| `ApoZero` | `sigmoid(-r_w) + sigmoid(r_l)` | nowhere: it saturates |
| `ApoDown` | `sigmoid(r_w) + sigmoid(r_l - r_w)` | nowhere: it saturates |
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences import divergence as frozen_pytree
from divax.objectives.pair_loss import AbstractPairLoss


class AbstractAbsolutePairLoss(AbstractPairLoss):
    """Loss of the two rewards `beta s` of a pair, not only of their difference.

    The unknown constant of a reward that f-DPO identifies does not cancel here; it is zero in
    expectation for the reverse KL alone, so `preference` refuses these with other divergences.

    Example:
        >>> from divax.objectives import NcaPair
        >>> NcaPair().of_margin_only
        False
    """

    @property
    def of_margin_only(self) -> bool:
        """False."""
        return False


def _rewards(chosen: ArrayLike, rejected: ArrayLike, beta: ArrayLike):
    dtype = jnp.result_type(float)
    beta = jnp.asarray(beta, dtype)
    return beta * jnp.asarray(chosen, dtype), beta * jnp.asarray(rejected, dtype)


@frozen_pytree
class NcaPair(AbstractAbsolutePairLoss):
    """Noise-contrastive alignment of a pair: keeps the chosen reward itself from falling.

    Example:
        >>> round(float(NcaPair().rows(0.0, 0.0, 0.1)), 4)  # 2 log 2
        1.3863

    Source: H. Chen et al., "Noise Contrastive Alignment of Language Models with Explicit
    Rewards", arXiv:2402.05369.
    """

    def rows(self, chosen: ArrayLike, rejected: ArrayLike, beta: ArrayLike) -> jax.Array:
        """The loss of each pair."""
        win, lose = _rewards(chosen, rejected, beta)
        half = 0.5 * (jax.nn.softplus(win) + jax.nn.softplus(lose))
        return jax.nn.softplus(-win) + half


@frozen_pytree
class BcoPair(AbstractAbsolutePairLoss):
    """A binary classifier of chosen against rejected with the reward, shifted, as its logit.

    Attributes:
        anchor: the shift, a number without gradient; published as the running mean of all
            rewards. `unpaired_bco` computes it from the batch.

    Example:
        >>> round(float(BcoPair().rows(0.0, 0.0, 0.1)), 4)  # 2 log 2
        1.3863

    Source: S. Jung et al., "Binary Classifier Optimization for Large Language Model Alignment",
    arXiv:2404.04656.
    """

    anchor: ArrayLike = 0.0

    def rows(self, chosen: ArrayLike, rejected: ArrayLike, beta: ArrayLike) -> jax.Array:
        """The loss of each pair."""
        win, lose = _rewards(chosen, rejected, beta)
        anchor = jax.lax.stop_gradient(jnp.asarray(self.anchor, win.dtype))
        return jax.nn.softplus(anchor - win) + jax.nn.softplus(lose - anchor)


@frozen_pytree
class SppoHard(AbstractAbsolutePairLoss):
    """Self-play preference optimisation with hard wins: each log-ratio regressed on +-1/(2 beta).

    Example:
        >>> round(float(SppoHard().rows(0.0, 0.0, 1.0)), 4)
        0.5

    Source: Y. Wu et al., "Self-Play Preference Optimization for Language Model Alignment",
    arXiv:2405.00675 (with eta = 1/beta).
    """

    def rows(self, chosen: ArrayLike, rejected: ArrayLike, beta: ArrayLike) -> jax.Array:
        """The loss of each pair."""
        win, lose = _rewards(chosen, rejected, beta)
        return (((win - 0.5) ** 2) + (lose + 0.5) ** 2) / jnp.asarray(beta, win.dtype) ** 2


@frozen_pytree
class ApoZero(AbstractAbsolutePairLoss):
    """Anchored preference optimisation: chosen up, rejected down, each against the reference.

    Example:
        >>> float(ApoZero().rows(0.0, 0.0, 0.1))
        1.0

    Source: K. D'Oosterlinck et al., "Anchored Preference Optimization and Contrastive Revisions",
    arXiv:2408.06266.
    """

    def rows(self, chosen: ArrayLike, rejected: ArrayLike, beta: ArrayLike) -> jax.Array:
        """The loss of each pair."""
        win, lose = _rewards(chosen, rejected, beta)
        return jax.nn.sigmoid(-win) + jax.nn.sigmoid(lose)


@frozen_pytree
class ApoDown(AbstractAbsolutePairLoss):
    """Anchored preference optimisation where the reference beats both: chosen down, rejected more.

    Example:
        >>> float(ApoDown().rows(0.0, 0.0, 0.1))
        1.0

    Source: as `ApoZero`.
    """

    def rows(self, chosen: ArrayLike, rejected: ArrayLike, beta: ArrayLike) -> jax.Array:
        """The loss of each pair."""
        win, lose = _rewards(chosen, rejected, beta)
        return jax.nn.sigmoid(win) + jax.nn.sigmoid(lose - win)
