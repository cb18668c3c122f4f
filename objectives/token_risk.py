"""Token-level preference optimisation: a sequential divergence beside the log-ratio of the sequence.

The summed log-ratio of a completion is one sample of the sequence's divergence. TDPO adds the
divergence of every step, over the whole vocabulary; Ra-DPO puts a risk measure in its place.

| per step, X = log(reference/policy) under the reference | `risk` |
|---|---|
| `E X`, the forward KL | `expected` |
| the mean of the worst share mu, `CVaR_mu X` | `TailRisk(mu)` |
| `log E exp(mu X) / mu` | `EntropicRisk(mu)` |
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences import divergence as frozen_pytree
from divax.objectives.arguments import check_logits, check_rows, is_static, silence_rows
from divax.objectives.margin_losses import Logistic
from divax.objectives.pair_loss import AbstractMarginLoss
from divax.objectives.preference import preference
from divax.objectives.tail import tail_mean
from divax.objectives.weighted import Weighted

#: log(reference/policy) `[..., V]` and the reference's probabilities `[..., V]` to `[...]`.
Risk = Callable[[jax.Array, jax.Array], jax.Array]
_LOGISTIC = Logistic()


def expected(values: jax.Array, probs: jax.Array) -> jax.Array:
    """The mean: of log(reference/policy) under the reference it is the forward KL.

    Example:
        >>> import jax.numpy as jnp
        >>> float(expected(jnp.array([1.0, 3.0]), jnp.array([0.5, 0.5])))
        2.0
    """
    return jnp.sum(jnp.where(probs > 0, probs * values, 0), axis=-1)


@frozen_pytree
class TailRisk:
    """Conditional value at risk: the mean of the largest values that have probability `share`.

    Attributes:
        share: mu in (0, 1]; 1 is the mean.

    Example:
        >>> import jax.numpy as jnp
        >>> float(TailRisk(share=0.5)(jnp.array([1.0, 3.0]), jnp.array([0.75, 0.25])))
        2.0

    Source: R. Rockafellar, S. Uryasev, "Optimization of Conditional Value-at-Risk", Journal of
    Risk 2 (2000).
    """

    share: ArrayLike = 0.5

    def __post_init__(self):
        if is_static(self.share) and not 0 < self.share <= 1:
            raise ValueError(f"share={self.share} must lie in (0, 1]: the probability of the tail")

    def __call__(self, values: jax.Array, probs: jax.Array) -> jax.Array:
        """The tail's mean; a value at its edge counts in part."""
        return tail_mean(values, probs, jnp.asarray(self.share, values.dtype))


@frozen_pytree
class EntropicRisk:
    """`log E exp(mu X) / mu`: the exponential utility's certainty equivalent.

    Attributes:
        aversion: `mu > 0`; towards 0 it is the mean.

    Example:
        >>> import jax.numpy as jnp
        >>> values, probs = jnp.array([1.0, 3.0]), jnp.array([0.5, 0.5])
        >>> round(float(EntropicRisk(aversion=1.0)(values, probs)), 4)
        2.4338
    """

    aversion: ArrayLike = 1.0

    def __post_init__(self):
        if is_static(self.aversion) and not self.aversion > 0:
            raise ValueError(f"aversion={self.aversion} must be positive")

    def __call__(self, values: jax.Array, probs: jax.Array) -> jax.Array:
        """The certainty equivalent."""
        aversion = jnp.asarray(self.aversion, values.dtype)
        possible = jnp.where(probs > 0, aversion * values, -jnp.inf)
        return jax.nn.logsumexp(possible, b=probs, axis=-1) / aversion


def sequential_risk(
    *,
    policy_logits: ArrayLike,
    reference_logits: ArrayLike,
    mask: ArrayLike,
    risk: Risk = expected,
) -> jax.Array:
    r"""Sum over a completion's steps of the risk of `log(reference/policy)` under the reference.

    .. math:: K = \sum_t m_t\,\Phi_{v \sim \mathrm{ref}(\cdot|y_{<t})}
        \Big[\log\frac{\mathrm{ref}(v|y_{<t})}{\pi(v|y_{<t})}\Big]

    Args:
        policy_logits: `[B, T, V]`.
        reference_logits: `[B, T, V]`, no gradient; `-inf` is an impossible token.
        mask: `[B, T]`, the positions that predict the completion.
        risk: of a step.

    Returns:
        `[B]`, nats.

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> policy, reference = jnp.zeros((1, 2, 2)), jnp.log(jnp.array([[[0.9, 0.1]] * 2]))
        >>> k = sequential_risk(policy_logits=policy, reference_logits=reference, mask=jnp.ones((1, 2)))
        >>> round(float(k[0]), 4)
        0.7361

    Source: Y. Zeng et al., "Token-level Direct Preference Optimization", arXiv:2404.11999, eq. 10;
    L. Zhang et al., "Risk-aware Direct Preference Optimization under Nested Risk Measure",
    arXiv:2505.20359.
    """
    policy, reference = jnp.asarray(policy_logits), jnp.asarray(reference_logits)
    check_logits(policy, "policy_logits")
    check_logits(reference, "reference_logits")
    live = jnp.asarray(mask).astype(jnp.result_type(float))
    check_rows(live, "mask", policy.shape[:-1], "policy_logits")
    check_rows(live, "mask", reference.shape[:-1], "reference_logits")
    dtype = live.dtype
    policy = jax.nn.log_softmax(silence_rows(policy, live).astype(dtype))
    reference = jax.lax.stop_gradient(silence_rows(reference, live).astype(dtype))
    reference = jax.nn.log_softmax(reference)
    probs = jnp.exp(reference)
    gap = jnp.where(probs > 0, jnp.where(probs > 0, reference, 0) - policy, 0)
    return jnp.sum(live * risk(gap, probs), axis=-1)


def token_preference(
    *,
    chosen_logps: ArrayLike,
    rejected_logps: ArrayLike,
    reference_chosen_logps: ArrayLike,
    reference_rejected_logps: ArrayLike,
    chosen_risk: ArrayLike,
    rejected_risk: ArrayLike,
    risk_weight: ArrayLike | None = None,
    loss: AbstractMarginLoss = _LOGISTIC,
    beta: ArrayLike = 0.1,
    weights: ArrayLike | None = None,
) -> tuple[Weighted, dict[str, Weighted]]:
    r"""TDPO and Ra-DPO: the margin of the rewards `beta (s + K)`, with K from `sequential_risk`.

    .. math:: l = \ell(\beta[(s_w - s_l) + (K_w - K_l)])

    is the first form, with gradients through both K. The second weighs the difference by alpha and
    holds the chosen one fixed, `l = loss(beta[(s_w - s_l) + alpha (sg(K_w) - K_l)])`.

    Args:
        chosen_logps: `[B]`, as in `preference`.
        rejected_logps: `[B]`.
        reference_chosen_logps: `[B]`.
        reference_rejected_logps: `[B]`.
        chosen_risk: `[B]`, K of the chosen completion.
        rejected_risk: `[B]`.
        risk_weight: alpha of the second form (0.5 in the paper); `None` is the first form.
        loss: of the margin.
        beta: `> 0`.
        weights: `[B]`.

    Returns:
        The loss, a mean over pairs, and the metrics of `preference`, of `s + K` for `s`.

    Raises:
        ValueError: shapes that do not fit, or a loss that is not of the margin.

    Example:
        >>> import jax.numpy as jnp
        >>> one = jnp.zeros(1)
        >>> loss, _ = token_preference(
        ...     chosen_logps=one, rejected_logps=one, reference_chosen_logps=one,
        ...     reference_rejected_logps=one, chosen_risk=one, rejected_risk=one,
        ... )
        >>> round(float(loss.mean()), 4)
        0.6931

    Source: as `sequential_risk`.
    """
    if not loss.of_margin_only:
        raise ValueError(
            f"{type(loss).__name__} is no loss of the margin, which TDPO is stated for"
        )
    risks = jnp.asarray(chosen_risk), jnp.asarray(rejected_risk)
    if risk_weight is not None:
        alpha = jnp.asarray(risk_weight).astype(risks[0].dtype)
        risks = alpha * jax.lax.stop_gradient(risks[0]), alpha * risks[1]
    sides = jnp.asarray(chosen_logps), jnp.asarray(rejected_logps)
    return preference(
        chosen_logps=sides[0] + risks[0].astype(sides[0].dtype),
        rejected_logps=sides[1] + risks[1].astype(sides[1].dtype),
        reference_chosen_logps=reference_chosen_logps,
        reference_rejected_logps=reference_rejected_logps,
        loss=loss,
        beta=beta,
        weights=weights,
    )
