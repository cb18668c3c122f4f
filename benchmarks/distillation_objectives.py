"""Distillation's other objectives from hidden states, by the default of this size, against the same from all logits."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from divax import objectives as ob
from divax.benchmarks.fused_linear import QUICK, Size, hidden_states
from divax.benchmarks.measure import Asked, timed

SIZE = Size(tokens=2048, vocab=32768, width=256)
ROWS = 16
# Of the teacher's head, whose columns EarthMover takes for embeddings.
OBJECTIVES = {
    "labels": lambda _: ob.LabelCrossEntropy(),
    "dkd": lambda _: ob.OfLogits(ob.dkd),
    "nkd": lambda _: ob.OfLogits(ob.nkd),
    "pld": lambda _: ob.OfLogits(ob.pld),
    "logit_mse": lambda _: ob.OfLogits(ob.logit_mse),
    "earth_mover": lambda head: ob.EarthMover(embeddings=head.T),
    "direct_preference": lambda _: ob.DirectPreferenceDistillation(),
    "sampled": lambda _: ob.SampledDistillation(),
    "sampled prefixes": lambda _: ob.SampledDistillation(importance="prefix", cap=2.0),
    "minillm": lambda _: ob.MiniLLM(),
    "sequence_match": lambda _: ob.SequenceMatch(),
    "contrastive": lambda _: ob.ContrastiveDistillation(),
    "two teachers": lambda _: ob.TokenDistillation(),
}


def teacher_of(name: str, h, w, th, tw):
    """The teacher; where two are asked for, the student at its start is the second one."""
    teacher = ob.HiddenLogits(hidden=th, head=tw)
    if name != "two teachers":
        return teacher
    start = ob.HiddenLogits(hidden=jax.lax.stop_gradient(h), head=jax.lax.stop_gradient(w))
    half = jnp.full((*h.shape[:-1], 2), 0.5)
    return ob.CombinedLogits(parts=(teacher, start), weights=half, combine=ob.mixture_of_teachers)


def loss(name: str, how: str, h, w, th, tw):
    """Labels and the rest are made of the states that stand for the teacher's."""
    h, th = (x.reshape(ROWS, -1, x.shape[-1]) for x in (h, th))
    objective, teacher = OBJECTIVES[name](tw), teacher_of(name, h, w, th, tw)
    student = ob.HiddenLogits(hidden=h, head=w)
    labels = (jnp.abs(th[..., 0]) * 1e4).astype(jnp.int32) % w.shape[-1]
    known: dict[str, Any] = {
        "labels": labels,
        "mask": jnp.ones(labels.shape),
        "sampler_logps": -10 + th[..., 1],
        "writers": 1 + jnp.arange(ROWS) % 2,
    }
    if how == "fast":
        rows = ob.HiddenRows(student=student, teacher=teacher, **known)
        return objective.from_hidden(rows, implementation="fast")[0].mean()
    return objective(ob.DistillationRows(student.logits(), teacher.logits(), **known))[0].mean()


def run(name: str, how: str, quick: bool) -> dict[str, float]:
    value = functools.partial(loss, name, how)
    return timed(jax.value_and_grad(value, (0, 1)), *hidden_states(QUICK if quick else SIZE))


HOW = ("fast", "all logits")
CASES = {f"{name} {how}": functools.partial(run, name, how) for name in OBJECTIVES for how in HOW}
BARS = tuple(
    Asked("objectives", f"{name}: {what} over all logits", *(f"{name} {how}" for how in HOW), key)
    for name in OBJECTIVES
    for key, what in {"wall": "time", "temp": "temporaries", "rss": "peak memory"}.items()
)
