"""Whose texts a student learns from: the data, its own samples, or the teacher's."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from divax.objectives import FROM_DATA, FROM_STUDENT, FROM_TEACHER
from divax.trainers.batch import Batch
from divax.trainers.mixed_decoding import mixed_model
from divax.trainers.model import Model
from divax.trainers.sampling import sample
from divax.trainers.teacher import AbstractTeacher
from divax.trainers.token_streams import SamplingSettings


class Roles(NamedTuple):
    """Who takes part in a step.

    Attributes:
        student: the model that is trained.
        params: its parameters, as they are before the step.
        teacher: of this step.
        loss: of a batch, a scalar: what the step would minimise on it.
        step: int32 scalar, 0 at the first update.
        key: of the step.
        mesh: the trainer's.

    Example:
        >>> Roles._fields[:3]
        ('student', 'params', 'teacher')
    """

    student: Model
    params: Any
    teacher: AbstractTeacher
    loss: Callable[[Batch], jax.Array]
    step: jax.Array
    key: jax.Array
    mesh: Mesh | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Drawn:
    """The rows of a step.

    Attributes:
        batch: tokens, and what counts of them.
        sampler_logps: `[B, T]` at the tokens' own places, under what drew them; 0 for data.
        writers: `[B]` int32, as in `objectives.DistillationRows`.

    Example:
        >>> import numpy as np
        >>> Drawn.data(Batch(tokens=np.zeros((2, 3), np.int32))).writers.tolist()
        [0, 0]
    """

    batch: Batch
    sampler_logps: jax.Array
    writers: jax.Array

    @classmethod
    def data(cls, batch: Batch) -> "Drawn":
        """Rows that nobody has drawn."""
        shape = batch.tokens.shape
        none = jnp.zeros(shape, jnp.result_type(float))
        return cls(batch, none, jnp.full(shape[:1], FROM_DATA, jnp.int32))


#: A source's part of the run's state, and its metrics.
Memory = Any
Metrics = dict[str, jax.Array]


class AbstractSampleSource(abc.ABC):
    """A pytree that turns a batch of data into the rows of a step, inside the jitted step.

    It keeps no state of its own: its memory is part of the run's state, and so of its checkpoints.

    Example:
        >>> issubclass(DataSamples, AbstractSampleSource)
        True
    """

    @abc.abstractmethod
    def init(self) -> Memory:
        """The memory before the first step, a pytree of arrays."""

    @abc.abstractmethod
    def draw(self, batch: Batch, memory: Memory, roles: Roles) -> tuple[Drawn, Memory, Metrics]:
        """The rows of a step, of the batch's shape unless it says otherwise."""

    def check(self, batch: Batch) -> None:
        """Raises unless the batch, whose arrays are on the host, has what is needed."""
        del batch


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DataSamples(AbstractSampleSource):
    """The batch as it is.

    Example:
        >>> DataSamples().init()
        ()
    """

    def init(self) -> tuple[()]:
        """Nothing."""
        return ()

    def draw(self, batch: Batch, memory: Memory, roles: Roles) -> tuple[Drawn, Memory, Metrics]:
        """The batch."""
        del roles
        return Drawn.data(batch), memory, {}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ModelSamples(AbstractSampleSource):
    """Completions of the batch's prompts, written by the student, the teacher, or both at once.

    A row's prompt is what stands before its first target; where the row's first token counts as a
    target it is plain text, whose first `prompt_length` tokens are the prompt. A row without a
    target gets no completion.

    Attributes:
        settings: the sampler's; prompts and completions together have the batch's length.
        prompt_length: tokens of the longest prompt.
        teacher_share: who writes: 0 the student, 1 the teacher, between them the mixture of both
            with this share of the teacher, token by token (MiniLLM).

    Raises:
        ValueError: numbers out of range.

    Example:
        >>> from divax import trainers as tr
        >>> source = ModelSamples(tr.SamplingSettings(24), prompt_length=8)
        >>> source.init()
        ()

    Source: R. Agarwal et al., "On-Policy Distillation of Language Models" (GKD), arXiv:2306.13649,
    algorithm 1; Y. Gu et al., "MiniLLM", arXiv:2306.08543, section 2.2.
    """

    settings: SamplingSettings = dataclasses.field(metadata={"static": True})
    prompt_length: int = dataclasses.field(metadata={"static": True})
    teacher_share: float = dataclasses.field(default=0.0, metadata={"static": True})

    def __post_init__(self):
        if self.prompt_length < 1:
            raise ValueError(f"prompt_length must be at least 1, got {self.prompt_length}")
        if not 0 <= self.teacher_share <= 1:
            raise ValueError(f"teacher_share must lie in [0, 1], got {self.teacher_share}")

    def init(self) -> tuple[()]:
        """Nothing."""
        return ()

    def check(self, batch: Batch) -> None:
        """Every prompt has room, and there is one at all.

        Raises:
            ValueError: else; the row is named.
        """
        _check_shape(batch, self)
        if batch.mask is None:
            return
        mask = np.asarray(batch.mask) != 0
        live = mask.any(axis=1)
        if not live.any():
            raise ValueError("no row of the batch has a target, so there is no prompt to complete")
        first = np.where(mask[:, 0], 0, mask.argmax(axis=1)) * live
        if first.max() > self.prompt_length:
            row = int(first.argmax())
            raise ValueError(
                f"the prompt of row {row} has {first[row]} tokens, and prompt_length is "
                f"{self.prompt_length}"
            )

    def draw(self, batch: Batch, memory: Memory, roles: Roles) -> tuple[Drawn, Memory, Metrics]:
        """Prompts with new completions, `[B, prompt_length + max_new_tokens]`."""
        _check_shape(batch, self)
        tokens, prompt, live = _prompts(batch, self.prompt_length)
        model, params, writer = self._writer(roles)
        settings = self.settings
        samples = sample(
            model,
            params,
            tokens,
            jax.random.fold_in(roles.key, 1),
            prompt_mask=prompt,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            stop_token=settings.stop_token,
            mesh=roles.mesh,
        )
        mask = samples.mask * live[:, None].astype(samples.mask.dtype)
        writers = jnp.full(live.shape, writer, jnp.int32)
        drawn = Drawn(Batch(tokens=samples.tokens, mask=mask), samples.sampler_logps, writers)
        weights = live.astype(jnp.float32)
        rows = jnp.maximum(jnp.sum(weights), 1)
        return jax.lax.stop_gradient(drawn), memory, {
            "samples/length": jnp.sum(samples.completion_lengths.astype(jnp.float32) * weights) / rows,
            "samples/finished": jnp.sum(samples.stopped.astype(jnp.float32) * weights) / rows,
        }  # fmt: skip

    def _writer(self, roles: Roles) -> tuple[Model, Any, int]:
        if self.teacher_share == 0:
            return roles.student, roles.params, FROM_STUDENT
        teacher = roles.teacher.as_writer("a source with a teacher_share")
        if self.teacher_share == 1:
            return teacher.model, teacher.params, FROM_TEACHER
        both = mixed_model(roles.student, teacher.model, self.teacher_share)
        return both, (roles.params, teacher.params), FROM_STUDENT


def _check_shape(batch: Batch, source: ModelSamples) -> None:
    if batch.segment_ids is not None:
        raise ValueError("packed rows have no single prompt: give one document to a row")
    length, new = batch.tokens.shape[1], source.settings.max_new_tokens
    if source.prompt_length + new != length:
        raise ValueError(
            f"prompt_length {source.prompt_length} and max_new_tokens {new} must add up to the "
            f"batch's length {length}"
        )


def _prompts(batch: Batch, length: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Tokens `[B, P]`, which of them are prompt, and which rows have something to complete."""
    tokens = jnp.asarray(batch.tokens)[:, :length].astype(jnp.int32)
    if batch.mask is None:
        live = jnp.ones(tokens.shape[:1], bool)
        return tokens, jnp.ones(tokens.shape, bool), live
    mask = jnp.asarray(batch.mask) != 0
    live = jnp.any(mask, axis=1)
    first = jax.lax.argmax(mask, 1, jnp.int32)
    ends = jnp.where(mask[:, 0] | ~live, length, first)
    return tokens, jnp.arange(length, dtype=jnp.int32)[None] < ends[:, None], live
