"""P5 and P6: what a H200 would do, compiled ahead of time on a machine without one.

Needs the plugin of JAX for CUDA (`pip install jax-cuda12-plugin jax-cuda12-pjrt nvidia-cuda-nvcc-cu12`), no GPU. It proves
compilation, memory and traffic, not time. Traffic is what the instructions of the entry computation read and write.
"""

import functools
import re

import jax
import jax.numpy as jnp

from divax import divergences as dv
from divax.benchmarks.given_logits import naive_js, naive_kl, naive_tv
from divax.benchmarks.measure import Bar, Results, SkippedError

# The compiler alone is used, without a GPU to choose algorithms by.
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_gpu_autotune_level=0"}
# NVIDIA's data sheet of the H200 SXM, and the CUDA programming guide's table for compute capability 9.0.
LIMITS = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "shared_memory_per_block": 48 * 1024,
    "shared_memory_per_core": 228 * 1024,
    "shared_memory_per_block_optin": 227 * 1024,
    "threads_per_core_limit": 2048,
    "registers_per_core_limit": 64 * 1024,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 2**16 - 1,
    "block_dim_limit_z": 2**16 - 1,
    "core_count": 132,
    "fpus_per_core": 128,
    "clock_rate_ghz": 1.98,
    "memory_bandwidth": 4_800_000_000_000,
    "l2_cache_size": 50 * 2**20,
    "device_memory_size": 141 * 2**30,
}
VERSIONS = ("driver", "runtime", "compile_time_toolkit")
MEMBERS = {
    "kl": (naive_kl, dv.ForwardKL()),
    "js": (naive_js, dv.JensenShannon()),
    "tv": (naive_tv, dv.TotalVariation()),
}
# Class A needs its row scalars in one reading, class B in two; then logits are read and gradients written.
ASKED = {"kl": (2.1, 5.2), "js": (4.1, 9.2), "tv": (4.1, 9.2)}
SIZES = {"bf16": 2, "f32": 4, "pred": 1, "s32": 4, "u32": 4, "f16": 2, "s8": 1, "u8": 1, "f64": 8}


def description() -> str:
    """The target, as XLA reads it."""
    lines = [f"  {name}: {value}" for name, value in LIMITS.items()]
    lines.append("  cuda_compute_capability { major: 9 minor: 0 }")
    lines += [f'  {name}_version: "12.8.0"' for name in VERSIONS]
    body = "\n".join(lines)
    return (
        f'gpu_device_info {{\n{body}\n}}\nplatform_name: "CUDA"\ndevice_description_str: "H200"\n'
    )


@functools.cache
def device():
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(
            platform="cuda", target_config=description(), topology="1x1x1"
        )
    except Exception as error:
        reason = str(error).splitlines()[0][:90]
        raise SkippedError(f"no device-less compiler for CUDA ({reason})") from None
    return jax.sharding.SingleDeviceSharding(found.devices[0])


def compiled(fun, *shapes):
    place = device()
    args = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=place) for shape in shapes]
    return jax.jit(fun).trace(*args).lower(lowering_platforms=("cuda",)).compile()


def traffic(text: str) -> float:
    """Bytes that the instructions of the entry computation read and write; of what is only sliced, the slices."""
    computations = _computations(text)
    shapes, total = {}, 0.0
    for name, shape, kind, operands, called in computations["ENTRY"]:
        shapes[name] = sum(map(_bytes, re.findall(r"(\w+)\[([\d,]*)\]", shape)))
        if kind not in ("parameter", "get-tuple-element", "tuple", "bitcast", "constant"):
            inside = computations.get(called or "", [])
            sliced = _sliced(inside) if kind == "fusion" else {}
            read = [sliced.get(i, shapes.get(one, 0)) for i, one in enumerate(operands)]
            total += shapes[name] + (shapes[name] if kind == "slice" else sum(read))
    return total


def _computations(text: str) -> dict[str, list]:
    """(name, shape, kind, operands, called computation) of every instruction, by computation."""
    found: dict[str, list] = {}
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        if line.endswith("{") and (start := re.match(r"(ENTRY )?%?([\w.\-]+) \(", line)):
            lines = found.setdefault("ENTRY" if start[1] else start[2], [])
        match = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*?)\)", line)
        if match is not None:
            name, shape, kind, operands = match.groups()
            called = re.search(r"calls=%?([\w.\-]+)", line)
            operands = re.findall(r"%([\w.\-]+)", operands) if kind != "parameter" else operands
            lines.append((name, shape, kind, operands, called and called[1]))
    return found


def _sliced(instructions: list) -> dict[int, float]:
    """Bytes that a fusion reads of those operands of which it takes slices alone, maybe after a conversion."""

    def slices(name: str) -> list[str] | None:
        shapes = []
        for user, shape, kind, operands, _ in instructions:
            if kind == "parameter" or name not in operands:
                continue
            more = [shape] if kind == "slice" else slices(user) if kind == "convert" else None
            if more is None:
                return None
            shapes += more
        return shapes

    found = {}
    for name, _, kind, number, _ in instructions:
        if kind == "parameter" and (shapes := slices(name)):
            pairs = [re.findall(r"(\w+)\[([\d,]*)\]", shape)[0] for shape in shapes]
            found[int(number)] = sum(map(_bytes, pairs))
    return found


def _bytes(shape: tuple[str, str]) -> float:
    kind, lengths = shape
    size = SIZES.get(kind, 0)
    for length in filter(None, lengths.split(",")):
        size *= int(length)
    return size


def given(member: str, which: int, quick: bool) -> dict[str, float]:
    shape = (256, 16384) if quick else (4096, 131072)
    rows = MEMBERS[member][which]
    loss = lambda s, t: jnp.mean(rows(t, s))  # noqa: E731
    unit = 2.0 * shape[0] * shape[1]
    forward = compiled(loss, shape, shape)
    both = compiled(jax.value_and_grad(loss), shape, shape)
    return {
        "forward": traffic(forward.as_text()) / unit,
        "both": traffic(both.as_text()) / unit,
        "temp": both.memory_analysis().temp_size_in_bytes / unit,
    }


def fused(member: str, how: str, quick: bool) -> dict[str, float]:
    tokens, student, teacher, size = (512, 256, 512, 16384) if quick else (8192, 2048, 4096, 131072)
    naive, div = MEMBERS[member]

    def loss(h, w, th, tw):
        if how == "naive":
            return jnp.mean(naive((th @ tw).astype(jnp.float32), (h @ w).astype(jnp.float32)))
        chunks = {} if quick else {"chunk": 2048, "vocab_chunk": 8192}
        return dv.fused_linear(
            div, model_hidden=h, model_head=w, target_hidden=th, target_head=tw,
            implementation="lean", **chunks,
        ).total  # fmt: skip

    shapes = (tokens, student), (student, size), (tokens, teacher), (teacher, size)
    memory = compiled(jax.value_and_grad(loss, (0, 1)), *shapes).memory_analysis()
    return {"temp": float(memory.temp_size_in_bytes)}


CASES = {
    f"{member}/{name}": functools.partial(given, member, which)
    for member in MEMBERS
    for which, name in enumerate(("naive", "divax"))
} | {
    f"fused {member}/{how}": functools.partial(fused, member, how)
    for member in ("kl", "js")
    for how in ("naive", "lean")
}


def bars(found: Results) -> list[Bar]:
    rows = []
    for member, (forward, both) in ASKED.items():
        for name in ("divax", "naive"):
            of = found.get(f"{member}/{name}")
            if of is None:
                continue
            mine = name == "divax"
            what = f"H200, {member}, {name}: "
            rows.append(
                Bar("P5", what + "passes of the value", of["forward"], forward if mine else None)
            )
            rows.append(
                Bar("P5", what + "passes with the gradient", of["both"], both if mine else None)
            )
            rows.append(
                Bar("P5", what + "temporaries in [N, V]", of["temp"], 0.05 if mine else None)
            )
    for member, most in (("kl", 0.06), ("js", 0.03)):
        lean, naive = (found.get(f"fused {member}/{how}") for how in ("lean", "naive"))
        if lean and naive:
            what = f"H200, from hidden states, {member}: lean temp over naive"
            rows.append(Bar("P6", what, lean["temp"] / naive["temp"], most))
    return rows
