"""Losses from hidden states against the naive and the checkpointed ones: `python benchmarks/fused_linear.py [--quick]`.

Every run is a fresh process that compiles, runs once, and then measures its best of a few calls; the variants of a bar take
turns, so that other load disturbs all alike. Time is wall and CPU seconds; memory is what the compiler plans
(`memory_analysis`) and what the process needs at its peak beyond arguments and results (`/proc/self/clear_refs`).
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from divax import divergences as dv
from divax import objectives as ob


class Size(NamedTuple):
    """Tokens, vocabulary, width of both models, tokens and columns per chunk."""

    tokens: int
    vocab: int
    width: int
    chunk: int
    vocab_chunk: int


FULL = {
    "long": Size(4096, 131072, 512, 256, 4096),
    "half": Size(2048, 131072, 512, 128, 4096),
    "small": Size(2048, 32768, 512, 256, 4096),
}
QUICK = {name: Size(512, 16384, 128, 64, 2048) for name in FULL}


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


ROWS = {"kl": kl_rows, "js": js_rows, "tv": None, "user": None}
MEMBERS = {
    "kl": dv.ForwardKL(),
    "js": dv.JensenShannon(),
    "tv": dv.TotalVariation(),
    "user": dv.from_generator(lambda u: u * jnp.log(u), name="user"),
}


def naive(of, size):
    """All logits."""
    return lambda h, w, th, tw: jnp.sum(of(h @ w, th @ tw)) / size.tokens


def checkpointed(of, size):
    """Chunks of tokens, computed again in the backward pass."""

    def loss(h, w, th, tw):
        @jax.checkpoint
        def body(total, chunk):
            return total + jnp.sum(of(chunk[0] @ w, chunk[1] @ tw)), None

        chunks = tuple(x.reshape(-1, size.chunk, x.shape[-1]) for x in (h, th))
        return jax.lax.scan(body, 0.0, chunks)[0] / size.tokens

    return loss


def fused(member, implementation, size):
    """`divergences.fused_linear`."""

    def loss(h, w, th, tw):
        found = dv.fused_linear(
            MEMBERS[member], model_hidden=h, model_head=w, target_hidden=th, target_head=tw,
            implementation=implementation, chunk=size.chunk, vocab_chunk=size.vocab_chunk,
        )  # fmt: skip
        return found.total / size.tokens

    return loss


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


def policy(how, size):
    """A policy gradient: labels and the rest are made of the states that stand for the target's."""

    def tokens(th):
        labels = (jnp.abs(th[:, 0]) * 1e4).astype(jnp.int32) % size.vocab
        return labels, (-10 + th[:, 1], -10 + th[:, 2], th[:, 3])

    def rows(s, labels):
        return jnp.take_along_axis(jax.nn.log_softmax(s), labels[:, None], -1)[:, 0]

    def loss(h, w, th, tw):
        labels, x = tokens(th)
        if how == "naive":
            return jnp.sum(grpo(rows(h @ w, labels), x)) / size.tokens
        if how == "checkpoint":
            body = jax.checkpoint(lambda c: rows(c[0] @ w, c[1]))
            chunks = h.reshape(-1, size.chunk, h.shape[1]), labels.reshape(-1, size.chunk)
            return jnp.sum(grpo(jax.lax.map(body, chunks).reshape(-1), x)) / size.tokens
        options: dict[str, Any] = {"hidden": h, "head": w, "labels": labels}
        options |= {"chunk": size.chunk, "vocab_chunk": size.vocab_chunk}
        if how == "one-shot":
            return ob.token_loss(grpo_of, per_token=x, implementation="fast", **options).mean()
        found = ob.token_statistics(implementation="lean", **options)
        return jnp.sum(grpo(found.log_probs, x)) / size.tokens

    return loss


def variant(name: str, size: Size):
    """The loss of `member/how`, and the arguments that it is differentiated by."""
    member, how, *asked = name.split("/")
    which = {"frozen": (0,), "eval": ()}.get(asked[0] if asked else "", (0, 1))
    if member == "grpo":
        return policy(how, size), which
    if how in ("naive", "checkpoint"):
        make = naive if how == "naive" else checkpointed
        return make(ROWS[member], size), which
    return fused(member, how, size), which


def _status(field: str) -> float:
    text = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(rf"{field}:\s+(\d+) kB", text)
    return float(found[1]) / 1e3 if found else float("nan")


def run_one(name: str, size: Size, calls: int) -> dict[str, float]:
    """Time and memory of one variant, in this process."""
    of, which = variant(name, size)
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(size.tokens, size.width), (size.width, size.vocab)] * 2
    args = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]
    args = [x if i % 2 == 0 else 2 * x * size.width**-0.5 for i, x in enumerate(args)]
    start = time.perf_counter()
    step = jax.value_and_grad(of, which) if which else of
    compiled = jax.jit(step).lower(*args).compile()
    result = {"compile": time.perf_counter() - start}
    memory = compiled.memory_analysis()
    assert memory is not None
    result["temp"] = memory.temp_size_in_bytes / 1e6
    walls, cpus = [], []
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _status("VmRSS")
    for call in range(calls):
        wall, cpu = time.perf_counter(), time.process_time()
        out = jax.block_until_ready(compiled(*args))
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
        if call == 0:
            outputs = sum(x.nbytes for x in jax.tree.leaves(out)) / 1e6
            result["rss"] = _status("VmHWM") - before - outputs
            result["value"] = float(out[0] if which else out)
        del out
    return result | {"wall": min(walls), "cpu": min(cpus)}


BARS = {
    # id: (size, numerator, denominator, quantity, most)
    "P1 lean KL temp": ("long", "kl/lean", "kl/naive", "temp", 0.015),
    "P1 lean KL rss": ("long", "kl/lean", "kl/naive", "rss", 0.02),
    "P1 lean KL time": ("long", "kl/lean", "kl/naive", "wall", 0.9),
    "P1 lean KL over checkpoint": ("long", "kl/lean", "kl/checkpoint", "wall", 0.6),
    "P2 fast KL time": ("long", "kl/fast", "kl/naive", "wall", 0.7),
    "P2 fast KL over checkpoint": ("long", "kl/fast", "kl/checkpoint", "wall", 0.45),
    "P2 fast KL temp": ("long", "kl/fast", "kl/naive", "temp", 0.05),
    "P3 JS temp over KL": ("small", "js/fast", "kl/fast", "temp", 1.1),
    "P3 TV temp over KL": ("small", "tv/fast", "kl/fast", "temp", 1.1),
    "P3 user's f temp over KL": ("small", "user/fast", "kl/fast", "temp", 1.1),
    "P3 fast JS time, V=32768": ("small", "js/fast", "js/naive", "wall", 0.75),
    "P3 fast JS temp, V=32768": ("small", "js/fast", "js/naive", "temp", 0.05),
    "P3 fast JS time, V=131072": ("half", "js/fast", "js/naive", "wall", 0.45),
    "P3 fast JS temp, V=131072": ("half", "js/fast", "js/naive", "temp", 0.02),
    "P9 GRPO one-shot time": ("small", "grpo/one-shot", "grpo/naive", "wall", 0.9),
    "P9 GRPO one-shot over checkpoint": ("small", "grpo/one-shot", "grpo/checkpoint", "wall", 0.85),
    "P9 GRPO lean temp": ("small", "grpo/lean", "grpo/naive", "temp", 0.06),
    "P9 GRPO lean time": ("small", "grpo/lean", "grpo/naive", "wall", 1.1),
    "P10 frozen head": ("small", "kl/fast/frozen", "kl/fast", "wall", 0.75),
    "P10 evaluation": ("small", "kl/fast/eval", "kl/fast", "wall", 0.55),
}


def measure(sizes: dict[str, Size], only: str, rounds: int, calls: int) -> dict[tuple, dict]:
    """Every variant that the chosen bars need, the best of some fresh processes each, in turns."""
    chosen = [bar for name, bar in BARS.items() if re.search(only, name)]
    needed = list(dict.fromkeys((size, one) for size, *pair in chosen for one in pair[:2]))
    best: dict[tuple, dict] = {}
    for _ in range(rounds):
        for size, name in needed:
            command = [sys.executable, __file__, "--one", name, "--calls", str(calls)]
            command += ["--size", json.dumps(sizes[size])]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{name} at {sizes[size]} failed: {done.stderr.strip().splitlines()[-1:]}")
                continue
            found, old = json.loads(done.stdout.splitlines()[-1]), best.get((size, name))
            best[size, name] = {k: min(v, old[k]) if old else v for k, v in found.items()}
            shown = " ".join(f"{k} {v:.4g}" for k, v in found.items())
            print(f"{size} {name}: {shown} (load {os.getloadavg()[0]:.1f})", flush=True)
    return best


def bars(sizes: dict[str, Size], only: str = "", rounds: int = 3, calls: int = 1) -> list[dict]:
    """The chosen bars: ratio, target, whether it holds; CPU seconds beside wall."""
    best, rows = measure(sizes, only, rounds, calls), []
    for name, (size, over, under, what, most) in BARS.items():
        if (size, over) not in best or (size, under) not in best or not re.search(only, name):
            continue
        a, b = best[size, over], best[size, under]
        ratio = a[what] / b[what]
        cpu = a["cpu"] / b["cpu"] if what == "wall" else None
        rows.append(
            {"bar": name, "ratio": ratio, "cpu": cpu, "target": most, "holds": ratio <= most}
        )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small arrays, to see that it works")
    parser.add_argument("--only", default="", help="a pattern of bars")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where to write the table")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--size", type=lambda text: Size(*json.loads(text)), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run_one(options.one, options.size, options.calls)))
        return
    rows = bars(QUICK if options.quick else FULL, options.only, options.rounds, options.calls)
    for row in rows:
        cpu = "" if row["cpu"] is None else f" (cpu {row['cpu']:.3f})"
        verdict = "holds" if row["holds"] else "does NOT hold"
        print(f"{row['bar']:36s} {row['ratio']:.4f}{cpu}, at most {row['target']}: {verdict}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
