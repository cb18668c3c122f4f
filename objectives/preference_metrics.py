"""What a batch of preference pairs says about the policy, by definition and under honest names."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.objectives.pair_mean import pair_mean
from divax.objectives.pairs import LogRatios
from divax.objectives.weighted import Weighted


def pair_metrics(
    ratios: LogRatios, scores: LogRatios, beta: jax.Array, supremum: ArrayLike, tail: ArrayLike
) -> dict[str, Weighted]:
    """Means over the pairs, without gradient.

    | metric | meaning |
    |---|---|
    | `rewards/chosen`, `rewards/rejected` | `beta link(s)`: 0 while the policy is the reference |
    | `rewards/margins` | their difference |
    | `rewards/accuracies` | share of pairs ranked as labelled; a tie counts one half |
    | `mean_log_ratio/chosen`, `.../rejected` | mean of `s`; on such pairs this is no KL |
    | `chosen_drop` | share of pairs whose chosen completion lost probability, `s < 0` |
    | `brier` | mean squared error of `sigmoid(margin)`, the probability that the label is right |
    | `tail` | share of completions beyond the start of the score's linear tail |
    | `saturation` | share of completions whose score is within 0.001 of the link's supremum |

    Args:
        ratios: `s` of both completions, and the pairs' weights.
        scores: `link(s)` of both.
        beta: a scalar or one per pair.
        supremum: of the link, f(0) of the divergence; infinite if it has none.
        tail: where the score's linear tail starts.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax.objectives.pairs import LogRatios
        >>> s = LogRatios(jnp.array([1.0, 0.0]), jnp.array([-1.0, 0.0]), jnp.ones(2))
        >>> metrics = pair_metrics(s, s, jnp.float32(0.1), jnp.inf, 10.0)
        >>> float(metrics["rewards/accuracies"].mean())
        0.75
    """
    ratios, scores, beta = jax.lax.stop_gradient((ratios, scores, beta))
    chosen, rejected = beta * scores.chosen, beta * scores.rejected
    # Ranked by log-ratio: the score is increasing, but in low precision it saturates to ties.
    ahead = jnp.sign(ratios.chosen - ratios.rejected)

    def share(test):
        """Of the completions, chosen and rejected alike."""
        sides = test(ratios.chosen, scores.chosen), test(ratios.rejected, scores.rejected)
        return 0.5 * (sides[0].astype(chosen.dtype) + sides[1].astype(chosen.dtype))

    near_top = jnp.asarray(supremum, chosen.dtype) - 1e-3
    values = {
        **reward_values(chosen, rejected),
        "rewards/accuracies": 0.5 * (1 + ahead),
        "mean_log_ratio/chosen": ratios.chosen,
        "mean_log_ratio/rejected": ratios.rejected,
        "chosen_drop": ratios.chosen < 0,
        "brier": jax.nn.sigmoid(rejected - chosen) ** 2,
        "tail": share(lambda s, _: jnp.abs(s) > jnp.asarray(tail, s.dtype)),
        "saturation": share(lambda _, value: value > near_top),
    }
    return {name: pair_mean(value, ratios.weights) for name, value in values.items()}


def reward_values(chosen: jax.Array, rejected: jax.Array) -> dict[str, jax.Array]:
    """Per pair: both rewards, their margin, and whether it is positive, a tie counting one half."""
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": 0.5 * (1 + jnp.sign(chosen - rejected)),
    }
