"""Divergences from a few sampled tokens of the vocabulary, unbiased in value and gradient by Horvitz–Thompson weights."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences.f_divergence import AbstractFDivergence
from divax.divergences.rows import Pair


class TokenSample(NamedTuple):
    """Tokens drawn from a proposal, with the weights that make sums over them unbiased.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> dv.sample_tokens(jax.random.key(0), jnp.zeros((4, 100)), k=8).ids.shape
        (4, 8)

    Attributes:
        ids: tokens, integer `[..., k]`.
        log_weights: logarithm of the weight of each, `[..., k]`: E Σ_k e^{log_weights}·F(ids) = Σ_v F(v) for every F
            that vanishes where the proposal does.
    """

    ids: jax.Array
    log_weights: jax.Array


def sample_tokens(key: jax.Array, proposal: ArrayLike, *, k: int) -> TokenSample:
    """K independent draws from softmax(proposal), of weight 1/(k·π) each.

    Args:
        key: a JAX random key.
        proposal: logits `[..., V]`. It must reach every token that matters: the teacher's, or a flattened teacher's.
        k: number of draws.

    Returns:
        Tokens (repetitions are possible) and log-weights; no gradient flows through either.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> sample = sample_tokens(jax.random.key(0), jnp.zeros(4), k=2)
        >>> jnp.round(jnp.exp(sample.log_weights), 4).tolist()  # 4 tokens, 2 draws
        [2.0, 2.0]

    Source: M. H. Hansen, W. N. Hurwitz, "On the Theory of Sampling from Finite Populations" (1943); for distillation,
    A. Anshumann et al., "Sparse Logit Sampling", arXiv:2503.16870.
    """
    logits = _log_proposal(proposal)
    ids = jnp.moveaxis(jax.random.categorical(key, logits, shape=(k, *logits.shape[:-1])), 0, -1)
    return TokenSample(ids, -jnp.take_along_axis(logits, ids, -1) - jnp.log(float(k)))


def sample_distinct_tokens(key: jax.Array, proposal: ArrayLike, *, k: int) -> TokenSample:
    """K distinct tokens by Gumbel top-k, weighted by one over their inclusion probability given the threshold.

    With κ the (k+1)-th largest perturbed log-probability, a token is included with probability
    1 − exp(−exp(log π − κ)) given κ, and Σ F/inclusion is unbiased. Needs 1 ≤ k < V.

    Args:
        key: a JAX random key.
        proposal: logits `[..., V]`.
        k: number of tokens.

    Returns:
        Distinct tokens and log-weights; no gradient flows through either. Where fewer than k tokens are possible, impossible
        ones fill the rest, with weight zero.

    Raises:
        ValueError: k that is not in [1, V).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> sample = sample_distinct_tokens(jax.random.key(0), jnp.arange(4.0), k=3)
        >>> len(set(sample.ids.tolist())), bool(jnp.all(sample.log_weights >= 0))
        (3, True)

    Source: W. Kool, H. van Hoof, M. Welling, "Estimating Gradients for Discrete Random Variables by Sampling without
    Replacement", arXiv:2002.06043; T. Vieira, "Estimating means in a finite universe" (2017).
    """
    logits = _log_proposal(proposal)
    if not 1 <= k < logits.shape[-1]:
        raise ValueError(
            f"k={k} distinct tokens with a threshold need a vocabulary of more than {k}, got {logits.shape[-1]}"
        )
    perturbed = logits + jax.random.gumbel(key, logits.shape, logits.dtype)
    top, ids = jax.lax.top_k(perturbed, k + 1)
    ids, threshold = ids[..., :k], top[..., k:]
    log_rate = jnp.take_along_axis(logits, ids, -1) - threshold
    # log of 1/(1 − e^{−rate}); a threshold of −inf means that every possible token was taken.
    certain = threshold == -jnp.inf
    rate = jnp.exp(jnp.where(certain, 0, log_rate))
    log_weights = jnp.where(certain, 0, -jnp.log(-jnp.expm1(-rate)))
    possible = jnp.isfinite(jnp.take_along_axis(logits, ids, -1))
    return TokenSample(ids, jnp.where(possible, log_weights, -jnp.inf))


def sampled_divergence(
    div: AbstractFDivergence,
    *,
    target_log_probs: ArrayLike,
    model_log_probs: ArrayLike,
    log_weights: ArrayLike,
) -> jax.Array:
    """Σ_k weight·q·f(p/q) over sampled tokens: an unbiased estimate of D(p, q), and of its gradient.

    Both log-probabilities must be those of the full softmax: logits at the ids minus the exact log-sum-exp of the whole
    row. Differentiating the estimate through them (log-sum-exp included) then gives an unbiased gradient. In the
    standard form every term is at least 0, so the estimate is too.

    Args:
        div: any f-divergence.
        target_log_probs: log p at the sampled tokens, `[..., k]`; −inf where the target rules the token out.
        model_log_probs: log q, `[..., k]`.
        log_weights: of the sample, `[..., k]`.

    Returns:
        `[...]`, float32 (float64 if an input is). +inf where a sampled token's contribution is.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
        >>> every = sampled_divergence(dv.ForwardKL(), target_log_probs=p, model_log_probs=q, log_weights=jnp.zeros(2))
        >>> round(float(every), 6)  # each token once: the divergence itself
        0.143841

    Source: D. G. Horvitz, D. J. Thompson, "A Generalization of Sampling Without Replacement From a Finite Universe" (1952).
    """
    arrays = [jnp.asarray(x) for x in (target_log_probs, model_log_probs, log_weights)]
    dtype = jnp.float64 if any(x.dtype == jnp.float64 for x in arrays) else jnp.float32
    log_p, log_q, log_w = (x.astype(dtype) for x in arrays)
    terms = _terms(div, log_p, log_q)
    weights = jnp.exp(jax.lax.stop_gradient(log_w))
    # A weight of zero removes an infinite term as well.
    return jnp.sum(weights * jnp.where(weights > 0, terms, 0), -1)


@jax.custom_jvp
def _terms(div: AbstractFDivergence, log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """q·f(p/q) of each token, by its support."""
    pair, p_only, q_only = _split_terms(log_p, log_q)
    return div.summand(pair) + _edge(div.slope_at_infinity, p_only) + _edge(div.f_at_zero, q_only)


@_terms.defjvp
def _terms_jvp(primals, tangents):
    div, log_p, log_q = primals
    div_dot, p_dot, q_dot = tangents
    pair, p_only, q_only = _split_terms(log_p, log_q)
    beyond, below = _finite(div.slope_at_infinity), _finite(div.f_at_zero)
    by_p = div.target_slope(pair) + beyond * p_only
    by_q = div.model_slope(pair) + below * q_only
    finite = lambda d: (  # noqa: E731
        d.summand(pair) + _finite(d.slope_at_infinity) * p_only + _finite(d.f_at_zero) * q_only
    )
    tangent = jax.jvp(finite, (div,), (div_dot,))[1]
    # A ruled-out token has a log-probability of −inf, whose tangent is meaningless.
    tangent += by_p * jnp.where(log_p > -jnp.inf, p_dot, 0)
    tangent += by_q * jnp.where(log_q > -jnp.inf, q_dot, 0)
    return _terms(div, log_p, log_q), tangent


def _split_terms(log_p: jax.Array, log_q: jax.Array) -> tuple[Pair, jax.Array, jax.Array]:
    p_possible, q_possible = log_p > -jnp.inf, log_q > -jnp.inf
    both = p_possible & q_possible
    lp, lq = jnp.where(both, log_p, -jnp.inf), jnp.where(both, log_q, -jnp.inf)
    log_u = jnp.where(both, log_p, 0) - jnp.where(both, log_q, 0)
    pair = Pair(jnp.exp(lp), jnp.exp(lq), lp, lq, log_u)
    p_only = jnp.where(p_possible & ~q_possible, jnp.exp(log_p), 0)
    return pair, p_only, jnp.where(q_possible & ~p_possible, jnp.exp(log_q), 0)


def _edge(limit, mass: jax.Array) -> jax.Array:
    return jnp.where(jnp.isfinite(limit), _finite(limit) * mass, jnp.where(mass > 0, jnp.inf, 0))


def _finite(limit):
    return jnp.where(jnp.isfinite(limit), limit, 0)


def _log_proposal(proposal: ArrayLike) -> jax.Array:
    logits = jax.lax.stop_gradient(jnp.asarray(proposal))
    return jax.nn.log_softmax(
        logits if logits.dtype == jnp.float64 else logits.astype(jnp.float32), axis=-1
    )
