"""`divax check`: every law that a divergence or an objective must obey, tried on the user's own."""

import dataclasses
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from divax.trainers.command_line import at_least, run_command

if TYPE_CHECKING:
    from divax.divergences import Verdict


@dataclasses.dataclass(frozen=True)
class CheckConfig:
    """Tries a divergence or an objective on every law that it must obey, and prints a table.

    Exit code 0: all laws that apply hold. 1: one is broken; the first is named, with the inputs
    that broke it. 2: nothing could be tried.

    Attributes:
        subject: MODULE:OBJECT, or a divergence of the zoo such as "alpha(0.5)". The object is a
            divergence, an `ObjectiveCase` (an objective with example inputs), or a class or a
            function without arguments that makes one; the module is looked for in the current
            directory first.
        law: try these laws only; may be repeated.
        vocab_size: the one vocabulary size that the divergence understands (that of its cost
            matrix, say). Default: any.
        seed: seed of the random inputs.
    """

    subject: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SUBJECT")] = ""
    law: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    vocab_size: int | None = None
    seed: int = 0

    def __post_init__(self):
        if self.seed < 0:
            raise ValueError(f"--seed must not be negative, got {self.seed}")
        at_least(1, self, "vocab_size")


@dataclasses.dataclass(frozen=True)
class Trials:
    """What is to be tried: a name, the laws, and how one law is tried.

    Attributes:
        name: of the divergence or objective.
        laws: statements by name, in order.
        check: a law's name to its verdict; raises BrokenLaw.
    """

    name: str
    laws: Mapping[str, str]
    check: "Callable[[str], Verdict]"


def main(arguments: list[str]) -> int:
    """Runs `divax check` and returns its exit code.

    Example:
        >>> main(["forward_kl", "--law", "duality", "--law", "curvature"])
        law        what it says ...
        duality    D̃(q, p) = ...
        ...
        forward_kl obeys 2 laws in ... cases
        0
    """
    return run_command("divax check", CheckConfig, arguments, run)


def run(config: CheckConfig) -> int:
    """Tries the laws, prints the table, and returns 0, or 1 if a law is broken.

    Raises:
        RunError: nothing that can be tried, or no such law.

    Example:
        >>> run(CheckConfig("alfa(0.5)"))
        Traceback (most recent call last):
        divax.trainers.errors.RunError: 'alfa(0.5)' is no MODULE:OBJECT, and no divergence of the zoo: ...
    """
    from divax.trainers.check_report import outcomes, summary, table

    trials = _trials(config)
    found = outcomes(trials.laws, trials.check)
    sys.stdout.write(table(found) + "\n\n" + summary(trials.name, found) + "\n")
    first = next((one.broken for one in found if one.broken is not None), None)
    if first is None:
        return 0
    sys.stdout.flush()
    sys.stderr.write(f"divax check: {first}\n")
    return 1


def _trials(config: CheckConfig) -> Trials:
    from divax import divergences as dv
    from divax import objectives
    from divax.trainers.errors import RunError

    subject = _subject(config.subject)
    if isinstance(subject, dv.AbstractDivergence):
        laws = _chosen(dv.LAWS, config.law)
        options: dict[str, Any] = {"vocab_size": config.vocab_size, "seed": config.seed}
        return Trials(subject.name, laws, lambda law: dv.check_law(subject, law, **options))
    if isinstance(subject, objectives.ObjectiveCase):
        if config.vocab_size is not None:
            raise RunError("--vocab-size is for divergences; an objective has its example inputs")
        laws = _chosen(objectives.LAWS, config.law)
        return Trials(
            subject.name, laws, lambda law: objectives.check_law(subject, law, seed=config.seed)
        )
    raise RunError(
        f"{config.subject} is {_described(subject)}: no divergence (dv.AbstractDivergence), and no "
        "objectives.ObjectiveCase"
    )


def _subject(spec: str) -> Any:
    from divax import divergences as dv
    from divax import objectives
    from divax.trainers.errors import RunError
    from divax.trainers.imported import built, imported

    if not spec:
        raise RunError('say what to check: MODULE:OBJECT, or a divergence such as "alpha(0.5)"')
    if ":" not in spec:
        try:
            return dv.get(spec)
        except ValueError as error:
            raise RunError(
                f"{spec!r} is no MODULE:OBJECT, and no divergence of the zoo: {error}"
            ) from None
    found = imported(spec)
    if isinstance(found, dv.AbstractDivergence | objectives.ObjectiveCase) or not callable(found):
        return found
    return built(spec, found)


def _described(value: Any) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"


def _chosen(laws: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, str]:
    from divax.divergences.law import named_law
    from divax.trainers.errors import RunError

    try:
        return {name: named_law(laws, name).statement for name in names or laws}
    except ValueError as error:
        raise RunError(str(error)) from None
