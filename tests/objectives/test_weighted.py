import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divax.objectives import Weighted


def weighted(total, count):
    return Weighted(total=jnp.float32(total), count=jnp.float32(count))


def test_mean_divides_once():
    assert float(weighted(14.0, 4.0).mean()) == 3.5


def test_mean_of_nothing_is_zero_with_zero_gradient():
    def loss(x):
        return Weighted(total=x * 0.0, count=jnp.float32(0.0)).mean()

    value, gradient = jax.value_and_grad(loss)(jnp.float32(3.0))
    assert float(value) == 0.0
    assert float(gradient) == 0.0


def test_counts_below_one_divide_by_one():
    assert float(weighted(3.0, 0.5).mean()) == 3.0


def test_addition_is_exact_where_the_mean_of_means_is_not():
    whole = weighted(6.0, 3.0) + weighted(8.0, 1.0)
    assert (float(whole.total), float(whole.count), float(whole.mean())) == (14.0, 4.0, 3.5)


def test_builtin_sum_adds_parts():
    merged = sum([weighted(1.0, 1.0), weighted(2.0, 1.0), weighted(6.0, 1.0)])
    assert isinstance(merged, Weighted)
    assert float(merged.mean()) == 3.0


@pytest.mark.parametrize("scale", [2, 2.0, np.float64(2), np.float32(2), jnp.float32(2)])
def test_scaling_scales_the_total_from_either_side(scale):
    for scaled in (scale * weighted(3.0, 2.0), weighted(3.0, 2.0) * scale):
        assert (float(scaled.total), float(scaled.count)) == (6.0, 2.0)
        assert scaled.total.dtype == jnp.float32


@pytest.mark.parametrize("other", [1, 1.0, None, "1"])
def test_adding_anything_else_is_a_type_error(other):
    with pytest.raises(TypeError):
        _ = weighted(1.0, 1.0) + other
    with pytest.raises(TypeError):
        _ = other + weighted(1.0, 1.0)


def test_product_of_two_is_a_type_error():
    with pytest.raises(TypeError):
        _ = weighted(1.0, 1.0) * weighted(1.0, 1.0)  # pyright: ignore[reportOperatorIssue, reportArgumentType]


def test_passes_through_scan_jit_and_vmap():
    totals = jnp.arange(5.0)

    @jax.jit
    def accumulate(totals):
        def add(carry, total):
            return carry + Weighted(total=total, count=jnp.float32(1.0)), None

        return jax.lax.scan(add, weighted(0.0, 0.0), totals)[0]

    assert float(accumulate(totals).mean()) == 2.0
    assert jax.vmap(Weighted.mean)(Weighted(total=totals, count=totals)).tolist() == [0, 1, 1, 1, 1]


def test_is_frozen():
    with pytest.raises(AttributeError):
        weighted(1.0, 1.0).total = 2.0  # pyright: ignore[reportAttributeAccessIssue]
