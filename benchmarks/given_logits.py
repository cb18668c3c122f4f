"""P4 and P13: value and gradient of divergences of given logits, against `jax.grad` of log_softmax and others."""

import functools

import jax
import jax.numpy as jnp

from divax import divergences as dv
from divax.benchmarks.measure import Asked, timed


def naive_kl(t, s):
    log_p, log_q = jax.nn.log_softmax(t), jax.nn.log_softmax(s)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1)


def naive_reverse(t, s):
    return naive_kl(s, t)


def naive_js(t, s):
    log_p, log_q = jax.nn.log_softmax(t), jax.nn.log_softmax(s)
    log_m = jnp.logaddexp(log_p, log_q) - jnp.log(2.0)
    terms = jnp.exp(log_p) * (log_p - log_m) + jnp.exp(log_q) * (log_q - log_m)
    return 0.5 * jnp.sum(terms, -1)


def naive_tv(t, s):
    return 0.5 * jnp.sum(jnp.abs(jax.nn.softmax(t) - jax.nn.softmax(s)), -1)


def naive_alpha(t, s):
    log_p, log_q = jax.nn.log_softmax(t), jax.nn.log_softmax(s)
    return 4 * (1 - jnp.sum(jnp.exp(0.5 * (log_p + log_q)), -1))


def naive_renyi(t, s):
    log_p, log_q = jax.nn.log_softmax(t), jax.nn.log_softmax(s)
    return -2 * jax.nn.logsumexp(0.5 * (log_p + log_q), -1)


def naive_cauchy_schwarz(t, s):
    log_p, log_q = jax.nn.log_softmax(t), jax.nn.log_softmax(s)
    log_sum = lambda x: jax.nn.logsumexp(x, -1)  # noqa: E731
    return 0.5 * (log_sum(2 * log_p) + log_sum(2 * log_q)) - log_sum(log_p + log_q)


def le_cam(u):
    return (u - 1) ** 2 / (1 + u)


def naive_user(t, s):
    log_p, log_q = jax.nn.log_softmax(t), jax.nn.log_softmax(s)
    return jnp.sum(jnp.exp(log_q) * le_cam(jnp.exp(log_p - log_q)), -1)


MEMBERS = {
    "kl": (naive_kl, dv.ForwardKL()),
    "reverse": (naive_reverse, dv.ReverseKL()),
    "js": (naive_js, dv.JensenShannon()),
    "tv": (naive_tv, dv.TotalVariation()),
    "alpha": (naive_alpha, dv.Alpha(alpha=0.5)),
    "user": (naive_user, dv.from_generator(le_cam, name="le_cam")),
}


def by_map(rows):
    """A few rows at a time, computed again in the backward pass."""
    of_row = jax.checkpoint(lambda pair: rows(*pair))
    return lambda t, s: jax.lax.map(of_row, (t, s), batch_size=8)


def optax_kl(t, s):
    import optax

    log_p, log_q = jax.nn.log_softmax(t), jax.nn.log_softmax(s)
    return optax.losses.kl_divergence_with_log_targets(log_q, log_p)


def logits(rows, vocabulary, gap=0.3):
    target = jax.random.normal(jax.random.key(0), (rows, vocabulary))
    return target, target + gap * jax.random.normal(jax.random.key(1), target.shape)


def run(rows, quick: bool) -> dict[str, float]:
    target, model = logits(128, 8192) if quick else logits(2048, 32768)
    found = timed(jax.value_and_grad(lambda s, t: jnp.mean(rows(t, s))), model, target)
    return found | {
        f"{key} in logits": found[key] / model.nbytes for key in ("temp", "rss") if key in found
    }


def precision(quick: bool) -> dict[str, float]:
    """Relative errors of value and gradient from bfloat16 logits of close models, against float64 of the same numbers."""
    with jax.enable_x64(True):
        target, model = (x.astype(jnp.bfloat16) for x in logits(64, 8192 if quick else 32768, 0.1))

        def both(rows, dtype):
            t, s = target.astype(dtype), model.astype(dtype)
            return jax.value_and_grad(lambda s: jnp.mean(rows(t, s).astype(jnp.float32)))(s)

        want, slope = both(naive_kl, jnp.float64)
        found = {}
        for name, rows in (("divax", dv.ForwardKL()), ("naive", naive_kl)):
            value, gradient = both(rows, jnp.bfloat16)
            apart = jnp.linalg.norm(gradient.astype(jnp.float64) - slope) / jnp.linalg.norm(slope)
            found |= {
                f"{name} value": float(abs(value - want) / want),
                f"{name} gradient": float(apart),
            }
        return found


CASES = (
    {
        f"{member} {name}": functools.partial(run, rows)
        for member, pair in MEMBERS.items()
        for name, rows in zip(("naive", "divax"), pair, strict=True)
    }
    | {
        f"{member} map": functools.partial(run, by_map(MEMBERS[member][0]))
        for member in ("kl", "js")
    }
    | {"kl optax": functools.partial(run, optax_kl), "bfloat16": precision}
)
ASKED = {"kl": 0.55, "js": 0.40}
OTHERS = (
    ("kl", "map", "lax.map + checkpoint"),
    ("js", "map", "lax.map + checkpoint"),
    ("kl", "optax", "optax.losses.kl_divergence_with_log_targets"),
)
BARS = (
    *(
        bar
        for member in MEMBERS
        for bar in (
            Asked("P4", f"{member}: time over naive", f"{member} divax", f"{member} naive",
                  target=ASKED.get(member)),
            Asked("P4", f"{member}: temporaries in [N, V]", f"{member} divax", None, "temp in logits", 0.05),
            Asked("P4", f"{member}: peak memory in [N, V]", f"{member} divax", None, "rss in logits"),
        )
    ),
    *(
        Asked("P4", f"{member}: time over {what}", f"{member} divax", f"{member} {other}")
        for member, other, what in OTHERS
    ),
    Asked("P13", "bfloat16 KL: error of the value", "bfloat16", None, "divax value", 1e-3),
    Asked("P13", "bfloat16 KL: error of the gradient", "bfloat16", None, "divax gradient", 2.5e-3),
    Asked("P13", "the same naively: value", "bfloat16", None, "naive value"),
    Asked("P13", "the same naively: gradient", "bfloat16", None, "naive gradient"),
)  # fmt: skip
