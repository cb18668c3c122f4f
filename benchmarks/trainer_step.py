"""P11: a trainer's step against the loop one writes by hand with Optax."""

import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from divax import trainers as tr
from divax.benchmarks.measure import Asked

SIZES = {"tiny": (16, 4, 4), "large": (512, 16, 64)}
"""Vocabulary, batch, length."""


def setting(size: str):
    vocabulary, batch, length = SIZES[size]
    tokens = np.random.default_rng(0).integers(vocabulary, size=(batch, length)).astype("i4")
    if size == "large":
        config = tr.TransformerConfig(
            vocab_size=vocabulary, layers=2, width=128, heads=4, kv_heads=2
        )
        return tr.transformer(config), optax.adam(1e-3), tr.Batch(tokens)

    def init(key):
        keys = jax.random.split(key)
        table = jax.random.normal(keys[0], (vocabulary, 8)) * 0.1
        return {"table": table, "head": jax.random.normal(keys[1], (8, vocabulary)) * 0.1}

    model = tr.Model(init=init, apply=lambda params, x: params["table"][x] @ params["head"])
    return model, optax.adam(1e-3), tr.Batch(tokens)


def trainer(model, optimizer):
    one = tr.language_model(model=model, optimizer=optimizer)
    return one.init(jax.random.key(0)), one.step


def by_hand(model, optimizer):
    def loss(params, batch):
        logits = model.apply(params, batch.tokens)[:, :-1]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.tokens[:, 1:])
        return jnp.mean(losses)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, batch):
        params, opt_state = state
        value, gradient = jax.value_and_grad(loss)(params, batch)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    params = model.init(jax.random.key(0))
    return (params, optimizer.init(params)), step


def compare(size: str, quick: bool) -> dict[str, float]:
    """Both in turns in one process: seconds per step, the medians of blocks of steps."""
    model, optimizer, batch = setting(size)
    loops = {"trainer": trainer(model, optimizer), "by hand": by_hand(model, optimizer)}
    block, rounds = (200, 15) if size == "tiny" else (5, 10)
    block, rounds = (block // 5, 2) if quick else (block, rounds)
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(rounds + 1):
        for name, (state, step) in list(loops.items()):
            start = time.process_time()
            for _ in range(block):
                state, metrics = step(state, batch)
            jax.block_until_ready((state, metrics))
            loops[name] = state, step
            if turn:
                seconds[name].append((time.process_time() - start) / block)
    found = {name: statistics.median(times) for name, times in seconds.items()}
    return found | {"ratio": found["trainer"] / found["by hand"], "cpu": found["trainer"]}


CASES = {size: functools.partial(compare, size) for size in SIZES}


BARS = (
    Asked("P11", "trainer's step over Optax by hand, tiny model", "tiny", None, "ratio", 1.5),
    Asked("P11", "trainer's step over Optax by hand, 2 layers", "large", None, "ratio", 1.02),
)
