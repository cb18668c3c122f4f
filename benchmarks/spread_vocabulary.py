"""P12: a vocabulary spread over eight virtual devices: what travels, and the errors."""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from divax import divergences as dv
from divax.benchmarks.measure import Asked

MEMBERS = (dv.ForwardKL(), dv.ReverseKL(), dv.JensenShannon(), dv.TotalVariation(), dv.Alpha())


def run(quick):
    jax.config.update("jax_num_cpu_devices", 8)
    mesh = jax.make_mesh((8,), ("vocabulary",), axis_types=(AxisType.Auto,))
    spec = P(None, "vocabulary")
    target = jax.random.normal(jax.random.key(0), (64, 4096 if quick else 32768))
    model = target + 0.3 * jax.random.normal(jax.random.key(1), target.shape)
    spread = [jax.device_put(x, NamedSharding(mesh, spec)) for x in (model, target)]
    found = {"all-gather": 0.0, "all-reduce": 0.0, "error": 0.0}
    for div in MEMBERS:
        one = jax.jit(jax.value_and_grad(lambda s, t, div=div: jnp.mean(div(t, s))))
        many = jax.jit(
            jax.value_and_grad(
                lambda s, t, div=div: jnp.mean(
                    dv.vocabulary_parallel(div, t, s, mesh=mesh, spec=spec)
                )
            )
        )
        lines = many.lower(*spread).compile().as_text().splitlines()
        for kind in ("all-gather", "all-reduce"):
            count = sum(f" {kind}(" in line or f" {kind}-start(" in line for line in lines)
            found[kind] = max(found[kind], float(count))
        for a, b in zip(
            jax.tree.leaves(one(model, target)), jax.tree.leaves(many(*spread)), strict=True
        ):
            found["error"] = max(found["error"], float(jnp.max(jnp.abs(a - b))))
    return found


CASES = {"spread": run}


BARS = tuple(
    Asked("P12", f"vocabulary over 8 devices: {what}", "spread", None, key, most)
    for what, key, most in (
        ("all-gathers", "all-gather", 0),
        ("all-reduces", "all-reduce", 4),
        ("error", "error", 1e-5),
    )
)
