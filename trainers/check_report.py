"""The trials and the table of `divax check`."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from divax.divergences import BrokenLaw, Verdict
from divax.trainers.text_table import aligned


class Outcome(NamedTuple):
    """How one law went.

    Example:
        >>> Outcome("duality", "D̃(q, p) = D(p, q)", 128, None, None, 0.5).word
        'holds (128 cases)'

    Attributes:
        law: its name.
        statement: what it says.
        cases: how many were decided.
        skipped: why it does not apply, or None.
        broken: the error, or None.
        seconds: what it took.
    """

    law: str
    statement: str
    cases: int
    skipped: str | None
    broken: BrokenLaw | None
    seconds: float

    @property
    def word(self) -> str:
        """The verdict."""
        if self.broken is not None:
            return "BROKEN"
        return f"not applicable: {self.skipped}" if self.skipped else f"holds ({self.cases} cases)"


def outcomes(laws: Mapping[str, str], check: Callable[[str], Verdict]) -> list[Outcome]:
    """Tries law after law, also after a broken one, under a progress bar where there is a terminal.

    Args:
        laws: statements by name.
        check: a law's name to its verdict; raises BrokenLaw.

    Example:
        >>> from divax.divergences import ForwardKL, check_law
        >>> [one.word for one in outcomes({"one_hot": ""}, lambda law: check_law(ForwardKL(), law))]
        ['holds (...
    """
    from tqdm.auto import tqdm

    found = []
    bar = tqdm(laws.items(), unit="law", disable=not sys.stderr.isatty(), leave=False)
    for law, statement in bar:
        bar.set_description(law)
        start = time.perf_counter()
        cases, skipped, broken = 0, None, None
        try:
            _, _, cases, skipped = check(law)
        except BrokenLaw as error:
            broken = error
        seconds = time.perf_counter() - start
        found.append(Outcome(law, statement, cases, skipped, broken, seconds))
    return found


def table(found: Sequence[Outcome]) -> str:
    """One row per law.

    Example:
        >>> print(table([Outcome("duality", "D̃(q, p) = D(p, q)", 0, "no dual", None, 0.0)]))
        law      what it says       verdict                  seconds
        duality  D̃(q, p) = D(p, q)  not applicable: no dual      0.0
    """
    rows = [[one.law, one.statement, one.word, f"{one.seconds:.1f}"] for one in found]
    return aligned([["law", "what it says", "verdict", "seconds"], *rows], left=3)


def summary(name: str, found: Sequence[Outcome]) -> str:
    """One line.

    Example:
        >>> summary("alpha(0.5)", [Outcome("duality", "", 3, None, None, 0.0), Outcome("link", "", 2, None, None, 0.0)])
        'alpha(0.5) obeys 2 laws in 5 cases'
    """
    skipped = sum(one.skipped is not None for one in found)
    broken = sum(one.broken is not None for one in found)
    held, cases = len(found) - skipped - broken, sum(one.cases for one in found)
    parts = [f"{name} obeys {held} {'law' if held == 1 else 'laws'} in {cases} cases"]
    parts += [f"{skipped} not applicable"] if skipped else []
    parts += [f"breaks {broken}"] if broken else []
    return ", ".join(parts)
