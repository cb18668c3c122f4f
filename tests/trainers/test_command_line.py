"""Tyro's boxes as one line, in every encoding that it draws them in."""

import dataclasses

import pytest

from divax.trainers.command_line import run_command
from divax.trainers.errors import Interrupted, RunError


@dataclasses.dataclass(frozen=True)
class Config:
    """A test.

    Attributes:
        seed: the seed.
    """

    seed: int = 0


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--sed", "3"], "Unrecognized options: --sed, 3; did you mean --seed?; see p --help"),
        (["--seed", "x"], "Error parsing --seed: invalid literal for int() with base 10: 'x'; see"),
    ],
)
def test_a_box_becomes_a_line(monkeypatch, capsys, encoding, arguments, line):
    monkeypatch.setattr("tyro._fmtlib._FORCE_UTF8_BOXES", encoding == "utf-8")
    assert run_command("p", Config, arguments, print) == 2
    assert capsys.readouterr().err.startswith(f"p: error: {line}")


def raising(error):
    def run(config):
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (RunError("two\n lines"), 2, "p: error: two lines\n"),
        (Interrupted("stopped at 3", 15), 143, "p: stopped at 3\n"),
        (KeyboardInterrupt(), 130, "p: stopped; what earlier checkpoints hold is kept\n"),
    ],
)
def test_ends_have_codes(capsys, error, code, line):
    assert run_command("p", Config, [], raising(error)) == code
    assert capsys.readouterr().err == line


def test_a_bug_is_not_dressed_up():
    with pytest.raises(ZeroDivisionError):
        run_command("p", Config, [], raising(ZeroDivisionError()))
