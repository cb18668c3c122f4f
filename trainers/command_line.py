"""Arguments to a frozen dataclass, and errors to one line."""

import contextlib
import io
import operator
import re
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from divax.trainers.errors import Interrupted, RunError

Config = TypeVar("Config")


def run_command(
    prog: str, config_type: type[Config], arguments: list[str], run: Callable[[Config], int | None]
) -> int:
    """Parses the arguments, runs, and returns the exit code.

    0, or what `run` returns; 2 with one line on stderr for wrong input or a run that cannot go on; 128 + n after signal n.

    Args:
        prog: what the user typed, `divax kd`.
        config_type: a frozen dataclass whose docstrings are the help.
        arguments: what followed it.
        run: what to do with the configuration; may return an exit code of its own.

    Example:
        >>> import dataclasses
        >>> @dataclasses.dataclass(frozen=True)
        ... class Greeting:
        ...     name: str = "world"
        >>> run_command("greet", Greeting, ["--name", "you"], lambda config: print(config.name))
        you
        0
    """
    try:
        config = _parse(prog, config_type, arguments)
        if config is None:
            return 0
        return run(config) or 0
    except RunError as error:
        _complain(prog, f"error: {error}")
        return 2
    except Interrupted as stop:
        _complain(prog, str(stop))
        return 128 + stop.signal_number
    except KeyboardInterrupt:
        _complain(prog, "stopped; what earlier checkpoints hold is kept")
        return 130


def flag(name: str) -> str:
    """A field's name as it is typed; a dot leads into a nested dataclass.

    Example:
        >>> flag("training.batch_size")
        '--training.batch-size'
    """
    return "--" + name.replace("_", "-")


def at_least(least: int, config: Any, *names: str) -> None:
    """Checks fields of a configuration; `None` stands for a default and passes.

    Args:
        least: the smallest value.
        config: the configuration.
        names: of fields, as `flag` takes them.

    Raises:
        ValueError: the first that is smaller, as it is typed.

    Example:
        >>> from divax.trainers.kd_config import KdConfig
        >>> at_least(2, KdConfig(), "steps", "training.micro_batches")
        Traceback (most recent call last):
        ValueError: --training.micro-batches must be at least 2, got 1
    """
    for name in names:
        value = operator.attrgetter(name)(config)
        if value is not None and value < least:
            raise ValueError(f"{flag(name)} must be at least {least}, got {value}")


def _complain(prog: str, message: str) -> None:
    sys.stderr.write(f"{prog}: {' '.join(message.split())}\n")


def _parse(prog: str, config_type: type[Config], arguments: list[str]) -> Config | None:
    """The configuration; `None` once help has been printed."""
    import tyro

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(config_type, prog=prog, args=arguments)
    except SystemExit as end:
        if not end.code:
            return None
        raise RunError(_one_line(complaint.getvalue()) + f"; see {prog} --help") from None


def _one_line(boxed: str) -> str:
    r"""The message of tyro's box, and its first suggestion.

    Example:
        >>> _one_line("╭─ Oops ─╮\n│ Unknown: --sed, 3 │\n│ ──── │\n│ Perhaps you meant: │"
        ...           "\n│     --seed INT │\n╰────╯")
        'Unknown: --sed, 3; did you mean --seed?'
    """
    lines = [line for line in boxed.splitlines() if not line.startswith(("╭", "╰"))]
    rows = [row for row in (line.strip("│| ") for line in lines) if row]
    if "╭" not in boxed and len(rows) > 1 and _is_rule(rows[1]):
        # Where the terminal is not UTF-8 there is no box, and the title is a row of its own.
        rows = rows[2:]
    end = next((i for i, row in enumerate(rows) if _is_rule(row)), len(rows))
    message = re.sub(r"^Error parsing \w+: ", "", " ".join(rows[:end]))
    meant = next((i for i, row in enumerate(rows) if row.startswith("Perhaps you meant")), None)
    if meant is None or meant + 1 >= len(rows):
        return message
    return f"{message}; did you mean {rows[meant + 1].split()[0]}?"


def _is_rule(row: str) -> bool:
    return set(row) <= {"─", "-"}
