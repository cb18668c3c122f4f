"""Unlearning without a retain set: push two kinds of answers apart as far as a divergence sees."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences import AbstractDivergence, AbstractFDivergence, TotalVariation, f_gan_bound
from divax.objectives.pairs import check_shape, floats, silence
from divax.objectives.weighted import Weighted

_TOTAL_VARIATION = TotalVariation()


def flat(
    *,
    good_logps: ArrayLike,
    forget_logps: ArrayLike,
    good_mask: ArrayLike,
    forget_mask: ArrayLike,
    divergence: AbstractDivergence = _TOTAL_VARIATION,
    weights: ArrayLike | None = None,
) -> tuple[Weighted, dict[str, Weighted]]:
    r"""FLAT: minus a variational bound of D(good, forget), with the answers' likelihoods as critic.

    .. math:: L = -E_\mathrm{good}[T(P)] + E_\mathrm{forget}[f^*(T(P))], \qquad
        P = \frac{1}{|y|}\sum_t \pi(y_t|y_{<t})

    P is the mean probability of a token, not of its logarithm. For total variation
    `T(P) = tanh(P)/2`, as in the reference implementation; for every other divergence
    `T(P) = f'(e^P)`, which is inside the domain of f* for any P and any generator.

    Args:
        good_logps: `[B, T]`, token log-probs of a template answer.
        forget_logps: `[B, T']`, of the answer to forget.
        good_mask: `[B, T]`, the answer's tokens; the others do not enter the mean.
        forget_mask: `[B, T']`.
        divergence: any f-divergence.
        weights: `[B]`.

    Returns:
        The loss (count 1: a bound over the batch), and the two mean probabilities.

    Raises:
        TypeError: a divergence that is no f-divergence.
        ValueError: arrays that are not `[B, T]`, or rows that differ in number.

    Example:
        >>> import jax.numpy as jnp
        >>> logps = jnp.log(jnp.full((1, 2), 0.5))
        >>> loss, metrics = flat(
        ...     good_logps=logps, forget_logps=logps, good_mask=jnp.ones((1, 2)),
        ...     forget_mask=jnp.ones((1, 2)),
        ... )
        >>> float(loss.mean()), float(metrics["forget"].mean())
        (0.0, 0.5)

    Source: Y. Wang et al., "LLM Unlearning via Loss Adjustment with Only Forget Data",
    arXiv:2410.11143.
    """
    if not isinstance(divergence, AbstractFDivergence):
        raise TypeError(f"divergence must be an f-divergence, got {divergence!r}")
    good, forget = _likelihood(good_logps, good_mask), _likelihood(forget_logps, forget_mask)
    check_shape(forget, "the rows of forget_logps", good)
    live = jnp.ones_like(good) if weights is None else floats(weights, "weights")
    check_shape(live, "weights", good)
    good, forget = silence(good, live), silence(forget, live)
    count = jnp.sum(live)
    safe = jnp.where(count > 0, live, jnp.ones_like(live))
    if isinstance(divergence, TotalVariation):
        # Its f' has a jump and no activation; on [-1/2, 1/2] its conjugate is the identity.
        gap = 0.5 * (jnp.tanh(good) - jnp.tanh(forget))
        bound = jnp.sum(safe * gap) / jnp.sum(safe)
    else:
        bound = f_gan_bound(
            divergence,
            target_critic=good,
            model_critic=forget,
            target_weights=safe,
            model_weights=safe,
        )
    value = 0 - jnp.where(count > 0, bound, 0)
    metrics = {
        name: Weighted(jnp.sum(live * jax.lax.stop_gradient(mean)), count)
        for name, mean in (("good", good), ("forget", forget))
    }
    return Weighted(value, jnp.ones_like(value)), metrics


def _likelihood(logps: ArrayLike, mask: ArrayLike) -> jax.Array:
    tokens, live = floats(logps, "token log-probs"), floats(mask, "mask")
    if tokens.ndim != 2:
        raise ValueError(f"token log-probs must be [B, T], got shape {tokens.shape}")
    check_shape(live, "mask", tokens)
    probs = jnp.where(live != 0, jnp.exp(silence(tokens, live)), 0)
    return jnp.sum(live * probs, -1) / jnp.maximum(jnp.sum(live, -1), 1)
