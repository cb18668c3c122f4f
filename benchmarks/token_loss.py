"""P9: a policy gradient from hidden states in one walk, or lean, against naive and checkpointed ones."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from divax import objectives as ob
from divax.benchmarks.fused_linear import hidden_states, size_of
from divax.benchmarks.measure import Asked, timed


def grpo(logps, x):
    """Clipped surrogate and k3 penalty, x = (old and reference log-probs, advantage)."""
    old, reference, advantage = x
    ratio = jnp.exp(logps - old)
    surrogate = jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.8, 1.2) * advantage)
    gap = reference - logps
    return -surrogate + 0.04 * (jnp.exp(gap) - gap - 1)


def grpo_of(found, x):
    """Of `TokenStatistics`."""
    return grpo(found.log_probs, x)


def picked(s, labels):
    """Log-probs as they are usually written."""
    return jnp.take_along_axis(jax.nn.log_softmax(s), labels[..., None], -1)[..., 0]


def policy(how, size):
    """Labels and the rest are made of the states that stand for the target's."""

    def loss(h, w, th):
        labels = (jnp.abs(th[:, 0]) * 1e4).astype(jnp.int32) % size.vocab
        x = -10 + th[:, 1], -10 + th[:, 2], th[:, 3]
        if how == "naive":
            return jnp.sum(grpo(picked(h @ w, labels), x)) / size.tokens
        if how == "map":
            of_row = jax.checkpoint(lambda row: picked(row[0] @ w, row[1]))
            logps = jax.lax.map(of_row, (h, labels), batch_size=size.chunk)
            return jnp.sum(grpo(logps, x)) / size.tokens
        options: dict[str, Any] = {"hidden": h, "head": w, "labels": labels}
        if how == "fast":
            return ob.token_loss(grpo_of, per_token=x, implementation="fast", **options).mean()
        found = ob.token_statistics(implementation="lean", **options)
        return jnp.sum(grpo(found.log_probs, x)) / size.tokens

    return loss


def run(how: str, quick: bool) -> dict[str, float]:
    size = size_of("small", quick)
    return timed(jax.value_and_grad(policy(how, size), (0, 1)), *hidden_states(size)[:3])


CASES = {how: functools.partial(run, how) for how in ("naive", "map", "fast", "lean")}
BARS = (
    Asked("P9", "GRPO in one walk: time over naive", "fast", "naive", target=0.9),
    Asked("P9", "GRPO in one walk: time over lax.map + checkpoint", "fast", "map", target=0.85),
    Asked("P9", "GRPO lean: temporaries over naive", "lean", "naive", "temp", 0.06),
    Asked("P9", "GRPO lean: peak memory over naive", "lean", "naive", "rss"),
    Asked("P9", "GRPO lean: time over naive", "lean", "naive", target=1.1),
)
