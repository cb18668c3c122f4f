"""`divax bench`: every bar of speed and memory, what was measured, and whether it holds."""

import dataclasses
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from divax.benchmarks.interleave import Measured, answers, interleaved
from divax.benchmarks.measure import Bar
from divax.trainers.command_line import run_command
from divax.trainers.files import write_atomically

# module of `divax.benchmarks` -> the bars that it measures
MODULES = {
    "fused_linear": ("P1", "P2", "P3", "P10"),
    "token_loss": ("P9",),
    "distillation_objectives": ("objectives",),
    "given_logits": ("P4", "P13"),
    "aot": ("P5", "P6"),
    "sinkhorn": ("P7",),
    "head": ("P8",),
    "trainer_step": ("P11",),
    "trainers_end_to_end": ("step",),
    "spread_vocabulary": ("P12",),
    "peers": ("P14", "peers"),
    "growth": ("grow",),
    "importing": ("import",),
}


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """Measures speed and memory against naive forms and other libraries.

    Every case runs in a fresh process, the cases of a module in turns; medians count. What needs a
    library that is not installed is skipped with a line.

    Attributes:
        quick: small arrays, one round, and one process for several cases, as many at once as there are
            processors, to see that everything works; the bars are meant for large arrays.
        only: one bar, such as P4; objectives for distillation's losses; step for trainers' steps; peers
            for other libraries' losses; grow for how cost grows; import for what an import takes.
        rounds: processes per case; 3, or 1 when quick, if not given.
        json: write the table here as well, and what every case measured; after each group of bars.
    """

    quick: bool = False
    only: str | None = None
    rounds: int | None = None
    json: Path | None = None


def main(arguments: list[str]) -> int:
    """Runs `divax bench` and returns its exit code, 1 if a case failed.

    Example:
        >>> main(["--only", "P99"])
        2
    """
    return run_command("divax bench", BenchConfig, arguments, run)


def run(config: BenchConfig) -> int:
    """Prints the table and writes it.

    Raises:
        RunError: a bar that does not exist, no rounds, or a file that cannot be written.
    """
    _check(config)
    tell = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
    rounds, start = config.rounds or (1 if config.quick else 3), time.perf_counter()
    bars, cases, absent, failed = [], {}, {}, {}
    names = [name for name, ids in MODULES.items() if config.only is None or config.only in ids]
    measure = lambda name: interleaved(name, config.only, config.quick, rounds, tell)  # noqa: E731
    for name, measured in zip(names, _in_turn(measure, names, config.quick), strict=True):
        module = importlib.import_module(f"divax.benchmarks.{name}")
        bars += (found := answers(module, measured.found, config.only))
        for mine, all_ in zip(measured, (cases, absent, failed), strict=True):
            all_ |= {f"{name}: {case}": one for case, one in mine.items()}
        for bar in found:
            tell(bar.line())
        about = {"quick": config.quick, "rounds": rounds} | _spent(start)
        _write(config.json, bars, about | {"cases": cases, "absent": absent, "failed": failed})
    spent = _spent(start)
    print(_table(bars, cases, absent | failed))
    if config.quick:
        print("small arrays show that all of it works; bars are of large ones, without --quick")
    print(f"{spent['seconds']:.0f} s; load {spent['load'][0]:.1f} on {os.cpu_count()} processors")
    return 1 if failed else 0


def _in_turn(
    measure: Callable[[str], Measured], names: list[str], quick: bool
) -> Iterator[Measured]:
    """Times count only where nothing else runs; quick ones do not."""
    if not quick:
        yield from map(measure, names)
        return
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        yield from pool.map(measure, names)
    finally:
        pool.shutdown(cancel_futures=True)


def _spent(start: float) -> dict[str, Any]:
    return {"seconds": time.perf_counter() - start, "load": os.getloadavg()}


def _write(path: Path | None, bars: list[Bar], about: dict[str, Any]) -> None:
    """After each module, so that who stops keeps what was measured."""
    if path is not None:
        table = [dataclasses.asdict(bar) | {"holds": bar.holds} for bar in bars]
        write_atomically(path, json.dumps(about | {"bars": table}, indent=1).encode())


def _check(config: BenchConfig) -> None:
    from divax.trainers.errors import RunError
    from divax.trainers.objective_specs import nearest

    known = [bar for bars in MODULES.values() for bar in bars]
    if config.only is not None and config.only not in known:
        raise RunError(f"--only {config.only}: no such bar; {nearest(config.only, known)}")
    if config.rounds is not None and config.rounds < 1:
        raise RunError(f"--rounds must be at least 1, got {config.rounds}")
    if config.json is not None:
        # Before hours are spent on what cannot be written.
        try:
            config.json.open("a", encoding="utf-8").close()
        except OSError as error:
            raise RunError(f"--json {config.json}: cannot be written: {error.strerror}") from None


def _table(bars: list[Bar], cases: dict[str, dict[str, float]], missing: dict[str, str]) -> str:
    """What every case took, what the bars make of it, and what is missing."""
    columns = {"wall": 1e3, "cpu": 1e3, "compile": 1.0, "temp": 1e-6, "rss": 1e-6}
    heads = ("wall ms", "cpu ms", "compile s", "temp MB", "peak MB")
    rows = [f"{'case':48s}" + "".join(f"{head:>11s}" for head in heads)]
    for case, found in cases.items():
        shown = [f"{found[key] * by:.4g}" if key in found else "" for key, by in columns.items()]
        if any(shown):
            rows.append(f"{case:48s}" + "".join(f"{one:>11s}" for one in shown))
    absent = [f"{case}: not measured, {why}" for case, why in missing.items()]
    return "\n".join([*rows, "", *(bar.line() for bar in bars), "", *absent])
