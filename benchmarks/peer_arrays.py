"""The arrays that Divax and other libraries are compared on, and what Divax and libraries for JAX make of them."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from divax import divergences as dv
from divax import objectives as ob
from divax.benchmarks.fused_linear import SIZES, Size, hidden_states
from divax.benchmarks.measure import timed
from divax.benchmarks.token_loss import grpo_of

SEQUENCES = 8
TEMPERATURE, SOFT = 2.0, 0.5


class Arrays(NamedTuple):
    """Of both models, tokens in `SEQUENCES` sequences; the first half of these is preferred.

    Attributes:
        h: states of the model, `[N, H]`.
        w: its head, `[H, V]`.
        th: states of the target.
        tw: its head.
        labels: `[N]`.
        old: log-probs of before, `[N]`.
        reference: of a reference, `[N]`.
        advantages: of the sequences.
    """

    h: jax.Array
    w: jax.Array
    th: jax.Array
    tw: jax.Array
    labels: jax.Array
    old: jax.Array
    reference: jax.Array
    advantages: jax.Array


def arrays(quick: bool, tokens: int = 512) -> Arrays:
    # Quick ones are still more than what is computed from all logits at once by default.
    size = Size(264, 16384, 64) if quick else SIZES["small"]._replace(tokens=tokens)
    h, w, th, tw = hidden_states(size)
    keys = jax.random.split(jax.random.key(1), 4)
    labels = jax.random.randint(keys[0], (size.tokens,), 0, size.vocab)
    old, reference = (
        0.2 * jax.random.normal(key, labels.shape) - 12 + 0.1 * th[:, 0] for key in keys[1:3]
    )
    return Arrays(h, w, th, tw, labels, old, reference, jax.random.normal(keys[3], (SEQUENCES,)))


def tokens_of(per_sequence: jax.Array, like: jax.Array) -> jax.Array:
    """One value for every token."""
    return jnp.repeat(per_sequence, like.size // per_sequence.size)


def divergence(div, h, w, a: Arrays):
    found = dv.fused_linear(div, model_hidden=h, model_head=w, target_hidden=a.th, target_head=a.tw)
    return found.total / found.count


def divergence_of_logits(div, s, t):
    return jnp.mean(div(t, s))


def grpo(h, w, a: Arrays):
    x = a.old, a.reference, tokens_of(a.advantages, a.labels)
    return ob.token_loss(grpo_of, hidden=h, head=w, labels=a.labels, per_token=x).mean()


def log_probs(h, w, a: Arrays):
    found = ob.token_statistics(hidden=h, head=w, labels=a.labels)
    return -jnp.mean(found.log_probs * tokens_of(a.advantages, a.labels))


def dpo(h, w, a: Arrays):
    policy, reference = (
        ob.token_statistics(hidden=x, head=head, labels=a.labels).log_probs
        for x, head in ((h, w), (a.th, a.tw))
    )
    ratios = jnp.sum((policy - reference).reshape(SEQUENCES, -1), -1)
    preferred, other = ratios.reshape(2, -1)
    return -jnp.mean(jax.nn.log_sigmoid(0.1 * (preferred - other)))


def distilled(h, w, a: Arrays):
    loss, _ = ob.distillation_from_hidden(
        student_hidden=h, student_head=w, teacher_hidden=a.th, teacher_head=a.tw,
        labels=a.labels, temperature=TEMPERATURE, distill_weight=SOFT,
    )  # fmt: skip
    return loss.mean()


def negative_log_prob(found, x):
    return -found.log_probs


def cross_entropy(h, w, a: Arrays):
    return ob.token_loss(negative_log_prob, hidden=h, head=w, labels=a.labels).mean()


def optax_cross_entropy(h, w, a: Arrays):
    import optax

    losses = optax.losses.softmax_cross_entropy_with_integer_labels(h @ w, a.labels)
    return jnp.mean(losses)


def tunix_distilled(h, w, a: Arrays):
    from tunix.distillation.strategies.logit import LogitStrategy

    nothing: Any = None
    strategy = LogitStrategy(nothing, nothing, nothing, temperature=TEMPERATURE, alpha=SOFT)
    labels = jax.nn.one_hot(a.labels, w.shape[1])
    return strategy.compute_loss(h @ w, a.th @ a.tw, labels)[0]


def tunix_log_probs(h, w, a: Arrays):
    from tunix.rl.common import selective_log_softmax

    return -jnp.mean(selective_log_softmax(h @ w, a.labels) * tokens_of(a.advantages, a.labels))


LOSSES = {
    "js divax": functools.partial(divergence, dv.JensenShannon()),
    "kl divax": functools.partial(divergence, dv.ForwardKL()),
    "grpo divax": grpo,
    "dpo divax": dpo,
    "log-probs divax": log_probs,
    "log-probs tunix": tunix_log_probs,
    "kd divax": distilled,
    "kd tunix": tunix_distilled,
    "ce divax": cross_entropy,
    "ce optax": optax_cross_entropy,
}


def run(name: str, quick: bool, tokens: int = 512) -> dict[str, float]:
    """Value and gradients by the model's states and head."""
    of = arrays(quick, tokens)
    return timed(jax.value_and_grad(LOSSES[name], (0, 1)), of.h, of.w, of)


def run_of_logits(quick: bool) -> dict[str, float]:
    """Jensen–Shannon given logits."""
    of = arrays(quick)
    rows = functools.partial(divergence_of_logits, dv.JensenShannon())
    return timed(jax.value_and_grad(rows), of.h @ of.w, of.th @ of.tw)
