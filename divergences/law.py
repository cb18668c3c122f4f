"""What a law is, how one is tried on a divergence, and the error that names the law and the inputs that broke it."""

from __future__ import annotations

import abc
import difflib
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from divax.divergences.base import AbstractDivergence
from divax.divergences.f_divergence import AbstractFDivergence

ROWS = 32
"""Rows per evaluation: one shape, so that a divergence is compiled once per dtype and not once per law."""


class BrokenLaw(AssertionError):
    """A divergence, or an objective, broke a law; the message names both and shows the inputs.

    Attributes:
        law: the law's name.
        inputs: what broke it, as NumPy arrays by name (empty when it raised).

    Example:
        >>> from divax import divergences as dv
        >>> issubclass(dv.BrokenLaw, AssertionError)
        True
    """

    def __init__(self, message: str, law: str = "", inputs: dict[str, np.ndarray] | None = None):
        super().__init__(message)
        self.law = law
        self.inputs = inputs or {}


AnyTrial = TypeVar("AnyTrial", bound="AbstractTrial")


class Law(NamedTuple, Generic[AnyTrial]):
    """A named statement that every divergence (or objective) with a certain capability obeys.

    Example:
        >>> from divax import divergences as dv
        >>> dv.LAWS["non_negative"].statement
        'D(p, q) ≥ 0'

    Attributes:
        name: snake case.
        statement: one line of mathematics.
        check: tries the law; raises BrokenLaw.
        skipped: why the law does not apply to what is on trial, or None when it does.
    """

    name: str
    statement: str
    check: Callable[[AnyTrial], None]
    skipped: Callable[[AnyTrial], str | None]


class Verdict(NamedTuple):
    """How a divergence (or an objective) fared with one law.

    Example:
        >>> from divax import divergences as dv
        >>> verdict = dv.check_law(dv.TotalVariation(), "curvature")
        >>> verdict.cases, verdict.skipped
        (0, 'it has no curvature')

    Attributes:
        law: its name.
        statement: its statement.
        cases: how many cases were decided.
        skipped: why it does not apply, or None.
    """

    law: str
    statement: str
    cases: int
    skipped: str | None


def law(
    statement: str, *skipped: Callable[[AnyTrial], str | None]
) -> Callable[[Callable[[AnyTrial], None]], Law[AnyTrial]]:
    """Decorator: turns a function of a trial into the law of that name."""

    def first_reason(trial: AnyTrial) -> str | None:
        return next((reason for skip in skipped if (reason := skip(trial))), None)

    return lambda check: Law(check.__name__, statement, check, first_reason)


def named_law(laws: Mapping[str, Law[AnyTrial]], name: str) -> Law[AnyTrial]:
    """The law of that name; a ValueError that offers the nearest ones where there is none."""
    if name not in laws:
        near = ", ".join(difflib.get_close_matches(name, laws, n=3, cutoff=0.0))
        raise ValueError(f"unknown law {name!r}; did you mean {near}?")
    return laws[name]


def verdict_of(one: Law[AnyTrial], trial: AnyTrial, reason: str | None) -> Verdict:
    """Tries a law in double precision, unless there is a reason to skip it; an exception is the law broken."""
    if reason:
        return Verdict(one.name, one.statement, 0, reason)
    with jax.enable_x64(True):
        try:
            one.check(trial)
        except BrokenLaw:
            raise
        except Exception as error:
            first_line = str(error).partition("\n")[0]
            raise trial.broken(f"it raised {type(error).__name__}: {first_line}") from error
    return Verdict(one.name, one.statement, trial.cases, None)


def needs_generator(trial: Trial) -> str | None:
    """For laws of generators."""
    return None if isinstance(trial.div, AbstractFDivergence) else "not an f-divergence"


def needs_smoothness(trial: Trial) -> str | None:
    """For laws that a kink of the generator breaks."""
    return None if getattr(trial.div, "smooth", True) else "its generator has a kink"


def needs_free_vocabulary(trial: Trial) -> str | None:
    """For laws that change the vocabulary's size."""
    return "its vocabulary is fixed" if trial.fixed_vocabulary else None


def _evaluate(div, target, model):
    value, pullback = jax.vjp(lambda t, s: div(t, s), target, model)
    return value, *pullback(jnp.ones_like(value))


_evaluate_compiled = jax.jit(_evaluate)


class AbstractTrial(abc.ABC):
    """One law tried on one thing: the random inputs, reproducible from the seed, and the verdict.

    Attributes:
        name: the law's name.
        statement: its statement.
        rng: generator of this law's inputs.
        cases: how many cases have been decided so far.
    """

    def __init__(self, of: Law, seed: int):
        self.name, self.statement = of.name, of.statement
        self.rng = np.random.default_rng((seed, zlib.crc32(of.name.encode())))
        self.cases = 0

    @property
    @abc.abstractmethod
    def subject(self) -> str:
        """The name of what is on trial."""

    def broken(self, claim: str, inputs: dict[str, np.ndarray] | None = None) -> BrokenLaw:
        """The error to raise: what is on trial, the law, the claim and the inputs."""
        text = "".join(f", {name}={_show(value)}" for name, value in (inputs or {}).items())
        return BrokenLaw(
            f"{self.subject} breaks the law {self.name!r}, {self.statement}: {claim}{text}",
            self.name,
            inputs,
        )


class Trial(AbstractTrial):
    """One law tried on one divergence: its inputs and its evaluations.

    Attributes:
        div: the divergence on trial.
        vocab_size: V of the inputs.
        fixed_vocabulary: no other V can be used (a cost matrix, an embedding).
    """

    def __init__(
        self, of: Law, div: AbstractDivergence, vocab_size: int, fixed_vocabulary: bool, seed: int
    ):
        super().__init__(of, seed)
        self.div, self.vocab_size, self.fixed_vocabulary = div, vocab_size, fixed_vocabulary

    @property
    def subject(self) -> str:
        """The divergence's specification."""
        return self.div.name

    @property
    def generator(self) -> AbstractFDivergence:
        """The divergence, known to be an f-divergence."""
        assert isinstance(self.div, AbstractFDivergence)
        return self.div

    def logits(self, scale: float = 1.0, rows: int = ROWS) -> np.ndarray:
        """Normal logits `[rows, V]` in double precision."""
        return scale * self.rng.standard_normal((rows, self.vocab_size))

    def ordinary(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pairs of logits: flat and peaked, near and far."""
        for scale in (0.3, 1.0, 3.0):
            yield self.logits(scale), self.logits(scale)
        near = self.logits(2.0)
        yield near, near + self.logits(0.01)

    def value(self, target: np.ndarray, model: np.ndarray, div: Any = None) -> np.ndarray:
        """D of every row, compiled, in the dtype of the inputs."""
        return self.value_and_gradients(target, model, div)[0]

    def value_and_gradients(
        self, target: np.ndarray, model: np.ndarray, div: Any = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """D `[N]` and its gradients by both logits `[N, V]`, of N rows, in blocks of `ROWS`."""
        div, count = self.div if div is None else div, len(target)
        # Compiling pays for the shape that all laws share, not for one that a single law uses once.
        evaluate = _evaluate_compiled if target.shape[-1] == self.vocab_size else _evaluate
        pad = ((0, -count % ROWS), (0, 0))
        target, model = np.pad(target, pad), np.pad(model, pad)
        blocks = [
            evaluate(div, jnp.asarray(target[at : at + ROWS]), jnp.asarray(model[at : at + ROWS]))
            for at in range(0, len(target), ROWS)
        ]
        value, by_target, by_model = (
            np.concatenate([np.asarray(x) for x in part]) for part in zip(*blocks, strict=True)
        )
        return value[:count], by_target[:count], by_model[:count]

    def require(self, ok: Any, claim: str, **inputs: Any) -> None:
        """Counts the cases and raises `BrokenLaw` on the first that is not ok.

        Args:
            ok: boolean, any shape; its first axis picks the rows of those inputs that have as many.
            claim: what should have held, for the message.
            **inputs: what to show.
        """
        ok = np.atleast_1d(np.asarray(ok))
        self.cases += ok.size
        if ok.all():
            return
        row = int(np.argwhere(~ok)[0][0])
        shown = {
            name: value[row] if value.ndim and len(value) == len(ok) else value
            for name, value in ((name, np.asarray(value)) for name, value in inputs.items())
        }
        raise self.broken(claim, shown)


def _show(value: np.ndarray) -> str:
    edges = 3 if value.ndim < 2 else 1
    return np.array2string(
        value, precision=9, separator=", ", threshold=20, edgeitems=edges, max_line_width=10**6
    ).replace("\n", "")


def close(got: Any, want: Any, relative: float, absolute: float = 0.0) -> np.ndarray:
    """Elementwise |got − want| ≤ absolute + relative·|want|; equal infinities are close, NaN is not."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    return np.isclose(got, want, rtol=relative, atol=absolute)
