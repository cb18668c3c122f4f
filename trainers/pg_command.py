"""`divax pg`: a base model, and policies that learn from rewards under each method and regulariser."""

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
        prompts: prompts of a step.
        group_size: completions of each.
        epochs: passes over a rollout.
        minibatches: updates of a pass.
        micro_batches: parts that an update is computed in; results do not depend on it.
        oversample: up to so many times the prompts are tried until the groups are informative
            (dynamic sampling); 1 takes them as they come.
        temperature: of the sampler.
        learning_rate: peak learning rate of the policies.
        reset_every: steps after which reference and optimizer start anew from the policy, as in
            prolonged training (ProRL). Default: never.
        base_steps: steps of the base. Default: the task's.
        base_batch_size: rows per step of the base.
        base_learning_rate: peak learning rate of the base. Default: the task's.
        max_length: with --data, length of a prompt with its completion.
        checkpoint_every: steps between checkpoints; the command resumes from the newest.
        evaluate_every: steps between evaluations, which draw the picture.
        samples: completions of each held-out problem at an evaluation: pass@1 to pass@samples.
        reward_workers: processes that rewards are computed in. Default: one per CPU, at most 8.
        reward_timeout: seconds that one reward may take.
    """

    prompts: int = 16
    group_size: int = 8
    epochs: int = 1
    minibatches: int = 2
    micro_batches: int = 1
    oversample: int = 1
    temperature: float = 1.0
    learning_rate: float = 3e-4
    reset_every: int | None = None
    base_steps: int | None = None
    base_batch_size: int = 64
    base_learning_rate: float | None = None
    max_length: int = 256
    checkpoint_every: int = 25
    evaluate_every: int = 10
    samples: int = 8
    reward_workers: int | None = None
    reward_timeout: float = 10.0


@dataclasses.dataclass(frozen=True)
class PgConfig:
    """Improves a small language model by policy gradients on rewards, held to its base.

    Trains a base by supervised learning (once per output directory) and a policy under each method
    and regulariser; prints one table: pass@1 and pass@k on held-out problems, distinct right
    answers, what of the base's problems is still solved, reward, divergences to the base, entropy,
    length; and writes metrics, checkpoints, results.json and pass.png. A run that was stopped goes
    on where it was; what is finished is reused.

    Attributes:
        method: rloo, grpo, dr_grpo, dapo, gspo, cispo, ppo, rpg_reverse, ...; may be repeated.
            Default: rloo.
        divergence: from the base to the policy, in place of the methods' own regulariser, such as
            "reverse_kl", "forward_kl" or "jensen_shannon"; "none" for none; may be repeated.
        beta: weight of the regulariser. Default: the method's own, and 0.05 with --divergence.
        task: what is learnt.
        data: JSON lines of prompt and answer, instead of a task.
        reward: MODULE:FUNCTION, a reward of (prompt, completion, answer), with --data. Default:
            1 where the completion is the answer.
        output: the experiment's directory.
        seed: seed of parameters, samples and batches.
        steps: steps of every policy.
        training: how base and policies are trained.
        model: size of base and policies.
    """

    method: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    divergence: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    beta: float | None = None
    task: Literal["addition", "countdown", "sorting", "modular_sum"] = "addition"
    data: Path | None = None
    reward: str | None = None
    output: Path = Path("runs/pg")
    seed: int = 0
    steps: int = 60
    training: Training = Training()
    model: ModelSize = ModelSize(layers=2, width=96, heads=4, kv_heads=2)  # noqa: RUF009 (frozen)

    def __post_init__(self):
        training = self.training
        rollout = "training.prompts", "training.epochs", "training.oversample"
        parts = "training.minibatches", "training.micro_batches", "training.base_batch_size"
        every = "training.checkpoint_every", "training.evaluate_every", "training.reset_every"
        at_least(1, self, "steps", "training.base_steps", *rollout, *parts, *every)
        at_least(2, self, "training.samples")
        if training.group_size < 2:
            raise ValueError(
                "--training.group-size must be at least 2: a group is its own baseline"
            )
        rows = training.prompts * training.group_size
        if rows % (training.minibatches * training.micro_batches):
            raise ValueError(
                "--training.minibatches times --training.micro-batches must divide prompts times "
                f"group size, {rows}"
            )
        for name in ("temperature", "reward_timeout", "learning_rate", "base_learning_rate"):
            value = getattr(training, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{flag('training.' + name)} must be positive")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"--seed must be in [0, 2**32), got {self.seed}")
        if self.beta is not None and not 0 < self.beta < float("inf"):
            raise ValueError(f"--beta must be positive, got {self.beta}")
        if self.reward is not None and self.data is None:
            raise ValueError("--reward goes with --data: the tasks have rewards of their own")


def main(arguments: list[str]) -> int:
    """Runs `divax pg` and returns its exit code.

    Example:
        >>> main(["--steps", "0", "--output", "/nowhere"])
        2
    """
    return run_command("divax pg", PgConfig, arguments, run)


def run(config: PgConfig) -> None:
    """Runs the experiment and prints its table.

    Raises:
        RunError: wrong input, or a run that cannot go on.
        Interrupted: SIGINT or SIGTERM.

    Example:
        >>> run(PgConfig(method=("rlo",)))
        Traceback (most recent call last):
        divax.trainers.errors.RunError: unknown method 'rlo'; did you mean rloo, ...
    """
    from divax.trainers.pg_experiment import Experiment
    from divax.trainers.pg_report import matched_table, picture, table

    experiment = Experiment.prepare(config)
    rows = experiment.run(lambda line: sys.stderr.write(line + "\n"))
    curves = experiment.curves()
    sys.stdout.write(table(rows) + "\n")
    if len(curves) > 1:
        sys.stdout.write("\n" + matched_table(curves) + "\n")
    try:
        drawn = picture(curves, experiment.directory / "pass.png")
    except ImportError:
        drawn = "no pass.png: pip install 'divax[plot]' for matplotlib"
    sys.stdout.write(f"\nwritten: {experiment.directory / 'results.json'}, {drawn}\n")
