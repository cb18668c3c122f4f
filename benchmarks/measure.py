"""What a case measures in its process, and the bars that are made of what all cases have measured."""

import ctypes
import dataclasses
import operator
import re
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

Results = Mapping[str, Mapping[str, float]]
"""What each case measured, by name; cases that were skipped are missing."""

# Seconds: a longer first call is not repeated; shorter ones are, for as long as this, but not more often.
_LONG, _WHILE, _MOST_CALLS = 5.0, 0.3, 20


class SkippedError(Exception):
    """Something that a case needs is not here; its text says what."""


@dataclasses.dataclass(frozen=True)
class Bar:
    """A measured ratio, and what it is asked to be; None where it could not be measured."""

    id: str
    what: str
    measured: float | None
    target: float | None = None
    asked: Literal["at most", "at least"] = "at most"
    cpu: float | None = None

    @property
    def holds(self) -> bool | None:
        """None where nothing is asked, or nothing was measured."""
        if self.target is None or self.measured is None:
            return None
        if self.asked == "at most":
            return self.measured <= self.target
        return self.measured >= self.target

    def line(self) -> str:
        """One row of the table."""
        cpu = "" if self.cpu is None else f" (cpu {self.cpu:.3g})"
        shown = "not measured" if self.measured is None else f"{self.measured:.3g}{cpu}"
        goal = "" if self.target is None else f"{self.asked} {self.target:g}"
        verdict = {True: "holds", False: "does NOT hold", None: ""}[self.holds]
        return f"{self.id:5s} {self.what:64s} {shown:24s} {goal:16s} {verdict}".rstrip()


@dataclasses.dataclass(frozen=True)
class Asked:
    """A bar before it is measured: what one case found, over what another one did where one is named."""

    id: str
    what: str
    case: str
    over: str | None = None
    key: str = "wall"
    target: float | None = None
    asked: Literal["at most", "at least"] = "at most"
    of: Callable[[float, float], float] = operator.truediv

    @property
    def cases(self) -> tuple[str, ...]:
        """What must run."""
        return (self.case,) if self.over is None else (self.case, self.over)

    def answer(self, found: Results) -> Bar:
        """Times of CPU beside those of the wall: they say the same on a loaded machine."""
        cpu = self._of(found, "cpu") if self.key == "wall" and self.over else None
        measured = self._of(found, self.key)
        return Bar(self.id, self.what, measured, self.target, self.asked, cpu)

    def _of(self, found: Results, key: str) -> float | None:
        values = [found.get(case, {}).get(key) for case in self.cases]
        if any(value is None for value in values):
            return None
        try:
            return values[0] if self.over is None else self.of(*values)  # type: ignore[arg-type]
        except (ZeroDivisionError, ValueError):
            return None


def apart(value: float, other: float) -> float:
    """Relative difference."""
    return abs(value - other) / max(abs(value), abs(other), 1e-30)


def timed(fun: Callable[..., Any], *args: Any) -> dict[str, float]:
    """Of a function that JAX compiles: seconds to compile and to call, planned temporaries, peak memory, first value."""
    import jax

    jax.block_until_ready(args)
    start = time.perf_counter()
    compiled = jax.jit(fun).lower(*args).compile()
    found = {"compile": time.perf_counter() - start}
    memory = compiled.memory_analysis()
    if memory is not None:
        found["temp"] = float(memory.temp_size_in_bytes)
    return found | clocked(lambda: jax.tree.leaves(jax.block_until_ready(compiled(*args))))


def clocked(call: Callable[[], list[Any]]) -> dict[str, float]:
    """Of a function that returns arrays: peak memory beyond them, the first value, median wall and CPU seconds."""
    before = _forget_peak()
    runs = [_run(call)]
    peak = _status("VmHWM")
    result = runs[0][1]
    found = {"value": float(result[0])} if result[0].size == 1 else {}
    if before is not None and peak is not None:
        found["rss"] = max(peak - before - sum(float(x.nbytes) for x in result), 0.0)
    del result
    if runs[0][0][0] < _LONG:
        runs, start = [], time.perf_counter()
        while not runs or (time.perf_counter() - start < _WHILE and len(runs) < _MOST_CALLS):
            runs.append((_run(call)[0], None))
    walls, cpus = zip(*(times for times, _ in runs), strict=True)
    return found | {"wall": statistics.median(walls), "cpu": statistics.median(cpus)}


def _run(call: Callable[[], list[Any]]) -> tuple[tuple[float, float], Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return (time.perf_counter() - wall, time.process_time() - cpu), result


def _forget_peak() -> float | None:
    """Bytes resident now, from which the peak starts again; None where the system does not tell."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        # What the allocator holds back would hide what the call needs.
        trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return None
    return _status("VmRSS")


def _status(field: str) -> float | None:
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    found = re.search(rf"{field}:\s+(\d+) kB", text)
    return float(found[1]) * 1024 if found else None
