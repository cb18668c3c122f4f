"""Measures of a model, alone and against its teacher, as sums that merge over batches."""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from divax import objectives
from divax.divergences import ForwardKL, ReverseKL, TopKCache
from divax.objectives import Weighted
from divax.trainers.batch import Batch
from divax.trainers.calibration import Calibration
from divax.trainers.examples import Examples


def prediction_sums(
    logits: jax.Array, batch: Batch | Examples, vocab_size: int | None = None
) -> dict[str, Any]:
    """Sums of a model's `nll` (nats), `accuracy` and `calibration` on a batch.

    Args:
        logits: `[B, T, V]`; a classifier's are `[B, V]`.
        batch: the tokens, where position t is scored on token t + 1; or the examples.
        vocab_size: ids from there on are padding of the vocabulary.

    Example:
        >>> import jax.numpy as jnp
        >>> batch = Batch(tokens=jnp.array([[0, 1, 1]]))
        >>> sums = prediction_sums(jnp.zeros((1, 3, 4)), batch)
        >>> float(sums["nll"].count), round(float(sums["nll"].mean()), 4)
        (2.0, 1.3863)
    """
    labels, mask = batch.targets()
    logits = logits if vocab_size is None else logits[..., :vocab_size]
    nll, metrics = objectives.cross_entropy(logits=logits, labels=labels, mask=mask)
    calibration = Calibration.of(logits, labels, mask)
    return {"nll": nll, "accuracy": metrics["accuracy"], "calibration": calibration}


def comparison_sums(
    student_logits: jax.Array,
    teacher_logits: jax.Array | TopKCache,
    batch: Batch | Examples,
    vocab_size: int | None = None,
) -> dict[str, Weighted]:
    """Sums of `forward_kl`, `reverse_kl` (nats) and top-1 `agreement`.

    Args:
        student_logits: `[B, T, V]`; a classifier's are `[B, V]`.
        teacher_logits: as the student's; or what a cache kept of them, and both divergences are
            those of the kept tokens and one bucket, lower bounds.
        batch: what both were run on; the positions counted are those of the loss.
        vocab_size: ids from there on are padding of the vocabulary.

    Example:
        >>> import jax.numpy as jnp
        >>> batch, logits = Batch(tokens=jnp.array([[0, 1, 1]])), jnp.zeros((1, 3, 4))
        >>> float(comparison_sums(logits, logits, batch)["agreement"].mean())
        1.0
    """
    labels, mask = batch.targets()

    def measure(divergence):
        return objectives.distillation(
            student_logits=student_logits,
            teacher_logits=teacher_logits,
            labels=labels,
            mask=mask,
            divergence=divergence,
            vocab_size=vocab_size,
        )[1]

    forward, reverse = measure(ForwardKL()), measure(ReverseKL())
    return {
        "forward_kl": forward["distill"],
        "reverse_kl": reverse["distill"],
        "agreement": forward["agreement"],
    }


def summarise(batch_sums: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Adds the batches' sums in float64 on the host and divides once.

    `calibration` becomes `ece`, and a nested dictionary's names are joined by a slash.

    Args:
        batch_sums: what `prediction_sums` and `comparison_sums` return, one per batch.

    Raises:
        ValueError: no batch, or none with a position that counts.

    Example:
        >>> import jax.numpy as jnp
        >>> examples = Examples(inputs=jnp.zeros((2, 1)), labels=jnp.array([0, 1]))
        >>> found = summarise([prediction_sums(jnp.zeros((2, 4)), examples)] * 2)
        >>> {name: round(value, 4) for name, value in found.items()}
        {'accuracy': 0.5, 'ece': 0.25, 'nll': 1.3863}
    """
    total = None
    for sums in batch_sums:
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64), sums)
        total = wide if total is None else jax.tree.map(np.add, total, wide)
    if total is None:
        raise ValueError("evaluation got no batches")
    return _divide(total, "")


def summarise_tokens(batch_sums: Iterable[dict[str, Any]]) -> dict[str, float]:
    """`summarise`, with `perplexity` = exp(nll) in place of every `nll`.

    Args:
        batch_sums: as for `summarise`.

    Raises:
        ValueError: no batch, or none with a position that counts.

    Example:
        >>> import jax.numpy as jnp
        >>> batch = Batch(tokens=jnp.array([[0, 1, 1]]))
        >>> found = summarise_tokens([prediction_sums(jnp.zeros((1, 3, 4)), batch)] * 2)
        >>> {name: round(value, 4) for name, value in found.items()}
        {'accuracy': 0.0, 'ece': 0.25, 'perplexity': 4.0}
    """
    return {
        name.replace("nll", "perplexity"): float(np.exp(value)) if name.endswith("nll") else value
        for name, value in summarise(batch_sums).items()
    }


def _divide(sums: dict[str, Any], prefix: str) -> dict[str, float]:
    values = {}
    for name, item in sums.items():
        if isinstance(item, dict):
            values |= _divide(item, f"{prefix}{name}/")
        elif isinstance(item, Calibration):
            values[prefix + "ece"] = float(item.error())
        elif item.count == 0:
            raise ValueError("evaluation got nothing to score: every position is masked")
        else:
            values[prefix + name] = float(item.total / item.count)
    return values
