"""P12: a vocabulary spread over eight virtual devices, given logits and from hidden states: what travels, and the errors."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from divax import divergences as dv
from divax.benchmarks.measure import Asked

MEMBERS = (dv.ForwardKL(), dv.ReverseKL(), dv.JensenShannon(), dv.TotalVariation(), dv.Alpha())
SPEC = P(None, "vocabulary")


def mesh_of_eight():
    jax.config.update("jax_num_cpu_devices", 8)
    return jax.make_mesh((8,), ("vocabulary",), axis_types=(AxisType.Auto,))


def compared(one, many, arrays, spread) -> dict[str, float]:
    """Collectives of the compiled program of many devices, and how far its results are from one's."""
    compiled = jax.jit(many).lower(*spread).compile()
    lines = compiled.as_text().splitlines()
    found = {}
    for kind in ("all-gather", "all-reduce"):
        found[kind] = float(sum(f" {kind}(" in line or f" {kind}-start(" in line for line in lines))
    pairs = zip(
        jax.tree.leaves(jax.jit(one)(*arrays)), jax.tree.leaves(compiled(*spread)), strict=True
    )
    return found | {"error": max(float(jnp.max(jnp.abs(a - b))) for a, b in pairs)}


def worst(found: list[dict[str, float]]) -> dict[str, float]:
    return {key: max(one[key] for one in found) for key in found[0]}


def given_logits(quick: bool) -> dict[str, float]:
    mesh = mesh_of_eight()
    target = jax.random.normal(jax.random.key(0), (64, 4096 if quick else 32768))
    arrays = target + 0.3 * jax.random.normal(jax.random.key(1), target.shape), target
    spread = [jax.device_put(x, NamedSharding(mesh, SPEC)) for x in arrays]

    def of(div):
        parallel = functools.partial(dv.vocabulary_parallel, div, mesh=mesh, spec=SPEC)
        losses = (lambda s, t, rows=rows: jnp.mean(rows(t, s)) for rows in (div, parallel))
        return compared(*map(jax.value_and_grad, losses), arrays, spread)

    return worst([of(div) for div in (MEMBERS[::2] if quick else MEMBERS)])


def from_hidden(how, quick: bool) -> dict[str, float]:
    mesh, size = mesh_of_eight(), 4096 if quick else 32768
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(64, 32), (32, size)] * 2
    arrays = [0.3 * jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]
    specs = [P(), SPEC] * 2
    spread = [jax.device_put(x, NamedSharding(mesh, s)) for x, s in zip(arrays, specs, strict=True)]

    def of(div):
        def loss(h, w, th, tw, sharding=None):
            return dv.fused_linear(
                div, model_hidden=h, model_head=w, target_hidden=th, target_head=tw,
                implementation=how, chunk=16, vocab_chunk=512, sharding=sharding,
            ).total / len(h)  # fmt: skip

        sharding = dv.VocabularySharding(mesh, vocabulary="vocabulary")
        many = jax.value_and_grad(functools.partial(loss, sharding=sharding), (0, 1))
        return compared(jax.value_and_grad(loss, (0, 1)), many, arrays, spread)

    return worst([of(div) for div in (MEMBERS[::2] if quick else MEMBERS)])


CASES = {
    "given logits": given_logits,
    "hidden states, fast": functools.partial(from_hidden, "fast"),
    "hidden states, lean": functools.partial(from_hidden, "lean"),
}
BARS = tuple(
    Asked("P12", f"vocabulary over 8 devices, {case}: {what}", case, None, key, most)
    for case in CASES
    for what, key, most in (
        ("all-gathers", "all-gather", 0),
        ("all-reduces", "all-reduce", 4),
        ("error", "error", 1e-5),
    )
)
