"""`divax kd --task digits`: students of handwritten digits, taught by every method asked for."""

import dataclasses
import math
import sys
from pathlib import Path
from typing import Literal

import tyro

from divax.trainers.command_line import at_least, flag, run_command
from divax.trainers.errors import RunError


@dataclasses.dataclass(frozen=True)
class DigitsConfig:
    """Distils small classifiers of handwritten digits from a larger one, several seeds at once.

    For every seed: another split, a teacher trained on 1200 examples, a student alone on 200 of them, and
    a student under each objective, all from one start and one order of examples. Prints one table of means
    over seeds with their standard errors; writes results.json and bars.png. What is finished is reused.

    Attributes:
        task: handwritten digits.
        objective: how a student is taught, may be repeated: kd, logit_mse, dkd, nkd, dist, pld, sinkd,
            sinkd_as_published from the teacher; mixture, product from several; dual_head with a second head; ema, ps_kd,
            born_again, uskd from itself. With numbers, as in "dkd(beta=8)" or
            "kd(divergence=reverse_kl, temperature=1)". Default: kd.
        divergence: short for kd(divergence=...) at --temperature and --distill-weight; may be repeated.
        output: the experiment's directory.
        seeds: how many.
        seed: the first of them.
        steps: updates of every student.
        teacher_steps: updates of the teacher.
        temperature: of --divergence: both distributions are softened by it.
        distill_weight: of --divergence: the rest is cross-entropy on the labels.
        transfer: examples that the students see, of the teacher's 1200.
        label_noise: share of the training labels that are wrong.
        batch_size: examples to an update of a student.
        learning_rate: of the students' AdamW.
        student_width: of the student's hidden layer.
        teacher_width: of each of the teacher's two.
    """

    task: Literal["digits"] = "digits"
    objective: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    divergence: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    output: Path = Path("runs/digits")
    seeds: int = 3
    seed: int = 0
    steps: int = 1500
    teacher_steps: int = 1000
    temperature: float = 4.0
    distill_weight: float = 0.9
    transfer: int = 200
    label_noise: float = 0.0
    batch_size: int = 50
    learning_rate: float = 0.01
    student_width: int = 16
    teacher_width: int = 256

    def __post_init__(self):
        at_least(1, self, "seeds", "steps", "teacher_steps", "batch_size")
        at_least(1, self, "student_width", "teacher_width")
        for name in ("temperature", "learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{flag(name)} must be positive, got {getattr(self, name)}")
        for name in ("distill_weight", "label_noise"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{flag(name)} must be in [0, 1], got {getattr(self, name)}")
        if not 0 <= self.seed < 2**31 - self.seeds:
            raise ValueError(f"--seed must be in [0, 2**31 - seeds), got {self.seed}")
        if not self.batch_size <= self.transfer <= 1200:
            raise ValueError(
                f"--transfer must lie between --batch-size = {self.batch_size} and 1200, got {self.transfer}"
            )


def main(arguments: list[str]) -> int:
    """Runs `divax kd --task digits` and returns its exit code.

    Example:
        >>> main(["--seeds", "0", "--output", "/nowhere"])
        2
    """
    return run_command("divax kd --task digits", DigitsConfig, arguments, run)


def run(config: DigitsConfig) -> None:
    """Runs the experiment and prints its table.

    Raises:
        RunError: wrong input, or a run that cannot go on.
        Interrupted: SIGINT or SIGTERM.

    Example:
        >>> run(DigitsConfig(objective=("dkb",)))
        Traceback (most recent call last):
        divax.trainers.errors.RunError: unknown objective 'dkb'; did you mean dkd...
    """
    from divax.trainers.digits_experiment import DigitsExperiment, mean_rows
    from divax.trainers.digits_report import bars, table

    experiment = DigitsExperiment.prepare(config)
    rows = mean_rows(experiment.run(lambda line: sys.stderr.write(line + "\n")))
    sys.stdout.write(table(rows) + "\n")
    try:
        picture = bars(rows, experiment.directory / "bars.png")
    except ImportError:
        picture = "no bars.png: pip install 'divax[plot]' for matplotlib"
    except OSError as error:
        raise RunError(f"cannot draw: {error}") from None
    sys.stdout.write(f"\nwritten: {experiment.directory / 'results.json'}, {picture}\n")
