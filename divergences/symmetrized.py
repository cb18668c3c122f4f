"""The symmetrised divergence: the mean of a divergence and its dual."""

from __future__ import annotations

from divax.divergences.algebra import mixture
from divax.divergences.base import AbstractDivergence


def symmetrized(div: AbstractDivergence) -> AbstractDivergence:
    """½·D(p, q) + ½·D(q, p), a mixture of D and its dual; an f-divergence, and known to be symmetric, if D is one.

    Args:
        div: any divergence. The KLs give half of Jeffreys, `SkewForwardKL(skew=0.5)` the Jensen–Shannon divergence.

    Returns:
        A `Mixture` or an `FMixture`.

    Example:
        >>> from divax import divergences as dv
        >>> symmetrized(dv.ForwardKL()).name
        '0.5*forward_kl + 0.5*reverse_kl'
    """
    return mixture((0.5, div), (0.5, div.dual()))
