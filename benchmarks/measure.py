"""Interleaved runs of fresh processes, and the bars that are made of them."""

import dataclasses
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

Results = Mapping[str, Mapping[str, float]]
"""What each case measured, by name; cases that were skipped are missing."""


@dataclasses.dataclass(frozen=True)
class Bar:
    """A measured ratio, and what it is asked to be."""

    id: str
    what: str
    measured: float
    target: float | None = None
    asked: Literal["at most", "at least"] = "at most"
    cpu: float | None = None

    @property
    def holds(self) -> bool | None:
        """None where nothing is asked."""
        if self.target is None:
            return None
        if self.asked == "at most":
            return self.measured <= self.target
        return self.measured >= self.target

    def line(self) -> str:
        """One row of the table."""
        cpu = "" if self.cpu is None else f" (cpu {self.cpu:.3g})"
        goal = "" if self.target is None else f"{self.asked} {self.target:g}"
        verdict = {True: "holds", False: "does NOT hold", None: ""}[self.holds]
        return (
            f"{self.id:4s} {self.what:58s} {f'{self.measured:.3g}{cpu}':24s} {goal:16s} {verdict}"
        )


def timed(fun: Callable[..., Any], *args: Any, calls: int = 3) -> dict[str, float]:
    """Compile and call seconds (medians; the first call does not count), and planned temporary memory in bytes."""
    import jax

    start = time.perf_counter()
    compiled = jax.jit(fun).lower(*args).compile()
    found = {"compile": time.perf_counter() - start}
    memory = compiled.memory_analysis()
    found["temp"] = float(memory.temp_size_in_bytes) if memory else float("nan")
    return found | clocked(lambda: jax.block_until_ready(compiled(*args)), calls)


def clocked(call: Callable[[], Any], calls: int) -> dict[str, float]:
    """Median wall and CPU seconds of some calls after a first one."""
    call()
    walls, cpus = [], []
    for _ in range(calls):
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return {"wall": statistics.median(walls), "cpu": statistics.median(cpus)}


class SkippedError(Exception):
    """Something that a case needs is not here; its text says what."""


def fresh(module: str, case: str, quick: bool) -> dict[str, float] | str:
    """What a case measures in a process of its own, or why it does not."""
    command = [sys.executable, "-m", "divax.benchmarks.measure", module, case, str(int(quick))]
    extra = getattr(importlib.import_module(f"divax.benchmarks.{module}"), "ENVIRONMENT", {})
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **extra}
    )
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["died"])[-1]
    return json.loads(done.stdout.splitlines()[-1])


def interleaved(module: str, quick: bool, rounds: int, tell: Callable[[str], None]) -> Results:
    """The medians of every case of a module, the cases taking turns."""
    cases = importlib.import_module(f"divax.benchmarks.{module}").CASES
    found: dict[str, list[dict[str, float]]] = {case: [] for case in cases}
    skipped: dict[str, str] = {}
    for _ in range(rounds):
        for case in cases:
            if case in skipped:
                continue
            result = fresh(module, case, quick)
            if isinstance(result, str):
                skipped[case] = result
                tell(f"{module} {case}: skipped, {result}")
            else:
                found[case].append(result)
                shown = " ".join(f"{key} {value:.4g}" for key, value in result.items())
                tell(f"{module} {case}: {shown} (load {os.getloadavg()[0]:.1f})")
    median = lambda runs: {k: statistics.median(run[k] for run in runs) for k in runs[0]}  # noqa: E731
    return {case: median(runs) for case, runs in found.items() if runs}


def over(id: str, what: str, found: Results, a: str, b: str, key: str, **asked: Any) -> list[Bar]:
    """The bar a/b, if both were measured."""
    if a not in found or b not in found:
        return []
    cpu = found[a]["cpu"] / found[b]["cpu"] if key == "wall" else None
    return [Bar(id, what, found[a][key] / found[b][key], cpu=cpu, **asked)]


def main() -> None:
    """Runs one case: `python -m divax.benchmarks.measure MODULE CASE QUICK`."""
    from divax.benchmarks.measure import SkippedError as Skipped

    module, case, quick = sys.argv[1:]
    cases = importlib.import_module(f"divax.benchmarks.{module}").CASES
    try:
        print(json.dumps(cases[case](bool(int(quick)))))
    except (Skipped, ImportError) as missing:
        sys.exit(f"{missing}")


if __name__ == "__main__":
    main()
