"""Divergences under the names that other fields and libraries give them, built from members of the zoo.

TensorFlow Probability's Csiszár functions, in its argument order E_q f(p/q) and standard form (`self_normalized=True`):

| TFP | here |
|---|---|
| `amari_alpha(alpha=a)` | `alpha(a)` |
| `kl_forward` | `forward_kl` |
| `kl_reverse` | `reverse_kl` |
| `jeffreys` | `0.5*jeffreys` |
| `jensen_shannon` | `2*jensen_shannon(0.5)` |
| `arithmetic_geometric` | `arithmetic_geometric` |
| `total_variation` | `total_variation` |
| `pearson`, `chi_square` | `forward_chi2` |
| `squared_hellinger` | `2*squared_hellinger` |
| `triangular` | `triangular` |
| `t_power(t=t)` | `t_power(t)` |
| `log1p_abs` | `log1p_abs` |
| `modified_gan` | `modified_gan` |
| `dual_csiszar_function(f)` | `dual(f)` |
| `symmetrized_csiszar_function(f)` | `symmetrized(f)` |
"""

from __future__ import annotations

from divax.divergences.algebra import mixture
from divax.divergences.alpha import Alpha
from divax.divergences.base import AbstractDivergence
from divax.divergences.chi2 import ReverseChi2
from divax.divergences.kl import ReverseKL
from divax.divergences.numerics import Scalar, choose, is_traced


def chi2_kl(chi2_weight: Scalar = 1.0) -> AbstractDivergence:
    """KL(q‖p) + w·Σ (p − q)²/p: the reverse KL with the reverse χ² that keeps f-DPO's policy near the reference.

    Args:
        chi2_weight: w ≥ 0. χPO, whose χ² is half of ours and whose link is log r + r with r = model/target (up to a
            constant), is w = ½.

    Returns:
        An f-divergence; its link diverges at both ends, so f-DPO with it is exact.

    Raises:
        ValueError: a negative weight.

    Example:
        >>> from divax import divergences as dv
        >>> dv.chi2_kl().name, bool(dv.chi2_kl().admissible)
        ('reverse_kl + reverse_chi2', True)

    Source: A. Huang et al., "Correcting the Mythos of KL-Regularization: Direct Alignment without Overoptimization via
    Chi-Squared Preference Optimization", arXiv:2407.13399, eq. 8.
    """
    return mixture((1.0, ReverseKL()), (chi2_weight, ReverseChi2()))


def cressie_read(power: Scalar = 2 / 3) -> AbstractDivergence:
    """The power divergence of Cressie and Read, 2/(λ(λ + 1))·Σ p·((p/q)^λ − 1) = 2·alpha(λ + 1).

    Args:
        power: λ, a number or a traced scalar. 1 is Pearson's χ²(p‖q), 0 twice KL(p‖q) (the G statistic), −½
            Freeman–Tukey, −1 twice KL(q‖p), −2 Neyman's χ², ⅔ the authors' choice.

    Returns:
        An f-divergence, SciPy's `power_divergence(f_obs=p, f_exp=q, lambda_=λ)`.

    Example:
        >>> from divax import divergences as dv
        >>> dv.cressie_read(1.0).name
        '2*alpha(2)'

    Source: N. Cressie, T. R. C. Read, "Multinomial Goodness-of-Fit Tests" (1984), eq. 1.1.
    """
    return mixture((2.0, Alpha(alpha=power + 1)))


def tsallis(order: Scalar = 2.0) -> AbstractDivergence:
    """The Tsallis relative entropy, (Σ p^a·q^{1−a} − 1)/(a − 1) = a·alpha(a): the Hellinger divergence of order a.

    Args:
        order: a > 0, a number or a traced scalar; 1 is KL(p‖q), 2 the forward χ², ½ twice H².

    Returns:
        An f-divergence of curvature a.

    Raises:
        ValueError: an order that is not positive, for which this is no divergence.

    Example:
        >>> from divax import divergences as dv
        >>> dv.tsallis(0.5).name
        '0.5*alpha(0.5)'

    Source: C. Tsallis, "Generalized Entropy-Based Criterion for Consistent Testing" (1998), eq. 4.
    """
    if not is_traced(order) and isinstance(order, int | float) and not order > 0:
        raise ValueError(f"tsallis: order={order} must be positive")
    return mixture((order, Alpha(alpha=order)))


def t_power(power: Scalar = 2.0) -> AbstractDivergence:
    """TFP's `t_power`, Σ q·(u^t − 1 − t(u − 1)) up to sign = |t(t − 1)|·alpha(t): identically zero at t = 0 and 1.

    Args:
        power: t, a number or a traced scalar.

    Returns:
        An f-divergence of curvature |t(t − 1)|; use `alpha` or `cressie_read` for a family without the two holes.

    Example:
        >>> from divax import divergences as dv
        >>> dv.t_power(2.0).name
        '2*alpha(2)'

    Source: TensorFlow Probability, `tfp.vi.t_power`.
    """
    factor = power * (power - 1)
    return mixture((choose(factor < 0, -factor, factor), Alpha(alpha=power)))
