"""Rows taken a few at a time: the same values and derivatives, of every order and mode, and nothing of their size beside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divax import divergences as dv
from divax.divergences import row_blocks

MEMBERS = [
    0.7 * dv.ForwardKL() + 0.3 * dv.TotalVariation(),
    dv.Renyi(order=0.5),
    dv.EntropyGatedKL(),
]
RNG = np.random.default_rng(3)
TARGET = RNG.normal(0, 2, (2, 6, 5))
MODEL = TARGET + RNG.normal(0, 1, (2, 6, 5))
PEAKED = MODEL.copy()
PEAKED[0, 1] = (60.0, 0, 0, 0, 0)
MASKED = MODEL.copy()
MASKED[..., 3] = -np.inf
MASKED[1, 2, 0] = -np.inf
MASKED[1, 3] = -np.inf
MASKED[1, 4] = (np.inf, 0, 0, 0, 0)
HUGE = MODEL.copy()
HUGE[0, 0, 0], HUGE[0, 0, 1] = 3e38, -3e38


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of four rows of five tokens."""
    for name, value in {"_BLOCK": 20, "_SMALL": 1, "_SHORTEST": 1}.items():
        monkeypatch.setattr(row_blocks, name, value)


def everything(target, model, dot):
    """Values, gradients by all that has one, tangents, and a Hessian-vector product of each member."""

    def of(div):
        total = lambda d, t, s: jnp.sum(jnp.cos(jnp.arange(12.0).reshape(2, 6)) * finite(d(t, s)))  # noqa: E731
        by = jax.grad(total, argnums=(0, 1, 2))(div, target, model)
        along = jax.jvp(lambda s: div(target, s), (model,), (dot,))[1]
        twice = jax.jvp(jax.grad(lambda s: total(div, target, s)), (model,), (dot,))[1]
        each = jax.vmap(jax.grad(lambda t, s: jnp.sum(finite(div(t, s))), argnums=1))(target, model)
        return div(target, model), by, along, twice, each

    return [of(div) for div in MEMBERS]


def finite(values):
    return jnp.where(jnp.isfinite(values), values, 0)


def test_blocks_change_nothing(small_blocks):
    dot = RNG.normal(0, 1, MODEL.shape)
    assert row_blocks.block_rows(MODEL.shape) == 4
    with jax.enable_x64(True):
        compiled = jax.jit(everything)
        blocks = [compiled(TARGET, model, dot) for model in (MODEL, PEAKED, MASKED, HUGE)]
        row_blocks._SMALL = 10**9
        whole = jax.jit(lambda *arrays: everything(*arrays))
        for model, found in zip((MODEL, PEAKED, MASKED, HUGE), blocks, strict=True):
            for div, a, b in zip(MEMBERS, found, whole(TARGET, model, dot), strict=True):
                for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
                    np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-14, err_msg=div.name)


def test_no_temporaries():
    """Six arrays of a block's size, and none of all the rows', for the value with its gradient."""
    rows, vocabulary = 1024, 4096
    logits = jax.ShapeDtypeStruct((rows, vocabulary), jnp.float32)
    for div in (dv.ForwardKL(), dv.JensenShannon(), dv.EntropyGatedKL()):
        both = jax.jit(jax.value_and_grad(lambda s, t, div=div: jnp.mean(div(t, s))))
        memory = both.lower(logits, logits).compile().memory_analysis()
        assert memory is not None
        assert memory.temp_size_in_bytes <= 12 * 4 * row_blocks._BLOCK
        assert memory.temp_size_in_bytes < 0.8 * 4 * rows * vocabulary


def test_what_is_cut():
    assert row_blocks.block_rows((2048, 32768)) == 8
    assert row_blocks.block_rows((2047, 32768)) == 1  # 23·89: no divisor up to 8
    assert row_blocks.block_rows((2, 1024, 131072)) == 2
    assert row_blocks.block_rows((32768,)) is None
    assert row_blocks.block_rows((1, 2**22)) is None
    assert row_blocks.block_rows((10007, 256)) is None  # a prime number of short rows
    assert row_blocks.block_rows((8, 97)) is None
