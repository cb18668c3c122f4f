"""P1, P2, P3 and P10: divergences from hidden states against the naive and the checkpointed ones."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from divax import divergences as dv
from divax.benchmarks.measure import Asked, timed


class Size(NamedTuple):
    """Tokens, vocabulary, width of both models, tokens per checkpointed chunk."""

    tokens: int
    vocab: int
    width: int
    chunk: int = 256


SIZES = {
    "long": Size(4096, 131072, 512),
    "half": Size(2048, 131072, 512),
    "small": Size(2048, 32768, 512),
}
QUICK = Size(256, 8192, 64, chunk=64)


def size_of(name: str, quick: bool) -> Size:
    return QUICK if quick else SIZES[name]


def hidden_states(size: Size) -> list[jax.Array]:
    """States and head of the model, states and head of the target."""
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(size.tokens, size.width), (size.width, size.vocab)] * 2
    arrays = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]
    return [x if i % 2 == 0 else 2 * x * size.width**-0.5 for i, x in enumerate(arrays)]


def kl_rows(s, t):
    """KL(p‖q) as it is usually written."""
    log_q, log_p = jax.nn.log_softmax(s), jax.nn.log_softmax(t)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1)


def js_rows(s, t):
    """Jensen–Shannon likewise."""
    log_q, log_p = jax.nn.log_softmax(s), jax.nn.log_softmax(t)
    log_m = jnp.logaddexp(log_q, log_p) - jnp.log(2.0)
    terms = jnp.exp(log_p) * (log_p - log_m) + jnp.exp(log_q) * (log_q - log_m)
    return 0.5 * jnp.sum(terms, -1)


ROWS = {"kl": kl_rows, "js": js_rows}
MEMBERS = {
    "kl": dv.ForwardKL(),
    "js": dv.JensenShannon(),
    "tv": dv.TotalVariation(),
    "user": dv.from_generator(lambda u: u * jnp.log(u), name="user"),
}

Loss = Callable[..., jax.Array]


def naive(member: str, size: Size) -> Loss:
    """All logits."""
    return lambda h, w, th, tw: jnp.sum(ROWS[member](h @ w, th @ tw)) / size.tokens


def scan_checkpoint(member: str, size: Size) -> Loss:
    """Chunks of tokens, computed again in the backward pass."""

    def loss(h, w, th, tw):
        @jax.checkpoint
        def body(total, chunk):
            return total + jnp.sum(ROWS[member](chunk[0] @ w, chunk[1] @ tw)), None

        chunks = tuple(x.reshape(-1, size.chunk, x.shape[-1]) for x in (h, th))
        return jax.lax.scan(body, 0.0, chunks)[0] / size.tokens

    return loss


def map_checkpoint(member: str, size: Size) -> Loss:
    """The same by `lax.map`."""

    def loss(h, w, th, tw):
        of_row = jax.checkpoint(lambda row: ROWS[member](row[0] @ w, row[1] @ tw))
        return jnp.sum(jax.lax.map(of_row, (h, th), batch_size=size.chunk)) / size.tokens

    return loss


def fused(implementation: Any) -> Callable[[str, Size], Loss]:
    """`divergences.fused_linear`, which chooses its chunks."""

    def make(member, size):
        def loss(h, w, th, tw):
            found = dv.fused_linear(
                MEMBERS[member], model_hidden=h, model_head=w, target_hidden=th, target_head=tw,
                implementation=implementation,
            )  # fmt: skip
            return found.total / size.tokens

        return loss

    return make


HOW = {
    "naive": naive,
    "scan": scan_checkpoint,
    "map": map_checkpoint,
    "fast": fused("fast"),
    "lean": fused("lean"),
}
WANTED = {"full": (0, 1), "frozen": (0,)}


def run(size: str, member: str, how: str, wanted: str, quick: bool) -> dict[str, float]:
    chosen = size_of(size, quick)
    loss = HOW[how](member, chosen)
    if wanted in WANTED:
        loss = jax.value_and_grad(loss, WANTED[wanted])
    return timed(loss, *hidden_states(chosen))


def _case(name: str) -> Callable[[bool], dict[str, float]]:
    size, member, how, *wanted = name.split()
    return functools.partial(run, size, member, how, wanted[0] if wanted else "full")


BARS = (
    Asked("P1", "lean KL: temporaries over naive", "long kl lean", "long kl naive", "temp", 0.015),
    Asked("P1", "lean KL: peak memory over naive", "long kl lean", "long kl naive", "rss", 0.02),
    Asked("P1", "lean KL: time over naive", "long kl lean", "long kl naive", target=0.9),
    Asked("P1", "lean KL: time over scan + checkpoint", "long kl lean", "long kl scan", target=0.6),
    Asked("P2", "fast KL: time over naive", "long kl fast", "long kl naive", target=0.7),
    Asked("P2", "fast KL: time over scan + checkpoint", "long kl fast", "long kl scan", target=0.45),
    Asked("P2", "fast KL: temporaries over naive", "long kl fast", "long kl naive", "temp", 0.05),
    Asked("P2", "fast KL: peak memory over naive", "long kl fast", "long kl naive", "rss"),
    *(
        Asked("P3", f"fast {what}: temporaries over KL's", f"small {member} fast", "small kl fast", "temp", 1.1)
        for member, what in (("js", "JS"), ("tv", "TV"), ("user", "a user's f"))
    ),
    Asked("P3", "fast JS, V=32768: time over naive", "small js fast", "small js naive", target=0.75),
    Asked("P3", "fast JS, V=32768: temporaries", "small js fast", "small js naive", "temp", 0.05),
    Asked("P3", "fast JS, V=32768: peak memory", "small js fast", "small js naive", "rss"),
    Asked("P3", "fast JS, V=131072: time over naive", "half js fast", "half js naive", target=0.45),
    Asked("P3", "fast JS, V=131072: temporaries", "half js fast", "half js naive", "temp", 0.02),
    Asked("P3", "fast JS, V=131072: peak memory", "half js fast", "half js naive", "rss"),
    *(
        Asked("P3", f"fast {member.upper()}, V=32768: {quantity} over lax.map + checkpoint",
              f"small {member} fast", f"small {member} map", key)
        for member in ("kl", "js")
        for quantity, key in (("time", "wall"), ("peak memory", "rss"))
    ),
    Asked("P10", "fast KL: a frozen head over both gradients", "small kl fast frozen", "small kl fast", target=0.75),
    Asked("P10", "fast KL: evaluation over both gradients", "small kl fast value", "small kl fast", target=0.55),
)  # fmt: skip
CASES = {case: _case(case) for one in BARS for case in one.cases}
