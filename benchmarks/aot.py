"""P5 and P6: what a H200 or a TPU would do, compiled ahead of time on a machine without one.

Needs the plugin of JAX for CUDA (`pip install jax-cuda12-plugin jax-cuda12-pjrt nvidia-cuda-nvcc-cu12`) or for TPU
(`pip install "jax[tpu]"`), no device. It proves compilation, memory and traffic, not time. Passes are what the
instructions of the entry computation read and write, in arrays of the logits' size.
"""

import functools

import jax
import jax.numpy as jnp

from divax import divergences as dv
from divax.benchmarks.given_logits import (
    naive_alpha,
    naive_cauchy_schwarz,
    naive_js,
    naive_kl,
    naive_renyi,
    naive_reverse,
    naive_tv,
)
from divax.benchmarks.hlo_traffic import traffic
from divax.benchmarks.measure import Bar, Results, SkippedError

# The compiler alone is used, without a GPU to choose algorithms by, and without looking for a TPU.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_gpu_autotune_level=0",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    # The process that waits for this one may have loaded the library too.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
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
    "reverse": (naive_reverse, dv.ReverseKL()),
    "jeffreys": (lambda t, s: naive_kl(t, s) + naive_kl(s, t), dv.Jeffreys()),
    "alpha": (naive_alpha, dv.Alpha(alpha=0.5)),
    "renyi": (naive_renyi, dv.Renyi(order=0.5)),
    "cauchy_schwarz": (naive_cauchy_schwarz, dv.CauchySchwarz()),
    "js": (naive_js, dv.JensenShannon()),
    "tv": (naive_tv, dv.TotalVariation()),
}
# Class A needs its row scalars in one reading, class B in two; then logits are read and gradients written.
CLASS_A, CLASS_B = (2.1, 5.2), (4.1, 9.2)
ASKED = dict.fromkeys(MEMBERS, CLASS_A) | dict.fromkeys(("js", "tv"), CLASS_B)
TPUS = {"v5p": "v5p:2x2x1", "v6e": "v6e:2x2x1"}
ON_TPU = {"kl": (2.1, 5.1), "js": CLASS_B}


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
def device(machine: str):
    from jax.experimental import topologies

    try:
        if machine == "H200":
            found = topologies.get_topology_desc(
                platform="cuda", target_config=description(), topology="1x1x1"
            )
        else:
            found = topologies.get_topology_desc(platform="tpu", topology_name=TPUS[machine])
    except Exception as error:
        reason = str(error).splitlines()[0][:90]
        raise SkippedError(f"no device-less compiler for {machine} ({reason})") from None
    return jax.sharding.SingleDeviceSharding(found.devices[0])


def compiled(machine: str, fun, *shapes):
    place = device(machine)
    args = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=place) for shape in shapes]
    platform = "cuda" if machine == "H200" else "tpu"
    return jax.jit(fun).trace(*args).lower(lowering_platforms=(platform,)).compile()


def given(machine: str, member: str, which: int, quick: bool) -> dict[str, float]:
    shape = (256, 16384) if quick else (4096, 131072)
    rows = MEMBERS[member][which]
    loss = lambda s, t: jnp.mean(rows(t, s))  # noqa: E731
    unit = 2.0 * shape[0] * shape[1]
    forward = compiled(machine, loss, shape, shape)
    both = compiled(machine, jax.value_and_grad(loss), shape, shape)
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
        # What a GPU would choose; the process that compiles sees none.
        chunks = {} if quick else {"chunk": 1024, "vocab_chunk": 8192}
        return dv.fused_linear(
            div, model_hidden=h, model_head=w, target_hidden=th, target_head=tw,
            implementation="lean", **chunks,
        ).total  # fmt: skip

    shapes = (tokens, student), (student, size), (tokens, teacher), (teacher, size)
    memory = compiled("H200", jax.value_and_grad(loss, (0, 1)), *shapes).memory_analysis()
    return {"temp": float(memory.temp_size_in_bytes)}


KINDS = ("naive", "divax")
CASES = (
    {
        f"H200 {member}/{kind}": functools.partial(given, "H200", member, which)
        for member in MEMBERS
        for which, kind in enumerate(KINDS)
    }
    | {
        f"{machine} {member}/{kind}": functools.partial(given, machine, member, which)
        for machine in TPUS
        for member in ON_TPU
        for which, kind in enumerate(KINDS)
    }
    | {
        f"fused {member}/{how}": functools.partial(fused, member, how)
        for member in ("kl", "js")
        for how in ("naive", "lean")
    }
)


def bars(found: Results) -> list[Bar]:
    rows = []
    for machine, asked in {"H200": ASKED, **dict.fromkeys(TPUS, ON_TPU)}.items():
        for member, goals in asked.items():
            rows += _passes(found, machine, member, goals)
    for member, most in (("kl", 0.06), ("js", 0.03)):
        lean, naive = (found.get(f"fused {member}/{how}") for how in ("lean", "naive"))
        if lean and naive:
            what = f"H200, from hidden states, {member}: lean temp over naive"
            rows.append(Bar("P6", what, lean["temp"] / naive["temp"], most))
    return rows


def _passes(found: Results, machine: str, member: str, goals: tuple[float, float]) -> list[Bar]:
    names = {
        "forward": "passes of the value",
        "both": "passes with the gradient",
        "temp": "temporaries in [N, V]",
    }
    rows = []
    for kind in KINDS[::-1]:
        of = found.get(f"{machine} {member}/{kind}")
        for (key, name), goal in zip(names.items(), (*goals, 0.05), strict=True):
            if of is not None:
                what, target = (
                    f"{machine}, {member}, {kind}: {name}",
                    goal if kind == "divax" else None,
                )
                rows.append(Bar("P5", what, of[key], target))
    return rows
