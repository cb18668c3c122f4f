"""Every law catches a divergence that breaks it, and names itself and the inputs."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divax import divergences as dv

KL = dv.ForwardKL()


def probabilities(logits):
    return jnp.exp(dv.log_softmax(logits))


@dv.divergence
class Wrong(dv.AbstractDivergence):
    """Any function of two rows of logits, infinite wherever KL(p‖q) is."""

    spec_name, formula = "wrong", "?"
    function: Callable = dataclasses.field(metadata={"static": True})
    scale: float = 1.0

    def rows(self, target, model):
        return self.function(target, model)

    @property
    def infinite_at(self):
        return dv.InfiniteAt(False, True)

    @property
    def name(self):
        return self.function.__name__


def wrong(function):
    return Wrong(function=function)


def asks_for_a_value(target, model):
    return KL.rows(target, model) if float(target.max()) < 1e9 else 0 * model.sum(-1)


def keeps_an_axis(target, model):
    return KL.rows(target, model)[..., None]


def absolute_difference(target, model):
    # The derivative of |x| at 0 is not 0 in JAX.
    return jnp.abs(probabilities(target) - probabilities(model))[..., 0]


def forgets_small_values(target, model):
    return jax.nn.relu(KL.rows(target, model) - 0.01)


def weighs_by_position(target, model):
    places = jnp.arange(target.shape[-1], dtype=target.dtype)
    u = probabilities(target) - probabilities(model)
    return jnp.sum(u * u * (1 + jnp.expand_dims(places, tuple(range(u.ndim - 1)))), -1)


def cauchy_schwarz(target, model):
    t, s = dv.log_softmax(target), dv.log_softmax(model)
    return 0.5 * (logsumexp(2 * t) + logsumexp(2 * s)) - logsumexp(t + s)


def logsumexp(x):
    return jax.nn.logsumexp(x, axis=-1)


@dv.divergence
class BoastfulCauchySchwarz(dv.AbstractDivergence):
    spec_name, formula, data_processing = "boastful", "−log cos(p, q)", True

    def rows(self, target, model):
        return cauchy_schwarz(target, model)

    @property
    def infinite_at(self):
        return dv.InfiniteAt(False, False)


def naive(target, model):
    t, s = jax.nn.log_softmax(target), jax.nn.log_softmax(model)
    return jnp.sum(jnp.exp(t) * (t - s), -1)


def averages_over_the_vocabulary(target, model):
    return KL.rows(target, model) / target.shape[-1]


def replaces_infinities(target, model):
    return KL.rows(*(jnp.where(jnp.isinf(x), 0, x) for x in (target, model)))


def charges_for_empty_rows(target, model):
    empty = jnp.all(jnp.isneginf(target), -1) | jnp.all(jnp.isneginf(model), -1)
    return jnp.where(empty, 1.0, KL.rows(target, model))


def divides_by_the_degrees_of_freedom(target, model):
    return KL.rows(target, model) / jnp.asarray(target.shape[-1] - 1, target.dtype)


def sums_in_bfloat16(target, model):
    terms = probabilities(target) * (dv.log_softmax(target) - dv.log_softmax(model))
    if target.dtype == jnp.float64:
        return terms.sum(-1)
    return terms.astype(jnp.bfloat16).sum(-1).astype(target.dtype)


def freezes_the_mixture(target, model):
    p, q = probabilities(target), probabilities(model)
    return jnp.sum((p - q) * (p - jax.lax.stop_gradient(q)), -1)


def freezes_the_target(target, model):
    return KL.rows(jax.lax.stop_gradient(target), model)


@jax.custom_vjp
def only_backwards(target, model):
    return KL.rows(target, model)


only_backwards.defvjp(
    lambda t, s: (KL.rows(t, s), (t, s)),
    lambda kept, out: jax.vjp(KL.rows, *kept)[1](out),
)


@jax.custom_jvp
def first_order_only(target, model):
    return KL.rows(target, model)


@first_order_only.defjvp
def _(primals, tangents):
    return jax.jvp(KL.rows, tuple(map(jax.lax.stop_gradient, primals)), tangents)


@dv.divergence
class FrozenScale(dv.AbstractDivergence):
    spec_name, formula = "frozen_scale", "stop_gradient(c)·KL"
    scale: float = 2.0

    def rows(self, target, model):
        return jax.lax.stop_gradient(self.scale) * KL.rows(target, model)

    @property
    def infinite_at(self):
        return KL.infinite_at


@dv.divergence
class RoundsHalves(dv.ForwardKL):
    """Normalises in the dtype that it is given."""

    def __call__(self, target, model, **options):
        normalised = (jax.nn.log_softmax(jnp.asarray(x)) for x in (target, model))
        return super().__call__(*normalised, **options)


@dv.divergence
class SelfDual(dv.ForwardKL):
    def dual(self):
        return self


@dv.divergence
class CallsItselfSymmetric(dv.ForwardKL):
    symmetric = True


@dv.divergence
class NotNormalized(dv.ForwardChi2):
    def normalized(self):
        return self


@dv.divergence
class WrongAtZero(dv.SquaredHellinger):
    @property
    def limits(self):
        return super().limits._replace(f_at_zero=1.0)


@dv.divergence
class DeafToSupport(dv.ForwardKL):
    def __call__(self, target, model, *, where=None, support="inf"):
        return super().__call__(target, model, where=where)


@dv.divergence
class NotCentred(dv.ForwardKL):
    def df(self, u):
        return super().df(u) + 1


@dv.divergence
class DoubleGenerator(dv.SquaredHellinger):
    def f(self, u):
        return 2 * super().f(u)


@dv.divergence
class DoubleDerivative(dv.ForwardKL):
    def df(self, u):
        return 2 * super().df(u)


@dv.divergence
class DoubleLink(dv.ForwardKL):
    def link(self, s):
        return 2 * super().link(s)


@dv.divergence
class WrongInverse(dv.ForwardKL):
    def link_inverse(self, score):
        return jnp.asarray(score)


@dv.divergence
class WrongConjugate(dv.ForwardKL):
    def conjugate(self, y):
        return jnp.asarray(y)


@dv.divergence
class NotAdmissible(dv.ForwardKL):
    @property
    def limits(self):
        return super().limits._replace(link_floor=-2.0, f_at_zero=math.inf)


CULPRITS = {
    "transformations": wrong(asks_for_a_value),
    "shape_and_dtype": wrong(keeps_an_axis),
    "half_precision": RoundsHalves(),
    "non_negative": wrong(lambda t, s: KL.rows(t, s) - 1e-3),
    "zero_at_equality": wrong(lambda t, s: KL.rows(t, s) + 1e-6),
    "flat_at_equality": wrong(absolute_difference),
    "separates": wrong(forgets_small_values),
    "shift_invariant": wrong(lambda t, s: 0.5 * jnp.sum((t - s) ** 2, -1)),
    "permutation_equivariant": wrong(weighs_by_position),
    "duality": SelfDual(),
    "data_processing": BoastfulCauchySchwarz(),
    "curvature": NotNormalized(),
    "precise_near_equality": wrong(naive),
    "absent_tokens": wrong(averages_over_the_vocabulary),
    "one_sided_tokens": WrongAtZero(),
    "support_policies": DeafToSupport(),
    "one_hot": wrong(replaces_infinities),
    "empty_rows": wrong(charges_for_empty_rows),
    "never_nan": wrong(naive),
    "single_token": wrong(divides_by_the_degrees_of_freedom),
    "large_vocabulary": wrong(sums_in_bfloat16),
    "model_gradient": wrong(freezes_the_mixture),
    "target_gradient": wrong(freezes_the_target),
    "forward_mode": wrong(only_backwards),
    "second_order": wrong(first_order_only),
    "parameter_gradient": FrozenScale(),
    "standard_form": NotCentred(),
    "generator_sum": DoubleGenerator(),
    "generator_derivatives": DoubleDerivative(),
    "link": DoubleLink(),
    "inverses": WrongInverse(),
    "conjugate": WrongConjugate(),
    "limits": NotAdmissible(),
}


def test_every_law_has_a_culprit():
    assert set(CULPRITS) == set(dv.LAWS)


@pytest.mark.parametrize("law", CULPRITS)
def test_the_law_catches_its_culprit_and_says_so(law):
    div = CULPRITS[law]
    with pytest.raises(dv.BrokenLaw) as broken:
        dv.check_law(div, law)
    message = str(broken.value)
    assert message.startswith(f"{div.name} breaks the law '{law}', {dv.LAWS[law].statement}: ")
    assert broken.value.law == law
    assert "\n" not in message


def test_a_false_claim_of_symmetry_is_caught():
    with pytest.raises(dv.BrokenLaw, match="it calls itself symmetric"):
        dv.check_law(CallsItselfSymmetric(), "duality")


def test_the_inputs_in_the_error_reproduce_it():
    div = CULPRITS["non_negative"]
    with pytest.raises(dv.BrokenLaw) as broken:
        dv.check_law(div, "non_negative")
    inputs = broken.value.inputs
    value = div(inputs["target"].astype(np.float32), inputs["model"].astype(np.float32))
    assert float(value) < 0
    assert float(value) == pytest.approx(float(inputs["D"]), abs=1e-6)


def test_an_exception_inside_the_divergence_is_reported_as_the_law_broken():
    with pytest.raises(dv.BrokenLaw, match=r"'forward_mode'.*it raised TypeError"):
        dv.check_law(CULPRITS["forward_mode"], "forward_mode")
