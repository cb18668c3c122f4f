"""Trained critics against closed forms and quadrature for Gaussians, and against the bound of an overfitted one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from divax import divergences as dv
from divax import trainers as tr

MEAN, SCALE = 0.8, 1.3  # N(0.8, 1) against N(0, 1.3²)
STEPS = 300


def expectation(function):
    """E of a function of p/q under q = N(0, 1.3²), by the trapezoidal rule on [−14, 14]; exact to 1e-12."""
    x = np.linspace(-14, 14, 20_001)
    density = np.exp(-0.5 * (x / SCALE) ** 2) / (SCALE * np.sqrt(2 * np.pi))
    ratio = SCALE * np.exp(0.5 * (x / SCALE) ** 2 - 0.5 * (x - MEAN) ** 2)
    return float(np.sum(function(ratio) * density) * (x[1] - x[0]))


WIDE = 2 * SCALE**2 - 1
KL = np.log(SCALE) + (1 + MEAN**2) / (2 * SCALE**2) - 0.5
CHI2 = SCALE**2 / np.sqrt(WIDE) * np.exp(MEAN**2 / WIDE) - 1
SQUARED_HELLINGER = 1 - np.sqrt(2 * SCALE / (1 + SCALE**2)) * np.exp(
    -(MEAN**2) / (4 * (1 + SCALE**2))
)
JENSEN_SHANNON = 0.5 * expectation(lambda u: u * np.log(2 * u / (1 + u)) + np.log(2 / (1 + u)))


def test_the_closed_forms_are_those_of_the_quadrature():
    for closed, generator in (
        (KL, lambda u: u * np.log(u)),
        (CHI2, lambda u: (u - 1) ** 2),
        (SQUARED_HELLINGER, lambda u: 0.5 * (np.sqrt(u) - 1) ** 2),
    ):
        assert expectation(generator) == pytest.approx(closed, rel=1e-10)


def alpha_bound(alpha):
    # The order is an argument: one program for squared Hellinger (times 4), KL and χ² (times ½).
    return functools.partial(dv.f_gan_bound, dv.Alpha(alpha=alpha))


PROGRAMS = {
    "alpha": (alpha_bound, [0.5, 1.0, 2.0], [4 * SQUARED_HELLINGER, KL, 0.5 * CHI2]),
    "jensen_shannon": (
        lambda weight: functools.partial(dv.f_gan_bound, dv.JensenShannon(target_weight=weight)),
        [0.5],
        [JENSEN_SHANNON],
    ),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_held_out_bounds_reach_the_divergence_from_below(program, key, adam):
    """Three data sets of two Gaussians and three of one, trained as one program.

    Exceeding the divergence by three standard errors has a chance of 0.1 %; falling short by them and 3 % besides means a
    critic that has not learnt. On equal distributions the divergence is 0, and the critic's loss on fresh samples is small.
    """
    bound_of, parameters, divergences = PROGRAMS[program]
    draws = jax.random.normal(key, (2, 6, 20_000, 1))
    equal = (jnp.arange(6) >= 3)[:, None, None]
    model = SCALE * draws[1]
    target = jnp.where(equal, SCALE * draws[0], draws[0] + MEAN)

    def train(parameter, target, model, key):
        return tr.train_critic(
            bound_of(parameter),
            target,
            model,
            optimizer=adam(optax.cosine_decay_schedule(1e-2, STEPS)),
            steps=STEPS,
            key=key,
            critic=tr.mlp_critic(1, width=32, layers=1),
        )

    family = jax.vmap(jax.vmap(train, (None, 0, 0, 0)), (0, None, None, None))
    trained = family(jnp.asarray(parameters), target, model, jax.random.split(key, 6))
    assert trained.curve.shape == (len(parameters), 6, STEPS)
    for divergence, values, errors, curves in zip(
        divergences, trained.estimate, trained.standard_error, trained.curve, strict=True
    ):
        apart, error = np.asarray(values[:3]) - divergence, np.asarray(errors[:3])
        assert np.all(apart < 3 * error)
        assert np.all(apart > -3 * error - 0.03 * divergence)
        assert np.all(error < 0.05 * divergence)
        assert np.all(curves[:3, 0] < values[:3])  # something was learnt
        assert np.all(values[3:] < 3 * errors[3:])
        assert np.all(values[3:] > -0.02)


def test_what_a_critic_learns_by_heart_is_not_reported(key):
    """A critic that is a table of its samples: on the training part the bound grows, on the rest it is still 0."""
    table = tr.Model(init=lambda key: jnp.zeros(100), apply=lambda params, ids: params[ids])
    trained = tr.train_critic(
        dv.donsker_varadhan_bound,
        jnp.arange(40),
        jnp.arange(40, 100),
        critic=table,
        validation_fraction=0.25,
        optimizer=optax.sgd(1.0),
        steps=200,
        batch_size=64,
        key=key,
    )
    assert float(trained.curve[0]) == 0
    assert float(trained.curve[-1]) > 2
    assert float(trained.estimate) == float(trained.standard_error) == 0
    assert int(jnp.sum(trained.params[:40] > 0)) == 30
    assert int(jnp.sum(trained.params[40:] < 0)) == 45
    assert set(np.flatnonzero(trained.params == 0)) != {*range(30, 40), *range(85, 100)}  # shuffled


def linear_critic(calls=None):
    def apply(params, x):
        if calls is not None:
            calls.append(x.shape)
        return x @ params

    return tr.Model(init=lambda key: 0.1 * jax.random.normal(key, (2,)), apply=apply)


def settings(**changes):
    return {
        "optimizer": optax.sgd(0.1),
        "steps": 3,
        "batch_size": 4,
        "key": jax.random.key(0),
    } | changes


def test_hyper_parameters_do_not_compile_anew(key):
    calls = []
    x, y = jax.random.normal(key, (2, 20, 2))
    given = settings(critic=linear_critic(calls))
    results = []
    for alpha in (0.3, 0.7):
        bound = functools.partial(dv.f_gan_bound, dv.Alpha(alpha=alpha))
        results.append(tr.train_critic(bound, x, y, **given))
        traced = len(calls)
        again = tr.train_critic(bound, x, y, **given)
        assert float(again.estimate) == float(results[-1].estimate)
        assert len(calls) == traced
    assert float(results[0].estimate) != float(results[1].estimate)


def test_wrong_input_is_one_clear_line(key):
    x = jnp.zeros((10, 2))
    bound = dv.donsker_varadhan_bound
    with pytest.raises(TypeError, match=r"functools.partial\(f_gan_bound, ForwardKL\(\)\)"):
        tr.train_critic(dv.ForwardKL(), x, x, **settings())
    for target, model, changes, message in (
        (x, x[:, :1], {}, r"float32 \[10, 2\] and model_samples float32 \[10, 1\]"),
        (x[:, 0], x[:, 0], {}, r"takes floating-point samples \[N, d\], got float32 \[10\]"),
        (x, x[:3], {}, "3 samples with validation_fraction=0.5 leave 1 to train on"),
        (x, x, {"validation_fraction": 1.0}, r"validation_fraction=1.0 is outside \(0, 1\)"),
        (x, x, {"steps": 0}, "steps must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            tr.train_critic(bound, target, model, **settings(**changes))
        assert "\n" not in str(error.value)
    broken = x.at[3].set(jnp.inf)
    with pytest.raises(tr.NonFiniteError, match=r"the bound .* is (nan|-?inf)"):
        tr.train_critic(bound, broken, x, critic=linear_critic(), **settings())
