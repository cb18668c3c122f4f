"""`divax bench`: every bar of speed and memory, what was measured, and whether it holds."""

import dataclasses
import importlib
import json
import os
import sys
from pathlib import Path

from divax.trainers.command_line import run_command

# module of `divax.benchmarks` -> the bars that it measures
MODULES = {
    "fused_linear": ("P1", "P2", "P3", "P9", "P10"),
    "given_logits": ("P4", "P13"),
    "aot": ("P5", "P6"),
    "sinkhorn": ("P7",),
    "head": ("P8",),
    "trainer_step": ("P11",),
    "spread_vocabulary": ("P12",),
    "liger": ("P14",),
    "growth": ("grow",),
}


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """Measures speed and memory against naive forms and other libraries.

    Every case runs in a fresh process, the cases of a bar in turns; medians count. What needs a
    library that is not installed is skipped with a line.

    Attributes:
        quick: small arrays, to see that everything works; the bars are meant for large ones.
        only: one bar, such as P4, or grow for the exponents of growth.
        rounds: fresh processes per case.
        json: write the table here as well.
    """

    quick: bool = False
    only: str | None = None
    rounds: int = 3
    json: Path | None = None


def main(arguments: list[str]) -> int:
    """Runs `divax bench` and returns its exit code.

    Example:
        >>> main(["--only", "P99"])
        2
    """
    return run_command("divax bench", BenchConfig, arguments, run)


def run(config: BenchConfig) -> None:
    """Prints the table and writes it.

    Raises:
        RunError: a bar that does not exist, no rounds, or a file that cannot be written.
    """
    from divax.trainers.errors import RunError

    known = [bar for bars in MODULES.values() for bar in bars]
    if config.only is not None and config.only not in known:
        raise RunError(f"no bar {config.only!r}; choose from {', '.join(known)}")
    if config.rounds < 1:
        raise RunError(f"--rounds must be at least 1, got {config.rounds}")
    bars = [bar for name in MODULES for bar in _of_module(name, config)]
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    for bar in bars:
        print(bar.line())
    if config.json is not None:
        table = [dataclasses.asdict(bar) | {"holds": bar.holds} for bar in bars]
        report = {"load": os.getloadavg(), "quick": config.quick, "bars": table}
        try:
            config.json.write_text(json.dumps(report, indent=1), encoding="utf-8")
        except OSError as error:
            raise RunError(f"cannot write {config.json}: {error.strerror}") from None


def _of_module(name: str, config: BenchConfig) -> list:
    from divax.benchmarks.measure import Bar, interleaved

    if config.only is not None and config.only not in MODULES[name]:
        return []
    module = importlib.import_module(f"divax.benchmarks.{name}")
    if name == "fused_linear":
        sizes = module.QUICK if config.quick else module.FULL
        only = f"^{config.only} " if config.only else ""
        rows = module.bars(sizes, only, config.rounds)
        return [
            Bar(*row["bar"].split(" ", 1), row["ratio"], row["target"], cpu=row["cpu"])
            for row in rows
        ]
    tell = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
    rounds = getattr(module, "ROUNDS", config.rounds)
    bars = module.bars(interleaved(name, config.quick, rounds, tell))
    return [bar for bar in bars if config.only in (None, bar.id)]
