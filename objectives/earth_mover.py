"""`EarthMover`: the likelihood of the labels, balanced with how far the student's mass is from them (EMO)."""

import dataclasses

import jax
import jax.numpy as jnp

from divax.divergences import EMO, balanced_with_likelihood
from divax.divergences import divergence as frozen_pytree
from divax.objectives.abstract_token_objective import AbstractTokenObjective
from divax.objectives.arguments import as_labels, live_weights, silence_rows
from divax.objectives.cross_entropy import cross_entropy_rows
from divax.objectives.distillation_rows import DistillationRows
from divax.objectives.logit_rows import floating_logits, is_label, token_means
from divax.objectives.reduction import Reduction, token_mean
from divax.objectives.vocabulary import restrict_vocabulary
from divax.objectives.weighted import Weighted

_STATIC = {"static": True}


@frozen_pytree
class EarthMover(AbstractTokenObjective):
    r"""Half the likelihood's gradient, half that of the expected cosine distance of the student's tokens to the label.

    .. math::
        \tfrac12\big(-\log q(y) + \mathrm{sg}\big[-\log q(y)/E\big]\,E\big), \qquad
        E = \sum_v q(v)\,(1 - \cos(e_y, e_v)) = 1 - \langle \bar e_y, \textstyle\sum_v q(v)\,\bar e_v\rangle

    in value the likelihood. For one label E is the earth mover's distance itself; it tells a near miss from a far one,
    which the likelihood does not. No teacher is read: for a teacher's distribution instead of the label, the bilinear
    upper bound is `TokenDistillation(divergence=EMO(embeddings=...))`.

    Attributes:
        embeddings: `[V, d]`, rows of the output head, frozen (no gradient flows); the authors keep those of the start.
        vocab_size: the tokenizer's own size, where a model pads it.
        reduction: tokens to a loss.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax.objectives import EarthMover
        >>> print(EarthMover(embeddings=jnp.eye(3)).explain())
        (L + sg(L/E) * E) / 2, L = -log softmax(student)[label], E = the student's expected 1 - cos to the label, token_mean

    Source: S. Ren, Z. Wu, K. Zhu, "EMO: Earth Mover Distance Optimization for Auto-Regressive Language Modeling",
    arXiv:2310.04691, §3 (the bound DEMD); the balance of both losses as in the authors' code.
    """

    reads_teacher = False

    embeddings: jax.Array
    vocab_size: int | None = dataclasses.field(default=None, metadata=_STATIC)
    reduction: Reduction = dataclasses.field(default=token_mean, metadata=_STATIC)

    def __call__(self, rows: DistillationRows, /) -> tuple[Weighted, dict[str, Weighted]]:
        """The loss, and the metrics `cross_entropy` and `earth_mover` (E).

        Raises:
            ValueError: shapes that do not fit, or embeddings of another vocabulary.
        """
        student = floating_logits(rows.student_logits, "student_logits")
        if self.vocab_size is not None:
            student = restrict_vocabulary(student, self.vocab_size, "student_logits")
        labels = as_labels(rows.labels)
        live = live_weights(student.shape[:-1], labels, rows.mask, "student_logits")
        student, labels = silence_rows(student, live), jnp.maximum(labels, 0)
        head = jax.lax.stop_gradient(jnp.asarray(self.embeddings)).astype(student.dtype)
        sure = jnp.where(is_label(student, labels), 0, -jnp.inf).astype(student.dtype)
        likelihood = cross_entropy_rows(student, labels)
        distance = EMO(embeddings=head)(sure, student)
        held = {"cross_entropy": likelihood, "earth_mover": distance}
        metrics = token_means(held, live, self.reduction)
        return self.reduction(balanced_with_likelihood(likelihood, distance), live), metrics

    def explain(self) -> str:
        """The formula in words."""
        how = getattr(self.reduction, "__name__", "reduced")
        return (
            "(L + sg(L/E) * E) / 2, L = -log softmax(student)[label], E = the student's expected 1 - cos to the label,"
            f" {how}"
        )
