"""Every member's golden row, in double and in single precision, values and gradients."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from members import f_member
from oracles import categorical
from oracles.beyond_f import LATER

from divax import divergences as dv

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "categorical.json").read_text())
CASES = GOLDEN["cases"]
WIDEST = max(len(case["p_logits"]) for case in CASES)
SPECS = sorted({s for case in CASES for s in case["value"] if categorical.has(s)})


def logits(case, side):
    return [float(x) for x in case[f"{side}_logits"]]


def padded(row):
    """Impossible tokens up to one length: they change nothing, and one shape compiles once."""
    return [*row, *[-np.inf] * (WIDEST - len(row))]


@functools.cache
def everything(dtype):
    """Values and gradients of every member on every row, from one program: a fifth of the cost of one for each."""
    target, model = (
        jnp.asarray([padded(logits(case, side)) for case in CASES], dtype) for side in "pq"
    )
    members = {spec: f_member(spec) for spec in SPECS}

    @jax.jit
    def evaluate(target, model):
        each = {spec: jax.vmap(jax.value_and_grad(div, argnums=1)) for spec, div in members.items()}
        return {spec: function(target, model) for spec, function in each.items()}

    return jax.device_get(evaluate(target, model))


def test_every_golden_row_is_of_a_member_and_tested():
    """Those outside the f-family, and those of the later members, in test_golden_more."""
    rows = {s for case in CASES for s in case["value"]}
    assert {spec.partition("(")[0] for spec in rows} <= set(dv.names())
    assert rows - set(SPECS) == set(LATER)


@pytest.mark.parametrize("spec", SPECS)
def test_the_arbitrary_precision_oracle_agrees_with_the_golden_values(spec):
    with mp.workdps(40):
        for case in CASES[::3]:
            doubles = [
                [x if x == "-inf" else mp.mpf(x) for x in case[f"{side}_logits"]] for side in "pq"
            ]
            ours = categorical.value(spec, doubles[0], doubles[1])
            theirs = mp.mpf(case["value"][spec])
            if mp.isinf(theirs):
                assert mp.isinf(ours)
            else:
                assert abs(ours - theirs) <= mp.mpf("1e-21") * theirs + mp.mpf("1e-50")


def near_equal(case, eps):
    """The golden row of equal inputs holds the rounding of its logits, far below what D can resolve: (eps·|logit|)²."""
    return (40 * eps) ** 2 if case["kind"] == "equal" else 0.0


def assert_gradient(gradient, want, relative, eps, floor, case):
    """A saturated gradient is a difference of slopes of size one, so 4 eps absolute is all that arithmetic leaves."""
    worst = np.max(np.abs(gradient - want))
    assert worst <= relative * np.max(np.abs(want)) + 4 * eps + floor**0.5, (
        case["kind"],
        gradient,
        want,
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("spec", SPECS)
def test_values_and_gradients_in_double_precision(spec):
    div = f_member(spec)
    for case, value, gradient in zip(CASES, *everything(np.float64)[spec], strict=True):
        gradient = gradient[: len(case["p_logits"])]
        expected = float(mp.mpf(case["value"][spec]))
        if np.isinf(expected):
            assert value == np.inf
            assert np.all(np.isfinite(gradient))
            continue
        floor = near_equal(case, 2.0**-53) ** (1.0 if div.smooth else 0.5)
        assert float(value) == pytest.approx(expected, rel=1e-12, abs=floor), case["kind"]
        if spec in case.get("grad_q_logits", {}):
            want = np.array([float(mp.mpf(x)) for x in case["grad_q_logits"][spec]])
            assert_gradient(gradient, want, 1e-12, 2.0**-53, floor, case)


@pytest.mark.parametrize("spec", SPECS)
def test_values_and_gradients_in_single_precision(spec):
    """Against the oracle at the float32 logits themselves, which is what float arithmetic of the logits allows."""
    div = f_member(spec)
    for case, value, gradient in zip(CASES, *everything(np.float32)[spec], strict=True):
        single = [[float(np.float32(x)) for x in logits(case, side)] for side in "pq"]
        exact = single[0], single[1]
        gradient = gradient[: len(exact[0])]
        expected = categorical.value(spec, *exact)
        if expected > 3e38:
            assert value == np.inf
            assert np.all(np.isfinite(gradient))
            continue
        # A value e^x inherits the rounding of x, which is a difference of logits: eps·|x|, as for χ² beyond e^16.
        allowed = 2e-6 * max(1.0, abs(float(mp.log(expected))) / 16)
        floor = near_equal(case, 2.0**-24) ** (1.0 if div.smooth else 0.5)
        assert float(value) == pytest.approx(float(expected), rel=allowed, abs=floor), (
            case["kind"],
            exact,
        )
        if not div.smooth:
            continue
        want = np.array([float(x) for x in categorical.model_gradient(spec, *exact)])
        if np.max(np.abs(want)) > 0 and expected < 1e29:  # slopes are cut at 1e30
            allowed = 2e-6 * max(1.0, abs(np.log(np.max(np.abs(want)))) / 16)
            assert_gradient(gradient, want, allowed, 2.0**-24, floor, case)


def test_infinite_values_are_where_the_golden_file_says_and_nowhere_else():
    for spec, (values, _) in everything(np.float32).items():
        for case, value in list(zip(CASES, values, strict=True))[32:]:
            assert np.isinf(value) == (case["value"][spec] == "inf"), (case["kind"], spec)
