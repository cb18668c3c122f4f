"""Imitation terms that keep a preference loss from lowering what it should raise.

| piece | what it adds |
|---|---|
| `token_nll` (in `reference_free`) | likelihood of the chosen completion: with DPO it is RPO |
| `ChosenDropPenalty(weight)` | `weight max(0, -s_w)`: DPOP, Smaug |
| `DecoupledLogistic(rejected_share)` | `softplus(-beta (s_w - share s_l))`: pushes down less |
| `implicit_reward_sft` | imitation of an expert under any divergence, with a KL to the reference |
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences import AbstractDivergence, AbstractFDivergence
from divax.divergences import divergence as frozen_pytree
from divax.objectives.absolute_pair_losses import AbstractAbsolutePairLoss
from divax.objectives.arguments import is_static
from divax.objectives.pair_mean import pair_mean
from divax.objectives.pairs import completion_log_ratios
from divax.objectives.weighted import Weighted


@frozen_pytree
class ChosenDropPenalty(AbstractAbsolutePairLoss):
    """`weight max(0, -s_w)`: a price on the chosen completion losing probability.

    Attributes:
        weight: per nat of log-ratio.

    Example:
        >>> from divax.objectives import ChosenDropPenalty, Logistic
        >>> smaug = Logistic() + ChosenDropPenalty(weight=5.0)
        >>> round(float(smaug.rows(-1.0, -1.0, 0.1)), 4)  # log 2 + 5
        5.6931

    Source: A. Pal et al., "Smaug: Fixing Failure Modes of Preference Optimisation with
    DPO-Positive", arXiv:2402.13228; here outside the logistic, as its implementations have it.
    """

    weight: ArrayLike = 5.0

    def rows(self, chosen: ArrayLike, rejected: ArrayLike, beta: ArrayLike) -> jax.Array:
        """The penalty of each pair."""
        del rejected, beta
        chosen = jnp.asarray(chosen, jnp.result_type(float))
        return jnp.asarray(self.weight, chosen.dtype) * jax.nn.relu(-chosen)


@frozen_pytree
class DecoupledLogistic(AbstractAbsolutePairLoss):
    r"""`softplus(-beta (s_w - share s_l))`: slows the fall of the rejected completion.

    With a share below 1 no policy is the optimum of a regularised reward; it trades the closed
    form for stability, and composes with `token_nll`.

    Attributes:
        rejected_share: in [0, 1]; 1 is the logistic loss of the margin.

    Example:
        >>> from divax.objectives import DecoupledLogistic
        >>> round(float(DecoupledLogistic(rejected_share=0.2).rows(0.0, 0.0, 0.1)), 4)
        0.6931

    Source: Y. Yan et al., "3D-Properties: Identifying Challenges in DPO and Charting a Path
    Forward", arXiv:2406.07327.
    """

    rejected_share: ArrayLike = 0.2

    def __post_init__(self):
        if is_static(self.rejected_share) and not 0 <= self.rejected_share <= 1:
            raise ValueError(f"rejected_share={self.rejected_share} must lie in [0, 1]")

    def rows(self, chosen: ArrayLike, rejected: ArrayLike, beta: ArrayLike) -> jax.Array:
        """The loss of each pair."""
        dtype = jnp.result_type(float)
        chosen, rejected = jnp.asarray(chosen, dtype), jnp.asarray(rejected, dtype)
        share = jnp.asarray(self.rejected_share, dtype)
        return jax.nn.softplus(-jnp.asarray(beta, dtype) * (chosen - share * rejected))


def implicit_reward_sft(
    *,
    logps: ArrayLike,
    reference_logps: ArrayLike,
    divergence: AbstractDivergence,
    beta: ArrayLike = 0.1,
    baseline: ArrayLike = 0.0,
    weights: ArrayLike | None = None,
) -> tuple[Weighted, dict[str, Weighted]]:
    r"""Supervised fine-tuning as imitation: D(expert, policy) plus a KL to the reference.

    .. math:: L = E_\mathrm{expert}[f^*(-\beta s - V)] + V, \qquad
        s = \log\frac{\mathrm{policy}}{\mathrm{reference}}

    the dual of `min D_f(policy || expert) + beta KL(policy || reference)`, with f the generator in
    policy/expert and f* its conjugate. Total variation gives plain fine-tuning, where the KL
    vanishes; others keep it.

    Args:
        logps: `[B]`, of expert completions, summed over tokens.
        reference_logps: `[B]`, no gradient.
        divergence: an f-divergence D(expert, policy). Where `-beta s - V` leaves the domain of f*
            the loss is +inf.
        beta: `> 0`.
        baseline: `V`; 0 is the practical form, exact would minimise over it.
        weights: `[B]`.

    Returns:
        The loss, a mean over completions, and the mean reward.

    Raises:
        TypeError: a divergence that is no f-divergence.
        ValueError: arrays that are not `[B]`, or a `beta` that is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> loss, _ = implicit_reward_sft(  # x = beta s = 1; under chi2 the loss is -x + x^2/4
        ...     logps=jnp.array([-2.0]), reference_logps=jnp.array([-3.0]),
        ...     divergence=dv.ReverseChi2(), beta=1.0,
        ... )
        >>> float(loss.mean())
        -0.75

    Source: "Implicit Reward as the Bridge: A Unified View of SFT and DPO Connections",
    arXiv:2507.00018, §4.
    """
    if not isinstance(divergence, AbstractFDivergence):
        raise TypeError(f"divergence must be an f-divergence, got {divergence!r}")
    if is_static(beta) and not beta > 0:
        raise ValueError(f"beta={beta} must be positive")
    ratios, live = completion_log_ratios(logps, reference_logps, weights)
    reward = jnp.asarray(beta, ratios.dtype) * ratios
    baseline = jnp.asarray(baseline, ratios.dtype)
    # Our generators are in expert/policy; the dual's is in policy/expert.
    rows = divergence.dual().conjugate(-reward - baseline) + baseline
    return pair_mean(rows, live), {"rewards": pair_mean(jax.lax.stop_gradient(reward), live)}
