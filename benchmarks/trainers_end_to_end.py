"""Trainer steps before and after losses from hidden states, end to end.

Before is `implementation="reference"`: all logits, or chunks of them under `jax.checkpoint`; after is the default.
Distillation from a live teacher, DPO, and the updates of GRPO on a rollout that is there, of a small transformer at two
sizes of the vocabulary: time, planned temporaries, and what the process needs at its peak beyond what it holds anyway.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from divax import objectives
from divax import trainers as tr
from divax.benchmarks.measure import Asked, clocked
from divax.trainers.policy_update import Experience, Policy

VOCABULARIES = (32768, 131072)
BEFORE_AND_AFTER = {"before": "reference", "after": None}
ROWS, LENGTH = 16, 64


def transformer(vocabulary: int) -> tr.Model:
    size = tr.TransformerConfig(vocab_size=vocabulary, layers=2, width=64, heads=4, kv_heads=2)
    return tr.transformer(size)


def tokens(vocabulary: int) -> np.ndarray:
    return np.random.default_rng(0).integers(vocabulary, size=(ROWS, LENGTH)).astype(np.int32)


def distillation(vocabulary: int, how: Any) -> tuple[Callable[..., Any], Any, Any]:
    """A step, its first state and its batch."""
    model = transformer(vocabulary)
    trainer = tr.distillation(
        student=model,
        teacher=tr.LiveTeacher(model, model.init(jax.random.key(1))),
        optimizer=optax.sgd(1e-3),
        implementation=how,
    )
    return trainer.step, trainer.init(jax.random.key(0)), tr.Batch(tokens(vocabulary))


def preference(vocabulary: int, how: Any) -> tuple[Callable[..., Any], Any, Any]:
    """DPO on 8 pairs."""
    model = transformer(vocabulary)
    params = model.init(jax.random.key(0))
    trainer = tr.preference(
        policy=model,
        params=params,
        reference=tr.FixedReference(params),
        optimizer=optax.sgd(1e-3),
        from_reference=False,
        implementation=how,
    )
    index = np.arange(ROWS // 2, dtype=np.int32)
    batch = tr.PairBatch(
        completions=tr.Batch(tokens(vocabulary)),
        chosen=index,
        rejected=index + ROWS // 2,
        weights=np.ones(ROWS // 2, np.float32),
    )
    return trainer.step, trainer.init(jax.random.key(0)), batch


def policy_gradient(vocabulary: int, how: Any) -> tuple[Callable[..., Any], Any, Any]:
    """GRPO with k3: log-probs of old policy and reference, and one update, without the sampling."""
    model, optimizer, method = transformer(vocabulary), optax.sgd(1e-3), objectives.grpo()
    actor = Policy.of(model, tr.SamplingSettings(LENGTH), method, None, how)
    held = model.init(jax.random.key(1))
    state = tr.TrainState.create(model.init(jax.random.key(0)), optimizer, jax.random.key(2))
    rows = {
        "tokens": jnp.asarray(tokens(vocabulary)),
        "mask": jnp.ones((ROWS, LENGTH)),
        "sampler_logps": jnp.zeros((ROWS, LENGTH)),
        "rewards": jnp.arange(ROWS, dtype=jnp.float32),
    }

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, batch):
        rows, held = batch
        experience = Experience.of(actor, method, state.params, held, rows, 8)
        updates = tr.Updates()
        return updates.run(actor, method, optimizer, state, experience, state.key, held, None)

    return step, state, (rows, held)


STEPS = {"distillation": distillation, "DPO": preference, "GRPO": policy_gradient}


def measure(name: str, vocabulary: int, how: Any, quick: bool) -> dict[str, float]:
    """One way of one trainer, in a process of its own."""
    step, state, batch = STEPS[name](vocabulary // 16 if quick else vocabulary, how)
    arguments = jax.tree.map(jnp.asarray, (state, batch))
    compiled = jax.jit(step, donate_argnums=0).lower(*arguments).compile()
    planned, held = compiled.memory_analysis(), [arguments[0]]

    def call():
        held[0], metrics = compiled(held[0], arguments[1])
        return jax.tree.leaves(jax.block_until_ready((metrics, held[0]))[0])

    call()
    found = clocked(call)
    del found["value"]
    found["tokens_per_second"] = ROWS * LENGTH / found["wall"]
    return found | ({} if planned is None else {"temp": float(planned.temp_size_in_bytes)})


CASES = {
    f"{name} {vocabulary} {when}": functools.partial(measure, name, vocabulary, how)
    for name in STEPS
    for vocabulary in VOCABULARIES
    for when, how in BEFORE_AND_AFTER.items()
}


WHAT = {"wall": "time", "temp": "temporaries", "rss": "peak memory"}

BARS = tuple(
    Asked(
        "step",
        f"{name} V={vocabulary}, {what}, after over before",
        f"{name} {vocabulary} after",
        f"{name} {vocabulary} before",
        key,
    )
    for name in STEPS
    for vocabulary in VOCABULARIES
    for key, what in WHAT.items()
)
