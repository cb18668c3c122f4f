"""What `divax kd` can be asked for."""

import dataclasses
import operator
from pathlib import Path
from typing import Annotated, Literal

import tyro

from divax.trainers.command_line import at_least, flag


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
        tuning_learning_rate: peak learning rate of those that start as the student alone.
        teacher_learning_rate: peak learning rate of the teacher.
        micro_batches: parts that a batch is split into; results do not depend on it.
        checkpoint_every: steps between checkpoints; the command resumes from the newest.
        evaluate_every: steps between the points of the validation curve.
    """

    batch_size: int = 16
    sequence_length: int = 128
    student_learning_rate: float = 1e-2
    tuning_learning_rate: float = 3e-4
    teacher_learning_rate: float = 4e-3
    micro_batches: int = 1
    checkpoint_every: int = 100
    evaluate_every: int = 50


@dataclasses.dataclass(frozen=True)
class Sampling:
    """What the students that learn from samples are asked to write.

    Attributes:
        prompt_length: tokens of a row that are given; the rest of the row is written.
        teacher_share: of the teacher in who writes: 0 the student, 1 the teacher, between them both
            together, token by token (MiniLLM).
        replay: completions that are kept to be learned from again; 0: each only once.
        fresh: share of the on-policy steps that write new completions, if some are kept.
        max_age: steps after which a kept completion is forgotten.
    """

    prompt_length: int = 32
    teacher_share: float = 0.0
    replay: int = 0
    fresh: float = 0.25
    max_age: int = 100


@dataclasses.dataclass(frozen=True)
class KdConfig:
    """Distils a small language model from a larger one, on real text, under any objective.

    Trains a teacher (once per output directory), a student alone on the labels, and a student
    under each divergence and objective; prints one table and writes metrics, checkpoints,
    results.json and curves.png. A run that was stopped goes on where it was; what is finished is
    reused. `divax kd --task digits --help` explains the same for a classifier of digits.

    Attributes:
        task: "text" (language models), or "digits" (classifiers).
        divergence: divergence from teacher to student, such as "forward_kl", "alpha(0.5)" or
            "0.7*forward_kl + 0.3*reverse_kl"; may be repeated. Default: forward_kl.
        objective: a method by its name, such as "dkd(beta=2)", "gkd(beta=0.1)", "minillm",
            "distillm2" or "seqkd"; may be repeated.
        on_policy: share of the steps on completions that the student writes itself, in [0, 1]; or
            "adaptive", which grows as the validation loss rises (DistiLLM). A student that learns
            from nothing else starts as the student alone.
        sampling: what it writes.
        teacher_run: take the teacher of an earlier divax kd, which had this output directory.
        teacher_cache: learn from what divax cache-teacher wrote of the teacher; its rows are the
            data. The teacher itself is run for the table alone.
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

    task: Literal["text"] = "text"
    divergence: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    objective: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    on_policy: str = "0"
    sampling: Sampling = Sampling()
    teacher_run: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    teacher_cache: Path | None = None
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
        every = "training.checkpoint_every", "training.evaluate_every"
        rows = "training.batch_size", "training.micro_batches", "sampling.prompt_length"
        at_least(1, self, "steps", "teacher_steps", *rows, *every)
        at_least(2, self, "training.sequence_length")
        at_least(0, self, "sampling.replay", "sampling.max_age")
        if training.batch_size % training.micro_batches:
            raise ValueError("--training.micro-batches must divide --training.batch-size")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"--seed must be in [0, 2**32), got {self.seed}")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"--temperature must be positive, got {self.temperature}")
        for name in ("distill_weight", "sampling.teacher_share", "sampling.fresh"):
            value = operator.attrgetter(name)(self)
            if not 0 <= value <= 1:
                raise ValueError(f"{flag(name)} must be in [0, 1], got {value}")
        if self.on_policy != "adaptive":
            _share(self.on_policy)

    @property
    def share(self) -> float | None:
        """Of the on-policy steps; `None` where it adapts."""
        return None if self.on_policy == "adaptive" else _share(self.on_policy)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ValueError(f"--on-policy must be a share in [0, 1] or 'adaptive', got {text!r}")
    return share
