"""The metrics of a run as JSON lines, one object per line, always on."""

import json
import math
from pathlib import Path
from typing import Any

from divax.trainers.errors import RunError
from divax.trainers.files import write_atomically


class MetricsLog:
    """Appends records to a file and can be rewound to a step.

    Numbers that JSON lacks are written as the strings `"inf"`, `"-inf"` and `"nan"`.

    Args:
        path: the file; made on the first record.

    Example:
        >>> import pathlib, tempfile
        >>> log = MetricsLog(pathlib.Path(tempfile.mkdtemp()) / "metrics.jsonl")
        >>> for step in (1, 2):
        ...     log.append({"step": step, "loss": 1 / step})
        >>> log.rewind(1)
        >>> log.read()
        [{'step': 1, 'loss': 1.0}]
    """

    def __init__(self, path: Path):
        self._path = path

    def append(self, record: dict[str, Any]) -> None:
        """Writes one record; the system has it when this returns, even if the process is killed."""
        with self._path.open("a") as file:
            file.write(_line(record))

    def rewind(self, step: int) -> None:
        """Drops the records past a step, and a last line that a kill has torn."""
        if self._path.exists():
            kept = [record for record in self.read() if record["step"] <= step]
            write_atomically(self._path, "".join(map(_line, kept)))

    def read(self) -> list[dict[str, Any]]:
        """All whole records.

        Raises:
            RunError: a line other than a torn last one is not a record.
        """
        if not self._path.exists():
            return []
        lines = self._path.read_text().splitlines(keepends=True)
        if lines and not lines[-1].endswith("\n"):
            lines.pop()
        return [self._parse(number, line) for number, line in enumerate(lines, 1)]

    def _parse(self, number: int, line: str) -> dict[str, Any]:
        try:
            record = json.loads(line)
            record["step"] = int(record["step"])
        except (ValueError, TypeError, KeyError) as error:
            raise RunError(f"{self._path}:{number}: not a metrics record") from error
        return record


def _line(record: dict[str, Any]) -> str:
    return json.dumps({k: _plain(v) for k, v in record.items()}, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
