"""Variational lower bounds of divergences between two sets of samples, from the values of a critic."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences.base import AbstractDivergence
from divax.divergences.f_divergence import AbstractFDivergence
from divax.divergences.numerics import Scalar, is_traced


def f_gan_bound(
    divergence: AbstractDivergence,
    *,
    target_critic: ArrayLike,
    model_critic: ArrayLike,
    target_weights: ArrayLike | None = None,
    model_weights: ArrayLike | None = None,
) -> jax.Array:
    """D_f(p‖q) ≥ E_p[f′(e^v)] + E_q[f(e^v) − e^v·f′(e^v)] for any critic v; equal at v = log p/q.

    The usual form E_p[T] − E_q[f*(T)] needs T inside the domain of f*, hence an output activation per divergence. With
    T = f′(e^v) the activation is the generator's own, every real v is valid, and f* is never formed. With `ForwardKL()`
    this is the bound of Nguyen, Wainwright and Jordan, E_p[T] − E_q[e^{T−1}] with T = 1 + v.

    Args:
        divergence: an f-divergence.
        target_critic: `[..., N]`, v on samples of the target.
        model_critic: `[..., M]`, v on samples of the model.
        target_weights: `[..., N]`, non-negative, normalised here; None is the plain mean. A mask will do.
        model_weights: `[..., M]`, likewise.

    Returns:
        `[...]`, in nats; an unbiased estimate of the bound for fixed v. Maximise it over the critic.

    Raises:
        TypeError: not an f-divergence.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> p, q = jnp.array([0.5, 0.5]), jnp.array([0.25, 0.75])
        >>> bound = dv.f_gan_bound(dv.ForwardKL(), target_critic=jnp.log(p / q), model_critic=jnp.log(p / q),
        ...                        target_weights=p, model_weights=q)
        >>> round(float(bound), 6), round(float(dv.ForwardKL()(jnp.log(p), jnp.log(q))), 6)
        (0.143841, 0.143841)

    Source: S. Nowozin, B. Cseke, R. Tomioka, "f-GAN: Training Generative Neural Samplers using Variational Divergence
    Minimization", arXiv:1606.00709, eq. 4; X. Nguyen, M. Wainwright, M. Jordan, "Estimating divergence functionals and
    the likelihood ratio by convex risk minimization", arXiv:0809.0853, eq. 9.
    """
    if not isinstance(divergence, AbstractFDivergence):
        raise TypeError(
            f"{divergence.name} is not an f-divergence: it has no variational form here"
        )
    on_target, on_model = jnp.asarray(target_critic), jnp.asarray(model_critic)
    # f′(e^v) is the dual's link, which takes v itself and so never forms e^v where the answer is finite.
    gain = _mean(divergence.dual().link(on_target), target_weights)
    return gain + _mean(divergence.link(-on_model), model_weights)


def donsker_varadhan_bound(
    *,
    target_critic: ArrayLike,
    model_critic: ArrayLike,
    target_weights: ArrayLike | None = None,
    model_weights: ArrayLike | None = None,
) -> jax.Array:
    """KL(p‖q) ≥ E_p[T] − log E_q[e^T] for any critic T; equal at T = log p/q + constant.

    Tighter than `f_gan_bound(ForwardKL(), ...)` for every critic, but the logarithm of a mean over a minibatch is biased
    (upwards, as an estimate of the bound, by about Var_q(e^T)/(2·M·E_q[e^T]²)), and so is its gradient.

    Args:
        target_critic: `[..., N]`, T on samples of the target.
        model_critic: `[..., M]`, T on samples of the model.
        target_weights: as in `f_gan_bound`.
        model_weights: likewise.

    Returns:
        `[...]`, in nats; finite for any finite T.

    Example:
        >>> import jax.numpy as jnp
        >>> p, q = jnp.array([0.5, 0.5]), jnp.array([0.25, 0.75])
        >>> critic = jnp.log(p / q) + 7.0
        >>> round(float(donsker_varadhan_bound(target_critic=critic, model_critic=critic,
        ...                                    target_weights=p, model_weights=q)), 5)
        0.14384

    Source: M. Donsker, S. Varadhan, "Asymptotic evaluation of certain Markov process expectations for large time IV"
    (1983); with neural critics, M. I. Belghazi et al., "MINE: Mutual Information Neural Estimation",
    arXiv:1801.04062, eq. 5.
    """
    gain = _mean(jnp.asarray(target_critic), target_weights)
    return gain - _log_mean_exp(jnp.asarray(model_critic), model_weights)


def renyi_bound(
    order: Scalar,
    *,
    target_critic: ArrayLike,
    model_critic: ArrayLike,
    target_weights: ArrayLike | None = None,
    model_weights: ArrayLike | None = None,
) -> jax.Array:
    """R_a(p‖q) ≥ a/(a − 1)·log E_p[e^{(a−1)T}] − log E_q[e^{aT}] for any critic T; equal at T = log p/q + constant.

    R_a = log(Σ p^a q^{1−a})/(a − 1). Order 1 is the Donsker–Varadhan bound of KL(p‖q), reached without a jump, so the
    order may be traced. Below 1 both exponents are small or negative, which tames heavy ratios.

    Args:
        order: a > 0, a number or a traced scalar.
        target_critic: `[..., N]`, T on samples of the target.
        model_critic: `[..., M]`, T on samples of the model.
        target_weights: as in `f_gan_bound`.
        model_weights: likewise.

    Returns:
        `[...]`, in nats. Logarithms of minibatch means are biased, as in `donsker_varadhan_bound`.

    Raises:
        ValueError: an order that is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> p, q = jnp.array([0.5, 0.5]), jnp.array([0.25, 0.75])
        >>> given = dict(target_critic=jnp.log(p / q), model_critic=jnp.log(p / q), target_weights=p, model_weights=q)
        >>> round(float(renyi_bound(2.0, **given)), 6), round(float(jnp.log(jnp.sum(p * p / q))), 6)
        (0.287682, 0.287682)

    Source: J. Birrell et al., "Variational Representations and Neural Network Estimation of Rényi Divergences",
    arXiv:2007.03814, theorem 2.1 (their R_a is this one divided by a).
    """
    if not is_traced(order) and not float(order) > 0:
        raise ValueError(f"order={float(order):g} must be positive")
    on_target, on_model = jnp.asarray(target_critic), jnp.asarray(model_critic)
    order = jnp.asarray(order).astype(on_target.dtype)
    gain = order * _scaled_log_mean_exp(order - 1, on_target, target_weights)
    return gain - _log_mean_exp(order * on_model, model_weights)


def chi2_bound(
    *,
    target_critic: ArrayLike,
    model_critic: ArrayLike,
    target_weights: ArrayLike | None = None,
    model_weights: ArrayLike | None = None,
) -> jax.Array:
    """Forward χ²(p‖q) = Σ (p − q)²/q ≥ (E_p[h] − E_q[h])²/Var_q[h] for any critic h (Hammersley–Chapman–Robbins).

    Equal at h = p/q, and unchanged by any affine map of h. A critic without variance under the model bounds by 0, unless
    the means differ: then the model does not cover the target and the bound is +inf.

    Args:
        target_critic: `[..., N]`, h on samples of the target.
        model_critic: `[..., M]`, h on samples of the model.
        target_weights: as in `f_gan_bound`.
        model_weights: likewise.

    Returns:
        `[...]`. The variance is the population one (divided by M).

    Example:
        >>> import jax.numpy as jnp
        >>> p, q = jnp.array([0.5, 0.5]), jnp.array([0.25, 0.75])
        >>> float(chi2_bound(target_critic=p / q, model_critic=p / q, target_weights=p, model_weights=q))
        0.333333...

    Source: J. Hammersley, "On Estimating Restricted Parameters" (1950); as an f-divergence bound, Y. Polyanskiy, Y. Wu,
    "Information Theory: From Coding to Learning" (2024), §7.13.
    """
    on_target, on_model = jnp.asarray(target_critic), jnp.asarray(model_critic)
    # Measured from one of its own values, a constant critic is zero exactly, which its rounded mean would not be.
    present = _log_weights(model_weights, on_model) > -jnp.inf
    origin = jnp.max(jnp.where(present, on_model, -jnp.inf), -1, keepdims=True)
    on_target, on_model = (x - jax.lax.stop_gradient(origin) for x in (on_target, on_model))
    centre = _mean(on_model, model_weights)
    gap = _mean(on_target, target_weights) - centre
    variance = _mean((on_model - centre[..., None]) ** 2, model_weights)
    flat = variance == 0
    ratio = gap * gap / jnp.where(flat, 1, variance)
    return jnp.where(flat, jnp.where(gap == 0, 0, jnp.inf), ratio)


class BoundEstimate(NamedTuple):
    """A bound from samples, and how far it may be from that of infinitely many.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> x, y = jnp.array([1.0, 2.0, 3.0]), jnp.zeros(3)
        >>> bound = dv.estimate_bound(dv.donsker_varadhan_bound, target_critic=x, model_critic=y)
        >>> round(float(bound.value), 4), round(float(bound.standard_error), 4)
        (2.0, 0.4714)

    Attributes:
        value: the bound, `[...]`.
        standard_error: its standard error for a fixed critic, `[...]`.
    """

    value: jax.Array
    standard_error: jax.Array


def estimate_bound(
    bound: Callable[..., jax.Array],
    *,
    target_critic: ArrayLike,
    model_critic: ArrayLike,
    target_weights: ArrayLike | None = None,
    model_weights: ArrayLike | None = None,
) -> BoundEstimate:
    """A bound with its standard error, √(Σ (w_i ∂bound/∂w_i)²) over the weights of all samples of both sides.

    This infinitesimal jackknife is √(Var/N) for a mean and the delta method for logarithms and ratios of means, for any
    bound that takes weights. The samples must be independent, and the critic must not have been trained on them. A
    critic with heavy tails (a ratio p/q without a variance) has an error that no finite sample shows.

    Args:
        bound: `bound(target_critic=, model_critic=, target_weights=, model_weights=)`, such as `donsker_varadhan_bound`
            or `functools.partial(f_gan_bound, JensenShannon())`.
        target_critic: `[..., N]`, critic on samples of the target.
        model_critic: `[..., M]`, critic on samples of the model.
        target_weights: as in `f_gan_bound`.
        model_weights: likewise.

    Returns:
        Value and standard error, `[...]` each.

    Example:
        >>> import functools, jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> nwj = functools.partial(dv.f_gan_bound, dv.ForwardKL())
        >>> got = dv.estimate_bound(nwj, target_critic=jnp.array([0.0, 2.0]), model_critic=jnp.zeros(2))
        >>> round(float(got.standard_error), 4)  # the standard deviation 1 of {0, 2}, over √2
        0.7071

    Source: L. A. Jaeckel, "The infinitesimal jackknife" (1972); B. Efron, "The Jackknife, the Bootstrap and Other
    Resampling Plans" (1982), §6.3.
    """
    on_target, on_model = jnp.asarray(target_critic), jnp.asarray(model_critic)
    weights = tuple(
        jnp.ones_like(values) if given is None else jnp.broadcast_to(given, values.shape)
        for values, given in ((on_target, target_weights), (on_model, model_weights))
    )

    def value(weights: tuple[jax.Array, jax.Array]) -> jax.Array:
        return bound(
            target_critic=on_target,
            model_critic=on_model,
            target_weights=weights[0],
            model_weights=weights[1],
        )

    weights = tuple(w.astype(on_target.dtype) for w in weights)
    result, pullback = jax.vjp(value, weights)
    (slopes,) = pullback(jnp.ones_like(result))
    variance = sum(jnp.sum((w * d) ** 2, -1) for w, d in zip(weights, slopes, strict=True))
    return BoundEstimate(result, jnp.sqrt(variance))


def _log_weights(weights: ArrayLike | None, like: jax.Array) -> jax.Array:
    """Logarithms of the normalised weights, −inf where a weight is zero."""
    if weights is None:
        return jnp.full_like(like, -jnp.log(like.shape[-1]))
    weights = jnp.broadcast_to(jnp.asarray(weights).astype(like.dtype), like.shape)
    present = weights > 0
    logs = jnp.where(present, jnp.log(jnp.where(present, weights, 1)), -jnp.inf)
    return logs - jnp.log(jnp.sum(weights, -1, keepdims=True))


def _mean(values: jax.Array, weights: ArrayLike | None) -> jax.Array:
    if weights is None:
        return jnp.mean(values, -1)
    share = jnp.exp(_log_weights(weights, values))
    # A sample of weight zero may be padding, whose critic may be infinite.
    return jnp.sum(share * jnp.where(share > 0, values, 0), -1)


def _log_mean_exp(values: jax.Array, weights: ArrayLike | None) -> jax.Array:
    logs = _log_weights(weights, values)
    values = jnp.where(logs > -jnp.inf, values, 0)
    return jax.nn.logsumexp(values + logs, axis=-1)


def _scaled_log_mean_exp(
    rate: jax.Array, values: jax.Array, weights: ArrayLike | None
) -> jax.Array:
    """Log E[e^{rate·x}]/rate, which is E[x] at rate 0, where it is continued by its second cumulant."""
    centre = _mean(values, weights)
    spread = values - centre[..., None]
    present = _log_weights(weights, values) > -jnp.inf
    largest = jnp.max(jnp.where(present, jnp.abs(spread), 0), -1)
    # The third cumulant, relative to the second, is at most rate·largest/3; below that the log loses as many digits.
    small = jnp.abs(rate) * largest < jnp.finfo(values.dtype).eps ** (1 / 3)
    near = centre + 0.5 * rate * _mean(spread * spread, weights)
    safe = jnp.where(rate == 0, 1, rate)
    return jnp.where(small, near, centre + _log_mean_exp(rate * spread, weights) / safe)
