"""How cost grows: exponents of time and memory in tokens, vocabulary and width, given logits and from hidden states."""

import functools
import math

import jax
import jax.numpy as jnp

from divax import divergences as dv
from divax.benchmarks.fused_linear import Size, fused, hidden_states
from divax.benchmarks.given_logits import logits
from divax.benchmarks.measure import Asked, timed

GIVEN = {"kl": dv.ForwardKL(), "js": dv.JensenShannon()}
FUSED = {"fast kl": ("fast", "kl"), "lean kl": ("lean", "kl")}
# Factors of tokens, vocabulary and width.
POINTS = {"start": (1, 1, 1), "tokens": (4, 1, 1), "vocabulary": (1, 4, 1), "width": (1, 1, 4)}
SWEPT = 4


def given(member, factors, quick):
    rows, vocab = (64, 2048) if quick else (512, 8192)
    target, model = logits(rows * factors[0], vocab * factors[1])
    div = GIVEN[member]
    return timed(jax.value_and_grad(lambda s, t: jnp.mean(div(t, s))), model, target)


def from_hidden(how, member, factors, quick):
    base = (64, 2048, 32) if quick else (512, 8192, 128)
    tokens, vocab, width = (a * b for a, b in zip(base, factors, strict=True))
    size = Size(tokens, vocab, width)
    loss = jax.value_and_grad(fused(how)(member, size), (0, 1))
    return timed(loss, *hidden_states(size))


def exponent(end: float, start: float) -> float:
    return math.log(end / start) / math.log(SWEPT)


CASES = {
    f"given {member}, {point}": functools.partial(given, member, factors)
    for member in GIVEN
    for point, factors in POINTS.items()
    if point != "width"
} | {
    f"{path}, {point}": functools.partial(from_hidden, *of, factors)
    for path, of in FUSED.items()
    for point, factors in POINTS.items()
}
BARS = tuple(
    Asked("grow", f"{path}: exponent of {word} in {point}", f"{path}, {point}", f"{path}, start", key,
          of=exponent)
    for path in (*(f"given {member}" for member in GIVEN), *FUSED)
    for point in POINTS
    if point != "start" and f"{path}, {point}" in CASES
    for key, word in (("cpu", "CPU time"), ("temp", "temporaries"), ("rss", "peak memory"))
)  # fmt: skip
