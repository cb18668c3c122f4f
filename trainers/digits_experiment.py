"""The runs of one `divax kd --task digits`: each in its own directory, made once, for all seeds."""

import dataclasses
import functools
import inspect
import io
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from divax import divergences as dv
from divax.trainers.classification import classifier
from divax.trainers.classification_measures import classifier_sums
from divax.trainers.digits_method import AbstractMethod
from divax.trainers.digits_methods import digits_method
from divax.trainers.digits_self_taught import StudentAlone
from divax.trainers.digits_task import digits, digits_split
from divax.trainers.digits_training import DigitsProblem, Setting, train_through
from divax.trainers.errors import Interrupted, NonFiniteError, RunError
from divax.trainers.evaluation import comparison_sums, summarise
from divax.trainers.experiment_parts import place, write_results
from divax.trainers.files import write_atomically
from divax.trainers.interruption import polite_stop
from divax.trainers.model import Model, parameter_count
from divax.trainers.objective_specs import kd
from divax.trainers.run_directory import check, claim

if TYPE_CHECKING:
    from divax.trainers.digits_command import DigitsConfig

TEACHER, ALONE, PARAMS = "teacher", "student alone", "params.npz"


@dataclasses.dataclass(frozen=True)
class DigitsExperiment:
    """A checked configuration with what its runs share.

    Attributes:
        config: what the user asked for.
        methods: by title, the student alone first, then in the order asked for.

    Example:
        >>> from divax.trainers.digits_command import DigitsConfig
        >>> list(DigitsExperiment.prepare(DigitsConfig(objective=("dkd(beta=8)",))).methods)
        ['student alone', 'dkd(beta=8)']
    """

    config: "DigitsConfig"
    methods: dict[str, AbstractMethod]

    @classmethod
    def prepare(cls, config: "DigitsConfig") -> "DigitsExperiment":
        """Checks everything that can be checked before anything is trained or written.

        Raises:
            RunError: an unknown objective or divergence, a number out of range, no scikit-learn, or an
                output directory that is something else's.
        """
        digits()
        usual = inspect.signature(kd).parameters
        settings = "".join(
            f", {name}={getattr(config, name):g}"
            for name in ("temperature", "distill_weight")
            if getattr(config, name) != usual[name].default
        )
        try:
            short = [f"kd(divergence={dv.get(d).name}{settings})" for d in config.divergence]
            asked = [*config.objective, *short] or ["kd"]
            methods = {ALONE: StudentAlone(), **dict(digits_method(text) for text in asked)}
        except ValueError as error:
            raise RunError(str(error)) from error
        experiment = cls(config, methods)
        check(config.output, experiment._shared())
        for title in (*experiment._teachers(), *methods):
            check(place(config.output, title), experiment._own(title))
        return experiment

    @property
    def directory(self) -> Path:
        """Where everything is written."""
        return self.config.output

    def run(self, tell: Callable[[str], Any]) -> dict[str, list[dict[str, float]]]:
        """Trains what is missing, measures everything, and writes results.json.

        Args:
            tell: is given a line after every run.

        Returns:
            The measures of each seed: of the teacher, the student alone, and every method.

        Raises:
            NonFiniteError: a seed of a run diverged; what was finished before is kept.
            Interrupted: a signal; the run that it fell into is finished first.
        """
        claim(self.directory, self._shared())
        student, teacher = self._student(), self._teacher()
        problem, measured = self._problem(), {}
        with polite_stop() as stop:
            for member, title in enumerate(self._teachers()):
                self._go_on(stop)
                fit = functools.partial(_fit_teacher, teacher, problem, member)
                params = self._made(title, teacher.model, fit, tell)
                problem = dataclasses.replace(problem, teachers=(*problem.teachers, params))
            measured[TEACHER] = self._measure(problem, teacher.model, problem.teachers[0])
            for title, method in self.methods.items():
                self._go_on(stop)
                fit = functools.partial(_fit_student, student, method, problem)
                params = self._made(title, student.model, fit, tell)
                measured[title] = self._measure(problem, student.model, params)
        write_results(self.directory, mean_rows(measured))
        return measured

    def _teachers(self) -> list[str]:
        count = max(1, *(method.teachers for method in self.methods.values()))
        return [TEACHER, *(f"{TEACHER} {member}" for member in range(2, count + 1))]

    def _student(self) -> Setting:
        config = self.config
        return Setting(
            config.steps, config.batch_size, config.learning_rate, (config.student_width,)
        )

    def _teacher(self) -> Setting:
        return Setting(self.config.teacher_steps, 100, 2e-3, (self.config.teacher_width,) * 2)

    def _problem(self) -> DigitsProblem:
        config = self.config
        seeds = range(config.seed, config.seed + config.seeds)
        splits = [
            digits_split(seed, transfer=config.transfer, label_noise=config.label_noise)
            for seed in seeds
        ]
        return DigitsProblem(
            split=jax.tree.map(lambda *parts: jnp.stack(parts), *splits),
            teachers=(),
            key=jax.vmap(jax.random.key)(jnp.asarray(seeds)),
            teacher_model=self._teacher().model,
        )

    def _made(self, title: str, model: Model, fit: Callable[[], Any], tell) -> Any:
        """The parameters of a run, for all seeds: those of its file, or new ones."""
        path = claim(place(self.directory, title), self._own(title)) / PARAMS
        like = jax.eval_shape(
            jax.vmap(model.init), jax.random.split(jax.random.key(0), self.config.seeds)
        )
        if path.exists():
            return _load(path, like)
        start = time.monotonic()
        params = jax.device_get(fit())
        for index in range(self.config.seeds):
            if not all(np.isfinite(leaf[index]).all() for leaf in jax.tree.leaves(params)):
                raise NonFiniteError(
                    f"{title}: the parameters of seed {self.config.seed + index} are not finite; "
                    "lower --learning-rate, or the objective's weights"
                )
        _save(path, params)
        tell(
            f"{title}: {self.config.seeds} seeds in {path.parent}, {time.monotonic() - start:.0f} s"
        )
        return params

    def _measure(self, problem: DigitsProblem, model: Model, params: Any) -> list[dict[str, float]]:
        """Of each seed, the measures on the test examples."""
        sums = jax.device_get(_sums(model, problem, params))
        each = [jax.tree.map(lambda x, i=i: x[i], sums) for i in range(self.config.seeds)]
        size = parameter_count(params) // self.config.seeds
        return [{**summarise([one]), "parameters": size} for one in each]

    def _go_on(self, stop) -> None:
        if stop.signal_number is not None:
            raise Interrupted(
                f"stopped by a signal; what is finished is in {self.directory}; "
                "the same command goes on there",
                stop.signal_number,
            )

    def _shared(self) -> dict[str, Any]:
        """What every run of the directory has in common."""
        asked = dataclasses.asdict(self.config)
        free = ("objective", "divergence", "output", "temperature", "distill_weight")
        return {
            "command": "kd --task digits",
            **{name: value for name, value in asked.items() if name not in free},
        }

    def _own(self, title: str) -> dict[str, Any]:
        return {**self._shared(), "run": title}


def _fit_teacher(setting: Setting, problem: DigitsProblem, member: int) -> Any:
    @jax.jit
    def fit(problem: DigitsProblem):
        def one(problem: DigitsProblem):
            trainer = classifier(model=setting.model, optimizer=setting.optimizer)
            # Other parameters and batches than the students', and than the other members'.
            key = jax.random.fold_in(problem.key, 2**21 + member)
            return train_through(trainer, problem.split.teacher, key, setting).params

        return jax.vmap(one)(problem)

    return fit(dataclasses.replace(problem, teachers=()))


def _fit_student(setting: Setting, method: AbstractMethod, problem: DigitsProblem) -> Any:
    kept = dataclasses.replace(problem, teachers=problem.teachers[: method.teachers])
    return _fit_seeds(setting, method, kept)


@functools.partial(jax.jit, static_argnums=0)
def _fit_seeds(setting: Setting, method: AbstractMethod, problem: DigitsProblem) -> Any:
    return jax.vmap(lambda one: method.train(setting, one))(problem)


@functools.partial(jax.jit, static_argnums=0)
def _sums(model: Model, problem: DigitsProblem, params: Any) -> dict[str, Any]:
    def one(problem: DigitsProblem, params: Any):
        test = problem.split.test
        logits, held = model.apply(params, test.inputs), problem.held[0](test)
        return {**classifier_sums(logits, test), **comparison_sums(logits, held, test)}

    return jax.vmap(one)(problem, params)


def mean_rows(measured: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Means over seeds, and of several their standard errors, as `name_se`.

    Args:
        measured: by title, the measures of each seed; "student alone" among them, over which `gain` is
            the accuracy, seed by seed.

    Example:
        >>> alone = [{"accuracy": 0.8}, {"accuracy": 0.9}]
        >>> rows = mean_rows({"student alone": alone, "kd": [{"accuracy": 0.9}, {"accuracy": 1.0}]})
        >>> {name: round(value, 3) for name, value in rows["kd"].items()}
        {'accuracy': 0.95, 'gain': 0.1, 'accuracy_se': 0.05, 'gain_se': 0.0}
    """
    base = np.array([one["accuracy"] for one in measured[ALONE]])
    rows: dict[str, dict[str, float]] = {}
    for title, seeds in measured.items():
        values = {name: np.array([one[name] for one in seeds]) for name in seeds[0]}
        values["gain"] = values["accuracy"] - base
        rows[title] = {name: float(value.mean()) for name, value in values.items()}
        if len(seeds) > 1:
            errors = {name: v.std(ddof=1) / len(v) ** 0.5 for name, v in values.items()}
            rows[title] |= {f"{n}_se": float(e) for n, e in errors.items() if n != "parameters"}
    return rows


def _save(path: Path, params: Any) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, *jax.tree.leaves(params))
    try:
        write_atomically(path, buffer.getvalue())
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror or error}") from error


def _load(path: Path, like: Any) -> Any:
    leaves, structure = jax.tree.flatten(like)
    try:
        with np.load(io.BytesIO(path.read_bytes())) as file:
            found = [file[f"arr_{i}"] for i in range(len(leaves))]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise RunError(
            f"{path}: cannot be read: {error}; delete it, and it is made anew"
        ) from error
    if [x.shape for x in found] != [x.shape for x in leaves]:
        raise RunError(f"{path}: holds another model; delete it, and it is made anew")
    return structure.unflatten(found)
