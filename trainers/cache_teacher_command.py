"""`divax cache-teacher`: what a teacher says of a text, kept on disk for students to come."""

import dataclasses
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import tyro

from divax.trainers.command_line import at_least, run_command


@dataclasses.dataclass(frozen=True)
class CacheTeacherConfig:
    """Runs the teacher of a `divax kd` over its text once, and keeps its likeliest tokens.

    Writes their exact log-probabilities and that of all other tokens together, in shards that
    `tr.TeacherCache.open` reads; prints their size and coverage. Stopped or killed, the same
    command goes on behind the last whole shard.

    Attributes:
        run: output directory of the divax kd that has trained the teacher.
        output: the cache's directory.
        data: a text file, or JSON lines with a field "text" (suffix .jsonl); must be given if the
            teacher was trained on one. Default: the help topics of Python itself.
        split: which side of the text.
        top_k: tokens kept at every position.
        temperature: T of softmax(logits / T); the loss of the students must have the same.
        dtype: of the stored log-probabilities; float16 rounds one by at most |log p| / 2048.
        append: add the rows to a cache of the same teacher that holds others.
        batch_size: rows that the teacher reads at a time. Default: as it was trained.
        rows_per_shard: rows of a file. Default: what makes 16 MiB.
    """

    run: Annotated[Path, tyro.conf.arg(name="from")]
    output: Path
    data: Path | None = None
    split: Literal["train", "validation"] = "train"
    top_k: int = 64
    temperature: float = 1.0
    dtype: Literal["float16", "float32"] = "float16"
    append: bool = False
    batch_size: int | None = None
    rows_per_shard: int | None = None

    def __post_init__(self):
        at_least(1, self, "top_k", "batch_size", "rows_per_shard")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"--temperature must be positive, got {self.temperature}")


def main(arguments: list[str]) -> int:
    """Runs `divax cache-teacher` and returns its exit code.

    Example:
        >>> main(["--from", "/nowhere", "--output", "/nowhere/cache"])
        2
    """
    return run_command("divax cache-teacher", CacheTeacherConfig, arguments, run)


def run(config: CacheTeacherConfig) -> None:
    """Writes the cache, or what is missing of it, and prints its table.

    Raises:
        RunError: wrong input, a directory of something else, or a disk that is full.
        Interrupted: SIGINT or SIGTERM; whole shards are kept.

    Example:
        >>> run(CacheTeacherConfig(run=Path("/nowhere"), output=Path("/nowhere/cache")))
        Traceback (most recent call last):
        divax.trainers.errors.RunError: /nowhere: not the output of a divax kd ...
    """
    from divax.trainers.cache_teacher_report import table, warning
    from divax.trainers.teacher_text import cache_text

    start = time.monotonic()
    cache = cache_text(config)
    sys.stdout.write(table(cache, time.monotonic() - start) + "\n")
    sys.stdout.write(f"\nwritten: {config.output}\n")
    if said := warning(cache):
        sys.stderr.write(f"divax cache-teacher: warning: {said}\n")
