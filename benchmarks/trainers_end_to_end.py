"""Trainer steps before and after losses from hidden states: `python benchmarks/trainers_end_to_end.py [--quick]`.

Before is `implementation="reference"`: all logits, or chunks of them under `jax.checkpoint`; after is the default. Each
runs in fresh processes, in turns, and medians count. Distillation from a live teacher, DPO, and the updates of GRPO on a
rollout that is there, of a small transformer at two sizes of the vocabulary: tokens per second, planned temporaries, and
what the process needs at its peak beyond what it holds anyway.
"""

import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from divax import objectives
from divax import trainers as tr
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
    memory = jax.jit(step).lower(*arguments).compile().memory_analysis()
    walls, cpus, peaks = [], [], []
    for _ in range(2 if quick else 4):
        before, wall, cpu = _reset_peak(), time.perf_counter(), time.process_time()
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
        peaks.append(_resident("VmHWM") - before)
    # The first call compiles.
    return {
        "wall": statistics.median(walls[1:]),
        "cpu": statistics.median(cpus[1:]),
        "temp": float(memory.temp_size_in_bytes) if memory else float("nan"),
        "rss": max(peaks[1:]),
    }


def _reset_peak() -> float:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _resident("VmRSS")


def _resident(field: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith(field))


CASES = {
    f"{name} {vocabulary} {when}": functools.partial(measure, name, vocabulary, how)
    for name in STEPS
    for vocabulary in VOCABULARIES
    for when, how in BEFORE_AND_AFTER.items()
}


def fresh(case: str, quick: bool) -> dict[str, float]:
    """What a case measures in a process of its own."""
    command = [sys.executable, __file__, case, *(["--quick"] if quick else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(rounds: int, quick: bool) -> None:
    """Runs everything, and prints a line per case."""
    runs: dict[str, list[dict[str, float]]] = {case: [] for case in CASES}
    for _ in range(rounds):
        for case, found in runs.items():
            found.append(fresh(case, quick))
            print(
                f"{case}: {found[-1]} (load {os.getloadavg()[0]:.1f})", file=sys.stderr, flush=True
            )
    print(f"{ROWS * LENGTH} tokens a step, load {os.getloadavg()[0]:.1f}")
    print(f"{'':28s}{'tokens/s':>10s}{'per CPU s':>11s}{'temporaries MB':>16s}{'peak MB':>9s}")
    for case, found in runs.items():
        of = {key: statistics.median(run[key] for run in found) for key in found[0]}
        speed, each = ROWS * LENGTH / of["wall"], ROWS * LENGTH / of["cpu"]
        print(f"{case:28s}{speed:10.0f}{each:11.0f}{of['temp'] / 1e6:16.0f}{of['rss'] / 1e6:9.0f}")


def main(arguments: list[str]) -> None:
    """One case as JSON, or the table of all of them."""
    quick = "--quick" in arguments
    cases = [argument for argument in arguments if argument in CASES]
    if cases:
        print(json.dumps(CASES[cases[0]](quick)))
    else:
        table(1 if quick else 3, quick)


if __name__ == "__main__":
    main(sys.argv[1:])
