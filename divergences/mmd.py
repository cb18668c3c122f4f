"""Discrepancies between samples: MMD with its two statistics, the energy distance, the noise-adaptive MMD."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences.kernels import (
    AbstractSemimetric,
    EnergyKernel,
    as_samples,
    squared_distances,
)


def biased_mmd(x: ArrayLike, y: ArrayLike, *, kernel: AbstractSemimetric) -> jax.Array:
    """Squared MMD of the two empirical distributions (the V-statistic): at least 0, and 0 for equal samples.

    mean k(x, x′) + mean k(y, y′) − 2·mean k(x, y) over all pairs, a point with itself included; computed from 1 − k, as
    constants drop out. Biased upwards by about (1 − E k)·(1/n + 1/m).

    Args:
        x: `[n, d]`, any float dtype, upcast to float32 at least.
        y: `[m, d]`.
        kernel: a kernel, or `EnergyKernel` for the energy distance.

    Returns:
        A scalar, MMD² and not its root.

    Raises:
        ValueError: arrays that are not `[points, features]` with the same features.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> x, y = jnp.array([[0.0]]), jnp.array([[1.0]])
        >>> round(float(biased_mmd(x, y, kernel=dv.RBFKernel(bandwidth=1.0))), 6)  # 2(1 - e^{-1/2})
        0.786939

    Source: A. Gretton et al., "A Kernel Two-Sample Test" (2012), eq. 5.
    """
    x, y = as_samples(x, y)
    between, within_x, within_y = _tables(x, y, kernel)
    # The exact value is not negative, but a rounding of it may be; the gradient is that of the sum.
    value = 2 * jnp.mean(between) - jnp.mean(within_x) - jnp.mean(within_y)
    return value + jax.lax.stop_gradient(jnp.maximum(value, 0) - value)


def unbiased_mmd(x: ArrayLike, y: ArrayLike, *, kernel: AbstractSemimetric) -> jax.Array:
    """Unbiased estimate of the squared MMD (the U-statistic): pairs of a point with itself are left out; may be negative.

    Args:
        x: `[n, d]`, n ≥ 2, any float dtype, upcast to float32 at least.
        y: `[m, d]`, m ≥ 2.
        kernel: a kernel, or `EnergyKernel` for the energy distance.

    Returns:
        A scalar, MMD² and not its root.

    Raises:
        ValueError: fewer than two points on a side, or arrays that are not `[points, features]`.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> x = jnp.array([[0.0], [1.0]])
        >>> round(float(unbiased_mmd(x, x, kernel=dv.EnergyKernel())), 6)  # negative: 2*(1/2) - 1 - 1
        -1.0

    Source: A. Gretton et al., "A Kernel Two-Sample Test" (2012), eq. 3.
    """
    x, y = as_samples(x, y)
    n, m = x.shape[0], y.shape[0]
    if min(n, m) < 2:
        raise ValueError(f"the unbiased estimate needs two points on each side, got {n} and {m}")
    between, within_x, within_y = _tables(x, y, kernel)
    # The diagonals are exactly zero, so leaving them out is a matter of the count.
    within = jnp.sum(within_x) / (n * (n - 1)) + jnp.sum(within_y) / (m * (m - 1))
    return 2 * jnp.mean(between) - within


def energy_distance(x: ArrayLike, y: ArrayLike) -> jax.Array:
    """Energy distance of two samples, 2·E‖X − Y‖ − E‖X − X′‖ − E‖Y − Y′‖ over all pairs; SciPy returns its square root.

    Args:
        x: `[n, d]`.
        y: `[m, d]`.

    Returns:
        A scalar, at least 0, and 0 only for equal distributions.

    Example:
        >>> import jax.numpy as jnp
        >>> float(energy_distance(jnp.array([[0.0], [1.0]]), jnp.array([[2.0]])))  # 2*1.5 - 0.5
        2.5

    Source: G. J. Székely, M. L. Rizzo, "Energy statistics: A class of statistics based on distances" (2013).
    """
    return biased_mmd(x, y, kernel=EnergyKernel())


def noise_adaptive_mmd(
    x: ArrayLike,
    y: ArrayLike,
    *,
    noise_level: ArrayLike,
    features: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    """Squared MMD in a feature space that depends on the noise level, ‖mean φ(x, t) − mean φ(y, t)‖² without self-pairs.

    The unbiased estimate with the linear kernel ⟨φ(x, t), φ(y, t)⟩: the training signal of a discriminator of
    diffusion-noised samples, in O((n + m)·width).

    Args:
        x: samples at this noise level, `[n, d]`, n ≥ 2.
        y: `[m, d]`, m ≥ 2.
        noise_level: t, handed to the features.
        features: φ, from `[points, d]` and t to `[points, width]`.

    Returns:
        A scalar; may be negative. Average it over noise levels to train φ; its penalties are the caller's.

    Example:
        >>> import jax.numpy as jnp
        >>> phi = lambda x, t: jnp.tanh(x / (1 + t))
        >>> x, y = jnp.array([[0.0], [0.0]]), jnp.array([[9.0], [9.0]])
        >>> round(float(noise_adaptive_mmd(x, y, noise_level=jnp.asarray(0.0), features=phi)), 4)
        1.0

    Source: A. Galashov, V. De Bortoli, A. Gretton, "Deep MMD Gradient Flow without adversarial training",
    arXiv:2405.06780.
    """
    x, y = as_samples(x, y)
    n, m = x.shape[0], y.shape[0]
    if min(n, m) < 2:
        raise ValueError(f"the unbiased estimate needs two points on each side, got {n} and {m}")
    level = jnp.asarray(noise_level)
    of_x, of_y = as_samples(features(x, level), features(y, level))
    gap = jnp.mean(of_x, 0) - jnp.mean(of_y, 0)
    # ‖gap‖² counts a point with itself; 1/n·(sample variance of φ) is what that adds: E‖mean‖² = ‖E φ‖² + Var/n.
    return jnp.sum(gap**2) - _variance(of_x) / n - _variance(of_y) / m


def noise_adaptive_witness(
    points: ArrayLike,
    x: ArrayLike,
    y: ArrayLike,
    *,
    noise_level: ArrayLike,
    features: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    """The witness function ⟨mean φ(x, t) − mean φ(y, t), φ(point, t)⟩: high where x has more mass than y.

    Its negative gradient by the point moves a particle from x's distribution to y's, which is the flow of the MMD.

    Args:
        points: where to evaluate it, `[k, d]`.
        x: `[n, d]`, the sample to be moved.
        y: `[m, d]`, the sample to move to.
        noise_level: t, handed to the features.
        features: φ, from `[points, d]` and t to `[points, width]`.

    Returns:
        `[k]`. Gradients flow to the points, the samples and whatever φ closes over.

    Example:
        >>> import jax.numpy as jnp
        >>> phi = lambda x, t: x
        >>> at = noise_adaptive_witness(
        ...     jnp.array([[2.0]]), jnp.array([[1.0]]), jnp.array([[4.0]]), noise_level=jnp.asarray(0.0), features=phi
        ... )
        >>> at.tolist()
        [-6.0]

    Source: A. Galashov, V. De Bortoli, A. Gretton, "Deep MMD Gradient Flow without adversarial training",
    arXiv:2405.06780; M. Arbel et al., "Maximum Mean Discrepancy Gradient Flow", arXiv:1906.04370.
    """
    points, x, y = as_samples(points, x, y)
    level = jnp.asarray(noise_level)
    gap = jnp.mean(features(x, level), 0) - jnp.mean(features(y, level), 0)
    return jnp.sum(features(points, level) * gap[None, :], -1)


def _tables(x: jax.Array, y: jax.Array, kernel: AbstractSemimetric) -> tuple[jax.Array, ...]:
    pairs = ((x, y), (x, x), (y, y))
    return tuple(kernel.semimetric(squared_distances(a, b)) for a, b in pairs)


def _variance(sample: jax.Array) -> jax.Array:
    """Unbiased total variance, Σ‖x − mean‖²/(n − 1)."""
    return jnp.sum((sample - jnp.mean(sample, 0, keepdims=True)) ** 2) / (sample.shape[0] - 1)
