"""`SequenceMatch`: imitation of the data's occupancy of prefixes, with the logits as soft Q-values."""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences import divergence as frozen_pytree
from divax.divergences.fused_linear import Implementation
from divax.objectives.aggregation import ConstantSum
from divax.objectives.arguments import as_labels, is_static, live_weights, silence_rows
from divax.objectives.distillation_rows import FROM_DATA, FROM_STUDENT, DistillationRows
from divax.objectives.hidden_rows import HiddenRows
from divax.objectives.logit_rows import floating_logits, is_label
from divax.objectives.reduction import Reduction, token_mean
from divax.objectives.sampled_labels import check_choice, live_labels
from divax.objectives.token_objective import tokens_from_hidden
from divax.objectives.vocabulary import restrict_vocabulary
from divax.objectives.weighted import Weighted

_STATIC = {"static": True}
#: Below this log(2 - e^-x), whose domain ends at -log 2, goes on as its tangent.
_JS_FLOOR = -0.65

_DIVERGENCES = {
    "kl": "log-likelihood of the data, so KL(data || student)",
    "chi2": "sum (data - student)^2 / data",
    "chi2_mixture": "8 KL(data || (data + student)/2)",
    "js": "2 JS(data, student)",
}


@frozen_pytree
class SequenceMatch:
    r"""Matches how often the student passes each prefix and token to how often the data does, not tokens given prefixes.

    The student's logits are soft Q-values `l(a|s)` of a reward `x = l(a|s) - gamma v(s')`, with `v = logsumexp l` and s'
    the prefix with the token; to be minimised, with `phi_a(x) = phi(a x)/a`,

    .. math::
        -\mathbb E_{data}[\phi_a(x)] + \tfrac12\mathbb E_{data}[v(s) - \gamma v(s')]
        + \tfrac12\mathbb E_{student}[v(s) - \gamma v(s')]

    where E sums over a completion's tokens with weights `gamma^t`. Prefix and token determine the next prefix, so both
    last terms are `v` of the start, whoever wrote. Over all logits its minimum is the policy that minimises
    `D(data, student) - a H(student)`, D between the occupancies `sum_t gamma^t P(s_t, a_t)`, H the entropy of the tokens to
    come: the policy of the data exactly for `kl`, and for the others as `a` tends to 0.

    | divergence | phi(x) | D |
    |---|---|---|
    | `kl` | x | what is minimised is the data's negative log-likelihood, weighted by `gamma^t` |
    | `chi2` | `x - x²/4` | sum (data - student)²/data |
    | `chi2_mixture` | `x - x²/8`, and `-x²/8` on the student's completions | 8 KL(data‖(data + student)/2) |
    | `js` | `log(2 - e^{-x})` | 2 JS |

    Of `chi2_mixture` this holds where its gradient vanishes: the student's completions are held fixed, which makes it no
    gradient of D. It alone needs them: to the others, of one start, they say what the data's completions do.

    The end of a completion (of its mask) is an infinite loop of reward 0, whose value is `v = 0`. Logits are not
    invariant under a shift here: that is what ties them to the prefixes that follow. The paper's backspace action is left
    out: it needs a token that the model's vocabulary and attention mask know about, so it belongs to the data and the
    model; the objective would be this one, of completions with that token in them.

    Attributes:
        divergence: see the table.
        entropy_weight: a, positive; small is close to the data, large is easy to fit. (`kl` does not depend on it.)
        discount: gamma, in (0, 1].
        vocab_size: the tokenizer's own size, where a model pads it.
        reduction: tokens to a loss; twice the mean over completions, the data's and the student's together.

    Raises:
        ValueError: an unknown divergence, or a number out of range.

    Example:
        >>> from divax.objectives import SequenceMatch
        >>> print(SequenceMatch().explain())
        minimises D - 0.1 H, D = 8 KL(data || (data + student)/2) of the occupancies of prefixes and tokens, discounted...

    Source: C. Cundy, S. Ermon, "SequenceMatch: Imitation Learning for Autoregressive Sequence Modelling with
    Backtracking", arXiv:2306.05426, §3; the duality, D. Garg, S. Chakraborty, C. Cundy, J. Song, S. Ermon, "IQ-Learn:
    Inverse soft-Q Learning for Imitation", arXiv:2106.12142, §4. What each phi minimises is derived, and tested, here.
    """

    divergence: Literal["kl", "chi2", "chi2_mixture", "js"] = dataclasses.field(
        default="chi2_mixture", metadata=_STATIC
    )
    entropy_weight: ArrayLike = 0.1
    discount: ArrayLike = 1.0
    vocab_size: int | None = dataclasses.field(default=None, metadata=_STATIC)
    reduction: Reduction = ConstantSum()

    def __post_init__(self):
        check_choice("divergence", self.divergence, tuple(_DIVERGENCES))
        if is_static(self.entropy_weight) and not self.entropy_weight > 0:
            raise ValueError(f"entropy_weight={self.entropy_weight} must be positive")
        if is_static(self.discount) and not 0 < self.discount <= 1:
            raise ValueError(f"discount={self.discount} must lie in (0, 1]")

    def __call__(self, rows: DistillationRows, /) -> tuple[Weighted, dict[str, Weighted]]:
        """The loss, and the metrics `data_reward` and `student_reward` (x) and `value` (v), means over tokens.

        Raises:
            ValueError: shapes that do not fit.
        """
        value, own = _tokens(self.vocab_size, rows, None)
        live = live_weights(value.shape, as_labels(rows.labels), rows.mask, "student_logits")
        return self._of_tokens(value, own, live, rows.writers)

    def _of_tokens(self, value, own, live, writers) -> tuple[Weighted, dict[str, Weighted]]:
        """Of each token's log-sum of logits and its label's logit."""
        counts, dtype = live != 0, value.dtype
        gamma, a = (jnp.asarray(x).astype(dtype) for x in (self.discount, self.entropy_weight))
        following = _of_next(value, counts)
        reward = jnp.where(counts, own - gamma * following, 0)
        by_student = _written_by_student(writers, live)[:, None]
        start = 0.5 * (value - gamma * following)
        loss = start + jnp.where(by_student, self._on_student(reward, a), -self._phi(reward, a))
        seen = counts.astype(dtype)
        weighted = 2 * gamma ** (jnp.cumsum(seen, -1) - seen) * loss
        held = jax.lax.stop_gradient({"reward": reward, "value": value})
        metrics = {
            "data_reward": token_mean(held["reward"], jnp.where(by_student, 0, live)),
            "student_reward": token_mean(held["reward"], jnp.where(by_student, live, 0)),
            "value": token_mean(held["value"], live),
        }
        return self.reduction(weighted, live), metrics

    def _phi(self, reward: jax.Array, a: jax.Array) -> jax.Array:
        """`phi(a x)/a` of the data's tokens."""
        if self.divergence == "kl":
            return reward
        if self.divergence == "js":
            x = a * reward
            inside = jnp.log(2 - jnp.exp(-jnp.maximum(x, _JS_FLOOR)))
            edge = jnp.exp(jnp.asarray(-_JS_FLOOR, x.dtype))
            return (inside + edge / (2 - edge) * jnp.minimum(x - _JS_FLOOR, 0)) / a
        return reward - a * jnp.square(reward) / (8 if self.divergence == "chi2_mixture" else 4)

    def _on_student(self, reward: jax.Array, a: jax.Array) -> jax.Array:
        """What the student's own tokens add."""
        if self.divergence == "chi2_mixture":
            return a * jnp.square(reward) / 8
        return jnp.zeros_like(reward)

    @property
    def takes_hidden(self) -> bool:
        """Always."""
        return True

    @property
    def reads_teacher(self) -> bool:
        """Never."""
        return False

    def from_hidden(
        self,
        rows: HiddenRows,
        /,
        *,
        vocab_size: int | None = None,
        implementation: Implementation | None = None,
    ) -> tuple[Weighted, dict[str, Weighted]]:
        """The same without all logits at once, by `tokens_from_hidden`."""
        value, own = tokens_from_hidden(
            functools.partial(_tokens, self.vocab_size),
            rows,
            vocab_size=vocab_size or self.vocab_size,
            implementation=implementation,
        )
        return self._of_tokens(value, own, live_labels(rows), rows.writers)

    def explain(self) -> str:
        """What it minimises."""
        a = f"{self.entropy_weight:g}" if is_static(self.entropy_weight) else "a"
        gamma = f"{self.discount:g}" if is_static(self.discount) else "gamma"
        what = _DIVERGENCES[self.divergence]
        if self.divergence == "kl":
            return f"maximises the {what}, each token weighted by {gamma}^t"
        return (
            f"minimises D - {a} H, D = {what} of the occupancies of prefixes and tokens, discounted by {gamma}, H the"
            " student's entropy of what is to come; completions held fixed; logits as soft Q-values, the end worth 0"
        )


def _tokens(vocab_size: int | None, rows: DistillationRows, _: Any) -> tuple[jax.Array, jax.Array]:
    """The log-sum of each token's logits and its label's logit, 0 where it does not count."""
    logits = floating_logits(rows.student_logits, "student_logits")
    if logits.ndim != 3:
        raise ValueError(
            f"SequenceMatch is of completions: student_logits must be [B, T, V], got {logits.shape}"
        )
    if vocab_size is not None:
        logits = restrict_vocabulary(logits, vocab_size, "student_logits")
    labels = as_labels(rows.labels)
    live = live_weights(logits.shape[:-1], labels, rows.mask, "student_logits")
    logits, counts = silence_rows(logits, live), live != 0
    own = jnp.where(is_label(logits, jnp.maximum(labels, 0)), logits, 0)
    return jnp.where(counts, jax.nn.logsumexp(logits, -1), 0), jnp.sum(own, -1)


def _of_next(value: jax.Array, counts: jax.Array) -> jax.Array:
    """At each token the value at the next that counts; 0 after the last."""

    def backwards(later, token):
        own, present = token
        return jnp.where(present, own, later), later

    _, following = jax.lax.scan(
        backwards, jnp.zeros_like(value[:, 0]), (value.T, counts.T), reverse=True
    )
    return following.T


def _written_by_student(writers: jax.Array | None, live: jax.Array) -> jax.Array:
    nobody = jnp.full(live.shape[:1], FROM_DATA)
    writers = nobody if writers is None else jnp.asarray(writers)
    if writers.shape != nobody.shape:
        raise ValueError(f"writers must be [B] = {nobody.shape}, got {writers.shape}")
    return writers == FROM_STUDENT
