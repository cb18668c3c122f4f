"""A vocabulary spread over devices: the numbers of one device, from row scalars that travel in at most four all-reduces."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from divax import divergences as dv

MEMBERS = [
    dv.ForwardKL(),
    0.5 * dv.ReverseKL() + 0.5 * dv.JensenShannon(),
    dv.TotalVariation(),
    dv.from_generator(lambda u: (u - 1) ** 2 / (1 + u), name="le_cam"),
]
OTHERS = [dv.Renyi(order=0.5), dv.AdaptiveKL()]
SPEC = P("data", None, "vocabulary")


def everything(rows_of, weights):
    """Rows, and the gradients of a weighted sum by both sides, of every member."""

    def of(target, model):
        found = []
        for div in (*MEMBERS, *OTHERS):
            rows = rows_of(div, target, model)
            weighed = lambda t, s, div=div: jnp.sum(weights * finite(rows_of(div, t, s)))  # noqa: E731
            found.append((rows, *jax.grad(weighed, argnums=(0, 1))(target, model)))
        return found

    return jax.jit(of)


def finite(rows):
    return jnp.where(jnp.isfinite(rows), rows, 0)


def arrays(dtype):
    rng = np.random.default_rng(9)
    target = rng.normal(0, 2, (4, 3, 16)).astype(dtype)
    model = target + rng.normal(0, 1, target.shape).astype(dtype)
    # Padding, a token that one side rules out, a row without a possible token, a peaked row.
    target[..., 13:], model[..., 13:] = -np.inf, -np.inf
    model[0, 0, 2], target[0, 1, 7], target[1, 1] = -np.inf, -np.inf, -np.inf
    model[2, 0, 5] = 60
    return target, model, rng.normal(0, 1, (4, 3)).astype(dtype)


@pytest.mark.parametrize(
    ("double", "axes", "atol"), [(False, AxisType.Explicit, 1e-5), (True, AxisType.Auto, 1e-12)]
)
def test_eight_devices_equal_one(double, axes, atol):
    mesh = jax.make_mesh((2, 4), ("data", "vocabulary"), axis_types=(axes,) * 2)
    with jax.enable_x64(double):
        target, model, weights = arrays(np.float64 if double else np.float32)
        spread = lambda div, t, s: dv.vocabulary_parallel(div, t, s, mesh=mesh, spec=SPEC)  # noqa: E731
        place = lambda x: jax.device_put(x, NamedSharding(mesh, SPEC))  # noqa: E731
        many = everything(spread, weights)(place(target), place(model))
        one = everything(lambda div, t, s: div(t, s), weights)(target, model)
        for div, a, b in zip((*MEMBERS, *OTHERS), many, one, strict=True):
            for x, y in zip(a, b, strict=True):
                np.testing.assert_allclose(x, y, atol=atol, rtol=atol, err_msg=div.name)


@pytest.mark.parametrize("div", MEMBERS[:2], ids=lambda div: div.name)
def test_what_travels(div):
    """At most four all-reduces of row scalars, and nothing else; the gradients lie where the logits do."""
    mesh = jax.make_mesh((1, 8), ("data", "vocabulary"))
    logits = jax.ShapeDtypeStruct((2, 4, 64), jnp.float32, sharding=NamedSharding(mesh, SPEC))

    def loss(model, target):
        return jnp.mean(dv.vocabulary_parallel(div, target, model, mesh=mesh, spec=SPEC))

    compiled = jax.jit(jax.value_and_grad(loss)).lower(logits, logits).compile()
    text = compiled.as_text() or ""
    assert not any(word in text for word in ("all-gather", "all-to-all", "collective-permute"))
    assert 1 <= sum(" all-reduce(" in line for line in text.splitlines()) <= 4
    assert compiled.output_shardings[1].spec == SPEC


def test_wrong_use_is_told():
    mesh = jax.make_mesh((8,), ("vocabulary",))
    x = jnp.zeros((2, 8))
    with pytest.raises(ValueError, match="naming the vocabulary's"):
        dv.vocabulary_parallel(dv.ForwardKL(), x, x, mesh=mesh, spec=P("vocabulary", None))
    with pytest.raises(TypeError, match="no gradient by a divergence's parameters"):
        jax.grad(
            lambda a: jnp.sum(
                dv.vocabulary_parallel(
                    dv.Alpha(alpha=a), x, x, mesh=mesh, spec=P(None, "vocabulary")
                )
            )
        )(0.5)
