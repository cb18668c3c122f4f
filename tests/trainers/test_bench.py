"""`divax bench`: what it runs, what it makes of it, and what it says to wrong arguments."""

import importlib
import json
import math
from pathlib import Path

import numpy as np
import pytest

from divax.benchmarks import interleave
from divax.benchmarks.bench_command import MODULES, main
from divax.benchmarks.interleave import answers, asked_of, fresh
from divax.benchmarks.measure import Asked, Bar, apart, clocked

FOUND = {"mine": {"wall": 1.0, "cpu": 3.0, "temp": 0.0}, "theirs": {"wall": 4.0, "cpu": 6.0}}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "P44"], "--only P44: no such bar; did you mean P4"),
        (["--only", "zebra"], "no such bar; known: P1, P2"),
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["--json", "no/such/folder/table.json"], "cannot be written: No such file"),
        (["--fast"], "--fast"),
    ],
)
def test_wrong_arguments_end_with_2_and_one_line(arguments, words, capsys):
    assert main(arguments) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert words in found.err
    assert found.err.count("\n") == 1


def test_a_bar_runs_in_processes_of_its_own(tmp_path, capsys):
    table = tmp_path / "table.json"
    assert main(["--quick", "--only", "P8", "--json", str(table)]) == 0
    shown, written = capsys.readouterr().out, json.loads(table.read_text(encoding="utf-8"))
    assert "head of AKL: times as fast as sorting" in shown
    assert "bars are of large ones, without --quick" in shown
    bars = {bar["what"]: bar for bar in written["bars"]}
    cases = written["cases"]
    ratio = cases["head: sorting"]["wall"] / cases["head: divax"]["wall"]
    assert bars["head of AKL: times as fast as sorting"]["measured"] == pytest.approx(ratio)
    assert bars["difference of the loss"]["holds"] is True
    # A mask is a byte per logit; peak memory is told on Linux alone.
    assert cases["head: divax"]["temp"] > 0
    assert written["failed"] == {}


def test_a_mistake_in_a_case_is_told_and_ends_with_1(monkeypatch, capsys):
    """Unlike a library that is not there."""
    lines = fresh("head", ["no such case"], True)
    assert lines == {"no such case": {"failed": "KeyError: 'no such case'"}}
    one = {"sorting": {"failed": "MemoryError"}, "divax": {"absent": "No module named 'x'"}}
    monkeypatch.setattr(interleave, "fresh", lambda name, cases, quick: one)
    assert main(["--only", "P8"]) == 1
    shown = capsys.readouterr().out
    assert "head: sorting: not measured, MemoryError" in shown
    assert "head: divax: not measured, No module named 'x'" in shown
    del one["sorting"]
    assert main(["--only", "P8"]) == 0


def test_every_module_has_the_bars_that_the_command_lists():
    for name, ids in MODULES.items():
        module = importlib.import_module(f"divax.benchmarks.{name}")
        if hasattr(module, "BARS"):
            assert {bar.id for bar in module.BARS} == set(ids)
            assert {case for bar in module.BARS for case in bar.cases} == set(module.CASES)
            assert {bar.id for bar in asked_of(module, ids[0])} == {ids[0]}
            assert all(bar.measured is None for bar in answers(module, {}, None))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is Linux's")
def test_peak_memory_is_what_a_call_needs_beyond_its_results():
    def call():
        needed = np.ones(8_000_000) + np.ones(8_000_000)
        return [needed[:1_000_000].copy()]

    found = clocked(call)
    assert (
        100e6 < found["rss"] < 220e6
    )  # 16 million doubles, 8 million more where no operand is reused
    assert found["wall"] > 0


@pytest.mark.parametrize(
    ("asked", "measured", "cpu", "holds"),
    [
        (Asked("P", "ratio", "theirs", "mine", target=4, asked="at least"), 4.0, 2.0, True),
        (Asked("P", "ratio", "theirs", "mine", target=4.1, asked="at least"), 4.0, 2.0, False),
        (Asked("P", "one", "mine", None, "cpu", 3.0), 3.0, None, True),
        (Asked("P", "apart", "mine", "theirs", "cpu", 0.4, of=apart), 0.5, None, False),
        (Asked("P", "nothing asked", "mine", "theirs", "cpu"), 0.5, None, None),
        (Asked("P", "by zero", "theirs", "mine", "temp", 1.0), None, None, None),
        (Asked("P", "missing", "theirs", "nobody", target=1.0), None, None, None),
        (Asked("P", "logarithm", "mine", "theirs", "cpu", of=lambda a, b: math.log(a - b)), None, None, None),
    ],
)  # fmt: skip
def test_bars_are_ratios_of_what_was_found(asked, measured, cpu, holds):
    bar = asked.answer(FOUND)
    assert (bar.measured, bar.cpu, bar.holds) == (measured, cpu, holds)


def test_a_line_says_what_was_asked_and_whether_it_holds():
    line = Bar("P4", "time over naive", 0.61, 0.55, cpu=0.5).line()
    words = "P4 time over naive 0.61 (cpu 0.5) at most 0.55 does NOT hold"
    assert " ".join(line.split()) == words
    line = Bar("P4", "time over naive", None, 0.55).line()
    assert " ".join(line.split()) == "P4 time over naive not measured at most 0.55"
