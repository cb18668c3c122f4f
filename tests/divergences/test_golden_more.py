"""The golden rows of the later members, padded with impossible tokens into one batch, in both precisions."""

import json
import pathlib

import compiled
import mpmath as mp
import numpy as np
import pytest
from oracles import beyond_f, more_generators

from divax import divergences as dv

CASES = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "categorical.json").read_text())[
    "cases"
]
WIDTH = max(len(case["p_logits"]) for case in CASES)


def batch(side):
    rows = np.full((len(CASES), WIDTH), -np.inf)
    for row, case in zip(rows, CASES, strict=True):
        row[: len(case[f"{side}_logits"])] = [float(x) for x in case[f"{side}_logits"]]
    return rows


TARGETS, MODELS = batch("p"), batch("q")


def oracle(spec, target, model):
    name, parameters = beyond_f.LATER[spec]
    module = beyond_f if hasattr(beyond_f, name) else more_generators
    return module.value(name, list(map(float, target)), list(map(float, model)), **parameters)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("spec", beyond_f.LATER)
def test_the_golden_values_in_double_precision(spec):
    value = compiled.value(dv.get(spec), TARGETS, MODELS)
    for row, case in enumerate(CASES):
        want = mp.mpf(case["value"][spec])
        # The golden row of equal inputs holds the rounding of its decimal logits.
        floor = (40 * 2.0**-53) ** 2 if case["kind"] == "equal" else 0.0
        assert float(value[row]) == pytest.approx(float(want), rel=1e-12, abs=floor), case["kind"]


@pytest.mark.parametrize("spec", beyond_f.LATER)
def test_the_oracle_agrees_and_single_precision_follows_it(spec):
    t, s = TARGETS.astype(np.float32), MODELS.astype(np.float32)
    value = compiled.value(dv.get(spec), t, s)
    for row, case in enumerate(CASES):
        if row % 3 == 0 and not mp.isinf(golden := mp.mpf(case["value"][spec])):
            ours = oracle(spec, TARGETS[row], MODELS[row])
            assert abs(ours - golden) <= 1e-12 * abs(golden) + mp.mpf("1e-25")
        want = float(oracle(spec, t[row], s[row]))
        if want == np.inf:
            assert value[row] == np.inf
            continue
        allowed = 2e-6 * max(1.0, abs(np.log(want)) / 16 if want > 0 else 1.0)
        assert float(value[row]) == pytest.approx(want, rel=allowed, abs=1e-13), case["kind"]
