"""One reward from several reward models, and what choosing the best of n samples does to a policy."""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.objectives.pairs import floats


def worst_case_reward(rewards: ArrayLike) -> jax.Array:
    """The least reward that any model of the ensemble gives: worst-case optimisation.

    Args:
        rewards: `[K, ...]`, of K models.

    Raises:
        ValueError: no model, or shapes that do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> float(worst_case_reward(jnp.array([1.0, 3.0])))
        1.0

    Source: T. Coste et al., "Reward Model Ensembles Help Mitigate Overoptimization",
    arXiv:2310.02743, eq. 3.
    """
    return jnp.min(_ensemble(rewards), axis=0)


def uncertainty_weighted_reward(rewards: ArrayLike, penalty: ArrayLike = 0.5) -> jax.Array:
    """The mean less `penalty` times the variance between the models.

    With penalty 0 it is the mean of the ensemble.

    Args:
        rewards: `[K, ...]`, of K models.
        penalty: `>= 0`; the variance is the population's, divided by K.

    Raises:
        ValueError: no model, or shapes that do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> float(uncertainty_weighted_reward(jnp.array([1.0, 3.0])))
        1.5

    Source: as `worst_case_reward`, eq. 4.
    """
    rewards = _ensemble(rewards)
    return jnp.mean(rewards, 0) - jnp.asarray(penalty, rewards.dtype) * jnp.var(rewards, 0)


def best_of_n(log_probs: ArrayLike, rewards: ArrayLike, n: int) -> jax.Array:
    r"""Log-probs of the policy that draws n completions and keeps the one with the highest reward.

    .. math:: \pi_n(y) = F(y)^n - F(y^-)^n

    with F the distribution function of the base policy in the order of the rewards. Completions
    of equal reward share what falls to them in proportion to their base probabilities.

    Args:
        log_probs: `[V]`, of the base policy; `-inf` is impossible.
        rewards: `[V]`.
        n: at least 1.

    Returns:
        `[V]`, normalised. A divergence to the base policy is then exact:
        `dv.ReverseKL()(log_probs, best_of_n(log_probs, rewards, n))`.

    Raises:
        ValueError: n is below 1, or the shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> policy = best_of_n(jnp.log(jnp.array([0.5, 0.5])), jnp.array([0.0, 1.0]), 2)
        >>> [round(float(p), 4) for p in jnp.exp(policy)]
        [0.25, 0.75]
    """
    base, rewards = floats(log_probs, "log_probs"), floats(rewards, "rewards")
    if base.ndim != 1 or rewards.shape != base.shape:
        raise ValueError(
            f"log_probs and rewards must both be [V], got {base.shape} and {rewards.shape}"
        )
    if n < 1:
        raise ValueError(f"n={n} must be at least 1")
    base = jax.nn.log_softmax(base)
    below = jnp.where(rewards[None] < rewards[:, None], base[None], -jnp.inf)
    tied = jnp.where(rewards[None] == rewards[:, None], base[None], -jnp.inf)
    # F^n - F_-^n = tie * sum_k F^{n-1-k} F_-^k; its logarithm is formed without a difference.
    log_below, log_tied = jax.nn.logsumexp(below, -1), jax.nn.logsumexp(tied, -1)
    log_upto = jnp.logaddexp(log_below, log_tied)
    possible = jnp.isfinite(base)
    ratio = jnp.where(possible & jnp.isfinite(log_below), log_below - log_upto, -jnp.inf)
    # 1 - x^n with x = F_-/F, by expm1 where x is close to one.
    power = jnp.where(jnp.isfinite(ratio), n * ratio, -1)
    rest = jnp.where(jnp.isfinite(ratio), jnp.log(-jnp.expm1(jnp.minimum(power, -1e-38))), 0)
    won = n * jnp.where(possible, log_upto, 0) + rest
    share = jnp.where(possible, base - jnp.where(possible, log_tied, 0), 0)
    return jnp.where(possible, won + share, -jnp.inf)


def best_of_n_kl(n: int) -> float:
    r"""`log n - (n-1)/n`: KL(best-of-n || base) if no two completions tie, and a bound if they do.

    Example:
        >>> round(best_of_n_kl(4), 4)
        0.6363

    Source: A. Beirami et al., "Theoretical Guarantees on the Best-of-n Alignment Policy",
    arXiv:2401.01879, theorem 1: for a discrete policy it is an upper bound, not the value.
    """
    if n < 1:
        raise ValueError(f"n={n} must be at least 1")
    return math.log(n) - (n - 1) / n


def _ensemble(rewards: ArrayLike) -> jax.Array:
    rewards = floats(rewards, "rewards")
    if rewards.ndim == 0 or rewards.shape[0] == 0:
        raise ValueError(f"rewards must be [K, ...] of K models, got shape {rewards.shape}")
    return rewards
