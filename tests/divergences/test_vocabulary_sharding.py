"""Heads spread over devices: the numbers of one device, from hidden states, and little that travels."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from divax import divergences as dv
from divax import objectives as ob

N, V, USED = 12, 32, 27
# One whose slopes the first reading tells, and one that needs the sums of two.
MEMBERS = (
    0.5 * dv.ForwardKL() + 0.5 * dv.ReverseKL(),
    dv.from_generator(lambda u: (u - 1) ** 2 / (1 + u), name="le_cam"),
)
MOVING = ("h", "w", "th", "tw", "down", "up", "bias")


def arrays(dtype=np.float64):
    rng = np.random.default_rng(5)
    shapes = {"h": (N, 4), "w": (4, V), "th": (N, 5), "tw": (V, 5), "bias": (V,), "down": (4, 2)}
    shapes |= {"up": (2, V), "weights": (N,)}
    made = {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}
    made["weights"][4] = 0
    return made | {"labels": rng.integers(0, USED, N)}


def dense_losses(a):
    """By hand from all logits: of divergences (no bias), of their squares, of token statistics, of distillation."""
    low = (a["h"] @ a["w"])[:, :USED], (a["th"] @ a["tw"].T)[:, :USED]
    s = a["h"] @ a["w"] + (a["h"] @ a["down"]) @ a["up"] + a["bias"][None, :]
    s, t = 20 * jnp.tanh(s / 20)[:, :USED], low[1]
    rows = [div(t / 2, low[0] / 2) * a["weights"] for div in MEMBERS]
    squares = [(MEMBERS[1](t, s) * a["weights"]) ** 2]
    log_q, still = jax.nn.log_softmax(s), jax.lax.stop_gradient(t)
    picked = jnp.take_along_axis(log_q, a["labels"][:, None], 1)[:, 0]
    entropy = -jnp.sum(jnp.exp(log_q) * log_q, 1)
    token = a["weights"] * (picked**2 + 0.3 * entropy + dv.ReverseKL()(still, s))
    mixed = -0.5 * picked + 0.5 * dv.JensenShannon()(still, s)
    return jnp.stack([sum(map(jnp.sum, rows)), sum(map(jnp.sum, squares)), jnp.sum(token), jnp.mean(mixed)])  # fmt: skip


def spread_losses(a, sharding, how):
    """The same from hidden states and heads that are spread."""
    options: dict[str, Any] = {"chunk": 4, "vocab_chunk": 3, "vocab_size": USED}
    options |= {"sharding": sharding, "implementation": how}
    head = dv.LinearHead(weight=a["w"], bias=a["bias"], softcap=20.0, adapter=(a["down"], a["up"]))
    tied = dv.LinearHead(weight=a["tw"], tied=True)
    pair: dict[str, Any] = {"model_hidden": a["h"], "target_hidden": a["th"], "target_head": tied}
    sums = [
        dv.fused_linear(
            div, **pair, model_head=a["w"], mask=a["weights"], temperature=2.0, **options
        ).total
        for div in MEMBERS
    ]
    rows = [dv.fused_linear_rows(MEMBERS[1], **pair, model_head=head, **options)]
    found = ob.token_statistics(
        hidden=a["h"], head=head, labels=a["labels"], reference_hidden=a["th"],
        reference_head=tied, divergence=dv.ReverseKL(), **options,
    )  # fmt: skip
    assert found.divergences is not None
    token = a["weights"] * (found.log_probs**2 + 0.3 * found.entropies + found.divergences)
    mixed, _ = ob.distillation_from_hidden(
        student_hidden=a["h"], student_head=head, teacher_hidden=a["th"], teacher_head=tied,
        labels=a["labels"], divergence=dv.JensenShannon(), distill_weight=0.5, **options,
    )  # fmt: skip
    squares = [jnp.sum((row * a["weights"]) ** 2) for row in rows]
    return jnp.stack([sum(sums), sum(squares), jnp.sum(token), mixed.mean()])


def value_and_gradients(losses):
    """Of the losses, each with a weight of its own, by everything that moves."""
    a = arrays()

    def of(moving):
        found = losses({**a, **moving})
        return found @ jnp.array([1.0, 0.7, -0.4, 1.3]), found

    return jax.jit(jax.grad(of, has_aux=True))({name: a[name] for name in MOVING})


@pytest.mark.parametrize("how", ["fast", "lean"])
def test_eight_devices_equal_one(how, x64):
    """Biases, adapters, caps, ties, masks, temperatures, padding; tokens spread as well."""
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    sharding = dv.VocabularySharding(mesh, vocabulary="model", tokens="data")
    slopes, values = value_and_gradients(dense_losses)
    found, got = value_and_gradients(lambda a: spread_losses(a, sharding, how))
    np.testing.assert_allclose(got, values, rtol=1e-12)
    for name in MOVING:
        np.testing.assert_allclose(found[name], slopes[name], atol=1e-11, rtol=1e-11, err_msg=name)


def test_whole_rows_where_they_are_needed(x64):
    """A divergence that is no sum over the vocabulary, derivatives by its order and a cap: 3 rows for 8 devices."""
    mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))
    sharding = dv.VocabularySharding(mesh, vocabulary="model")
    a = arrays()

    def dense(h, w, order, cap):
        s, t = (h @ w)[:, :USED], (a["th"] @ a["tw"].T)[:, :USED]
        return jnp.sum(a["weights"] * dv.Renyi(order=order)(t, cap * jnp.tanh(s / cap)))

    def spread(h, w, order, cap):
        return dv.fused_linear(
            dv.Renyi(order=order), model_hidden=h, model_head=dv.LinearHead(weight=w, softcap=cap),
            target_hidden=a["th"], target_head=dv.LinearHead(weight=a["tw"], tied=True),
            mask=a["weights"], vocab_size=USED, chunk=3, sharding=sharding,
        ).total  # fmt: skip

    def both(loss):
        return jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3)))(a["h"], a["w"], 0.4, 3.0)

    for x, y in zip(jax.tree.leaves(both(spread)), jax.tree.leaves(both(dense)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-11)


def test_what_travels():
    """Two all-reduces of row scalars for a chunk, one of the states' gradient; the head's stays where the head is."""
    mesh = jax.make_mesh((8,), ("model",))
    sharding = dv.VocabularySharding(mesh, vocabulary="model")
    spread = NamedSharding(mesh, P(None, "model"))
    head = jax.ShapeDtypeStruct((4, 64), jnp.float32, sharding=spread)
    states = jax.ShapeDtypeStruct((N, 4), jnp.float32, sharding=NamedSharding(mesh, P(None, None)))

    def loss(h, w, th, tw):
        return dv.fused_linear(
            dv.JensenShannon(), model_hidden=h, model_head=w, target_hidden=th, target_head=tw,
            chunk=4, vocab_chunk=3, sharding=sharding,
        ).total  # fmt: skip

    def travels(step):
        compiled = jax.jit(step).lower(states, head, states, head).compile()
        text = compiled.as_text() or ""
        for word in ("all-gather", "all-to-all", "collective-permute", "reduce-scatter"):
            assert word not in text
        return compiled, sum(" all-reduce(" in line for line in text.splitlines())

    compiled, count = travels(jax.value_and_grad(loss, (0, 1)))
    assert count == 3
    assert compiled.output_shardings[1][1].spec == P(None, "model")
    assert travels(loss)[1] == 2


def test_wrong_use_is_told():
    mesh = jax.make_mesh((8,), ("model",))
    sharding = dv.VocabularySharding(mesh, vocabulary="model")
    with pytest.raises(ValueError, match="must be different axes of the mesh"):
        dv.VocabularySharding(mesh, vocabulary="modell")
    with pytest.raises(ValueError, match="must be different axes of the mesh"):
        dv.VocabularySharding(mesh, vocabulary="model", tokens="model")

    def total(div, columns, **more):
        h, w = jnp.ones((2, 3)), jnp.ones((3, columns))
        pair: dict[str, Any] = {
            "model_hidden": h,
            "model_head": w,
            "target_hidden": h,
            "target_head": w,
        }
        return dv.fused_linear(div, **pair, sharding=sharding, **more).total

    with pytest.raises(ValueError, match="heads of 9 columns cannot be spread over 8 devices"):
        total(dv.ForwardKL(), 9)
    with pytest.raises(ValueError, match="3 tokens cannot be spread over 2 devices"):
        dv.fused_linear(
            dv.ForwardKL(), model_hidden=jnp.ones((3, 3)), model_head=jnp.ones((3, 8)),
            target_hidden=jnp.ones((3, 3)), target_head=jnp.ones((3, 8)),
            sharding=dv.VocabularySharding(
                jax.make_mesh((4, 2), ("model", "tokens")), vocabulary="model", tokens="tokens"
            ),
        )  # fmt: skip
