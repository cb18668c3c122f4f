"""A run's directory, which its `config.json` marks: never another run's, never foreign files."""

import json
from pathlib import Path
from typing import Any

from divax.trainers.errors import RunError
from divax.trainers.files import write_atomically

CONFIG = "config.json"


def claim(directory: str | Path, config: dict[str, Any]) -> Path:
    """Opens the directory of a run with this configuration, making it if it is new.

    Args:
        directory: the run's own; missing, empty, or of a run with the same configuration.
        config: what the run is, as JSON values.

    Returns:
        The directory's path.

    Raises:
        RunError: it cannot be written, holds foreign files, or a run with another configuration.
            Nothing was touched then.

    Example:
        >>> import tempfile
        >>> directory = tempfile.mkdtemp()
        >>> claim(directory, {"seed": 0}) == claim(directory, {"seed": 0})
        True
        >>> claim(directory, {"seed": 1})
        Traceback (most recent call last):
        divax.trainers.errors.RunError: ... holds a run with seed = 0, and this one has seed = 1...
    """
    path = check(directory, config)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not (path / CONFIG).exists():
            text = json.dumps({"divax_run": 1, "config": config}, indent=2, sort_keys=True)
            write_atomically(path / CONFIG, text + "\n")
    except OSError as error:
        raise _unwritable(path, error) from error
    return path


def check(directory: str | Path, config: dict[str, Any]) -> Path:
    """The checks of `claim`, which write nothing.

    Args:
        directory: a directory that may not exist yet.
        config: what the run is, as JSON values.

    Raises:
        RunError: as `claim`, unless only an attempt to write can tell.

    Example:
        >>> check("/dev/null", {})
        Traceback (most recent call last):
        divax.trainers.errors.RunError: /dev/null: not a directory; ...
    """
    path = Path(directory)
    try:
        if not path.exists():
            return path
        if not path.is_dir():
            raise RunError(f"{path}: not a directory; choose another one for the run")
        names = {entry.name for entry in path.iterdir()}
    except OSError as error:
        raise _unwritable(path, error) from error
    if CONFIG in names:
        _check_same(path, json.loads(json.dumps(config)))
    elif names - {CONFIG + ".partial"}:
        raise RunError(
            f"{path}: holds files but no {CONFIG}, so it is not a run directory; "
            "choose a new or an empty one"
        )
    return path


def _check_same(path: Path, config: dict[str, Any]) -> None:
    try:
        marker = json.loads((path / CONFIG).read_text())
        found = marker["config"] if marker.get("divax_run") == 1 else None
    except (ValueError, KeyError, AttributeError, TypeError):
        found = None
    except OSError as error:
        raise _unwritable(path, error) from error
    if not isinstance(found, dict):
        raise RunError(f"{path / CONFIG}: not written by divax; choose a new or an empty directory")
    found, config = _flat(found), _flat(config)
    for name in sorted(found.keys() | config.keys()):
        if name not in found or name not in config or found[name] != config[name]:
            raise RunError(
                f"{path}: holds a run with {_show(name, found)}, and this one has "
                f"{_show(name, config)}; choose another directory, or the same configuration"
            )


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, so that a message names the one setting that differs."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        nested = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return flat


def _show(name: str, config: dict[str, Any]) -> str:
    return f"{name} = {json.dumps(config[name])}" if name in config else f"no {name}"


def _unwritable(path: Path, error: OSError) -> RunError:
    return RunError(f"{path}: cannot be used as a run directory: {error.strerror or error}")
