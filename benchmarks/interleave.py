"""Cases in fresh processes that take turns, so that other load disturbs all alike."""

import importlib
import json
import os
import statistics
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import divax
from divax.benchmarks.measure import Asked, Bar, Results, SkippedError


class Measured(NamedTuple):
    """What the cases of a module found.

    Attributes:
        found: medians, by case.
        absent: why a case did not run, by case.
        failed: how a case went wrong, by case.
    """

    found: Results
    absent: dict[str, str]
    failed: dict[str, str]


def asked_of(module: ModuleType, only: str | None) -> list[Asked]:
    """The bars that were asked for."""
    return [one for one in getattr(module, "BARS", ()) if only in (None, one.id)]


def answers(module: ModuleType, found: Results, only: str | None) -> list[Bar]:
    """The bars with what was measured; a module that makes its bars itself has a function for them."""
    if hasattr(module, "bars"):
        return [bar for bar in module.bars(found) if only in (None, bar.id)]
    return [one.answer(found) for one in asked_of(module, only)]


def interleaved(
    name: str, only: str | None, quick: bool, rounds: int, tell: Callable[[str], None]
) -> Measured:
    """The medians of the cases that some bars need, which take turns; when quick, all in one process."""
    module = importlib.import_module(f"divax.benchmarks.{name}")
    needed = {case for one in asked_of(module, only) for case in one.cases}
    cases = [case for case in module.CASES if case in needed or not hasattr(module, "BARS")]
    runs: dict[str, list[dict[str, float]]] = {case: [] for case in cases}
    measured = Measured({}, {}, {})
    for _ in range(rounds):
        over = {*measured.absent, *measured.failed, *_untimed(runs)}
        left = [case for case in cases if case not in over]
        for group in [left] if quick else [[case] for case in left]:
            for case, line in fresh(name, group, quick).items():
                if "found" in line:
                    runs[case].append(line["found"])
                else:
                    kind = "absent" if "absent" in line else "failed"
                    getattr(measured, kind)[case] = line[kind]
                tell(f"{name} {case}: {_shown(line)} (load {os.getloadavg()[0]:.1f})")
    return measured._replace(found={case: _medians(some) for case, some in runs.items() if some})


def fresh(module: str, cases: Sequence[str], quick: bool) -> dict[str, dict[str, Any]]:
    """What cases find in a process of their own; each result has one key, found, absent or failed."""
    if not cases:
        return {}
    command = [sys.executable, "-m", "divax.benchmarks.interleave", module, str(int(quick)), *cases]
    extra = getattr(importlib.import_module(f"divax.benchmarks.{module}"), "ENVIRONMENT", {})
    # The same divax, however this process found it.
    path = os.pathsep.join([str(Path(divax.__file__).parents[1]), *filter(None, sys.path)])
    env = {**os.environ, "PYTHONPATH": path}
    if quick:
        # Most of the time is compilation, which this halves.
        env["XLA_FLAGS"] = f"{env.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
    env |= extra
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"case": ')]
    died = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return {case: {"failed": died} for case in cases} | {line.pop("case"): line for line in lines}


def _untimed(runs: dict[str, list[dict[str, float]]]) -> list[str]:
    """Cases that ran and measured no time: they would find the same again."""
    return [case for case, some in runs.items() if some and "cpu" not in some[0]]


def _shown(line: dict[str, Any]) -> str:
    if "found" in line:
        return " ".join(f"{key} {value:.4g}" for key, value in line["found"].items())
    return f"skipped, {line['absent']}" if "absent" in line else f"FAILED, {line['failed']}"


def _medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(run[key] for run in runs if key in run) for key in runs[0]}


def main() -> None:
    """Runs cases: `python -m divax.benchmarks.interleave MODULE QUICK CASE...`."""
    module, quick, *names = sys.argv[1:]
    cases = importlib.import_module(f"divax.benchmarks.{module}").CASES
    for name in names:
        try:
            found = cases[name](bool(int(quick)))
            if len(names) > 1:
                # What an earlier case has left behind hides what this one needs.
                found = {key: one for key, one in found.items() if not key.startswith("rss")}
            line = {"found": found}
        except (SkippedError, ImportError) as missing:
            line = {"absent": str(missing)}
        except Exception as error:
            traceback.print_exc()
            line = {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}
        print(json.dumps({"case": name} | line), flush=True)


if __name__ == "__main__":
    main()
