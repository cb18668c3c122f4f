"""`divax zoo`: what each divergence is, as a table and as a picture."""

import dataclasses
import sys
from pathlib import Path

import tyro

from divax.trainers.command_line import run_command


@dataclasses.dataclass(frozen=True)
class ZooConfig:
    """Lists the divergences: formula, range, limits and flags; draws them on request.

    f(0) is the value per unit of model mass that the target rules out, f'(∞) that per unit of
    target mass that the model rules out. Admissible: f-DPO with it is exact.

    Attributes:
        divergence: list these instead, such as "alpha(0.3)" or "forward_kl + reverse_kl"; may be
            repeated.
        plot: draw the generators and the gradient weights into this PNG file.
    """

    divergence: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    plot: Path | None = None


def main(arguments: list[str]) -> int:
    """Runs `divax zoo` and returns its exit code.

    Example:
        >>> main(["--divergence", "forward_kl"])
        divergence  formula        range  f(0)  f'(∞)  f''(1)  admissible  bounded  symmetric  smooth
        forward_kl  Σ p log(p/q)  [0, ∞)     1      ∞       1         yes       no         no     yes
        0
    """
    return run_command("divax zoo", ZooConfig, arguments, run)


def run(config: ZooConfig) -> None:
    """Prints the table and draws the picture.

    Raises:
        RunError: an unknown divergence, or a picture that cannot be written.

    Example:
        >>> run(ZooConfig(divergence=("alfa(0.5)",)))
        Traceback (most recent call last):
        divax.trainers.errors.RunError: unknown divergence 'alfa'; did you mean alpha, dual?
    """
    from divax import divergences as dv
    from divax.trainers.errors import RunError
    from divax.trainers.zoo_report import draw, table

    try:
        members = {spec: dv.get(spec) for spec in config.divergence or dv.names()}
    except ValueError as error:
        raise RunError(str(error)) from None
    sys.stdout.write(table(members) + "\n")
    if config.plot is not None:
        sys.stdout.write(f"\nwritten: {draw(members, config.plot)}\n")
