"""The Cauchy–Schwarz divergence of kernel density estimates, marginal and conditional."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences.kernels import AbstractKernel, as_samples, squared_distances


def sample_cauchy_schwarz(x: ArrayLike, y: ArrayLike, *, kernel: AbstractKernel) -> jax.Array:
    """Cauchy–Schwarz divergence of two samples, −log mean k(x, y) + ½·log mean k(x, x′) + ½·log mean k(y, y′).

    It is −log cos of the angle between the mean embeddings, on the scale of CS(p, q) = −log(Σpq/√(Σp²Σq²)); authors who
    square the ratio print twice this. With an RBF kernel of bandwidth σ√2 it is CS of the kernel density estimates of
    bandwidth σ. All sums are taken in logarithms: samples far apart give a large number, never log 0.

    Args:
        x: `[n, d]`, any float dtype, upcast to float32 at least.
        y: `[m, d]`.
        kernel: a positive kernel.

    Returns:
        A scalar, at least 0.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> x, y = jnp.array([[0.0]]), jnp.array([[100.0]])
        >>> float(sample_cauchy_schwarz(x, y, kernel=dv.RBFKernel(bandwidth=1.0)))  # 100²/2
        5000.0

    Source: J. C. Príncipe, D. Xu, J. Fisher, "Information-Theoretic Learning" (2000); R. Jenssen et al., "The Cauchy–Schwarz
    divergence and Parzen windowing" (2006).
    """
    x, y = as_samples(x, y)
    across, within_x, within_y = (
        _log_mean(kernel.log(squared_distances(a, b))) for a, b in ((x, y), (x, x), (y, y))
    )
    value = 0.5 * within_x + 0.5 * within_y - across
    return value + jax.lax.stop_gradient(jnp.maximum(value, 0) - value)


def conditional_cauchy_schwarz(
    *,
    target_inputs: ArrayLike,
    target_outputs: ArrayLike,
    model_inputs: ArrayLike,
    model_outputs: ArrayLike,
    input_kernel: AbstractKernel,
    output_kernel: AbstractKernel,
) -> jax.Array:
    """Cauchy–Schwarz divergence between two conditional distributions p(y|x) and q(y|x), from samples of pairs.

    ½·log ∫p(y|x)² + ½·log ∫q(y|x)² − log ∫p(y|x)q(y|x) over x and y. Each integral is an expectation, such as
    ∫∫ p(y|x)q(y|x) = E_p[q(x, y)/(p(x)q(x))], with kernel density estimates
    inside: Σ_j (Σ_i K_ji L_ji)/((Σ_i K_ji)(Σ_i K′_ji)).
    The cross term is the geometric mean of its estimates from either sample. Half of what the authors print, to be on
    the scale of `sample_cauchy_schwarz`. An estimate: it may be slightly negative.

    Args:
        target_inputs: x of p's pairs, `[n, a]`.
        target_outputs: y of p's pairs, `[n, b]`.
        model_inputs: x of q's pairs, `[m, a]`.
        model_outputs: y of q's pairs, `[m, b]`.
        input_kernel: kernel K on x.
        output_kernel: kernel L on y.

    Returns:
        A scalar, 0 for equal samples.

    Raises:
        ValueError: inputs and outputs of different lengths.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> x, y = jnp.array([[0.0], [1.0]]), jnp.array([[0.0], [2.0]])
        >>> kernel = dv.RBFKernel(bandwidth=1.0)
        >>> value = conditional_cauchy_schwarz(
        ...     target_inputs=x, target_outputs=y, model_inputs=x, model_outputs=y + 1,
        ...     input_kernel=kernel, output_kernel=kernel,
        ... )
        >>> bool(value > 0.1)
        True

    Source: S. Yu et al., "The Conditional Cauchy-Schwarz Divergence with Applications to Time-Series Data and Sequential
    Decision Making", arXiv:2301.08970.
    """
    x_p, x_q = as_samples(target_inputs, model_inputs)
    y_p, y_q = as_samples(target_outputs, model_outputs)
    for role, x, y in (("target", x_p, y_p), ("model", x_q, y_q)):
        if x.shape[0] != y.shape[0]:
            raise ValueError(f"{role} has {x.shape[0]} inputs and {y.shape[0]} outputs")
    log_k = {
        (a, b): input_kernel.log(squared_distances(u, v))
        for a, u in (("p", x_p), ("q", x_q))
        for b, v in (("p", x_p), ("q", x_q))
    }
    outputs = {"p": y_p, "q": y_q}

    def log_integral(at: str, density: str) -> jax.Array:
        """Log Σ_j over the sample `at` of (joint estimate from `density`)/(marginals of both)."""
        log_l = output_kernel.log(squared_distances(outputs[at], outputs[density]))
        joint = _log_sum(log_k[at, density] + log_l)
        return jax.nn.logsumexp(joint - _log_sum(log_k[at, at]) - _log_sum(log_k[at, density]))

    cross = log_integral("p", "q") + log_integral("q", "p")
    return 0.5 * (log_integral("p", "p") + log_integral("q", "q") - cross)


def _log_sum(log_values: jax.Array) -> jax.Array:
    return jax.nn.logsumexp(log_values, axis=1)


def _log_mean(log_values: jax.Array) -> jax.Array:
    return jax.nn.logsumexp(log_values) - jnp.log(float(log_values.size)).astype(log_values.dtype)
