"""`divax check`: exit codes 0, 1 and 2 for what holds, what is broken and what cannot be tried."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from divax import divergences as dv
from divax import objectives
from divax.trainers import cli
from divax.trainers.check_report import outcomes

ROOT = Path(__file__).parents[2]

MODULE = """
import functools
import jax.numpy as jnp
import numpy as np
from divax import divergences as dv, objectives

instance = dv.ForwardKL()
number = 3

def factory():
    return 2 * dv.ForwardKL()

def needs_alpha(alpha):
    return dv.Alpha(alpha=alpha)

def fails():
    return 1 / 0

class Shifted(dv.ForwardKL):
    spec_name = "shifted"
    def rows(self, target, model):
        return super().rows(target, model) - 1e-3

dv.divergence(Shifted)

class Zoo:
    inner = dv.ReverseKL()

case = objectives.ObjectiveCase(
    objective=objectives.cross_entropy,
    inputs={"logits": np.eye(4, 5), "labels": np.arange(4), "mask": np.ones(4)},
    differentiated="logits",
    mask="mask",
)

def mean_of_the_batch(*, logits, mask):
    loss = objectives.token_mean(logits[..., 0], mask)
    return objectives.Weighted(loss.mean(), loss.count), {}

def broken_case():
    return objectives.ObjectiveCase(
        objective=mean_of_the_batch,
        inputs={"logits": np.eye(4, 5), "mask": np.ones(4)},
        differentiated="logits",
        mask="mask",
    )
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A directory with the user's modules, which is left as it was found."""
    (tmp_path / "my_laws.py").write_text(MODULE)
    (tmp_path / "bad_syntax.py").write_text("x = 1\ny = (\n")
    (tmp_path / "bad_line.py").write_text("import math\n\nmath.sqrt(-1)\n")
    (tmp_path / "bad_import.py").write_text("from divax import divergences\nimport my_lawss\n")
    (tmp_path / "bad_exit.py").write_text("raise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem, None)


def check(capsys, *arguments):
    code = cli.main(["check", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


# Each is tried on a law that costs little.
QUICK = ["--law", "standard_form", "--law", "parameter_gradient"]


@pytest.mark.parametrize(
    ("subject", "name"),
    [
        ("my_laws:instance", "forward_kl"),
        ("my_laws:factory", "2*forward_kl"),
        ("my_laws:Zoo.inner", "reverse_kl"),
        ("divax.divergences:ForwardKL", "forward_kl"),
        ("jensen_shannon(0.3)", "jensen_shannon(0.3)"),
    ],
)
def test_whatever_makes_a_divergence_is_checked(capsys, subject, name):
    code, out, err = check(capsys, subject, *QUICK[:2])
    assert (code, err) == (0, "")
    header, row, _, summary = out.splitlines()
    assert header.split() == ["law", "what", "it", "says", "verdict", "seconds"]
    assert row.startswith(f"standard_form  {dv.LAWS['standard_form'].statement}  holds (25 cases)")
    assert summary == f"{name} obeys 1 law in 25 cases"


def test_what_does_not_apply_says_why(capsys):
    code, out, _ = check(capsys, "forward_kl", *QUICK)
    assert code == 0
    assert "not applicable: it has no hyper-parameters" in out
    assert out.endswith("forward_kl obeys 1 law in 25 cases, 1 not applicable\n")


def test_a_broken_law_is_named_with_its_inputs_and_the_others_are_tried(capsys):
    laws = ["shift_invariant", "zero_at_equality", "non_negative"]
    code, out, err = check(capsys, "my_laws:Shifted", *(f"--law={law}" for law in laws))
    assert code == 1
    rows = out.splitlines()[1:4]
    assert [row.split()[0] for row in rows] == laws
    assert [row.split()[-2] == "BROKEN" for row in rows] == [False, True, True]
    assert "holds (128 cases)" in rows[0]
    assert out.endswith("shifted obeys 1 law in 128 cases, breaks 2\n")
    start = "divax check: shifted breaks the law 'zero_at_equality', D(p, p) = 0 exactly: "
    assert err.startswith(start)
    assert "target=[" in err
    assert "D=-0.001" in err
    assert err.count("\n") == 1


def test_all_laws_are_tried_where_none_is_named(monkeypatch, capsys):
    tried = []
    monkeypatch.setattr(dv, "check_law", lambda div, law, **_: tried.append(law) or verdict(law))
    assert check(capsys, "forward_kl")[0] == 0
    assert tried == list(dv.LAWS)


def verdict(law):
    return dv.Verdict(law, "", 1, None)


def test_the_vocabulary_and_the_seed_reach_the_check(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(dv, "check_law", lambda div, law, **o: seen.append(o) or verdict(law))
    check(capsys, "forward_kl", "--vocab-size", "4", "--seed", "7", "--law", "duality")
    assert seen == [{"vocab_size": 4, "seed": 7}]


def test_an_objective_with_its_inputs_is_checked(capsys):
    code, out, err = check(capsys, "my_laws:case", "--law", "gradient", "--law", "held_fixed")
    assert (code, err) == (0, "")
    assert objectives.LAWS["gradient"].statement in out
    assert out.endswith("cross_entropy obeys 1 law in 8 cases, 1 not applicable\n")


def test_a_broken_objective_is_named(capsys):
    code, _, err = check(capsys, "my_laws:broken_case", "--law", "additive")
    assert code == 1
    assert err.startswith("divax check: mean_of_the_batch breaks the law 'additive', ")
    assert "logits=[[" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say what to check: MODULE:OBJECT, or a divergence such as"),
        (["alfa(0.5)"], "is no MODULE:OBJECT, and no divergence of the zoo: unknown diver"),
        (["my_laws.py:instance"], "cannot read 'my_laws.py:instance': write MODULE:OBJECT"),
        (["dir/my_laws:instance"], "the module with dots and without .py"),
        (["my_laws:"], "cannot read 'my_laws:'"),
        (["my_law:instance"], "no module 'my_law' here or among what is installed; did you mean my_laws?"),
        (["my_laws.deeper:x"], "no module 'my_laws.deeper'"),
        (["my_laws:instanse"], "my_laws has no 'instanse'; did you mean instance"),
        (["my_laws:Zoo.iner"], "my_laws.Zoo has no 'iner'; did you mean inner?"),
        (["my_laws:number"], "my_laws:number is of type int: no divergence"),
        (["my_laws:needs_alpha"], "my_laws:needs_alpha needs alpha: name an object, or a function"),
        (["my_laws:mean_of_the_batch"], "an objective goes with example inputs in an obj"),
        (["my_laws:fails"], "my_laws.py:17: ZeroDivisionError: division by zero"),
        (["builtins:dict"], "builtins:dict is of type dict: no divergence"),
        (["bad_syntax:x"], "bad_syntax.py:2: SyntaxError: '(' was never closed"),
        (["bad_line:x"], "cannot import bad_line: "),
        (["bad_line:x"], "bad_line.py:3: ValueError: math domain error"),
        (["bad_import:x"], "bad_import.py:2: ModuleNotFoundError: No module named 'my_lawss'"),
        (["bad_exit:x"], "bad_exit.py:1: SystemExit: 3"),
        (["forward_kl", "--law", "dualty"], "unknown law 'dualty'; did you mean duality"),
        (["my_laws:case", "--law", "duality"], "unknown law 'duality'; did you mean "),
        (["my_laws:case", "--vocab-size", "3"], "--vocab-size is for divergences"),
        (["forward_kl", "--vocab-size", "0"], "--vocab-size must be at least 1"),
        (["forward_kl", "--seed", "-1"], "--seed must not be negative"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_exit_code_two(capsys, arguments, message):
    code, out, err = check(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("divax check: error: ")
    assert message in err
    assert err.count("\n") == 1


class Terminal:
    """Standard error that is, or is not, a terminal."""

    def __init__(self, terminal):
        self.terminal, self.text = terminal, ""

    def isatty(self):
        return self.terminal

    def write(self, text):
        self.text += text

    def flush(self):
        pass


@pytest.mark.parametrize("terminal", [True, False])
def test_the_progress_bar_is_for_terminals(monkeypatch, terminal):
    stderr = Terminal(terminal)
    monkeypatch.setattr(sys, "stderr", stderr)
    outcomes({"duality": "", "link": ""}, verdict)
    assert ("duality" in stderr.text) is terminal
    assert bool(stderr.text) is terminal


def test_as_a_process_it_finds_the_module_beside_it_and_exits_with_one(tmp_path):
    # -P: like the installed command, Python itself puts no directory on the path.
    command = ["-P", "-m", "divax.trainers.cli", "check", "my_laws:Shifted", "--law", "separates"]
    process = subprocess.run(
        [sys.executable, *command],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert process.returncode == 1
    assert process.stderr.startswith("divax check: shifted breaks the law 'separates', ")
    assert "BROKEN" in process.stdout
