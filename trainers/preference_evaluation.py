"""What pairs that were not trained on say about a policy, over a whole evaluation set."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from divax.trainers.calibration import BINS
from divax.trainers.pairs import PairLogps


def pair_sums(objective: Callable[[PairLogps], Any], pairs: PairLogps) -> dict[str, Any]:
    """The objective's metrics on a batch, and per pair what measures of the whole set need.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import trainers as tr
        >>> pairs = PairLogps(*[jnp.ones(2)] * 7)
        >>> sorted(pair_sums(tr.FDivergenceDPO(), pairs))
        ['lengths', 'log_ratios', 'margins', 'metrics', 'weights']
    """
    loss, metrics = objective(pairs)
    unweighted = pairs._replace(weights=jnp.ones_like(pairs.weights))
    one = lambda pair: objective(jax.tree.map(lambda x: x[None], pair))[1]  # noqa: E731
    each = jax.vmap(one)(unweighted)
    margins = each["rewards/margins"].total if "rewards/margins" in each else None
    return {
        "metrics": {"loss": loss, **metrics},
        "margins": margins,
        "lengths": pairs.chosen_lengths - pairs.rejected_lengths,
        "log_ratios": (pairs.chosen_logps - pairs.reference_chosen_logps)
        - (pairs.rejected_logps - pairs.reference_rejected_logps),
        "weights": pairs.weights,
    }


def summarise_pairs(batch_sums: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Means over all pairs; `ece` of the implied preference probability; `length_correlation`.

    `ece` compares `sigmoid(margin)`, the probability that the label is right, with how often the
    margin is positive, over bins of the probability that the likelier completion is preferred.
    `length_correlation` is Pearson's, of the log-ratio margin with the difference in length.

    Raises:
        ValueError: no pair.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import trainers as tr
        >>> pairs = PairLogps(*[jnp.ones(2)] * 7)
        >>> summarise_pairs([pair_sums(tr.FDivergenceDPO(), pairs)])["rewards/accuracies"]
        0.5
    """
    batches = [jax.tree.map(lambda x: np.asarray(x, np.float64), sums) for sums in batch_sums]
    live = [batch["weights"] != 0 for batch in batches]
    if not batches or not any(mask.any() for mask in live):
        raise ValueError("evaluation got no preference pair")
    total = jax.tree.map(lambda *parts: sum(parts), *[batch["metrics"] for batch in batches])
    values = {name: float(item.total / item.count) for name, item in total.items()}

    def column(name):
        return np.concatenate(
            [batch[name][mask] for batch, mask in zip(batches, live, strict=True)]
        )

    if batches[0]["margins"] is not None:
        values["ece"] = expected_calibration_error(column("margins"))
    spread = np.std(column("lengths")) * np.std(column("log_ratios"))
    covariance = np.cov(column("lengths"), column("log_ratios"), ddof=0)[0, 1]
    values["length_correlation"] = float(covariance / spread) if spread > 0 else 0.0
    return values


def expected_calibration_error(margins: np.ndarray, bins: int = BINS) -> float:
    """ECE of preferring the completion with the larger reward with probability sigmoid(|margin|).

    Example:
        >>> import numpy as np
        >>> round(expected_calibration_error(np.array([0.0, 0.0])), 4)  # a tie: half right, half sure
        0.0
    """
    confidence = 1 / (1 + np.exp(-np.abs(margins)))
    right = 0.5 * (1 + np.sign(margins))
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = [abs(np.sum(right[index == bin] - confidence[index == bin])) for bin in range(bins)]
    return float(np.sum(gaps) / len(margins))
