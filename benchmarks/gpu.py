"""`python benchmarks/gpu.py [--quick]`: time and memory on a real GPU, against its data sheet and other libraries.

Given logits: value and gradient at N = 8192, V = 128256 in bfloat16, and the share of the memory's bandwidth that their
passes make use of. From hidden states: Liger's published shape, N = 8192, H = 2048 and 4096, and the share of the bfloat16
matrix units' speed that the products make use of which nobody can avoid. Every case runs in a fresh process.
"""

import dataclasses
import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from divax import divergences as dv
from divax.benchmarks.given_logits import naive_alpha, naive_js, naive_kl, naive_tv
from divax.benchmarks.interleave import fresh
from divax.benchmarks.measure import SkippedError, clocked
from divax.trainers.command_line import run_command
from divax.trainers.errors import RunError

# Peak memory is what a case needs, not what JAX sets aside.
ENVIRONMENT = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


class Roofline(NamedTuple):
    """Bytes/s of the memory, dense bfloat16 FLOP/s."""

    bandwidth: float
    flops: float


# The makers' data sheets, dense figures; the first name that a device's kind contains is meant.
ROOFLINES = {
    "H200": Roofline(4.8e12, 989e12),
    "H100 PCIe": Roofline(2.0e12, 756e12),
    "H100 NVL": Roofline(3.9e12, 835e12),
    "H100": Roofline(3.35e12, 989e12),
    "A100-SXM4-40GB": Roofline(1.555e12, 312e12),
    "A100-PCIE-40GB": Roofline(1.555e12, 312e12),
    "A100": Roofline(2.039e12, 312e12),
    "L40S": Roofline(0.864e12, 362e12),
}
MEMBERS = {
    "kl": (naive_kl, dv.ForwardKL()),
    "js": (naive_js, dv.JensenShannon()),
    "tv": (naive_tv, dv.TotalVariation()),
    "alpha": (naive_alpha, dv.Alpha(alpha=0.5)),
}
# Passes over [N, V] of value with gradient, as `benchmarks.aot` counts them.
PASSES = {"kl": 5, "js": 7, "tv": 7, "alpha": 5}


class Shape(NamedTuple):
    """Tokens, widths of model and target, vocabulary."""

    tokens: int
    width: int
    target_width: int
    vocabulary: int


def shape(quick: bool) -> Shape:
    return Shape(1024, 512, 1024, 16384) if quick else Shape(8192, 2048, 4096, 128256)


def roofline(kind: str) -> Roofline | None:
    """Of a device by its kind; None for one that is not in the table."""
    return next((line for name, line in ROOFLINES.items() if name in kind), None)


def least_bytes(at: Shape, member: str) -> float:
    """What the passes of value with gradient of given bfloat16 logits move."""
    return PASSES[member] * 2.0 * at.tokens * at.vocabulary


def least_flops(at: Shape) -> float:
    """Three products with the model's head and one with the target's: nobody needs fewer for value and gradients."""
    return 2.0 * at.tokens * at.vocabulary * (3 * at.width + at.target_width)


def achieved(case: str, seconds: float, at: Shape, line: Roofline | None) -> str:
    """Bytes/s or FLOP/s of a case, over the roofline where that is known."""
    where, member = case.split("/")[0].split(" ")
    given = where == "given"
    rate = (least_bytes(at, member) if given else least_flops(at)) / seconds
    text = f"{rate / 1e12:.3g} {'TB/s' if given else 'TFLOP/s'}"
    if line is None:
        return text
    return f"{text}, {rate / (line.bandwidth if given else line.flops):.0%} of the peak"


def _measured(fun: Callable, *args: jax.Array) -> dict[str, float]:
    compiled = jax.jit(fun).lower(*args).compile()
    found = clocked(lambda: jax.tree.leaves(jax.block_until_ready(compiled(*args))))
    stats = jax.devices()[0].memory_stats() or {}
    return found | {"peak": float(stats.get("peak_bytes_in_use", float("nan")))}


def _normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, jnp.bfloat16)


def given(member: str, which: int, quick: bool) -> dict[str, float]:
    at, rows = shape(quick), MEMBERS[member][which]
    target, model = (_normal(seed, at.tokens, at.vocabulary) for seed in (0, 1))
    return _measured(jax.value_and_grad(lambda s, t: jnp.mean(rows(t, s))), model, target)


def _states(at: Shape) -> list[jax.Array]:
    sizes = (at.tokens, at.width), (at.width, at.vocabulary)
    sizes += (at.tokens, at.target_width), (at.target_width, at.vocabulary)
    return [0.05 * _normal(seed, *size) for seed, size in enumerate(sizes)]


def fused(member: str, how: str, quick: bool) -> dict[str, float]:
    naive, div = MEMBERS[member]

    def loss(h, w, th, tw):
        if how == "naive":
            return jnp.mean(naive((th @ tw).astype(jnp.float32), (h @ w).astype(jnp.float32)))
        total = dv.fused_linear(
            div, model_hidden=h, model_head=w, target_hidden=th, target_head=tw,
            implementation=how,  # type: ignore[arg-type]
        ).total  # fmt: skip
        return total / h.shape[0]

    return _measured(jax.value_and_grad(loss, (0, 1)), *_states(shape(quick)))


def torch_rows(member: str, t, s):
    """The same divergences as PyTorch's users write them."""
    import torch

    log_p, log_q = torch.log_softmax(t, -1), torch.log_softmax(s, -1)
    if member == "kl":
        return torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
    if member == "js":
        log_m = torch.logaddexp(log_p, log_q) - 0.6931471805599453
        terms = log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)
        return 0.5 * terms.sum(-1)
    if member == "tv":
        return 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)
    return 4 * (1 - (0.5 * (log_p + log_q)).exp().sum(-1))


def _torch_states(at: Shape) -> list:
    import torch

    if not torch.cuda.is_available():
        raise SkippedError("PyTorch sees no GPU")
    draw = functools.partial(torch.randn, device="cuda", dtype=torch.bfloat16)
    sizes = (at.tokens, at.width), (at.vocabulary, at.width)
    sizes += (at.tokens, at.target_width), (at.vocabulary, at.target_width)
    states = [0.05 * draw(*size) for size in sizes]
    return [x.requires_grad_(i < 2) for i, x in enumerate(states)]


def _torch_measured(loss: Callable, states: list) -> dict[str, float]:
    import torch

    def call():
        for x in states:
            x.grad = None
        value = loss(*states)
        value.backward()
        torch.cuda.synchronize()
        return [value.detach()]

    return clocked(call) | {"peak": float(torch.cuda.max_memory_allocated())}


def torch_fused(member: str, compiled: bool, quick: bool) -> dict[str, float]:
    import torch

    states = _torch_states(shape(quick))

    def loss(h, w, th, tw):
        return torch_rows(member, (th @ tw.T).float(), (h @ w.T).float()).mean()

    return _torch_measured(torch.compile(loss) if compiled else loss, states)


def liger(quick: bool) -> dict[str, float]:
    import torch
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    at = shape(quick)
    states, labels = _torch_states(at), torch.zeros(at.tokens, dtype=torch.long, device="cuda")
    of = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0)
    return _torch_measured(lambda *states: of(*states, labels), states)


CASES = (
    {
        f"given {member}/{kind}": functools.partial(given, member, which)
        for member in MEMBERS
        for which, kind in enumerate(("naive", "divax"))
    }
    | {
        f"fused {member}/{how}": functools.partial(fused, member, how)
        for member in MEMBERS
        for how in ("naive", "fast", "lean")
    }
    | {
        f"fused {member}/torch {how}": functools.partial(torch_fused, member, how == "compiled")
        for member in MEMBERS
        for how in ("eager", "compiled")
    }
    | {"fused js/liger": liger}
)


@dataclasses.dataclass(frozen=True)
class GpuConfig:
    """Measures on the GPU of this machine; exit code 2 if there is none.

    Attributes:
        quick: a small shape, to see that everything works.
        json: write what was measured here as well.
    """

    quick: bool = False
    json: Path | None = None


def run(config: GpuConfig) -> None:
    """Prints a line per case.

    Raises:
        RunError: there is no GPU, or the file cannot be written.
    """
    os.environ.update(ENVIRONMENT)
    device = jax.devices()[0]
    if device.platform != "gpu":
        raise RunError(
            f"no GPU: JAX sees {device.device_kind!r} alone; install jax[cuda13] on a machine with one"
        )
    line, at, found = roofline(device.device_kind), shape(config.quick), {}
    print(f"{device.device_kind}, {at}; {'not in the table of peaks' if line is None else line}")
    for case in CASES:
        answer = fresh("gpu", [case], config.quick)[case]
        if "found" not in answer:
            print(f"{case:24s} {': '.join(*answer.items())}")
            continue
        found[case] = result = answer["found"]
        rate = achieved(case, result["wall"], at, line)
        peak = result["peak"] / 1e9
        print(f"{case:24s} {1e3 * result['wall']:9.2f} ms  peak {peak:6.2f} GB  {rate}", flush=True)
    if config.json is not None:
        try:
            config.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
        except OSError as error:
            raise RunError(f"cannot write {config.json}: {error.strerror}") from None


def main(arguments: list[str]) -> int:
    """Runs the benchmark and returns its exit code."""
    return run_command("benchmarks/gpu.py", GpuConfig, arguments, run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
