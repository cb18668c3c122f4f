"""Log-probs of sampled tokens under a policy, with the sampler's temperature and truncation replayed."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from divax.divergences import LinearHead
from divax.divergences.fused_linear import Implementation
from divax.objectives import TokenStatistics, token_statistics
from divax.objectives.label_log_probs import label_log_probs
from divax.trainers.batch import Batch
from divax.trainers.implementation import implementation_for
from divax.trainers.model import Model, hidden_logits, predict
from divax.trainers.sharding import rows_over_devices
from divax.trainers.truncation import sampler_logits


@dataclasses.dataclass(frozen=True)
class SamplingSettings:
    """How completions are drawn; every stream of log-probs is of this distribution.

    Attributes:
        max_new_tokens: length of a completion at most.
        temperature: positive.
        top_k: see `sampler_logits`.
        top_p: see `sampler_logits`.
        stop_token: what ends a completion; `None`: nothing.

    Raises:
        ValueError: a temperature that is not positive: a greedy sampler has no gradient.

    Example:
        >>> SamplingSettings(8, temperature=0.0)
        Traceback (most recent call last):
        ValueError: temperature must be positive, got 0.0: a greedy sampler has no policy gradient
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    stop_token: int | None = None

    def __post_init__(self):
        if not self.temperature > 0:
            raise ValueError(
                f"temperature must be positive, got {self.temperature}: a greedy sampler has no "
                "policy gradient"
            )

    @property
    def truncates(self) -> bool:
        """Whether some tokens are never drawn."""
        return self.top_k is not None or self.top_p is not None


class TokenStreams(NamedTuple):
    """What a forward pass says about the tokens that were drawn; `[B, T]` at the tokens' own places.

    Attributes:
        log_probs: of each token, 0 where none was drawn.
        entropies: of the distribution that it was drawn from; `None` where not asked for.
        logits: `[B, T, V]` of that distribution; `None` where not asked for.
        divergences: of a reference from that distribution; `None` where not asked for, or where there
            are logits to take it of.

    Example:
        >>> TokenStreams._fields
        ('log_probs', 'entropies', 'logits', 'divergences')
    """

    log_probs: jax.Array
    entropies: jax.Array | None = None
    logits: jax.Array | None = None
    divergences: jax.Array | None = None


class Against(NamedTuple):
    """A reference, and how far it is from a policy.

    Attributes:
        params: the reference's.
        divergence: D(reference, policy).

    Example:
        >>> Against._fields
        ('params', 'divergence')
    """

    params: Any
    divergence: Any


class UnreadStreams(NamedTuple):
    """What streams are made of without all logits; see `token_statistics`.

    Attributes:
        rows: states of the policy and of a reference (or None), and labels, at the places before the tokens.
        whole: the policy's head, the reference's, and the divergence (or None).
        temperature: the sampler's.
        how: "fast" or "lean".

    Example:
        >>> UnreadStreams._fields
        ('rows', 'whole', 'temperature', 'how')
    """

    rows: tuple[jax.Array, jax.Array | None, jax.Array]
    whole: tuple[Any, Any, Any]
    temperature: float
    how: Implementation

    def arguments(self, rows: Any, whole: Any) -> dict[str, Any]:
        """Of `token_statistics`, for some of the rows."""
        return {
            "hidden": rows[0],
            "head": whole[0],
            "labels": rows[2],
            "reference_hidden": rows[1],
            "reference_head": whole[1],
            "divergence": whole[2],
            "temperature": self.temperature,
            "implementation": self.how,
        }


def unread_streams(
    model: Model,
    params: Any,
    batch: Batch,
    settings: SamplingSettings,
    *,
    against: Against | None = None,
    mesh: Mesh | None = None,
    implementation: Implementation | None = None,
) -> UnreadStreams | None:
    """States and heads in place of the logits of an untruncated sampler.

    Args:
        model: the model.
        params: its parameters.
        batch: the samples; the mask counts what was drawn.
        settings: the sampler's.
        against: a reference of the same model; `None` leaves the divergences out.
        mesh: over whose devices the rows are split; see `divax.trainers.sharding`.
        implementation: as in `objectives.token_statistics`; `None` chooses by the logits of a device.

    Returns:
        `None` where all logits are to be computed: few, truncated, or of a model that does not expose
        `hidden` and `head`.

    Example:
        >>> import jax.numpy as jnp
        >>> table = Model(init=lambda key: 0, apply=lambda params, tokens: params[tokens])
        >>> batch = Batch(tokens=jnp.array([[0, 1, 2]]), mask=jnp.array([[0, 1, 1]]))
        >>> unread_streams(table, jnp.zeros((4, 4)), batch, SamplingSettings(2)) is None
        True
    """
    how = implementation_for(model, params, batch.tokens, mesh, implementation)
    if how == "reference" or settings.truncates:
        return None
    made = hidden_logits(model, params, batch)
    assert made is not None
    held = None if against is None else hidden_logits(model, against.params, batch)
    rows = made.hidden, None if held is None else held.hidden, next_drawn(batch)
    divergence = None if against is None else against.divergence
    whole = made.head, None if held is None else held.head, divergence
    return UnreadStreams(rows, whole, settings.temperature, how)


def hidden_streams(unread: UnreadStreams, mesh: Mesh | None = None) -> TokenStreams:
    """Log-probs, entropies and divergences without all logits at once, to be used in any way.

    Args:
        unread: states and heads.
        mesh: over whose devices the rows are split.

    Example:
        >>> import jax.numpy as jnp
        >>> table = Model(
        ...     init=lambda key: 0, apply=lambda params, tokens: params[tokens] @ params,
        ...     hidden=lambda params, tokens: params[tokens], head=lambda params: params,
        ... )
        >>> batch = Batch(tokens=jnp.array([[0, 1, 2]]), mask=jnp.array([[0, 1, 1]]))
        >>> settings = SamplingSettings(2)
        >>> unread = unread_streams(table, jnp.zeros((4, 4)), batch, settings, implementation="fast")
        >>> [round(float(x), 4) for x in hidden_streams(unread).log_probs[0]]
        [0.0, -1.3863, -1.3863]
    """
    of_rows = lambda rows, whole: token_statistics(**unread.arguments(rows, whole))  # noqa: E731
    return at_own_places(rows_over_devices(of_rows, mesh, unread.rows, unread.whole))


def at_own_places(found: TokenStatistics) -> TokenStreams:
    """Statistics of the places before the tokens as streams.

    Example:
        >>> import jax.numpy as jnp
        >>> at_own_places(TokenStatistics(jnp.arange(3.0)[None], jnp.zeros((1, 3)), None)).log_probs.tolist()
        [[2.0, 0.0, 1.0]]
    """
    between = None if found.divergences is None else own_places(found.divergences)
    own = own_places(found.log_probs), own_places(found.entropies)
    return TokenStreams(*own, divergences=between)


def sampled_log_probs(
    model: Model,
    params: Any,
    batch: Batch,
    settings: SamplingSettings,
    *,
    mesh: Mesh | None = None,
    implementation: Implementation | None = None,
) -> TokenStreams:
    """Log-probs alone, of an untruncated sampler: logits exist for a chunk of positions at a time.

    Args:
        model: with `hidden` and `head`, else the logits of the batch are formed.
        params: its parameters.
        batch: the samples; the mask counts what was drawn.
        settings: the sampler's.
        mesh: as in `unread_streams`.
        implementation: likewise; "reference" is by `jax.checkpoint`.

    Example:
        >>> import jax.numpy as jnp
        >>> table = Model(init=lambda key: 0, apply=lambda params, tokens: params[tokens])
        >>> batch = Batch(tokens=jnp.array([[0, 1, 2]]), mask=jnp.array([[0, 1, 1]]))
        >>> streams = sampled_log_probs(table, jnp.zeros((4, 4)), batch, SamplingSettings(2))
        >>> [round(float(x), 4) for x in streams.log_probs[0]]
        [0.0, -1.3863, -1.3863]
    """
    unread = unread_streams(
        model, params, batch, settings, mesh=mesh, implementation=implementation
    )
    if unread is not None:
        return TokenStreams(hidden_streams(unread, mesh).log_probs)
    made = None if settings.truncates else hidden_logits(model, params, batch)
    if made is None:
        return full_streams(model, params, batch, settings)._replace(entropies=None, logits=None)
    if isinstance(made.head, LinearHead):
        logps = token_statistics(
            hidden=made.hidden,
            head=made.head,
            labels=next_drawn(batch),
            temperature=settings.temperature,
            implementation="reference",
        ).log_probs
    else:
        head = made.head / jnp.asarray(settings.temperature, made.head.dtype)
        logps = label_log_probs(hidden=made.hidden, head=head, labels=next_drawn(batch))
    return TokenStreams(own_places(logps))


def full_streams(
    model: Model,
    params: Any,
    batch: Batch,
    settings: SamplingSettings,
    kept: jax.Array | None = None,
) -> TokenStreams:
    """Log-probs, entropies and logits, for objectives that need the whole vocabulary.

    Args:
        model: the model.
        params: its parameters.
        batch: the samples.
        settings: the sampler's.
        kept: `[B, T, V]`, which tokens the sampler had kept when it drew; without it a truncating
            sampler keeps what it would keep under these parameters.

    Example:
        >>> import jax.numpy as jnp
        >>> table = Model(init=lambda key: 0, apply=lambda params, tokens: params[tokens])
        >>> batch = Batch(tokens=jnp.array([[0, 1, 2]]), mask=jnp.array([[0, 1, 1]]))
        >>> streams = full_streams(table, jnp.zeros((4, 4)), batch, SamplingSettings(2))
        >>> [round(float(x), 4) for x in streams.entropies[0]]
        [0.0, 1.3863, 1.3863]
    """
    labels = next_drawn(batch)
    logits = predict(model, params, batch).astype(jnp.result_type(float)) / settings.temperature
    if kept is not None:
        # `kept` stands at the tokens' own places, logits at the places before.
        logits = jnp.where(jnp.roll(kept, -1, axis=1), logits, -jnp.inf)
    elif settings.truncates:
        truncated = sampler_logits(logits, top_k=settings.top_k, top_p=settings.top_p)
        # The sampler's own rounding may have kept a token on the edge: it was drawn, so it counts.
        drawn = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
        logits = jnp.where(drawn | ~jnp.isneginf(truncated), logits, -jnp.inf)
    logps = jax.nn.log_softmax(logits)
    counted = labels >= 0
    index = jnp.where(counted, labels, 0)[..., None]
    of_labels = jnp.where(counted, jnp.take_along_axis(logps, index, axis=-1)[..., 0], 0)
    finite = jnp.where(jnp.isneginf(logps), 0, logps)
    entropies = jnp.where(counted, -jnp.sum(jnp.exp(logps) * finite, axis=-1), 0)
    return TokenStreams(*(own_places(x) for x in (of_labels, entropies, logits)))


def kept_tokens(
    model: Model, params: Any, batch: Batch, settings: SamplingSettings
) -> jax.Array | None:
    """`[B, T, V]` bool: what a truncating sampler had kept when it drew; `None` if it keeps all.

    Example:
        >>> import jax.numpy as jnp
        >>> table = Model(init=lambda key: 0, apply=lambda params, tokens: params[tokens])
        >>> batch = Batch(tokens=jnp.array([[0, 1, 1]]), mask=jnp.array([[0, 1, 1]]))
        >>> kept_tokens(table, jnp.eye(4), batch, SamplingSettings(2, top_k=1))[0, 2].tolist()
        [False, True, False, False]
    """
    if not settings.truncates:
        return None
    logits = full_streams(model, params, batch, settings).logits
    assert logits is not None
    return ~jnp.isneginf(logits)


def next_drawn(batch: Batch) -> jax.Array:
    """At every place the next token, where it was drawn, else -100."""
    drawn = jnp.asarray(batch.mask) != 0
    return jnp.where(jnp.roll(drawn, -1, axis=1).at[:, -1].set(False), _next(batch.tokens), -100)


def _next(tokens: Any) -> jax.Array:
    return jnp.roll(jnp.asarray(tokens), -1, axis=1)


def own_places(x: jax.Array) -> jax.Array:
    """From the place before a token, which predicts it, to its own; the first token was not drawn."""
    return jnp.roll(x, 1, axis=1)
