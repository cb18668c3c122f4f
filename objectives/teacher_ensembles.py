"""Several teachers as one: the mixture that forward KLs add up to, the product that reverse KLs do, and whom to believe."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences import log_softmax
from divax.objectives.arguments import as_labels, check_rows, live_weights, silence_rows
from divax.objectives.cross_entropy import cross_entropy_rows
from divax.objectives.logit_rows import floating_logits


def mixture_of_teachers(logits: ArrayLike, weights: ArrayLike | None = None) -> jax.Array:
    r"""The mixture of several teachers' distributions: any of them may be right.

    .. math:: \log \sum_m w_m\, p_m(v)

    `sum_m w_m KL(p_m || q)` is KL(mixture‖q) and a constant: distilling from all by the forward KL, or the soft
    cross-entropy, is distilling from this, exactly, in one pass.

    Args:
        logits: `[M, ..., V]`, of M teachers on the same rows; -inf is an impossible token.
        weights: `[M]`, or `[M, B]` per sample, or per row `[M, ...]`; divided by their sum over teachers. A teacher of
            weight 0 may say anything but NaN. `None` is all alike.

    Returns:
        `[..., V]`, log-probabilities: the teacher's logits of any objective (at temperature 1; for another, pass
        `logits / T`).

    Raises:
        ValueError: shapes that do not fit.
        TypeError: logits that are not floating.

    Example:
        >>> import jax, numpy as np
        >>> from divax.objectives import mixture_of_teachers
        >>> teachers = np.log([[0.9, 0.1], [0.1, 0.9]])
        >>> [round(float(p), 4) for p in np.exp(jax.jit(mixture_of_teachers)(teachers, np.array([3.0, 1.0])))]
        [0.7, 0.3]

    Source: the identity is that of the chain rule of KL; in distillation, G. Hinton, O. Vinyals, J. Dean, "Distilling the
    Knowledge in a Neural Network", arXiv:1503.02531, §1 (an arithmetic or geometric mean of the teachers).
    """
    rows, shares = _checked(logits, weights)
    possible = shares > 0
    log_shares = jnp.where(possible, jnp.log(jnp.where(possible, shares, 1)), -jnp.inf)
    return jax.nn.logsumexp(log_softmax(rows) + log_shares, axis=0)


def product_of_teachers(logits: ArrayLike, weights: ArrayLike | None = None) -> jax.Array:
    r"""The normalised product of several teachers' distributions: all must agree.

    .. math:: \log \mathrm{softmax}\Big(\sum_m w_m \log p_m(v)\Big)

    `sum_m w_m KL(q || p_m)` is KL(q‖product) and a constant: distilling from all by the reverse KL is distilling from
    this, exactly. A token that a teacher of positive weight rules out is ruled out.

    Args:
        logits: as in `mixture_of_teachers`.
        weights: likewise.

    Returns:
        `[..., V]`, log-probabilities.

    Raises:
        ValueError: shapes that do not fit.
        TypeError: logits that are not floating.

    Example:
        >>> import jax, numpy as np
        >>> from divax.objectives import product_of_teachers
        >>> teachers = np.log([[0.9, 0.1], [0.1, 0.9]])
        >>> [round(float(p), 4) for p in np.exp(jax.jit(product_of_teachers)(teachers))]
        [0.5, 0.5]

    Source: G. Hinton, "Training Products of Experts by Minimizing Contrastive Divergence" (2002), eq. 1; as a geometric
    mean of teachers, G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, §1.
    """
    rows, shares = _checked(logits, weights)
    # A teacher of weight 0 has no say, not even by a token that it rules out: 0 * -inf would be NaN.
    terms = jnp.where(shares > 0, shares * jnp.where(shares > 0, log_softmax(rows), 0), 0)
    return log_softmax(jnp.sum(terms, axis=0))


def teacher_weights(
    logits: ArrayLike, labels: ArrayLike, mask: ArrayLike | None = None
) -> jax.Array:
    r"""How far to believe each teacher on each sample: the less, the worse it predicts the labels.

    .. math:: w_m = \frac1{M-1}\Big(1 - \frac{e^{c_m}}{\sum_j e^{c_j}}\Big), \qquad
        c_m = \text{mean over the sample of } -\log p_m(y)

    Args:
        logits: `[M, B, T, V]`, or `[M, B, V]` for single decisions; no gradient flows.
        labels: integers `[B, T]` or `[B]`; a negative one is masked.
        mask: of the same shape; where it is 0 the logits may be anything.

    Returns:
        `[M, B]`, sums to 1 over teachers; 1 for a teacher alone, all alike where nothing counts.

    Raises:
        ValueError: shapes that do not fit.
        TypeError: logits that are not floating, or labels that are not integers.

    Example:
        >>> import jax, numpy as np
        >>> from divax.objectives import teacher_weights
        >>> teachers = np.log([[[0.9, 0.1]], [[0.1, 0.9]]])
        >>> [round(float(w), 4) for w in np.ravel(jax.jit(teacher_weights)(teachers, np.array([0])))]
        [0.9, 0.1]

    Source: H. Zhang, D. Chen, C. Wang, "Confidence-Aware Multi-Teacher Knowledge Distillation" (CA-MKD),
    arXiv:2201.00007, its weights of the teachers' predictions; per sample of tokens, the mean is ours.
    """
    rows = jax.lax.stop_gradient(floating_logits(logits, "logits"))
    if rows.ndim not in (3, 4):
        raise ValueError(f"logits must be [M, B, T, V] or [M, B, V], got shape {rows.shape}")
    ids = as_labels(labels)
    check_rows(ids, "labels", rows.shape[1:-1], "each teacher's logits")
    live = live_weights(ids.shape, ids, mask, "each teacher's logits")
    silent = silence_rows(rows, jnp.broadcast_to(live, rows.shape[:-1]))
    return weights_of_costs(
        cross_entropy_rows(silent, jnp.broadcast_to(ids, silent.shape[:-1])), live
    )


def weights_of_costs(costs: jax.Array, live: jax.Array) -> jax.Array:
    """`teacher_weights` of the labels' cross-entropies, `[M, B, T]` or `[M, B]`; `live` weighs the rows."""
    costs = live[None] * costs
    if costs.ndim == 3:
        costs = jnp.sum(costs, -1) / jnp.maximum(jnp.sum(live, -1), 1)[None]
    if costs.shape[0] == 1:
        return jnp.ones_like(costs)
    return (1 - jax.nn.softmax(costs, axis=0)) / (costs.shape[0] - 1)


def _checked(logits: ArrayLike, weights: ArrayLike | None) -> tuple[jax.Array, jax.Array]:
    """Logits, and each teacher's share of every row, with an axis of one for the vocabulary."""
    rows = jax.lax.stop_gradient(floating_logits(logits, "logits"))
    if rows.ndim < 2:
        raise ValueError(f"logits must be [M, ..., V], M teachers first, got shape {rows.shape}")
    given = jnp.ones(rows.shape[:1], rows.dtype) if weights is None else jnp.asarray(weights)
    given = jax.lax.stop_gradient(given.astype(rows.dtype))
    if given.ndim == 0 or given.shape != rows.shape[: given.ndim] or given.ndim >= rows.ndim:
        raise ValueError(
            f"weights must be [M] or the leading axes of the rows {rows.shape[:-1]}, got {given.shape}"
        )
    shares = given / jnp.sum(given, axis=0, keepdims=True)
    return rows, shares.reshape(shares.shape + (1,) * (rows.ndim - shares.ndim))
