"""`divax`: its help, its complaints, its speed."""

import subprocess
import sys

import pytest

import divax.trainers as tr
from divax.trainers.cli import COMMANDS, main


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_the_commands(arguments, capsys):
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: divax COMMAND")
    for name, (_, text) in COMMANDS.items():
        assert name in out
        assert text in out


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("kdd", "did you mean 'kd'?"),
        ("xyzzy", "choose from kd, zoo, fdpo, pg, cache-teacher, bench, check"),
    ],
)
def test_an_unknown_command_suggests(word, hint, capsys):
    assert main([word]) == 2
    assert capsys.readouterr().err == f"divax: error: no command {word!r}; {hint}\n"


def test_help_loads_no_jax():
    code = (
        "import sys; from divax.trainers.cli import main; main([]); "
        "heavy = {'jax', 'flax', 'optax', 'orbax', 'matplotlib', 'tqdm'} & set(sys.modules); "
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_every_public_name_is_where_it_is_said_to_be():
    assert dir(tr) == tr.__all__
    assert set(tr.__all__) == set(tr._HOME)
    for name in tr.__all__:
        value = getattr(tr, name)
        assert value.__module__.startswith("divax.trainers")
        assert value.__name__ == name
        # A module of the same name would hide it once imported.
        assert f"divax.trainers.{name}" not in sys.modules
        assert f"`{name}`" in (tr.__doc__ or "")
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        tr.nonsense  # noqa: B018
