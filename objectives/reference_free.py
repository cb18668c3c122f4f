"""Losses of pairs that need no reference policy: CPO, SimPO, AlphaPO, ORPO, MaPO.

Without a reference only the log-probs themselves are left, so none of these regularises by a
divergence, and none takes one.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.objectives.arguments import is_static
from divax.objectives.margin_losses import Logistic
from divax.objectives.pair_loss import AbstractPairLoss
from divax.objectives.pair_mean import pair_mean
from divax.objectives.pairs import check_shape, floats, silence
from divax.objectives.preference import preference
from divax.objectives.preference_metrics import reward_values
from divax.objectives.weighted import Weighted

_LOGISTIC = Logistic()


def cpo(
    *,
    chosen_logps: ArrayLike,
    rejected_logps: ArrayLike,
    chosen_lengths: ArrayLike,
    loss: AbstractPairLoss = _LOGISTIC,
    beta: ArrayLike = 0.1,
    label_probs: ArrayLike | None = None,
    nll_weight: ArrayLike = 1.0,
    weights: ArrayLike | None = None,
) -> tuple[Weighted, dict[str, Weighted]]:
    r"""Contrastive preference optimisation: DPO without reference, and likelihood of the chosen.

    .. math:: L = E[\ell(\beta (\log\pi(y_w) - \log\pi(y_l)))] + c\,\mathrm{NLL}(y_w)

    Args:
        chosen_logps: `[B]`, summed over the completion's tokens.
        rejected_logps: `[B]`.
        chosen_lengths: `[B]`, tokens: the likelihood is a mean over the tokens of the batch.
        loss: of the margin.
        beta: `> 0`.
        label_probs: as in `preference`.
        nll_weight: `c`; with 0 the minimiser is proportional to `exp(reward/beta)`.
        weights: `[B]`.

    Returns:
        The loss (count 1: a sum of two means), and the metrics of `preference` and `nll`.

    Raises:
        ValueError: arrays that are not `[B]`, or a `beta` that is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> loss, _ = cpo(
        ...     chosen_logps=jnp.array([-6.0]), rejected_logps=jnp.array([-6.0]),
        ...     chosen_lengths=jnp.array([3]),
        ... )
        >>> round(float(loss.mean()), 4)  # log 2 + 6/3
        2.6931

    Source: H. Xu et al., "Contrastive Preference Optimization: Pushing the Boundaries of LLM
    Performance in Machine Translation", arXiv:2401.08417, eq. 5.
    """
    ranking, metrics = preference(
        chosen_logps=chosen_logps,
        rejected_logps=rejected_logps,
        loss=loss,
        beta=beta,
        label_probs=label_probs,
        weights=weights,
    )
    nll = token_nll(chosen_logps, chosen_lengths, weights)
    total = ranking.mean() + jnp.asarray(nll_weight, nll.total.dtype) * nll.mean()
    metrics["nll"] = jax.lax.stop_gradient(nll)
    return Weighted(total, jnp.ones_like(total)), metrics


def simpo(
    *,
    chosen_logps: ArrayLike,
    rejected_logps: ArrayLike,
    chosen_lengths: ArrayLike,
    rejected_lengths: ArrayLike,
    beta: ArrayLike = 2.0,
    target_margin: ArrayLike = 0.5,
    alpha: ArrayLike = 0.0,
    weights: ArrayLike | None = None,
) -> tuple[Weighted, dict[str, Weighted]]:
    r"""SimPO, and AlphaPO: the mean log-prob of a token as reward, and a margin to exceed.

    .. math::
        l = \mathrm{softplus}(\gamma - \beta [r_\alpha(y_w) - r_\alpha(y_l)]), \qquad
        r_\alpha = \frac{1 - e^{-\alpha m}}{\alpha}, \quad m = \frac{\log\pi(y)}{|y|}

    and `r_0 = m`, which is SimPO. Formed by `expm1`, so that no `alpha` underflows.

    Args:
        chosen_logps: `[B]`, summed over the completion's tokens.
        rejected_logps: `[B]`.
        chosen_lengths: `[B]`, tokens; an empty completion counts as one token long.
        rejected_lengths: `[B]`.
        beta: `> 0`; 2 to 2.5 in the paper.
        target_margin: `gamma`, in units of reward.
        alpha: AlphaPO's; may be traced.
        weights: `[B]`.

    Returns:
        The loss, a mean over pairs, and metrics: rewards, margins, accuracies (a tie is half).

    Raises:
        ValueError: arrays that are not `[B]`, or a `beta` that is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> loss, _ = simpo(
        ...     chosen_logps=jnp.array([-6.0]), rejected_logps=jnp.array([-4.0]),
        ...     chosen_lengths=jnp.array([3]), rejected_lengths=jnp.array([2]), target_margin=0.0,
        ... )
        >>> round(float(loss.mean()), 4)
        0.6931

    Source: Y. Meng, M. Xia, D. Chen, "SimPO: Simple Preference Optimization with a Reference-Free
    Reward", arXiv:2405.14734, eq. 6; A. Gupta et al., "AlphaPO: Reward Shape Matters for LLM
    Alignment", arXiv:2501.03884.
    """
    if is_static(beta) and not beta > 0:
        raise ValueError(f"beta={beta} must be positive")
    chosen, rejected, live = _token_means(
        chosen_logps, rejected_logps, chosen_lengths, rejected_lengths, weights
    )
    beta, alpha = jnp.asarray(beta, chosen.dtype), jnp.asarray(alpha, chosen.dtype)
    rewards = beta * _alpha_reward(chosen, alpha), beta * _alpha_reward(rejected, alpha)
    margin = rewards[0] - rewards[1]
    rows = jax.nn.softplus(jnp.asarray(target_margin, margin.dtype) - margin)
    return pair_mean(rows, live), _metrics(*rewards, live)


def orpo(
    *,
    chosen_logps: ArrayLike,
    rejected_logps: ArrayLike,
    chosen_lengths: ArrayLike,
    rejected_lengths: ArrayLike,
    odds_weight: ArrayLike = 0.1,
    weights: ArrayLike | None = None,
) -> tuple[Weighted, dict[str, Weighted]]:
    r"""Odds-ratio preference optimisation: likelihood of the chosen, and the ratio of two odds.

    .. math::
        L = \mathrm{NLL}(y_w) + \lambda\,E\Big[\mathrm{softplus}\Big(
            -\log\frac{P_w}{1-P_w} + \log\frac{P_l}{1-P_l}\Big)\Big], \quad
        \log P = \frac{\log\pi(y)}{|y|}

    Args:
        chosen_logps: `[B]`, summed over the completion's tokens.
        rejected_logps: `[B]`.
        chosen_lengths: `[B]`, tokens; an empty completion counts as one token long.
        rejected_lengths: `[B]`.
        odds_weight: `lambda`.
        weights: `[B]`.

    Returns:
        The loss (count 1: a sum of two means), and metrics: the log-odds as rewards, and `nll`.

    Raises:
        ValueError: arrays that are not `[B]`.

    Example:
        >>> import jax.numpy as jnp
        >>> loss, _ = orpo(
        ...     chosen_logps=jnp.array([-6.0]), rejected_logps=jnp.array([-4.0]),
        ...     chosen_lengths=jnp.array([3]), rejected_lengths=jnp.array([2]),
        ... )
        >>> round(float(loss.mean()), 4)  # 2 + 0.1 log 2
        2.0693

    Source: J. Hong, N. Lee, J. Thorne, "ORPO: Monolithic Preference Optimization without Reference
    Model", arXiv:2403.07691, eq. 6-7.
    """
    chosen, rejected, live = _token_means(
        chosen_logps, rejected_logps, chosen_lengths, rejected_lengths, weights
    )
    odds = _log_odds(chosen), _log_odds(rejected)
    ratio = pair_mean(jax.nn.softplus(odds[1] - odds[0]), live)
    nll = token_nll(chosen_logps, chosen_lengths, weights)
    total = nll.mean() + jnp.asarray(odds_weight, ratio.total.dtype) * ratio.mean()
    metrics = _metrics(*odds, live) | {"nll": jax.lax.stop_gradient(nll)}
    return Weighted(total, jnp.ones_like(total)), metrics


def mapo(
    *,
    chosen_losses: ArrayLike,
    rejected_losses: ArrayLike,
    margin_weight: ArrayLike = 0.1,
    signal_to_noise: ArrayLike = 0.5,
    steps: ArrayLike = 1000.0,
    weights: ArrayLike | None = None,
) -> tuple[Weighted, dict[str, Weighted]]:
    r"""Margin-aware preference optimisation of models whose likelihood is a squared error.

    .. math::
        L = E[L_w] - \beta\,E[\log\sigma(T(\phi(L_w) - \phi(L_l)))], \qquad
        \phi(L) = \frac{aL}{e^{aL} - 1}

    Args:
        chosen_losses: `[B]`, the denoising error of the chosen sample, `>= 0`.
        rejected_losses: `[B]`.
        margin_weight: `beta`.
        signal_to_noise: `a`.
        steps: `T`, of the diffusion that was trained.
        weights: `[B]`.

    Returns:
        The loss, a mean over pairs, and metrics: `phi` of both as rewards.

    Raises:
        ValueError: arrays that are not `[B]`.

    Example:
        >>> import jax.numpy as jnp
        >>> loss, _ = mapo(chosen_losses=jnp.array([0.2]), rejected_losses=jnp.array([0.2]))
        >>> round(float(loss.mean()), 4)  # 0.2 + 0.1 log 2
        0.2693

    Source: J. Hong et al., "Margin-aware Preference Optimization for Aligning Diffusion Models
    without Reference", arXiv:2406.06424.
    """
    chosen, rejected, live = _pair(chosen_losses, rejected_losses, weights, "losses")
    scale = jnp.asarray(signal_to_noise, chosen.dtype)
    likely = _decay(scale * chosen), _decay(scale * rejected)
    margin = jnp.asarray(steps, chosen.dtype) * (likely[0] - likely[1])
    rows = chosen + jnp.asarray(margin_weight, chosen.dtype) * jax.nn.softplus(-margin)
    return pair_mean(rows, live), _metrics(*likely, live)


def token_nll(logps: ArrayLike, lengths: ArrayLike, weights: ArrayLike | None = None) -> Weighted:
    """Negative log-likelihood per token over all the completions of a batch: the SFT term.

    Args:
        logps: `[B]`, summed over each completion's tokens.
        lengths: `[B]`, their numbers of tokens.
        weights: `[B]`.

    Returns:
        Total and count of tokens: a long completion weighs more than a short one.

    Raises:
        ValueError: arrays of different shapes.

    Example:
        >>> import jax.numpy as jnp
        >>> float(token_nll(jnp.array([-6.0, -2.0]), jnp.array([3, 1])).mean())
        2.0
    """
    summed = floats(logps, "logps")
    live = jnp.ones_like(summed) if weights is None else floats(weights, "weights")
    tokens = floats(lengths, "lengths")
    check_shape(live, "weights", summed)
    check_shape(tokens, "lengths", summed)
    return Weighted(
        total=-jnp.sum(live * silence(summed, live)), count=jnp.sum(live * silence(tokens, live))
    )


def _pair(chosen, rejected, weights, what: str):
    chosen, rejected = floats(chosen, f"chosen_{what}"), floats(rejected, f"rejected_{what}")
    if chosen.ndim != 1:
        raise ValueError(f"chosen_{what} must be [B], one number per pair, got {chosen.shape}")
    live = jnp.ones_like(chosen) if weights is None else floats(weights, "weights")
    check_shape(rejected, f"rejected_{what}", chosen)
    check_shape(live, "weights", chosen)
    return silence(chosen, live), silence(rejected, live), live


def _token_means(chosen, rejected, chosen_lengths, rejected_lengths, weights):
    chosen, rejected, live = _pair(chosen, rejected, weights, "logps")
    means = []
    for logps, lengths, name in (
        (chosen, chosen_lengths, "chosen_lengths"),
        (rejected, rejected_lengths, "rejected_lengths"),
    ):
        tokens = floats(lengths, name)
        check_shape(tokens, name, chosen)
        means.append(logps / jnp.maximum(silence(tokens, live), 1))
    return *means, live


def _alpha_reward(mean: jax.Array, alpha: jax.Array) -> jax.Array:
    """`(1 - exp(-alpha m))/alpha`, and m at alpha = 0; linear where the exponent exceeds 40."""
    small = jnp.abs(alpha) < 1e-4
    safe = jnp.where(small, 1, alpha)
    series = mean * (1 - 0.5 * alpha * mean)
    exponent = -safe * mean
    inner = jnp.minimum(exponent, 40)
    shaped = jnp.expm1(inner) + jnp.exp(inner) * (exponent - inner)
    return jnp.where(small, series, -shaped / safe)


def _log_odds(log_prob: jax.Array) -> jax.Array:
    """`log(P/(1-P))` for log P <= 0, finite with a finite gradient up to P = 1."""
    # Where P rounds to 1 the odds are those of the nearest smaller float.
    below = jnp.minimum(log_prob, -jnp.finfo(log_prob.dtype).eps)
    near = below > -jnp.log(2.0)
    # Each branch is given only what it is accurate for, so that neither makes a NaN of the other.
    by_expm1 = jnp.log(-jnp.expm1(jnp.where(near, below, -1)))
    by_log1p = jnp.log1p(-jnp.exp(jnp.where(near, -1, below)))
    return below - jnp.where(near, by_expm1, by_log1p)


def _decay(x: jax.Array) -> jax.Array:
    """`x/(e^x - 1)`, 1 at 0."""
    small = jnp.abs(x) < 1e-4
    safe = jnp.where(small, 1, x)
    return jnp.where(small, 1 - 0.5 * x, safe / jnp.expm1(safe))


def _metrics(chosen: jax.Array, rejected: jax.Array, live: jax.Array) -> dict[str, Weighted]:
    chosen, rejected = jax.lax.stop_gradient((chosen, rejected))
    return {name: pair_mean(value, live) for name, value in reward_values(chosen, rejected).items()}
