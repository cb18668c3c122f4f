"""The README tells the truth: its examples run, and its commands are the ones that CI runs."""

import doctest
import re
import tomllib
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^python3 -m venv .*$", README, flags=re.MULTILINE)


def test_the_examples_run_as_printed():
    # As a user has JAX: Optax's Adam needs the standard promotion.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        results = doctest.testfile(
            str(ROOT / "README.md"), module_relative=False, optionflags=doctest.ELLIPSIS
        )
    assert results.attempted > 15
    assert results.failed == 0


def test_two_single_line_commands_each_with_an_environment_of_its_own():
    main_job, tests = COMMANDS
    assert main_job.endswith("divax kd")
    assert "pytest" in tests
    environments = [re.findall(r"\.venv[\w-]*", command) for command in COMMANDS]
    assert [len(set(names)) for names in environments] == [1, 1]
    assert environments[0][0] != environments[1][0]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_extras_of_a_command_exist(command):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = re.findall(r"\.\[([\w,]+)\]", command)
    assert extras
    for extra in extras[0].split(","):
        assert extra in project["optional-dependencies"]


def test_ci_takes_its_test_command_from_here():
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    pattern = re.search(r"grep -m 1 -E '(.*)' README\.md", script)
    assert pattern
    assert [c for c in COMMANDS if re.match(pattern[1], c)] == COMMANDS[1:]


def test_every_file_it_links_to_exists():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
