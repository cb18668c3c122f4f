"""`PublishedPenalty`: the KL penalties of published trainers as they are, with the gradient that they really have."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences import divergence as frozen_pytree
from divax.objectives.policy_streams import as_tokens, bounded_exponent, held_tokens, live_tokens
from divax.objectives.regularizer import AbstractRegularizer
from divax.objectives.regularizer_gradient import Importance

_STATIC = {"static": True}

#: Of a number of a token as a loss, by how it is weighted: the gradient at frozen prefixes.
_IN_LOSS = {
    ("k1", "none"): "nothing but noise; averaged over a completion's tokens, a push on its length",
    ("k2", "none"): "reverse_kl per token",
    ("k3", "none"): "forward_kl per token",
    ("abs", "none"): "twice total_variation per token",
    ("k1", "differentiated"): "reverse_kl per token",
    ("k2", "differentiated"): "E[k2], which is no divergence's",
    ("k3", "differentiated"): "reverse_kl per token",
    ("abs", "differentiated"): "E[abs], which is no divergence's",
}
_IN_REWARD = {
    "k1": "reverse_kl of whole completions",
    "k2": "E[sum of k2] less that of reverse_kl per token",
    "k3": "reverse_kl of whole completions less that of forward_kl per token",
    "abs": "E[sum of abs] less that of twice total_variation per token",
}


@frozen_pytree
class PublishedPenalty(AbstractRegularizer):
    r"""A number per token, differentiated or put into the reward as trainers do, whatever its gradient then is.

    With `s = log(policy/reference)`: k1 = s, k2 = s²/2, k3 = e^-s - 1 + s, abs = |s|. `explain()` says which gradient it
    has; where that is a divergence's, `Regularizer` says so by its name and holds to it.

    Attributes:
        beta: the weight; may be traced.
        estimator: the number: `k1`, `k2`, `k3` or `abs`.
        placement: `loss`, or `reward`: the sum over the completion, without gradient, at each of its tokens.
        importance: of policy/old in a loss: `none` (as GRPO has it, several updates per rollout included), `detached`, or
            `differentiated` (the correction of DeepSeek-V3.2).

    Raises:
        ValueError: an unknown choice; a weight in the reward, where the surrogate has it.

    Example:
        >>> from divax.objectives import PublishedPenalty
        >>> print(PublishedPenalty(estimator="k3").explain())  # GRPO's "KL"
        the gradient is that of forward_kl per token, at prefixes held fixed, on samples of the policy; on those of an...
        >>> print(PublishedPenalty(estimator="k1").explain())
        the gradient is that of nothing but noise; averaged over a completion's tokens, a push on its length, at...

    Source: Z. Shao et al., "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models",
    arXiv:2402.03300, eq. 4 (k3 as a loss); Y. Tang, R. Munos, "On a few pitfalls in KL divergence gradient estimation
    for RL", arXiv:2506.09477.
    """

    beta: ArrayLike = 0.04
    estimator: Literal["k1", "k2", "k3", "abs"] = dataclasses.field(default="k3", metadata=_STATIC)
    placement: Literal["loss", "reward"] = dataclasses.field(default="loss", metadata=_STATIC)
    importance: Importance = dataclasses.field(default="none", metadata=_STATIC)

    def __post_init__(self):
        for name, known in (
            ("estimator", tuple(_IN_REWARD)),
            ("placement", ("loss", "reward")),
            ("importance", ("none", "detached", "differentiated")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is none of {', '.join(known)}")
        if self.placement == "reward" and self.importance != "none":
            raise ValueError("in the reward it is the surrogate that weighs; use importance='none'")

    def explain(self) -> str:
        """Which gradient it has, in words."""
        if self.placement == "reward":
            return (
                f"the gradient is that of {_IN_REWARD[self.estimator]}, under an unbiased surrogate"
            )
        weighted = "differentiated" if self.importance == "differentiated" else "none"
        claim = (
            f"the gradient is that of {_IN_LOSS[self.estimator, weighted]}, at prefixes held fixed"
        )
        if self.importance != "none":
            return claim + ", on samples of the policy or of an older one"
        return (
            claim
            + ", on samples of the policy; on those of an older one it is that of no divergence"
        )

    def rows(
        self,
        *,
        model_logps: ArrayLike,
        mask: ArrayLike,
        reference_logps: ArrayLike | None = None,
        behaviour_logps: ArrayLike | None = None,
        model_logits: ArrayLike | None = None,
        reference_logits: ArrayLike | None = None,
        divergences: ArrayLike | None = None,
    ) -> jax.Array:
        """As `Regularizer.rows`; neither logits nor their divergences are read."""
        model = as_tokens(model_logps, "model_logps")
        live = live_tokens(mask, model)
        if reference_logps is None:
            raise ValueError(f"{self.estimator} needs reference_logps")
        model = jnp.where(live != 0, model, 0)
        number = self._number(model - held_tokens(reference_logps, "reference_logps", live))
        if self.placement == "reward":
            total = jnp.sum(live * number, -1, keepdims=True)
            return jax.lax.stop_gradient(live * total)
        if self.importance == "none":
            return live * number
        old = jax.lax.stop_gradient(model)
        if behaviour_logps is not None:
            old = held_tokens(behaviour_logps, "behaviour_logps", live)
        weight = jnp.exp(bounded_exponent(model - old, 20.0))
        if self.importance == "detached":
            weight = jax.lax.stop_gradient(weight)
        return live * weight * number

    def _number(self, log_ratio: jax.Array) -> jax.Array:
        if self.estimator == "k1":
            return log_ratio
        if self.estimator == "k2":
            return 0.5 * log_ratio * log_ratio
        if self.estimator == "abs":
            return jnp.abs(log_ratio)
        bounded = bounded_exponent(log_ratio, 20.0)
        return jnp.expm1(-bounded) + bounded
