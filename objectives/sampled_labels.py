"""What the objectives on sampled completions share: log-probs of the labels under both models, and importance weights."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from divax.objectives.arguments import as_labels, live_weights
from divax.objectives.cross_entropy import cross_entropy_rows
from divax.objectives.distillation_rows import DistillationRows
from divax.objectives.hidden_rows import HiddenRows
from divax.objectives.logit_rows import LogitRows, logit_rows
from divax.objectives.policy_streams import bounded_exponent, held_tokens

#: What the weight student/sampler of a sampled token is taken over: nothing, the token, the completion up to it.
SampleWeights = Literal["none", "token", "prefix"]

#: Exponents of weights are bounded at this many nats: e^20 fits every float.
_BOUND = 20.0


class SampledLabels(NamedTuple):
    """Student and teacher on sampled tokens; zeros wherever a token does not count.

    Attributes:
        student: `[B, T]`, the labels' log-probs, with their gradient.
        teacher: `[B, T]`, without.
        live: `[B, T]`, weights.
    """

    student: jax.Array
    teacher: jax.Array
    live: jax.Array

    @property
    def gap(self) -> jax.Array:
        """`log(student/teacher)` of the labels, no gradient."""
        return jax.lax.stop_gradient(self.student) - self.teacher


def sampled_logits(rows: DistillationRows, objective: str, vocab_size: int | None) -> LogitRows:
    """Both models on the labels of `rows`, silent where the mask is 0.

    Raises:
        ValueError: no teacher, a cache of one, no time axis, or shapes that do not fit.
    """
    if rows.student_logits.ndim != 3:
        raise ValueError(
            f"{objective} is of completions: student_logits must be [B, T, V], got"
            f" {rows.student_logits.shape}; a single decision has T = 1"
        )
    return logit_rows(
        rows.student_logits, rows.whole_teacher(objective), rows.labels, rows.mask, vocab_size
    )


def sampled_labels(both: LogitRows) -> SampledLabels:
    """The labels' log-probs."""
    live = both.live != 0
    own, other = (
        jnp.where(live, -cross_entropy_rows(logits, both.labels), 0)
        for logits in (both.student, both.teacher)
    )
    return SampledLabels(own, other, both.live)


def live_labels(rows: HiddenRows) -> jax.Array:
    """The weights of the rows' labels."""
    return live_weights(rows.labels.shape, as_labels(rows.labels), rows.mask, "student_hidden")


def log_weights(
    samples: SampledLabels, rows: DistillationRows | HiddenRows, objective: str, over: SampleWeights
) -> jax.Array:
    """`log(student/sampler)` of each token, of the completion up to and including it, or 0; no gradient.

    Raises:
        ValueError: the labels have no sampler.
    """
    if over == "none":
        return jnp.zeros_like(samples.student)
    drawn = held_tokens(rows.drawn(objective), "sampler_logps", samples.live)
    gap = jax.lax.stop_gradient(samples.student) - drawn
    return jnp.cumsum(gap, -1) if over == "prefix" else gap


def to_weight(log_weight: jax.Array) -> jax.Array:
    """The exponential, finite."""
    return jnp.exp(bounded_exponent(log_weight, _BOUND))


def check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """A static choice is one of those that there are."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is none of {', '.join(allowed)}")
