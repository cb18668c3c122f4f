"""Divergences from hidden states: every member equals the dense computation, in value and gradients, in any chunks."""

import functools
import operator
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divax import divergences as dv

N, V = 7, 13
SHAPES = {
    "model_hidden": (N, 4),
    "model_head": (4, V),
    "target_hidden": (N, 5),
    "target_head": (5, V),
}
MASK = np.array([1.0, 0.0, 0.5, 1.0, 2.0, 0.0, 1.0])

MINE = dv.from_generator(lambda u: u * jnp.log(u) ** 2 + (u - 1) ** 2, name="mine")
MEMBERS = {
    **{
        name: dv.get(name)
        for name in dv.names()
        if name not in ("sinkhorn", "wasserstein1", "cramer")
    },
    "wasserstein1": dv.Wasserstein1(),
    "mixture": 0.7 * dv.ForwardKL() + 0.3 * dv.ReverseKL(),
    "mixture with jeffreys": 0.5 * dv.Jeffreys() + 2 * dv.ReverseKL() + dv.ForwardKL(),
    "mixture outside": 0.5 * dv.Renyi(order=2.0) + dv.ForwardKL(),
    "mine": MINE,
    "skewed": dv.skewed(MINE, 0.3),
    "skewed renyi": dv.skewed(dv.Renyi(order=0.7), 0.2),
    "tempered": dv.Tempered(inner=dv.JensenShannon(), temperature=2.0, power=2.0),
    "top k": dv.TopK(inner=dv.ForwardKL(), k=4),
    "top k of the model": dv.TopKRenormalized(inner=dv.ReverseKL(), k=4, keep="model"),
    "dual": dv.AdaptiveKL().dual(),
    "symmetrized": dv.symmetrized(dv.ForwardChi2()),
}


# Most of the time is the compiler's, and most of that optimises what runs once on a few numbers.
quickly_compiled = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


# To a walk without a form all functions of rows are alike: one that sorts them, one that searches a mask, one of each kind
# of wrapper.
OTHERS = ("wasserstein1", "adaptive_kl", "mixture outside", "tempered", "top k of the model")


def arrays(dtype=jnp.float64, **shapes):
    rng = np.random.default_rng(3)
    shapes = SHAPES | shapes
    return {name: jnp.asarray(rng.normal(size=shape), dtype) for name, shape in shapes.items()}


def dense_rows(div, a, temperature=1.0):
    """The oracle: two products, a member's rows."""
    t, s = a["target_hidden"] @ a["target_head"], a["model_hidden"] @ a["model_head"]
    return div(t / temperature, s / temperature)


def dense(div, a, mask: Any = MASK):
    return jnp.sum(jnp.asarray(mask) * dense_rows(div, a))


def fused(div, a, **options):
    return dv.fused_linear(div, **a, mask=jnp.asarray(MASK), **options).total


def worst(found, expected):
    gaps = jax.tree.map(lambda x, y: jnp.max(jnp.abs(x - y) / (1 + jnp.abs(y))), found, expected)
    return float(max(jax.tree.leaves(gaps)))


def gaps(members, ways, which):
    """The largest difference from the dense computation, in value and gradients by `which` arrays; one program."""
    a = arrays()

    @quickly_compiled
    def both(moving):
        found = {}
        for name, div in members.items():
            expected = jax.value_and_grad(lambda x: dense(div, a | x))(moving)  # noqa: B023
            for how in ways:
                of = lambda x: fused(div, a | x, implementation=how, chunk=3, vocab_chunk=5)  # noqa: B023, E731
                found[name, how] = jax.value_and_grad(of)(moving), expected
        return found

    found = both({name: a[name] for name in which})
    return {name: worst(*pair) for name, pair in found.items()}


def each(members):
    """Σ weight·member, of which weights that are all 0 but one pick each in turn, in one program for all."""
    return lambda weights: functools.reduce(
        operator.add, (weights[i] * div for i, div in enumerate(members))
    )


@pytest.mark.parametrize("with_form", [True, False])
@pytest.mark.usefixtures("x64")
def test_every_member_equals_the_dense_computation(with_form):
    formed = {name for name, div in MEMBERS.items() if isinstance(div, dv.AbstractFDivergence)}
    members = {name: MEMBERS[name] for name in (sorted(formed) if with_form else OTHERS)}
    assert formed.isdisjoint(OTHERS)
    a, picked = arrays(), each(list(members.values()))
    moving = {name: a[name] for name in ("model_hidden", "model_head")}

    def of(loss, weights):
        return jax.value_and_grad(lambda x: loss(picked(weights), a | x))(moving)

    fast = functools.partial(fused, implementation="fast", chunk=3, vocab_chunk=5)
    both = quickly_compiled(jax.vmap(lambda weights: (of(fast, weights), of(dense, weights))))
    found, expected = both(jnp.eye(len(members)))
    # A member's gap, of value and gradients, in the members' order.
    gap = jax.tree.map(
        lambda x, y: jnp.max(jnp.reshape(jnp.abs(x - y) / (1 + jnp.abs(y)), (len(x), -1)), -1),
        found,
        expected,
    )
    worst_of_each = jnp.max(jnp.stack(jax.tree.leaves(gap)), 0)
    assert {name: g for name, g in zip(members, worst_of_each, strict=True) if not g < 1e-10} == {}


@pytest.mark.usefixtures("x64")
def test_lean_and_what_one_reading_tells():
    """The two KLs and their sums do without sums of slopes, if the target is held fixed."""
    members = {name: MEMBERS[name] for name in ("forward_kl", "mixture with jeffreys", "mine")}
    found = gaps(members, ["fast", "lean"], ["model_hidden", "model_head"])
    assert max(found.values()) < 1e-12


@pytest.mark.usefixtures("x64")
def test_the_target_may_be_trained_too():
    members = {name: MEMBERS[name] for name in ("mixture", "total_variation")}
    assert max(gaps(members, ["fast", "lean"], SHAPES).values()) < 1e-12


@pytest.mark.parametrize("how", ["fast", "lean"])
@pytest.mark.usefixtures("x64")
def test_the_result_does_not_depend_on_the_chunks(how):
    a, div = arrays(), dv.TotalVariation()
    expected = quickly_compiled(jax.value_and_grad(functools.partial(dense, div)))(a)
    for chunk, vocab_chunk in ((1, 1), (N, V), (N + 5, 6)):
        options = {"implementation": how, "chunk": chunk, "vocab_chunk": vocab_chunk}
        found = quickly_compiled(jax.value_and_grad(functools.partial(fused, div, **options)))(a)
        assert worst(found, expected) < 1e-12, options


def heads(a, rng):
    """A head with everything: tied, bias, cap, adapter, columns that are no tokens."""
    bias = jnp.asarray(rng.normal(size=V + 3)).at[2].set(-jnp.inf)
    adapter = (jnp.asarray(rng.normal(size=(4, 2))), jnp.asarray(rng.normal(size=(2, V + 3))))
    weight = jnp.asarray(rng.normal(size=(V + 3, 4)))
    return a | {
        "model_head": dv.LinearHead(
            weight=weight, bias=bias, softcap=3.0, adapter=adapter, tied=True
        ),
        "target_head": dv.LinearHead(
            weight=a["target_head"], bias=jnp.zeros(V).at[2].set(-jnp.inf)
        ),
    }


@pytest.mark.parametrize("how", ["reference", "fast", "lean"])
@pytest.mark.usefixtures("x64")
def test_a_head_with_everything(how):
    """Against the same written out; padded columns get no gradient, the temperature does, NaN in masked rows is gone."""
    plain = arrays()
    plain["model_hidden"] = plain["model_hidden"].at[1].set(jnp.nan)
    plain["target_hidden"] = plain["target_hidden"].at[5].set(jnp.inf)
    a: dict[str, Any] = heads(plain, np.random.default_rng(4))

    def by_hand(a, temperature):
        head, live = a["model_head"], jnp.asarray(MASK)[:, None] > 0
        h = jnp.where(live, a["model_hidden"], 0)
        raw = h @ head.weight.T + h @ head.adapter[0] @ head.adapter[1]
        raw = jnp.where(
            jnp.arange(V + 3) == 2, 0, raw + jnp.where(jnp.isinf(head.bias), 0, head.bias)[None]
        )
        s = jnp.where(
            jnp.arange(V + 3) == 2, -jnp.inf, head.softcap * jnp.tanh(raw / head.softcap)
        )[:, :V]
        t = jnp.where(live, a["target_hidden"], 0) @ a["target_head"].weight
        t = jnp.where(jnp.arange(V) == 2, -jnp.inf, t)
        return jnp.sum(
            jnp.asarray(MASK) * div(t / temperature, jnp.where(s > -jnp.inf, s / temperature, s))
        )

    options = {"implementation": how, "chunk": 3, "vocab_chunk": 5, "vocab_size": V}
    div = dv.SquaredHellinger()

    def moving(of, what):
        parts = {
            "arrays": lambda x, t: of(a | {"model_hidden": x[0], "model_head": x[1]}, t),
            "temperature": lambda x, t: of(a, t),
        }
        which = 0 if what == "arrays" else 1
        return quickly_compiled(jax.value_and_grad(parts[what], which))(
            (a["model_hidden"], a["model_head"]), 1.7
        )

    for what in ("arrays", "temperature"):
        found = moving(lambda a, t: fused(div, a, temperature=t, **options), what)
        expected = moving(by_hand, what)
        assert worst(found, expected) < 1e-10, what
        assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(found[1]))


@pytest.mark.usefixtures("x64")
def test_derivatives_by_parameters_and_of_second_order():
    a = arrays()
    fast = {"implementation": "fast", "chunk": 3}

    @functools.partial(quickly_compiled, static_argnums=0)
    def both(of):
        value = lambda weight, mask: of(weight * dv.ReverseKL() + dv.Renyi(order=weight), mask)  # noqa: E731
        mask = jnp.asarray(MASK)
        return (
            jax.grad(value, (0, 1))(0.3, mask),
            jax.jvp(lambda alpha: value(alpha, mask), (0.3,), (1.0,))[1],
            jax.jvp(lambda alpha: jax.grad(value)(alpha, mask), (0.3,), (1.0,))[1],
        )

    found = both(lambda div, mask: dv.fused_linear(div, **a, mask=mask, **fast).total)
    assert (
        worst(
            found,
            both(
                lambda div, mask: dense(
                    div, a, jnp.where(mask > 0, mask, jax.lax.stop_gradient(mask))
                )
            ),
        )
        < 1e-10
    )


@pytest.mark.parametrize("how", ["fast", "lean"])
@pytest.mark.usefixtures("x64")
def test_rows_may_be_used_in_any_way(how):
    shaped = arrays(model_hidden=(2, 3, 4), target_hidden=(2, 3, 5))
    use = lambda rows: jnp.sum(jnp.sin(rows)) * rows[0, 1]  # noqa: E731
    options = {"implementation": how, "chunk": 4, "vocab_chunk": 6}

    def through(a):
        return use(dv.fused_linear_rows(dv.Triangular(), **a, **options))

    found = quickly_compiled(jax.value_and_grad(through))(shaped)
    expected = quickly_compiled(jax.value_and_grad(lambda a: use(dense_rows(dv.Triangular(), a))))(
        shaped
    )
    assert worst(found, expected) < 1e-12
    with pytest.raises(TypeError, match="implementation='reference'"):
        jax.jvp(through, (shaped,), (shaped,))


@pytest.mark.usefixtures("x64")
def test_a_cached_teacher():
    a = arrays()
    t, s = a["target_hidden"] @ a["target_head"], a["model_hidden"] @ a["model_head"]
    cache = dv.cache_top_k(t, k=4)
    broken = jax.tree.map(lambda x: x.at[1].set(jnp.nan) if x.dtype == t.dtype else x, cache)
    rows = dv.coarsen_cached(cache, s)
    expected = jnp.sum(jnp.asarray(MASK) * dv.ReverseKL()(rows.target, rows.model))
    model = {name: a[name] for name in ("model_hidden", "model_head")}
    grads = []
    for how in ("reference", "fast", "lean"):
        of = lambda m: fused(dv.ReverseKL(), m, target=broken, implementation=how, chunk=2)  # noqa: B023, E731
        value, grad = quickly_compiled(jax.value_and_grad(of))(model)
        assert abs(value - expected) < 1e-12
        grads.append(grad)
    assert worst(grads[1], grads[0]) < 1e-12
    assert worst(grads[2], grads[0]) < 1e-12


@pytest.mark.parametrize("how", ["fast", "lean"])
def test_bfloat16_is_added_up_in_float32(how):
    """Against float32 arithmetic on the same numbers: ∂D/∂logits is rounded once, by 2⁻⁸ relative, and a stored dW once."""
    a = arrays(jnp.bfloat16, model_hidden=(64, 4), target_hidden=(64, 5))
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), a)
    div, mask = dv.ForwardKL(), jnp.ones(64)
    options = {"implementation": how, "chunk": 8, "vocab_chunk": 5}
    of = lambda a: dv.fused_linear(div, **a, mask=mask, **options).total  # noqa: E731
    value, grad = quickly_compiled(jax.value_and_grad(of))(a)
    exact, by_dense = quickly_compiled(
        jax.value_and_grad(lambda a: dense(div, a, np.ones(64, np.float32)))
    )(wide)
    assert value.dtype == jnp.float32
    assert abs(value - exact) < 1e-5 * exact
    t, s = (wide[f"{side}_hidden"] @ wide[f"{side}_head"] for side in ("target", "model"))
    by_logits = jnp.abs(jax.nn.softmax(s) - jax.nn.softmax(t))
    h, w = (jnp.abs(wide[name]) for name in ("model_hidden", "model_head"))
    # Half an ulp of each ∂D/∂logits, and of the result.
    bounds = {"model_head": h.T @ by_logits, "model_hidden": by_logits @ w.T}
    for name, sums in bounds.items():
        assert grad[name].dtype == jnp.bfloat16
        error = jnp.abs(grad[name].astype(jnp.float32) - by_dense[name])
        assert bool(jnp.all(error <= 2**-8 * (sums + jnp.abs(by_dense[name])) * 1.01 + 1e-6))


def products(of, *args):
    """How many matrix products a program has, loops counted once."""
    return len(re.findall(r"dot_general\[", str(jax.make_jaxpr(of)(*args))))


@pytest.mark.parametrize(("how", "counts"), [("fast", (2, 3, 3, 4)), ("lean", (4, 5, 5, 6))])
def test_what_nobody_asks_for_is_not_computed(how, counts):
    """Evaluation, a frozen head, frozen states, both: Hs + Ht, and one product more for each gradient."""
    a = arrays(jnp.float32)

    def of(h, w):
        return fused(
            dv.ForwardKL(),
            a | {"model_hidden": h, "model_head": w},
            implementation=how,
            chunk=3,
            vocab_chunk=5,
        )

    args = a["model_hidden"], a["model_head"]
    grads = [jax.grad(of, which) for which in (0, 1, (0, 1))]
    assert tuple(products(f, *args) for f in (of, *grads)) == counts


@pytest.mark.parametrize(("size", "count"), [(9, 4), (2**18, 6)])
def test_lean_keeps_logits_where_they_are_few(size, count):
    """Without chunks on a CPU: four products where a chunk's logits fit, six where they are computed again."""
    if jax.default_backend() != "cpu":
        pytest.skip("elsewhere logits are always computed again")
    hidden, head = jnp.zeros((2048, 2)), jnp.zeros((2, size))

    def of(h, w):
        return dv.fused_linear(
            dv.ForwardKL(), model_hidden=h, model_head=w, target_hidden=hidden, target_head=head,
            implementation="lean",
        ).total  # fmt: skip

    assert products(jax.grad(of, (0, 1)), hidden, head) == count


@pytest.mark.parametrize("how", ["fast", "lean"])
def test_no_array_of_all_logits(how):
    """Temporaries of a program of 2048 × 8192 logits stay far below one array of them (67 MB)."""
    shapes = {"model_hidden": (2048, 8), "model_head": (8, 8192)}
    shapes |= {name.replace("model", "target"): shape for name, shape in shapes.items()}
    a = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}

    def of(a):
        options = {"implementation": how, "chunk": 64, "vocab_chunk": 1024}
        return dv.fused_linear(dv.JensenShannon(), **a, **options).total

    memory = jax.jit(jax.value_and_grad(of)).lower(a).compile().memory_analysis()
    most = {"fast": 64 * 8192 * 4 * 6, "lean": 64 * 1024 * 4 * 16 + 2**20}[how]
    assert memory is not None
    assert memory.temp_size_in_bytes < most
    assert f"[{2048},{8192}]" not in str(
        jax.make_jaxpr(jax.grad(of))(arrays(jnp.float32, **shapes))
    )


@pytest.mark.usefixtures("x64")
def test_float32_stays_float32_under_x64():
    for how in ("fast", "lean"):
        of = functools.partial(fused, MEMBERS["mixture"], implementation=how, chunk=3)
        value, grad = jax.eval_shape(jax.value_and_grad(of), arrays(jnp.float32))
        assert {x.dtype for x in (value, *jax.tree.leaves(grad))} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"implementation": "quick"}, "none of 'reference', 'fast', 'lean'"),
        ({"chunk": 0}, "chunk=0 must be at least 1"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"target_head": None}, "a target is missing"),
        ({"target_head": jnp.ones((5, V + 1))}, "pass vocab_size="),
        ({"vocab_size": V + 1}, "must lie between 1 and"),
        ({"model_head": jnp.ones((V, 4))}, "tied=True"),
        ({"mask": jnp.ones(3)}, "one weight per row"),
        ({"target_hidden": jnp.ones((2, 5))}, "run both models on the same tokens"),
        (
            {"model_head": dv.LinearHead(weight=jnp.ones((4, V)), bias=jnp.ones(3))},
            "the bias of model_head",
        ),
    ],
)
def test_wrong_input_is_one_clear_line(change, message):
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        dv.fused_linear(dv.ForwardKL(), **(arrays(jnp.float32) | change))
    assert "\n" not in str(raised.value)
