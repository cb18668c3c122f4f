"""Kernels on feature vectors, and the semimetric k(x, x) − k(x, y) in which discrepancies of samples do not cancel."""

from __future__ import annotations

import abc
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences.base import divergence
from divax.divergences.numerics import Scalar, is_traced


class AbstractSemimetric(abc.ABC):
    """A dissimilarity of negative type as a function of the squared Euclidean distance, 0 at 0.

    Two samples are compared by 2·E ρ(x, y) − E ρ(x, x′) − E ρ(y, y′) ≥ 0. With ρ = k(0) − k this is the squared MMD
    of the kernel, for constants drop out; with ρ = ‖x − y‖ it is the energy distance.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> dv.EnergyKernel().semimetric(jnp.array([0.0, 9.0])).tolist()
        [0.0, 3.0]

    Source: D. Sejdinovic, B. Sriperumbudur, A. Gretton, K. Fukumizu, "Equivalence of distance-based and RKHS-based
    statistics in hypothesis testing", arXiv:1207.6076.
    """

    @abc.abstractmethod
    def semimetric(self, squared: jax.Array) -> jax.Array:
        """ρ at a squared distance, elementwise."""


class AbstractKernel(AbstractSemimetric):
    """A positive kernel with k(x, x) = 1, stated by its logarithm.

    From the logarithm follow k − 1 without cancellation, which MMD needs, and log-mean-exp without underflow, which
    the Cauchy–Schwarz divergence needs.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> kernel = dv.RBFKernel(bandwidth=1.0)
        >>> round(float(kernel(jnp.asarray(2.0))), 6), round(float(kernel.semimetric(jnp.asarray(2e-9))), 12)
        (0.367879, 1e-09)
    """

    @abc.abstractmethod
    def log(self, squared: jax.Array) -> jax.Array:
        """Log k ≤ 0 at a squared distance, elementwise."""

    def __call__(self, squared: ArrayLike) -> jax.Array:
        """K at a squared distance, elementwise."""
        return jnp.exp(self.log(jnp.asarray(squared)))

    def semimetric(self, squared: jax.Array) -> jax.Array:
        """1 − k."""
        return -jnp.expm1(self.log(squared))


@divergence
class RBFKernel(AbstractKernel):
    """Gaussian kernel, exp(−‖x − y‖²/(2σ²)); σ = `bandwidth` > 0, which may be traced.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(RBFKernel(bandwidth=2.0)(jnp.asarray(8.0))), 6)
        0.367879
    """

    bandwidth: Scalar = 1.0

    def __post_init__(self):
        _check_bandwidth(self)

    def log(self, squared: jax.Array) -> jax.Array:
        """−‖x − y‖²/(2σ²)."""
        return -squared / _cast(2 * self.bandwidth**2, squared)


@divergence
class LaplaceKernel(AbstractKernel):
    """Laplace (exponential) kernel, exp(−‖x − y‖/σ) with the Euclidean norm; σ = `bandwidth` > 0, which may be traced.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(LaplaceKernel(bandwidth=2.0)(jnp.asarray(4.0))), 6)
        0.367879
    """

    bandwidth: Scalar = 1.0

    def __post_init__(self):
        _check_bandwidth(self)

    def log(self, squared: jax.Array) -> jax.Array:
        """−‖x − y‖/σ."""
        return -distance(squared) / _cast(self.bandwidth, squared)


@divergence
class IMQKernel(AbstractKernel):
    """Inverse multiquadric kernel, (1 + ‖x − y‖²/σ²)^{−½}: heavy tails, so distant samples keep a gradient.

    Example:
        >>> import jax.numpy as jnp
        >>> float(IMQKernel(bandwidth=1.0)(jnp.asarray(3.0)))
        0.5

    Source: J. Gorham, L. Mackey, "Measuring Sample Quality with Kernels", arXiv:1703.01717.
    """

    bandwidth: Scalar = 1.0

    def __post_init__(self):
        _check_bandwidth(self)

    def log(self, squared: jax.Array) -> jax.Array:
        """−½·log(1 + ‖x − y‖²/σ²)."""
        return -0.5 * jnp.log1p(squared / _cast(self.bandwidth**2, squared))


@divergence
class EnergyKernel(AbstractSemimetric):
    """The Euclidean distance itself, ρ = ‖x − y‖: no scale to choose, but not a kernel one can take a logarithm of.

    Example:
        >>> import jax.numpy as jnp
        >>> float(EnergyKernel().semimetric(jnp.asarray(25.0)))
        5.0
    """

    def semimetric(self, squared: jax.Array) -> jax.Array:
        """‖x − y‖."""
        return distance(squared)


@divergence
class KernelMean(AbstractKernel):
    """The mean of several kernels, such as one kernel at several bandwidths.

    Example:
        >>> import jax.numpy as jnp
        >>> mean = KernelMean(kernels=(RBFKernel(bandwidth=1.0), IMQKernel(bandwidth=1.0)))
        >>> round(float(mean(jnp.asarray(3.0))), 6)  # (e^{-3/2} + 1/2)/2
        0.361565
    """

    kernels: tuple[AbstractKernel, ...]

    def log(self, squared: jax.Array) -> jax.Array:
        """Log-mean-exp of the parts."""
        parts = jnp.stack([kernel.log(squared) for kernel in self.kernels])
        return jax.nn.logsumexp(parts, axis=0) - jnp.log(float(len(self.kernels))).astype(
            parts.dtype
        )

    def semimetric(self, squared: jax.Array) -> jax.Array:
        """Mean of the parts."""
        parts = [kernel.semimetric(squared) for kernel in self.kernels]
        return jnp.mean(jnp.stack(parts), axis=0)


def multi_bandwidth(
    kernel: type[RBFKernel] | type[LaplaceKernel] | type[IMQKernel],
    bandwidth: Scalar,
    *,
    factors: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0),
) -> KernelMean:
    """The mean of one kernel at several multiples of a bandwidth, for data whose scale is not known.

    Example:
        >>> len(multi_bandwidth(RBFKernel, 1.0).kernels)
        5
    """
    return KernelMean(kernels=tuple(kernel(bandwidth=factor * bandwidth) for factor in factors))


def median_bandwidth(x: ArrayLike, y: ArrayLike) -> jax.Array:
    """Median distance between distinct points of both samples, the usual first guess of σ; no gradient flows through it.

    Args:
        x: `[n, d]`.
        y: `[m, d]`.

    Returns:
        A scalar; 1 where the median is 0 (when half of all pairs coincide).

    Example:
        >>> import jax.numpy as jnp
        >>> float(median_bandwidth(jnp.array([[0.0], [1.0]]), jnp.array([[3.0]])))  # of 1, 2, 3
        2.0

    Source: A. Gretton et al., "A Kernel Two-Sample Test" (2012), §8.
    """
    x, y = as_samples(x, y)
    points = jax.lax.stop_gradient(jnp.concatenate([x, y]))
    rows, columns = jnp.triu_indices(points.shape[0], k=1)
    median = jnp.median(distance(squared_distances(points, points))[rows, columns])
    return jnp.where(median > 0, median, jnp.ones_like(median))


def squared_distances(x: jax.Array, y: jax.Array) -> jax.Array:
    """‖x_i − y_j‖² for `[n, d]` and `[m, d]`, as `[n, m]`: exactly 0 for equal points.

    No [n, m, d] is kept for the gradient. The value is a sum of squared differences, which compilers fuse;
    ‖x‖² + ‖y‖² − 2⟨x, y⟩ would leave a rounding of ‖x‖² at coinciding points, and its root under a distance. The
    derivative needs only matrix products.

    Example:
        >>> import jax.numpy as jnp
        >>> squared_distances(jnp.array([[0.0, 0.0]]), jnp.array([[3.0, 4.0]])).tolist()
        [[25.0]]
    """
    return _squared_distances(x, y)


@jax.custom_jvp
def _squared_distances(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.sum((x[:, None, :] - y[None, :, :]) ** 2, -1)


@_squared_distances.defjvp
def _squared_distances_jvp(primals, tangents):
    (x, y), (dx, dy) = primals, tangents
    # The same shift of both changes nothing, and keeps the products small.
    centre = jax.lax.stop_gradient(jnp.mean(x, 0, keepdims=True))
    x0, y0 = x - centre, y - centre
    dot = lambda a, b: jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)  # noqa: E731
    own = jnp.sum(x0 * dx, -1)[:, None] + jnp.sum(y0 * dy, -1)[None, :]
    return _squared_distances(x, y), 2 * (own - dot(dx, y0) - dot(x0, dy))


def distance(squared: jax.Array) -> jax.Array:
    """√ of a squared distance, with gradient 0 at 0, where the distance has a kink."""
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1)), 0)


def as_samples(*arrays: ArrayLike) -> tuple[jax.Array, ...]:
    """Two or more samples `[n, d]` with one d, upcast to one float dtype of at least 32 bits."""
    samples = [jnp.asarray(a) for a in arrays]
    for sample in samples:
        if sample.ndim != 2 or not jnp.issubdtype(sample.dtype, jnp.floating):
            raise ValueError(
                f"samples are float arrays [points, features], got {sample.dtype}{list(sample.shape)}"
            )
    if len({sample.shape[1] for sample in samples}) > 1:
        shapes = " and ".join(str(list(sample.shape)) for sample in samples)
        raise ValueError(f"samples {shapes} differ in their number of features")
    double = any(sample.dtype == jnp.float64 for sample in samples)
    return tuple(sample.astype(jnp.float64 if double else jnp.float32) for sample in samples)


def _cast(parameter: Scalar, like: jax.Array) -> jax.Array:
    return jnp.asarray(parameter).astype(like.dtype)


def _check_bandwidth(kernel: Any) -> None:
    bandwidth = kernel.bandwidth
    if isinstance(bandwidth, int | float) and not is_traced(bandwidth) and bandwidth <= 0:
        raise ValueError(f"{type(kernel).__name__}: bandwidth={bandwidth} must be positive")
