"""P8: the head of adaptive KL by bisection, against sorting."""

import jax
import jax.numpy as jnp

from divax import divergences as dv
from divax.benchmarks.measure import Asked, timed


def by_sorting(target):
    p = jax.nn.softmax(target)
    order = jnp.argsort(-p, axis=-1, stable=True)
    through = jnp.cumsum(jnp.take_along_axis(p, order, -1), -1)
    before = jnp.concatenate([jnp.zeros_like(through[..., :1]), through[..., :-1]], -1)
    return jnp.put_along_axis(jnp.zeros(p.shape, bool), order, before < 0.5, -1, inplace=False)


def bisected(target):
    return dv.head_mask(target, 0.5)


def logits(quick):
    return 2 * jax.random.normal(jax.random.key(0), (32 if quick else 256, 32768))


def equal(quick):
    target = logits(quick)
    a, b = jax.jit(by_sorting)(target), jax.jit(bisected)(target)
    model = target + 0.5 * jax.random.normal(jax.random.key(1), target.shape)
    gap = jnp.abs(jax.nn.softmax(target) - jax.nn.softmax(model))
    share = [jnp.sum(jnp.where(head, gap, 0), -1) / jnp.sum(gap, -1) for head in (a, b)]
    forward, reverse = dv.ForwardKL()(target, model), dv.ReverseKL()(target, model)
    losses = [w * forward + (1 - w) * reverse for w in share]
    apart = jnp.max(jnp.abs(losses[0] - losses[1]))
    return {"rows": float(jnp.mean(jnp.all(a == b, -1))), "loss": float(apart)}


CASES = {
    "sorting": lambda quick: timed(by_sorting, logits(quick)),
    "divax": lambda quick: timed(bisected, logits(quick)),
    "equal": equal,
}


BARS = (
    Asked(
        "P8",
        "head of AKL: times as fast as sorting",
        "sorting",
        "divax",
        target=8,
        asked="at least",
    ),
    Asked("P8", "share of rows equal", "equal", None, "rows", 0.98, "at least"),
    Asked("P8", "difference of the loss", "equal", None, "loss", 1e-5),
)
