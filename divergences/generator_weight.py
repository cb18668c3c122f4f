"""The weight of a sample in one-step generator distillation, for every f-divergence."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences.base import AbstractDivergence
from divax.divergences.f_divergence import AbstractFDivergence


def generator_weight(div: AbstractDivergence, log_ratio: ArrayLike) -> jax.Array:
    """h(r) = r²·f″(r) at r = target density/generator density = e^{log_ratio}.

    The gradient of D_f(p‖q_θ) by the parameters of a generator x = G_θ(z) is
    −E_z[h(r(x))·(∇ₓ log p − ∇ₓ log q)·∂G/∂θ]: one score difference, weighted by h. Reverse KL has h = 1, forward KL
    h = r, Jensen–Shannon ½·r/(1 + r). Computed in log r, so that it overflows only where h does.

    Args:
        div: an f-divergence, any member or mixture.
        log_ratio: log r, any shape; a discriminator's logit estimates it.

    Returns:
        h, of the shape of `log_ratio`, ≥ 0; zero almost everywhere for a generator that is piecewise linear.

    Raises:
        TypeError: a divergence that is no f-divergence, which has no generator f.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> generator_weight(dv.ForwardChi2(), jnp.log(jnp.array([0.5, 1.0, 3.0]))).round(4).tolist()  # 2r²
        [0.5, 2.0, 18.0]

    Source: Y. Xu, W. Nie, A. Vahdat, "One-step Diffusion Models with f-Divergence Distribution Matching",
    arXiv:2502.15681, thm. 1 and tab. 1; Y. Wang et al., "Uni-Instruct", arXiv:2505.20755.
    """
    if not isinstance(div, AbstractFDivergence):
        raise TypeError(
            f"generator_weight needs an f-divergence; {div.name} has no generator f to take r²f''(r) of"
        )
    return div.weight(-jnp.asarray(log_ratio))
