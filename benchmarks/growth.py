"""How cost grows: the exponents of time and temporary memory in the number of rows and the vocabulary."""

import functools
import math

import jax
import jax.numpy as jnp

from divax import divergences as dv
from divax.benchmarks.given_logits import logits
from divax.benchmarks.measure import Bar, Results, timed

MEMBERS = {"kl": dv.ForwardKL(), "js": dv.JensenShannon(), "renyi": dv.Renyi(order=0.5)}
POINTS = {"start": (1, 1), "rows": (4, 1), "vocabulary": (1, 4)}


def run(member, rows, vocabulary, quick):
    base = (128, 8192) if quick else (512, 8192)
    target, model = logits(base[0] * rows, base[1] * vocabulary)
    div = MEMBERS[member]
    return timed(jax.value_and_grad(lambda s, t: jnp.mean(div(t, s))), model, target)


CASES = {
    f"{member} {point}": functools.partial(run, member, *factors)
    for member in MEMBERS
    for point, factors in POINTS.items()
}


def bars(found: Results) -> list[Bar]:
    out = []
    for member in MEMBERS:
        for point in ("rows", "vocabulary"):
            if not {f"{member} start", f"{member} {point}"} <= found.keys():
                continue
            start, end = found[f"{member} start"], found[f"{member} {point}"]
            for key, word in (("cpu", "CPU time"), ("temp", "temporaries")):
                exponent = math.log(end[key] / start[key]) / math.log(4)
                out.append(Bar("grow", f"{member}: exponent of {word} in {point}", exponent))
    return out
