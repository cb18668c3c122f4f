"""Statistics of tokens from hidden states, and losses of them, equal those of the logits."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divax import divergences as dv
from divax import objectives as ob

B, T, V = 2, 3, 11
DIVERGENCES = {"none": None, "f": dv.ReverseKL(), "other": dv.Renyi(order=0.5)}


def arrays():
    rng = np.random.default_rng(0)
    shapes = {
        "hidden": (B, T, 3),
        "head": (3, V),
        "reference_hidden": (B, T, 5),
        "reference_head": (5, V),
    }
    a = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}
    labels = jnp.asarray([[3, 1, -100], [10, 0, 2]])
    per_token = {
        "old": jnp.asarray(rng.normal(size=(B, T)) - 2),
        "advantage": jnp.asarray(rng.normal(size=(B, T))),
    }
    return a, labels, per_token


def dense_statistics(a, labels, divergence, temperature):
    """By the definitions."""
    s, t = (
        a["hidden"] @ a["head"] / temperature,
        a["reference_hidden"] @ a["reference_head"] / temperature,
    )
    log_q = jax.nn.log_softmax(s)
    log_probs = jnp.take_along_axis(log_q, jnp.maximum(labels, 0)[..., None], -1)[..., 0]
    entropies = -jnp.sum(jnp.exp(log_q) * log_q, -1)
    between = None if divergence is None else divergence(t, s)
    found = ob.TokenStatistics(log_probs, entropies, between)
    return jax.tree.map(lambda x: jnp.where(labels >= 0, x, 0), found)


def grpo(found, x):
    ratio = jnp.exp(found.log_probs - x["old"])
    loss = -jnp.minimum(ratio * x["advantage"], jnp.clip(ratio, 0.8, 1.2) * x["advantage"])
    loss = loss - 0.1 * found.entropies
    return loss if found.divergences is None else loss + 0.3 * found.divergences**2


def given(a, divergence):
    names = ("hidden", "head") if divergence is None else tuple(a)
    return {name: a[name] for name in names} | {"divergence": divergence}


def worst(found, expected):
    gaps = jax.tree.map(lambda x, y: float(jnp.max(jnp.abs(x - y))), found, expected)
    return max(jax.tree.leaves(gaps))


@pytest.mark.parametrize("how", ["reference", "fast", "lean"])
@pytest.mark.usefixtures("x64")
def test_rows_and_losses_are_those_of_the_logits(how):
    a, labels, per_token = arrays()
    options = {"implementation": how, "chunk": 2, "vocab_chunk": 4, "temperature": 1.3}

    def fused(a, divergence):
        return ob.token_statistics(labels=labels, **given(a, divergence), **options)

    def dense(a, divergence):
        return dense_statistics(a, labels, divergence, 1.3)

    def mixed(of):
        return lambda a, divergence: sum(
            jnp.sum(jnp.sin(x)) * w for w, x in enumerate(jax.tree.leaves(of(a, divergence)), 1)
        )

    def loss(a, divergence):
        given_: dict[str, Any] = given(a, divergence) | options
        reduction = ob.sequence_mean
        return ob.token_loss(
            grpo, labels=labels, per_token=per_token, reduction=reduction, **given_
        ).total

    def dense_loss(a, divergence):
        return ob.sequence_mean(grpo(dense(a, divergence), per_token), labels >= 0).total

    def gradient(of, divergence, a):
        student = {name: a[name] for name in ("hidden", "head")}
        return jax.value_and_grad(lambda x: of(a | x, divergence))(student)

    @jax.jit
    def both(a):
        out = {}
        for name, divergence in DIVERGENCES.items():
            out[name, "rows"] = [gradient(mixed(of), divergence, a) for of in (fused, dense)]
            out[name, "loss"] = [gradient(of, divergence, a) for of in (loss, dense_loss)]
        return out

    found = {name: worst(*pair) for name, pair in both(a).items()}
    assert {name: gap for name, gap in found.items() if not gap < 1e-10} == {}


READ = {
    "log_probs": lambda found: jnp.sum(jnp.sin(found.log_probs)),
    "both": lambda found: jnp.sum(jnp.sin(found.log_probs * found.entropies)),
}


@pytest.mark.usefixtures("x64")
def test_gradients_by_states_alone_are_those_of_the_logits_whatever_is_read():
    """Behind a frozen head one walk is enough for log-probs alone."""
    a, labels, _ = arrays()
    options = {"implementation": "fast", "chunk": 4, "vocab_chunk": 4}

    def fused(read, hidden):
        return read(ob.token_statistics(hidden=hidden, head=a["head"], labels=labels, **options))

    def loss(read, hidden):
        of = lambda found, _: jax.vmap(read)(found)  # noqa: E731
        found = ob.token_loss(of, hidden=hidden, head=a["head"], labels=labels, **options)
        return found.total

    def dense(read, hidden):
        return read(dense_statistics(a | {"hidden": hidden}, labels, None, 1.0))

    @jax.jit
    def gradients(hidden):
        return {
            name: [jax.grad(functools.partial(of, read))(hidden) for of in (fused, loss, dense)]
            for name, read in READ.items()
        }

    for name, (*found, expected) in gradients(a["hidden"]).items():
        for gradient in found:
            np.testing.assert_allclose(gradient, expected, atol=1e-12, err_msg=name)


def test_behind_a_frozen_head_log_probs_take_two_products_and_not_three():
    states, head, labels = jnp.ones((64, 128)), jnp.ones((128, 512)), jnp.arange(64)

    def flops(read):
        def loss(hidden):
            found = ob.token_statistics(
                hidden=hidden, head=head, labels=labels, implementation="fast", chunk=16
            )
            return read(found)

        cost = jax.jit(jax.grad(loss)).lower(states).compile().cost_analysis()
        assert cost is not None
        return cost["flops"]

    assert flops(READ["log_probs"]) == pytest.approx(2 / 3 * flops(READ["both"]), rel=0.05)


def test_what_is_wrong_is_said():
    a, labels, _ = arrays()
    of: Any = functools.partial(ob.token_statistics, hidden=a["hidden"], head=a["head"])
    with pytest.raises(ValueError, match="come together"):
        of(labels=labels, divergence=dv.ForwardKL())
    with pytest.raises(ValueError, match="one per state"):
        of(labels=labels[0])
    with pytest.raises(ValueError, match="'fats' is none of"):
        of(labels=labels, implementation="fats")
