"""`divax kd`: a teacher, a student alone, and a student distilled under each divergence."""

import dataclasses
import sys
from pathlib import Path

import tyro

from divax.trainers.command_line import run_command


@dataclasses.dataclass(frozen=True)
class ModelSize:
    """Size of a decoder-only transformer over bytes.

    Attributes:
        layers: number of blocks.
        width: size of the residual stream.
        heads: number of query heads.
        kv_heads: number of key and value heads.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int


@dataclasses.dataclass(frozen=True)
class Training:
    """How every model is trained: AdamW, warmed up and decayed to a tenth by a cosine.

    Attributes:
        batch_size: rows per step.
        sequence_length: tokens (bytes) per row.
        student_learning_rate: peak learning rate of the students.
        teacher_learning_rate: peak learning rate of the teacher.
        micro_batches: parts that a batch is split into; results do not depend on it.
        checkpoint_every: steps between checkpoints; the command resumes from the newest.
        evaluate_every: steps between the points of the validation curve.
    """

    batch_size: int = 16
    sequence_length: int = 128
    student_learning_rate: float = 1e-2
    teacher_learning_rate: float = 4e-3
    micro_batches: int = 1
    checkpoint_every: int = 100
    evaluate_every: int = 50


@dataclasses.dataclass(frozen=True)
class KdConfig:
    """Distils a small language model from a larger one, on real text, under any divergence.

    Trains a teacher (once per output directory), a student alone on the labels, and a student
    under each divergence; prints one table and writes metrics, checkpoints, results.json and
    curves.png. A run that was stopped goes on where it was; what is finished is reused.

    Attributes:
        divergence: divergence from teacher to student, such as "forward_kl", "alpha(0.5)" or
            "0.7*forward_kl + 0.3*reverse_kl"; may be repeated. Default: forward_kl.
        output: the experiment's directory.
        data: a text file, or JSON lines with a field "text" (suffix .jsonl). Default: the help
            topics of Python itself.
        seed: seed of parameters and batches.
        steps: steps of every student.
        teacher_steps: steps of the teacher.
        temperature: both distributions are softened by it before they are compared.
        distill_weight: weight of the divergence; the rest is cross-entropy on the labels.
        training: how every model is trained.
        student: size of the students.
        teacher: size of the teacher.
    """

    divergence: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    output: Path = Path("runs/kd")
    data: Path | None = None
    seed: int = 0
    steps: int = 400
    teacher_steps: int = 400
    temperature: float = 1.0
    distill_weight: float = 1.0
    training: Training = Training()
    student: ModelSize = ModelSize(layers=2, width=48, heads=4, kv_heads=2)
    teacher: ModelSize = ModelSize(layers=4, width=128, heads=4, kv_heads=2)

    def __post_init__(self):
        training = self.training
        for name, value in {
            "--steps": self.steps,
            "--teacher-steps": self.teacher_steps,
            "--training.batch-size": training.batch_size,
            "--training.micro-batches": training.micro_batches,
            "--training.checkpoint-every": training.checkpoint_every,
            "--training.evaluate-every": training.evaluate_every,
        }.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if training.sequence_length < 2:
            raise ValueError("--training.sequence-length must be at least 2")
        if training.batch_size % training.micro_batches:
            raise ValueError("--training.micro-batches must divide --training.batch-size")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"--seed must be in [0, 2**32), got {self.seed}")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"--temperature must be positive, got {self.temperature}")
        if not 0 <= self.distill_weight <= 1:
            raise ValueError(f"--distill-weight must be in [0, 1], got {self.distill_weight}")


def main(arguments: list[str]) -> int:
    """Runs `divax kd` and returns its exit code.

    Example:
        >>> main(["--steps", "0", "--output", "/nowhere"])
        2
    """
    return run_command("divax kd", KdConfig, arguments, run)


def run(config: KdConfig) -> None:
    """Runs the experiment and prints its table.

    Raises:
        RunError: wrong input, or a run that cannot go on.
        Interrupted: SIGINT or SIGTERM.

    Example:
        >>> run(KdConfig(divergence=("forwardkl",)))
        Traceback (most recent call last):
        divax.trainers.errors.RunError: ...forward_kl...
    """
    from divax.trainers.kd_experiment import Experiment
    from divax.trainers.kd_report import curves, table

    experiment = Experiment.prepare(config)
    rows = experiment.run(lambda line: sys.stderr.write(line + "\n"))
    sys.stdout.write(table(rows) + "\n")
    try:
        picture = curves(experiment.curves(), rows, experiment.directory / "curves.png")
    except ImportError:
        picture = "no curves.png: pip install 'divax[plot]' for matplotlib"
    sys.stdout.write(f"\nwritten: {experiment.directory / 'results.json'}, {picture}\n")
