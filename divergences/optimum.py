"""The best policy under a divergence penalty: argmax of E[reward] − β·D, for any f-divergence, differentiable."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences.base import AbstractDivergence
from divax.divergences.f_divergence import AbstractFDivergence
from divax.divergences.monotone import increasing_root
from divax.divergences.numerics import Scalar
from divax.divergences.rows import log_softmax

# Below this share of the link's supremum its inverse is continued as a power law: the distance to the supremum,
# formed by subtraction, would keep too few digits.
_TAIL = {jnp.dtype("float32"): 1e-5, jnp.dtype("float64"): 1e-11}


class RegularizedOptimum(NamedTuple):
    """Solution of max over policies of E[reward] − β·D(reference, policy).

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> best = dv.regularized_argmax(jnp.array([1.0, 0.0]), jnp.zeros(2), dv.ReverseKL(), 1.0)
        >>> round(float(best.value), 6)  # log of the mean of e^1 and e^0
        0.620115

    Attributes:
        log_probs: of the policy, `[..., V]`, normalised; −inf where the optimum puts exactly nothing.
        multiplier: λ, `[...]`: reward = β·link(log policy/reference) + λ wherever the policy has mass.
        value: the maximum, `[...]`; its gradient by the rewards is the policy.
    """

    log_probs: jax.Array
    multiplier: jax.Array
    value: jax.Array


def regularized_argmax(
    rewards: ArrayLike,
    reference_logits: ArrayLike,
    divergence: AbstractDivergence,
    beta: Scalar,
) -> RegularizedOptimum:
    """Max over policies q of Σ q·reward − β·D(p, q), with p the reference: what f-regularised RL and f-DPO aim at.

    The optimum is q = p·exp(link⁻¹((reward − λ)/β)) with λ such that Σ q = 1. The unknown is not λ, which float32 cannot
    resolve where the link is bounded, but the logarithm of the distance of the best token's score to the link's
    supremum (of one plus the score itself, where the link is unbounded). It is bracketed, hence found for any input,
    and never differentiated: derivatives of the first order in rewards, reference, β and the divergence's
    hyper-parameters come from the implicit function theorem, for the value from Danskin's. The second order is not right.

    Args:
        rewards: `[..., V]`; −inf forbids a token.
        reference_logits: `[..., V]`; the policy stays within the reference's support.
        divergence: an f-divergence with a strictly convex generator; `reverse_kl` is the one of RLHF and DPO.
        beta: β > 0, a number or a traced scalar.

    Returns:
        The optimum, float32 (float64 if an input is float64). A row in which no token is possible has log-probs −inf
        and multiplier and value 0.

    Raises:
        TypeError: not a divergence, or not an f-divergence.
        ValueError: a generator with a kink; β that is not positive; shapes that do not broadcast.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> rewards, reference = jnp.array([1.0, 0.5, 0.0]), jnp.log(jnp.array([0.2, 0.3, 0.5]))
        >>> best = dv.regularized_argmax(rewards, reference, dv.ReverseChi2(), 0.1)
        >>> [round(float(p), 4) for p in jnp.exp(best.log_probs)]  # sparse: the last token is ruled out
        [0.7, 0.3, 0.0]
        >>> slope = jax.grad(lambda r: dv.regularized_argmax(r, reference, dv.ReverseChi2(), 0.1).value)(rewards)
        >>> [round(float(p), 4) for p in slope]
        [0.7, 0.3, 0.0]

    Source: C. Wang et al., "Beyond Reverse KL: Generalizing Direct Preference Optimization with Diverse Divergence
    Constraints", arXiv:2309.16240, §3 and appendix A.
    """
    if not isinstance(divergence, AbstractDivergence):
        got = type(divergence).__name__
        raise TypeError(f"divergence must be a divergence such as ReverseKL(), got {got}")
    if not isinstance(divergence, AbstractFDivergence):
        raise TypeError(
            f"{divergence.name} is not an f-divergence, so its optimum has no closed form"
        )
    if not divergence.smooth:
        raise ValueError(
            f"{divergence.name} has a kink, so its optimum is no function of the reward; add a little of another member,"
            " such as 0.01*reverse_kl, to a smooth one instead"
        )
    if isinstance(beta, int | float) and not beta > 0:
        raise ValueError(f"beta={beta} must be positive")
    rewards, log_ref = _rows(rewards, reference_logits)
    beta = jnp.asarray(beta).astype(rewards.dtype)
    divergence = jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(rewards.dtype), divergence)
    frozen = jax.lax.stop_gradient((divergence, rewards, log_ref, beta))
    log_ratio, multiplier = jax.lax.stop_gradient(_solve(*frozen))
    log_probs, multiplier = _attach_derivatives(
        divergence, rewards, log_ref, beta, log_ratio, multiplier
    )
    return RegularizedOptimum(
        log_probs, multiplier, _value(divergence, rewards, log_ref, beta, log_probs)
    )


def dro_weights(
    losses: ArrayLike,
    divergence: AbstractDivergence,
    temperature: Scalar,
    *,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Weights of distributionally robust optimisation: argmax over w of Σ w·loss − τ·D(uniform, w).

    The same problem as `regularized_argmax` with losses for rewards and the uniform distribution over the examples for
    reference. With `reverse_kl` they are softmax(loss/τ), with `reverse_chi2` those of variance-regularised risk. The
    gradient of the robust loss is that of Σ stop_gradient(w)·loss; `regularized_argmax(...).value` is the robust loss.

    Args:
        losses: `[..., N]`, of N examples.
        divergence: an f-divergence with a strictly convex generator.
        temperature: τ > 0; large means nearly uniform.
        where: boolean, broadcastable: the examples that count.

    Returns:
        `[..., N]`, summing to one over the examples that count.

    Raises:
        TypeError, ValueError: as `regularized_argmax`.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> weights = dv.dro_weights(jnp.array([2.0, 1.0, 0.0]), dv.ReverseChi2(), 1.0)
        >>> [round(float(weight), 4) for weight in weights]
        [0.5, 0.3333, 0.1667]

    Source: J. Duchi, H. Namkoong, "Learning Models with Uniform Performance via Distributionally Robust Optimization",
    arXiv:1810.08750, §2.
    """
    losses = jnp.asarray(losses)
    examples = jnp.zeros_like(losses)
    if where is not None:
        examples = jnp.where(jnp.broadcast_to(jnp.asarray(where, bool), losses.shape), 0, -jnp.inf)
        examples = examples.astype(losses.dtype)
    return jnp.exp(regularized_argmax(losses, examples, divergence, temperature).log_probs)


def _rows(rewards: ArrayLike, reference: ArrayLike) -> tuple[jax.Array, jax.Array]:
    rewards, reference = jnp.asarray(rewards), jnp.asarray(reference)
    double = jnp.float64 in (rewards.dtype, reference.dtype)
    dtype = jnp.float64 if double else jnp.float32
    try:
        shape = jnp.broadcast_shapes(rewards.shape, reference.shape)
    except ValueError:
        raise ValueError(
            f"rewards {rewards.shape} and reference {reference.shape} do not broadcast"
        ) from None
    rewards = jnp.broadcast_to(rewards.astype(dtype), shape)
    possible = rewards > -jnp.inf
    reference = jnp.where(possible, jnp.broadcast_to(reference.astype(dtype), shape), -jnp.inf)
    return jnp.where(possible, rewards, 0), log_softmax(reference)


def _score_and_log_ratio(div: AbstractFDivergence, at: jax.Array, drop: jax.Array):
    """From the unknown to the best token's score, and to log(policy/reference) of tokens whose score is `drop` less."""
    top = jnp.asarray(div.f_at_zero, at.dtype)  # supremum of the link
    bounded = jnp.isfinite(top)
    gap = jnp.exp(-jnp.where(bounded, at, 0)) + drop
    below = jnp.where(bounded, top, 1)
    shown = jnp.maximum(gap, _TAIL[at.dtype] * below)
    score = below - shown
    lost = (below - score) - shown  # the rounding of the subtraction, exactly
    unbounded = jnp.expm1(jnp.where(bounded, 0, at)) - drop
    log_ratio = div.link_inverse(jnp.where(bounded, score, unbounded))
    inside = bounded & jnp.isfinite(log_ratio)
    weight = div.weight(jnp.where(inside, log_ratio, 0))
    weight = jnp.where(weight > 0, weight, jnp.inf)
    log_ratio += jnp.where(inside, (lost + shown * jnp.log(shown / gap)) / weight, 0)
    best = jnp.where(bounded, below - jnp.exp(-jnp.where(bounded, at, 0)), unbounded + drop)
    return jnp.max(best, -1), log_ratio


@jax.jit
def _solve(div, rewards, log_ref, beta) -> tuple[jax.Array, jax.Array]:
    """log(policy/reference) `[..., V]`, −inf where the policy has nothing, and λ `[...]`, both to the dtype's accuracy."""
    possible = log_ref > -jnp.inf
    top = jnp.max(jnp.where(possible, rewards, -jnp.inf), -1, keepdims=True)
    legal = jnp.any(possible, -1, keepdims=True)
    top = jnp.where(legal, top, 0)
    drop = jnp.where(possible, top - rewards, 0) / beta
    supremum = jnp.asarray(div.f_at_zero, rewards.dtype)
    bounded = jnp.isfinite(supremum)
    # The best token's ratio is at least 1, which is a score of 0, and at most what makes it certain.
    start = -jnp.log(jnp.where(bounded, supremum, 1))
    low = jnp.full_like(top, 0) + jnp.where(bounded, start, 0)
    high = low + jnp.where(bounded, 69.0, 88.0)

    def log_mass(at):
        _, log_ratio = _score_and_log_ratio(div, at, drop)
        mass = jnp.where(possible, jnp.exp(log_ref + log_ratio), 0)
        return jnp.log(jnp.sum(mass, -1, keepdims=True))

    at = increasing_root(log_mass, low, high)
    best, log_ratio = _score_and_log_ratio(div, at, drop)
    log_ratio = jnp.where(possible, log_ratio, -jnp.inf)
    # What is left to one is the rounding of the unknown; the ratio of two policies so close is a common factor.
    total = jax.nn.logsumexp(jnp.where(possible, log_ref + log_ratio, -jnp.inf), -1, keepdims=True)
    log_ratio -= jnp.where(jnp.isfinite(total), total, 0)
    return log_ratio, jnp.where(legal[..., 0], top[..., 0] - beta * best, 0)


def _delta(x: Any) -> Any:
    """Zero, with the derivatives of x."""
    return x - jax.lax.stop_gradient(x)


def _attach_derivatives(div, rewards, log_ref, beta, log_ratio, multiplier):
    """The solution with the derivatives that β·link(log q/p) = reward − λ and Σ q = 1 give it."""
    active = (log_ref > -jnp.inf) & (log_ratio > -jnp.inf)
    at = jnp.where(active, log_ratio, 0)
    score = (rewards - multiplier[..., None]) / beta
    moved = jnp.where(active, _delta(score - div.link(at)), 0)
    moved_ref = _delta(jnp.where(active, log_ref, 0))
    weight = jax.lax.stop_gradient(div.weight(at))
    weight = jnp.where(weight > 0, weight, jnp.inf)
    probs = jax.lax.stop_gradient(jnp.where(active, jnp.exp(log_ref + log_ratio), 0))
    share = probs / weight
    total = jnp.sum(share, -1)
    moved_multiplier = jnp.sum(probs * moved_ref + share * moved, -1)
    moved_multiplier /= jnp.where(total > 0, total, jnp.inf)
    change = moved_ref + (moved - moved_multiplier[..., None]) / weight
    log_probs = jax.lax.stop_gradient(log_ref + log_ratio) + jnp.where(active, change, 0)
    log_probs = jnp.where(active, log_probs, -jnp.inf)
    return log_probs, multiplier + jax.lax.stop_gradient(beta) * moved_multiplier


def _value(div, rewards, log_ref, beta, log_probs) -> jax.Array:
    """E[reward] − β·D at the policy held fixed: at a maximum its own movement contributes nothing."""
    log_probs = jax.lax.stop_gradient(log_probs)
    expected = jnp.sum(jnp.exp(log_probs) * rewards, -1)
    return expected - beta * div.rows(log_ref, log_probs)
