"""`divax fdpo`: a base model, and a policy aligned from it under each divergence."""

import dataclasses
import sys
from pathlib import Path
from typing import Literal

import tyro

from divax.trainers.command_line import at_least, flag, run_command
from divax.trainers.kd_config import ModelSize


@dataclasses.dataclass(frozen=True)
class Training:
    """How base and policies are trained: AdamW, warmed up and decayed to a tenth by a cosine.

    Attributes:
        batch_size: preference pairs per step.
        learning_rate: peak learning rate of the policies. Default: 1e-4, and 2e-3 for --task gold.
        base_batch_size: rows per step of the base.
        base_length: tokens per row of the base.
        base_learning_rate: peak learning rate of the base.
        micro_batches: parts that a batch is split into; results do not depend on it.
        max_length: with --data, length of the rows of a prompt and its two completions.
        checkpoint_every: steps between checkpoints; the command resumes from the newest.
        evaluate_every: steps between evaluations, which draw the frontier.
    """

    batch_size: int = 32
    learning_rate: float | None = None
    base_batch_size: int = 16
    base_length: int = 128
    base_learning_rate: float = 5e-3
    micro_batches: int = 1
    max_length: int = 512
    checkpoint_every: int = 100
    evaluate_every: int = 50

    def __post_init__(self):
        for name in ("learning_rate", "base_learning_rate"):
            rate = getattr(self, name)
            if rate is not None and not 0 < rate < float("inf"):
                raise ValueError(f"{flag('training.' + name)} must be positive, got {rate}")


@dataclasses.dataclass(frozen=True)
class FdpoConfig:
    """Aligns a small language model with preferences, under any admissible divergence (f-DPO).

    Trains a base (once per output directory), draws the pairs, scores them under the reference
    once, and trains a policy under each divergence and beta; prints one table, before and after,
    and writes metrics, checkpoints, pairs, results.json and frontier.png. A run that was stopped
    goes on where it was; what is finished is reused.

    Attributes:
        divergence: from the reference to the policy, such as "reverse_kl" (DPO), "alpha(0.5)" or
            "chi2_kl(0.5)"; may be repeated. Default: reverse_kl.
        beta: strength of the regularisation; may be repeated. Default: 1, and 0.1 with --data.
        loss: of a pair: logistic (DPO), squared (IPO), hinge (SLiC), robust, exo, ...; or of
            labelled completions: kto, unpaired_bco.
        label_smoothing: probability that a label is wrong (conservative DPO; the noise that
            --loss robust corrects).
        normalize: divide each divergence by its curvature, so that one beta means one strength.
        task: "text" prefers the corpus's own continuation to one that the base samples; "gold" has
            a known reward and a known optimal policy.
        data: JSON lines of prompt, chosen and rejected (or prompt, completion and label) to align
            with, instead of a task.
        reward: MODULE:FUNCTION, a reward of (prompt, completion) that samples are measured by;
            with --data.
        output: the experiment's directory.
        seed: seed of parameters, samples and batches.
        steps: steps of every policy.
        base_steps: steps of the base.
        training: how base and policies are trained.
        model: size of base and policies.
    """

    divergence: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    beta: tyro.conf.UseAppendAction[tuple[float, ...]] = ()
    loss: str = "logistic"
    label_smoothing: float = 0.0
    normalize: bool = True
    task: Literal["text", "gold"] = "text"
    data: Path | None = None
    reward: str | None = None
    output: Path = Path("runs/fdpo")
    seed: int = 0
    steps: int = 300
    base_steps: int = 400
    training: Training = Training()
    model: ModelSize = ModelSize(layers=2, width=96, heads=4, kv_heads=2)  # noqa: RUF009 (frozen)

    def __post_init__(self):
        training = self.training
        every = "training.checkpoint_every", "training.evaluate_every"
        rows = "training.batch_size", "training.base_batch_size", "training.micro_batches"
        at_least(1, self, "steps", "base_steps", *rows, *every)
        at_least(2, self, "training.base_length", "training.max_length")
        # Both completions of a pair are rows.
        if 2 * training.batch_size % training.micro_batches:
            raise ValueError("--training.micro-batches must divide twice --training.batch-size")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"--seed must be in [0, 2**32), got {self.seed}")
        for beta in self.beta:
            if not 0 < beta < float("inf"):
                raise ValueError(f"--beta must be positive, got {beta}")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"--label-smoothing must be in [0, 0.5), got {self.label_smoothing}")
        if self.loss in ("kto", "unpaired_bco") and (self.data is None or self.label_smoothing):
            raise ValueError(
                f"--loss {self.loss} goes with --data of labelled completions, without "
                "--label-smoothing"
            )
        if self.reward is not None and self.data is None:
            raise ValueError("--reward goes with --data: the tasks have rewards of their own")
        if self.data is not None and self.task != "text":
            raise ValueError("--data and --task gold exclude each other")


def main(arguments: list[str]) -> int:
    """Runs `divax fdpo` and returns its exit code.

    Example:
        >>> main(["--steps", "0", "--output", "/nowhere"])
        2
    """
    return run_command("divax fdpo", FdpoConfig, arguments, run)


def run(config: FdpoConfig) -> None:
    """Runs the experiment and prints its table.

    Raises:
        RunError: wrong input, or a run that cannot go on.
        Interrupted: SIGINT or SIGTERM.

    Example:
        >>> run(FdpoConfig(divergence=("total_variation",)))
        Traceback (most recent call last):
        divax.trainers.errors.RunError: total_variation has a kink, ...
    """
    from divax.trainers.fdpo_experiment import Experiment
    from divax.trainers.fdpo_report import frontier, table

    experiment = Experiment.prepare(config)
    rows = experiment.run(lambda line: sys.stderr.write(line + "\n"))
    sys.stdout.write(table(rows) + "\n\nown D is what is penalised, of whole completions; from ")
    found = experiment.estimators().items()
    sys.stdout.write("; ".join(f"the {how} ({title})" for title, how in found) + "\n")
    try:
        picture = frontier(
            experiment.curves(), experiment.best(), experiment.directory / "frontier.png"
        )
    except ImportError:
        picture = "no frontier.png: pip install 'divax[plot]' for matplotlib"
    sys.stdout.write(f"\nwritten: {experiment.directory / 'results.json'}, {picture}\n")
