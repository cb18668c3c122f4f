"""Distillation from a teacher's logits, under any divergence."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences import ForwardKL, TopKCache, coarsen_cached
from divax.divergences.most_likely import most_likely
from divax.objectives.arguments import (
    as_labels,
    as_scalar,
    check_logits,
    check_rows,
    is_static,
    live_weights,
    silence_rows,
)
from divax.objectives.cross_entropy import cross_entropy_rows
from divax.objectives.logit_rows import soften, weigh
from divax.objectives.reduction import Reduction, of_metrics, token_mean
from divax.objectives.vocabulary import equal_vocabularies, restrict_vocabulary
from divax.objectives.weighted import Weighted

_FORWARD_KL = ForwardKL()


def distillation(
    *,
    student_logits: ArrayLike,
    teacher_logits: ArrayLike | TopKCache,
    labels: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    divergence: Callable[[jax.Array, jax.Array], jax.Array] = _FORWARD_KL,
    temperature: ArrayLike = 1.0,
    distill_weight: ArrayLike = 1.0,
    scale_by_t2: bool = True,
    vocab_size: int | None = None,
    reduction: Reduction = token_mean,
) -> tuple[Weighted, dict[str, Weighted]]:
    r"""Divergence from the teacher to the student, mixed with cross-entropy on the labels.

    .. math::
        l = w\,T^2\,D(\mathrm{softmax}(t/T),\, \mathrm{softmax}(s/T))
            + (1-w)\,(-\log \mathrm{softmax}(s)_y)

    per row, in nats, with teacher logits `t`, student logits `s`, label `y`, temperature `T` and
    `w = distill_weight`. Gradients flow to the student alone. `T²` undoes the 1/T² by which
    softening shrinks the gradient, so that `w` keeps its meaning over temperatures; as T grows,
    `T² D` tends to f''(1)/2 times the variance of `t - s` over the vocabulary, for any smooth D.

    Args:
        student_logits: `[..., V]`, any floating dtype; the arithmetic is in float32 or better.
            -inf marks an impossible token.
        teacher_logits: `[..., V]`, rows as the student's; or a `TopKCache` of such rows, which were
            softened by `temperature` before they were stored. Then D is taken of the kept tokens
            and one bucket for all others, a lower bound of D for every f-divergence.
        labels: Integers `[...]`. Rows with a negative label (-100 by convention) are masked.
            May be left out if `distill_weight` is the number 1.
        mask: Weights `[...]`, bool, integer or float; where it is 0, neither the loss nor its
            gradient depends on the row, even if that holds NaN or infinity. Default: every
            (labelled) row counts. See `align_causal` for a causal model's labels and mask.
        divergence: A member of `divax.divergences`, or any function of (teacher logits, student
            logits), `[..., V]` each, to rows `[...]`.
        temperature: `T > 0`; may be traced.
        distill_weight: `w` in [0, 1]; may be traced. A term of weight 0 is 0 even where it is
            infinite.
        scale_by_t2: Whether the divergence is multiplied by `T²`.
        vocab_size: The tokenizer's own size, where the two models pad it differently; the ids
            from there on are removed from both sides before either softmax.
        reduction: Rows and mask to a `Weighted`: `token_mean`, `sequence_mean`, or a partial of
            `constant_sum`.

    Returns:
        The loss, and metrics, each a mean over unmasked tokens, without gradient: `"distill"` (D
        itself, without `T²`), `"cross_entropy"` (if there are labels), `"teacher_entropy"` and
        `"student_entropy"` (of the softened distributions that D sees, so that under the forward
        KL the soft cross-entropy is their sum: `distill + teacher_entropy`), `"agreement"` (both
        have the same most likely token), and with a cache `"coverage"` and `"student_coverage"`,
        what either gives to the kept tokens. Each reads the logits again, none is on the way of
        the gradient, and under `jit` one that is not used is not computed.

    Raises:
        ValueError: If shapes or vocabularies do not match, a plain number is out of range, or
            labels are missing although `distill_weight` is not the number 1.
        TypeError: If logits are not floating, labels not integers, or `divergence` is not callable.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax.divergences import JensenShannon
        >>> from divax.objectives import align_causal, distillation
        >>> tokens = jnp.array([[0, 2, 1]])
        >>> labels, mask = align_causal(tokens)
        >>> teacher = jnp.log(jnp.array([[[0.1, 0.2, 0.7], [0.2, 0.6, 0.2], [1.0, 1.0, 1.0]]]))
        >>> loss, metrics = distillation(
        ...     student_logits=jnp.zeros((1, 3, 3)), teacher_logits=teacher, labels=labels,
        ...     mask=mask, divergence=JensenShannon(), temperature=2.0, distill_weight=0.9,
        ... )
        >>> float(loss.count), float(metrics["agreement"].mean())
        (2.0, 0.0)

    Source: G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network",
    arXiv:1503.02531, section 2: eq. 1 (softening), `T²` in the text after it, eq. 4 (the limit for
    large T, of cross-entropy).
    """
    student, labels = jnp.asarray(student_logits), None if labels is None else as_labels(labels)
    teacher = _array_or_cache(teacher_logits)
    _check_models(student, teacher, divergence)
    check_weights(temperature, distill_weight, labels)
    temperature_ = None if _is_one(temperature) else as_scalar(temperature, "temperature")
    weight = as_scalar(distill_weight, "distill_weight")

    live = live_weights(student.shape[:-1], labels, mask, "student_logits")
    compare = against_cache if isinstance(teacher, TopKCache) else _against_logits
    rows = compare(student, jax.lax.stop_gradient(teacher), live, temperature_, vocab_size)

    distill = divergence(rows.target, rows.model).astype(weight.dtype)
    check_rows(distill, "the value of the divergence", live.shape, "student_logits")
    scaled = scale_by_t2 and temperature_ is not None
    loss = weigh(weight * temperature_**2 if scaled else weight, distill)
    metrics = _metrics(distill, rows)
    if labels is not None:
        hard = cross_entropy_rows(rows.student, labels)
        metrics["cross_entropy"] = jax.lax.stop_gradient(hard)
        # XLA may not drop 0 * x for floats, so a weight known to be 0 is left out here.
        loss = loss if _is_one(distill_weight) else loss + weigh(1 - weight, hard)
    mean = of_metrics(reduction)
    return reduction(loss, live), {name: mean(value, live) for name, value in metrics.items()}


class Compared(NamedTuple):
    """Rows as the divergence sees them, zeros wherever the row's weight is 0.

    Attributes:
        target: the teacher's, softened, `[..., V]` or K kept tokens and their bucket.
        model: the student's, likewise.
        student: its logits `[..., V]` as they are.
        extra: values per row, for metrics.
    """

    target: jax.Array
    model: jax.Array
    student: jax.Array
    extra: dict[str, jax.Array]


def _against_logits(student, teacher, live, temperature, vocab_size) -> Compared:
    student, teacher = equal_vocabularies(student, teacher, vocab_size)
    student, teacher = silence_rows(student, live), silence_rows(teacher, live)
    target, model = _softened(teacher, temperature), _softened(student, temperature)
    # Not by `most_likely`: beside the divergence its two reductions would store arrays of ids, [..., V].
    agreement = jnp.argmax(model, axis=-1) == jnp.argmax(target, axis=-1)
    return Compared(target, model, student, {"agreement": agreement})


def against_cache(student, cache, live, temperature, vocab_size) -> Compared:
    """Rows against what a cache kept; the cache's rows are at the temperature that they were stored at."""
    if vocab_size is not None:
        student = restrict_vocabulary(student, vocab_size, "student_logits")
    student = silence_rows(student, live)
    silent = _silence_cache(cache, live)
    coarse = coarsen_cached(silent, _softened(student, temperature))
    best = jnp.argmax(silent.logits, axis=-1, keepdims=True)
    favourite = jnp.take_along_axis(silent.ids, best, axis=-1)[..., 0]
    extra = {
        "agreement": most_likely(student) == favourite.astype(jnp.int32),
        "coverage": coarse.coverage,
        "student_coverage": coarse.model_coverage,
    }
    return Compared(coarse.target, coarse.model, student, extra)


def _silence_cache(cache: TopKCache, live: jax.Array) -> TopKCache:
    """The first tokens with half of the mass, wherever the row does not count."""
    counts, k = live != 0, cache.ids.shape[-1]

    def silence(x, value):
        return jnp.where(counts.reshape(counts.shape + (1,) * (x.ndim - counts.ndim)), x, value)

    return TopKCache(
        silence(cache.ids, jnp.arange(k, dtype=cache.ids.dtype)),
        silence(cache.logits, jnp.zeros((), cache.logits.dtype)),
        silence(cache.logsumexp, jnp.asarray(math.log(2 * k), cache.logsumexp.dtype)),
        None
        if cache.log_tail is None
        else silence(cache.log_tail, jnp.asarray(-math.log(2), cache.log_tail.dtype)),
    )


def _array_or_cache(teacher: ArrayLike | TopKCache) -> jax.Array | TopKCache:
    if not isinstance(teacher, TopKCache):
        return jnp.asarray(teacher)
    return TopKCache(*(None if x is None else jnp.asarray(x) for x in teacher))


def _check_models(student: jax.Array, teacher: jax.Array | TopKCache, divergence: object) -> None:
    check_logits(student, "student_logits")
    logits = teacher.logits if isinstance(teacher, TopKCache) else teacher
    check_logits(logits, "teacher_logits")
    if student.shape[:-1] != logits.shape[:-1]:
        raise ValueError(
            f"student_logits {student.shape} and teacher_logits {logits.shape} must agree in "
            "every axis but the last: run both models on the same tokens"
        )
    if isinstance(divergence, str):
        raise TypeError(
            f"divergence must be a divergence, got the string {divergence!r}; "
            f"divax.divergences.get({divergence!r}) makes one of it"
        )
    if isinstance(divergence, type) or not callable(divergence):
        name = divergence.__name__ if isinstance(divergence, type) else type(divergence).__name__
        raise TypeError(
            f"divergence must be a divergence, got {name}; pass an instance such as ForwardKL()"
        )


def check_weights(
    temperature: ArrayLike, distill_weight: ArrayLike, labels: jax.Array | None
) -> None:
    """The ranges, where the values are known, and that there are labels if they have a weight."""
    if is_static(temperature) and not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
    if is_static(distill_weight) and not 0 <= distill_weight <= 1:
        raise ValueError(f"distill_weight must lie in [0, 1], got {distill_weight}")
    if labels is None and not _is_one(distill_weight):
        raise ValueError(
            f"distill_weight={distill_weight} mixes in the cross-entropy on the labels, but labels "
            "is None; pass labels=, or leave distill_weight at the number 1"
        )


def _is_one(value: ArrayLike) -> bool:
    return is_static(value) and value == 1


def _softened(logits: jax.Array, temperature: jax.Array | None) -> jax.Array:
    return logits if temperature is None else soften(logits.astype(temperature.dtype), temperature)


def _metrics(distill: jax.Array, rows: Compared) -> dict[str, jax.Array]:
    distill, rows = jax.lax.stop_gradient((distill, rows))
    return {
        "distill": distill,
        "teacher_entropy": row_entropy(rows.target),
        "student_entropy": row_entropy(rows.model),
        **rows.extra,
    }


def row_entropy(logits: jax.Array) -> jax.Array:
    """Entropy of softmax(logits) per row: the sum of `q (-log q)`, whose terms are all >= 0."""
    logits = logits.astype(jnp.result_type(float))
    # exp(x - max) is left to the normaliser: shared with the sum below it would be stored.
    surprise = jax.nn.logsumexp(logits, axis=-1, keepdims=True) - logits
    # Not `surprise < inf`: a NaN must show.
    return jnp.sum(jnp.where(surprise == jnp.inf, 0, jnp.exp(-surprise) * surprise), axis=-1)
