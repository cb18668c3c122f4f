"""`ContrastiveDistillation`: skewed KLs whose direction depends on who wrote the completion (DistiLLM-2)."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences import ForwardKL, SkewForwardKL, log_softmax
from divax.divergences import divergence as frozen_pytree
from divax.divergences.fused_linear import Implementation
from divax.objectives.arguments import is_static
from divax.objectives.distillation_rows import FROM_DATA, FROM_STUDENT, DistillationRows
from divax.objectives.hidden_rows import HiddenRows
from divax.objectives.logit_rows import LogitRows
from divax.objectives.reduction import sequence_mean
from divax.objectives.sampled_labels import (
    SampledLabels,
    live_labels,
    sampled_labels,
    sampled_logits,
)
from divax.objectives.token_objective import tokens_from_hidden
from divax.objectives.weighted import Weighted

_STATIC = {"static": True}
_FORWARD_KL = ForwardKL()


@frozen_pytree
class ContrastiveDistillation:
    r"""Skewed forward KL on the teacher's completions, skewed reverse KL on the student's.

    .. math::
        (2 - b)\,\mathrm{KL}(p\,\|\,a_1 p + (1 - a_1) q) \ \text{where the teacher wrote}, \qquad
        b\,\mathrm{KL}(q\,\|\,(1 - a_2) p + a_2 q) \ \text{where the student did}

    with p the teacher, q the student; a mean over each completion's tokens, and twice the mean over completions, which for
    as many of one as of the other is the sum of both means. The first raises what the teacher says, the second lowers
    what only the student says. Completions from the data count as the teacher's.

    With the gaps of a run's first batch (`gaps`), the skew follows how hard a completion is, each having its own:

    .. math:: a = \mathrm{clip}\big(1 - (1 - a_0)\,m/(g + 10^{-5}),\ 0.01,\ a_0\big), \qquad
        g = \pm\big(e^{\overline{\log p}} - e^{\overline{\log q}}\big)

    `+` where the teacher wrote; means over the completion's tokens; `m` the batch's mean of g then. No gradient flows
    through `a`.

    Attributes:
        teacher_skew: `a_1` (`a_0` with a gap).
        student_skew: `a_2`.
        student_weight: b, in [0, 2]; the authors' gradual one grows from 1 to 1.5 in the first half.
        teacher_gap: m on the teacher's completions, from `gaps`; `None` is a skew that does not change.
        student_gap: m on the student's.
        detach_mixture: hold the student in the reverse KL's mixture fixed, as the authors' code does: then it is the
            gradient of the reverse KL to that mixture, and not of the skewed reverse KL.
        vocab_size: the tokenizer's own size, where a model pads it.

    Raises:
        ValueError: a number out of range.

    Example:
        >>> from divax.objectives import ContrastiveDistillation
        >>> print(ContrastiveDistillation().explain())
        teacher's completions: 1 * KL(teacher || 0.1 teacher + 0.9 student); student's: 1 * KL(student || 0.1...

    Source: J. Ko et al., "DistiLLM-2: A Contrastive Approach Boosts the Distillation of LLMs", arXiv:2503.07067, eq. 5 (at
    b = 1, up to a factor), eq. 2 (with a coefficient of either term), eq. 7 and algorithm 1 (the curriculum); the means over
    tokens, b, the curriculum's gaps and limits and the detached mixture as in the authors' code.
    """

    teacher_skew: ArrayLike = 0.1
    student_skew: ArrayLike = 0.1
    student_weight: ArrayLike = 1.0
    teacher_gap: ArrayLike | None = None
    student_gap: ArrayLike | None = None
    detach_mixture: bool = dataclasses.field(default=True, metadata=_STATIC)
    vocab_size: int | None = dataclasses.field(default=None, metadata=_STATIC)

    def __post_init__(self):
        for name in ("teacher_skew", "student_skew"):
            value = getattr(self, name)
            if is_static(value) and not 0 < value < 1:
                raise ValueError(f"{name}={value} must lie in (0, 1)")
        if is_static(self.student_weight) and not 0 <= self.student_weight <= 2:
            raise ValueError(f"student_weight={self.student_weight} must lie in [0, 2]")

    def __call__(self, rows: DistillationRows, /) -> tuple[Weighted, dict[str, Weighted]]:
        """The loss, and as metrics both divergences and both gaps, means over their completions.

        Raises:
            ValueError: no teacher, a cache of one, or shapes that do not fit.
        """
        both = sampled_logits(rows, "ContrastiveDistillation", self.vocab_size)
        samples = sampled_labels(both)
        by_student = _written_by_student(rows.writers, samples)
        skew = self._skews(samples, by_student)
        found = _divergences(self.detach_mixture, both, by_student[:, None], skew[:, None])
        return self._of_tokens(samples, by_student, found)

    def _of_tokens(self, samples: SampledLabels, by_student: jax.Array, divergence: jax.Array):
        """Of the labels' log-probs, the writers, and each token's divergence."""
        b = jnp.asarray(self.student_weight).astype(divergence.dtype)
        weight = 2 * jnp.where(by_student, b, 2 - b)
        loss = sequence_mean(weight[:, None] * divergence, samples.live)
        held = jax.lax.stop_gradient(divergence)
        taught = jnp.where(by_student[:, None], 0, samples.live)
        drawn = jnp.where(by_student[:, None], samples.live, 0)
        metrics = {
            "teacher_divergence": sequence_mean(held, taught),
            "student_divergence": sequence_mean(held, drawn),
            **_gaps(samples, by_student),
        }
        return loss, metrics

    def gaps(self, rows: DistillationRows) -> dict[str, Weighted]:
        """`teacher_gap` and `student_gap`: means of g over the completions of either.

        Those of a run's first batch, as fields, are the curriculum's yardstick; so is any other's.

        Raises:
            ValueError: as the loss.
        """
        both = sampled_logits(rows, "ContrastiveDistillation", self.vocab_size)
        samples = sampled_labels(both)
        return _gaps(samples, _written_by_student(rows.writers, samples))

    def _skews(self, samples: SampledLabels, by_student: jax.Array) -> jax.Array:
        """The skew of each completion, `[B]`, no gradient."""
        dtype = samples.gap.dtype
        gap, sides = _gap(samples, by_student), []
        for skew, yardstick in (
            (self.teacher_skew, self.teacher_gap),
            (self.student_skew, self.student_gap),
        ):
            base = jnp.broadcast_to(jnp.asarray(skew).astype(dtype), gap.shape)
            if yardstick is not None:
                anchor = (1 - base) * jnp.asarray(yardstick).astype(dtype)
                base = jnp.clip(1 - anchor / (gap + 1e-5), 0.01, base)
            sides.append(base)
        return jax.lax.stop_gradient(jnp.where(by_student, sides[1], sides[0]))

    @property
    def takes_hidden(self) -> bool:
        """Always."""
        return True

    @property
    def reads_teacher(self) -> bool:
        """Always."""
        return True

    def from_hidden(
        self,
        rows: HiddenRows,
        /,
        *,
        vocab_size: int | None = None,
        implementation: Implementation | None = None,
    ) -> tuple[Weighted, dict[str, Weighted]]:
        """The same without all logits at once, by `tokens_from_hidden`; skews by gaps take a walk more."""
        walk = functools.partial(
            tokens_from_hidden,
            rows=rows,
            vocab_size=vocab_size or self.vocab_size,
            implementation=implementation,
        )
        shape, live = rows.labels.shape, live_labels(rows)
        nothing = SampledLabels(jnp.zeros_like(live), jnp.zeros_like(live), live)
        by_student = _written_by_student(rows.writers, nothing)
        samples = nothing
        if self.teacher_gap is not None or self.student_gap is not None:
            labels = walk(functools.partial(_labels, self.vocab_size))
            samples = jax.lax.stop_gradient(labels)._replace(live=live)
        skew = self._skews(samples, by_student)
        each = tuple(jnp.broadcast_to(x[:, None], shape) for x in (by_student, skew))
        of_tokens = functools.partial(_tokens, self.vocab_size, self.detach_mixture)
        samples, divergence = walk(of_tokens, per_token=each)
        return self._of_tokens(samples._replace(live=live), by_student, divergence)

    def explain(self) -> str:
        """Both terms, and what is held fixed."""
        known = is_static(self.student_weight)
        first = f"{2 - self.student_weight:g}" if known else "(2 - b)"  # type: ignore[operator]
        second = f"{self.student_weight:g}" if known else "b"
        parts = [
            f"teacher's completions: {first} * KL(teacher || {_mixture(self.teacher_skew, 'teacher', 'student')})",
            f"student's: {second} * KL(student || {_mixture(self.student_skew, 'student', 'teacher')})",
        ]
        if self.detach_mixture:
            parts[1] += " with that mixture held fixed, so the reverse KL to it"
        if self.teacher_gap is not None or self.student_gap is not None:
            parts.append("skews by each completion's gap, no gradient through them")
        parts.append("a mean over each completion's tokens; prefixes held fixed")
        return "; ".join(parts)


def _mixture(skew: ArrayLike, own: str, other: str) -> str:
    shares = (f"{skew:g}", f"{1 - skew:g}") if is_static(skew) else ("a", "(1 - a)")
    return f"{shares[0]} {own} + {shares[1]} {other}"


def _labels(vocab_size: int | None, rows: DistillationRows, _: Any) -> SampledLabels:
    return sampled_labels(sampled_logits(rows, "ContrastiveDistillation", vocab_size))


def _tokens(vocab_size: int | None, detach: bool, rows: DistillationRows, each: Any):
    """The labels' log-probs, and each token's divergence by its writer and skew."""
    both = sampled_logits(rows, "ContrastiveDistillation", vocab_size)
    return sampled_labels(both), _divergences(detach, both, *each)


def _divergences(
    detach: bool, both: LogitRows, by_student: jax.Array, skew: jax.Array
) -> jax.Array:
    """`[B, T]`: KL(x || a x + (1 - a) y), with x who wrote the completion and y the other; writers and a `[B, T or 1]`."""
    own, student, teacher = by_student[..., None], both.student, both.teacher
    writer, other = jnp.where(own, student, teacher), jnp.where(own, teacher, student)
    if not detach:
        of_rows = jax.vmap(lambda a, x, y: SkewForwardKL(skew=a)(x, y))
        if skew.shape[-1] == 1:
            return of_rows(skew[:, 0], writer, other)
        return jax.vmap(of_rows)(skew, writer, other)
    a, held = skew[..., None], jax.lax.stop_gradient(log_softmax(writer))
    return _FORWARD_KL(writer, jnp.logaddexp(jnp.log(a) + held, jnp.log1p(-a) + log_softmax(other)))


def _written_by_student(writers: jax.Array | None, samples: SampledLabels) -> jax.Array:
    nobody = jnp.full(samples.live.shape[:1], FROM_DATA)
    writers = nobody if writers is None else jnp.asarray(writers)
    if writers.shape != nobody.shape:
        raise ValueError(f"writers must be [B] = {nobody.shape}, got {writers.shape}")
    return writers == FROM_STUDENT


def _gaps(samples: SampledLabels, by_student: jax.Array) -> dict[str, Weighted]:
    """Means of g over the completions of either."""
    gap, counts = _gap(samples, by_student), jnp.any(samples.live != 0, -1)

    def mean(chosen):
        chosen = (chosen & counts).astype(gap.dtype)
        return Weighted(jnp.sum(chosen * gap), jnp.sum(chosen))

    return {"teacher_gap": mean(~by_student), "student_gap": mean(by_student)}


def _gap(samples: SampledLabels, by_student: jax.Array) -> jax.Array:
    """Geometric mean of the writer's token probabilities less the other model's, `[B]`, no gradient."""
    lengths = jnp.maximum(jnp.sum(samples.live, -1), 1)

    def likelihood(logps):
        weighted = jnp.where(samples.live != 0, logps, 0) * samples.live
        return jnp.exp(jnp.sum(jax.lax.stop_gradient(weighted), -1) / lengths)

    gap = likelihood(samples.teacher) - likelihood(samples.student)
    return jnp.where(by_student, -gap, gap)
