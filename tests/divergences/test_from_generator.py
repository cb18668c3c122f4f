"""A user's own generator becomes a full member, equal to the built-in one in everything."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from members import f_member

from divax import divergences as dv

PAIRS = [
    (lambda u: u * jnp.log(u), "forward_kl"),
    (lambda u: -jnp.log(u) + 3 * (u - 1) + 0.7, "reverse_kl"),
    (lambda u: (u - 1) ** 2, "forward_chi2"),
    (lambda u: 0.5 * (jnp.sqrt(u) - 1) ** 2, "squared_hellinger"),
    (lambda u: (u - 1) ** 2 / (u + 1), "triangular"),
    (lambda u: 0.5 * (u * jnp.log(u) - (1 + u) * jnp.log((1 + u) / 2)), "jensen_shannon"),
]


def rows(scale=2.0):
    rng = np.random.default_rng(11)
    return jnp.asarray(rng.normal(0, scale, (2, 5, 9)).astype(np.float32))


@pytest.mark.parametrize(("f", "spec"), PAIRS)
def test_values_and_gradients_equal_the_members(f, spec):
    mine, member, (t, s) = dv.from_generator(f, name="mine"), f_member(spec), rows()
    for side in (0, 1):
        ours, theirs = (
            jax.value_and_grad(lambda *a, d=d: jnp.sum(d(*a)), argnums=side)(t, s)
            for d in (mine, member)
        )
        np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-4)
        np.testing.assert_allclose(
            ours[1], theirs[1], rtol=1e-3, atol=2e-5 * float(jnp.max(jnp.abs(theirs[1])))
        )


@pytest.mark.parametrize(("f", "spec"), PAIRS)
def test_limits_flags_and_scalar_contract_equal_the_members(f, spec):
    mine, member = dv.from_generator(f, name="mine"), f_member(spec)
    np.testing.assert_allclose(mine.limits, member.limits, rtol=1e-5, atol=1e-6)
    assert (bool(mine.admissible), bool(mine.bounded)) == (
        bool(member.admissible),
        bool(member.bounded),
    )
    assert mine.curvature == pytest.approx(member.curvature, rel=1e-5)
    s = jnp.asarray([-3.0, -0.5, 0.01, 0.4, 2.0])
    np.testing.assert_allclose(mine.link(s), member.link(s), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(mine.link_inverse(member.link(s)), s, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(
        mine.conjugate(member.df(jnp.exp(s))),
        member.conjugate(member.df(jnp.exp(s))),
        rtol=1e-3,
        atol=1e-5,
    )
    np.testing.assert_allclose(
        mine.dual().f(jnp.exp(s)), member.dual().f(jnp.exp(s)), rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize(("f", "spec"), PAIRS)
def test_near_equality_does_not_cancel(f, spec):
    rng = np.random.default_rng(7)
    t = jnp.asarray(rng.normal(0, 3, 4096).astype(np.float32))
    s = t + 1e-3 * jnp.asarray(rng.normal(size=4096).astype(np.float32))
    assert float(dv.from_generator(f, name="mine")(t, s)) == pytest.approx(
        float(f_member(spec)(t, s)), rel=5e-4
    )


def test_supports_follow_the_estimated_limits():
    mine = dv.from_generator(lambda u: u * jnp.log(u), name="mine")
    t, s = jnp.asarray([0.0, -np.inf, 0.0]), jnp.asarray([0.0, 0.0, -np.inf])
    assert mine(t, s) == np.inf
    assert np.isfinite(mine(t, s, support="mask"))
    assert np.all(np.isfinite(jax.grad(lambda s: mine(t, s))(s)))


def test_it_composes_and_serves_jit():
    mine = dv.from_generator(lambda u: u * jnp.log(u), name="mine")
    both = 0.5 * mine + 0.5 * dv.ReverseKL()
    t, s = rows()
    np.testing.assert_allclose(jax.jit(both)(t, s), 0.5 * dv.Jeffreys()(t, s), rtol=1e-4)
    assert both.name == "0.5*mine + 0.5*reverse_kl"


def test_a_kink_is_left_alone():
    mine = dv.from_generator(lambda u: 0.5 * jnp.abs(u - 1), name="mine", smooth=False)
    t, s = rows()
    np.testing.assert_allclose(mine(t, s), dv.TotalVariation()(t, s), rtol=1e-5)
    np.testing.assert_allclose(
        jax.grad(lambda s: jnp.sum(mine(t, s)))(s),
        jax.grad(lambda s: jnp.sum(dv.TotalVariation()(t, s)))(s),
        atol=1e-6,
    )


def test_a_kink_is_there_between_nearly_equal_rows():
    mine = dv.from_generator(lambda u: 0.5 * jnp.abs(u - 1), name="mine", smooth=False)
    target, other = (np.asarray(x, np.float64) for x in rows())
    model = target + 0.005 * other
    p, q = (np.exp(x) / np.sum(np.exp(x), -1, keepdims=True) for x in (target, model))
    value = mine(jnp.asarray(target, jnp.float32), jnp.asarray(model, jnp.float32))
    np.testing.assert_allclose(value, 0.5 * np.sum(np.abs(p - q), -1), rtol=1e-4)


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda u: -((u - 1) ** 2), "not convex"),
        (lambda u: 1 / (u - 1), "not finite at u = 1"),
        (lambda u: jnp.sum(u), "must be elementwise"),
    ],
)
def test_wrong_generators_say_what_is_wrong(f, message):
    with pytest.raises(ValueError, match=message):
        dv.from_generator(f, name="mine")
