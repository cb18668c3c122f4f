"""The reference policy's slot: what a policy's log-probs are compared to."""

import abc
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from divax.divergences import LinearHead
from divax.trainers.model import Model


class AbstractReference(abc.ABC):
    """A pytree that knows the reference's parameters at every step.

    Example:
        >>> issubclass(FixedReference, AbstractReference)
        True
    """

    @abc.abstractmethod
    def params_at(self, opt_state: Any) -> Any:
        """The reference's parameters, given the optimizer's state."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FixedReference(AbstractReference):
    """A policy that does not move: a base model, or `average_params` of several (a soup).

    Attributes:
        params: its parameters; an argument of the step, never donated or differentiated.

    Example:
        >>> import jax.numpy as jnp
        >>> FixedReference(jnp.ones(2)).params_at(None).tolist()
        [1.0, 1.0]
    """

    params: Any

    def params_at(self, opt_state: Any) -> Any:
        """The parameters that were given."""
        del opt_state
        return self.params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MovingReference(AbstractReference):
    """A reference that follows the policy; the optimizer must be wrapped by `following`.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> optimizer = following(optax.sgd(1.0), share=0.5)
        >>> MovingReference().params_at(optimizer.init(jnp.ones(2))).tolist()
        [1.0, 1.0]
    """

    def params_at(self, opt_state: Any) -> Any:
        """The parameters that the optimizer's state holds."""
        if not isinstance(opt_state, FollowingState):
            raise TypeError(
                "a MovingReference lives in the optimizer's state: wrap the optimizer, "
                "as in tr.following(optax.adamw(1e-5), share=0.6, every=512)"
            )
        return opt_state.reference


class FollowingState(NamedTuple):
    """The state of `following`: the reference's parameters beside the optimizer's own state.

    Example:
        >>> FollowingState._fields
        ('inner', 'reference', 'count')
    """

    inner: Any
    reference: Any
    count: jax.Array


def following(
    optimizer: optax.GradientTransformation, *, share: ArrayLike, every: int = 1
) -> optax.GradientTransformation:
    r"""An optimizer whose state carries a reference that moves towards the policy.

    .. math:: \mathrm{reference} \leftarrow a\,\mathrm{policy} + (1 - a)\,\mathrm{reference}

    after every `every`-th update. `every=1` with a small share is an exponential moving average,
    `share=1` a hard reset. It is part of the run's state: checkpointed, resumed and sharded with it.

    Args:
        optimizer: the one that trains the policy.
        share: `a` in [0, 1].
        every: updates between two moves, at least 1.

    Raises:
        ValueError: numbers out of range.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> optimizer = following(optax.sgd(1.0), share=0.5, every=2)
        >>> params, state = jnp.zeros(1), optimizer.init(jnp.zeros(1))
        >>> for _ in range(2):
        ...     updates, state = optimizer.update(-jnp.ones(1), state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> params.tolist(), state.reference.tolist()
        ([2.0], [1.0])

    Source: A. Gorbatovski et al., "Learn Your Reference Model for Real Good Alignment",
    arXiv:2404.09656, eq. 7-8.
    """
    if every < 1:
        raise ValueError(f"every={every} must be at least 1")
    if isinstance(share, int | float) and not 0 <= share <= 1:
        raise ValueError(f"share={share} must lie in [0, 1]")

    def init(params):
        # A copy: the policy's own arrays are donated to the step.
        reference = jax.tree.map(jnp.copy, params)
        return FollowingState(optimizer.init(params), reference, jnp.zeros((), jnp.int32))

    def update(updates, state, params=None):
        if params is None:
            raise ValueError(
                "following needs the parameters: optimizer.update(grads, state, params)"
            )
        updates, inner = optimizer.update(updates, state.inner, params)
        moved = optax.apply_updates(params, updates)
        count = state.count + 1
        now = count % every == 0

        def move(reference, policy):
            mixed = reference + jnp.asarray(share, reference.dtype) * (policy - reference)
            return jnp.where(now, mixed, reference)

        reference = jax.tree.map(move, state.reference, moved)
        return updates, FollowingState(inner, reference, count)

    return optax.GradientTransformation(init, update)


def reset_reference(state: Any, params: Any, now: jax.Array) -> Any:
    """The state of a `following` optimizer whose reference becomes the policy, if it is time.

    Args:
        state: the optimizer's.
        params: the policy's.
        now: bool.

    Raises:
        TypeError: the optimizer is not wrapped by `following`.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> state = following(optax.sgd(1.0), share=0.0).init(jnp.zeros(2))
        >>> reset_reference(state, jnp.ones(2), jnp.array(True)).reference.tolist()
        [1.0, 1.0]
    """
    MovingReference().params_at(state)
    return state._replace(
        reference=jax.tree.map(lambda p, r: jnp.where(now, p, r), params, state.reference)
    )


def average_params(policies: Sequence[Any], weights: Sequence[float] | None = None) -> Any:
    """The weighted average of several policies' parameters: a soup.

    Args:
        policies: pytrees of one structure.
        weights: one per policy, adding up to 1; equal when `None`.

    Raises:
        ValueError: no policy, or weights that do not add up to 1.

    Example:
        >>> import jax.numpy as jnp
        >>> average_params([jnp.zeros(1), jnp.ones(1)], [0.25, 0.75]).tolist()
        [0.75]

    Source: A. Chegini et al., "SALSA: Soup-based Alignment Learning for Stronger Adaptation in
    RLHF", arXiv:2411.01798.
    """
    if not policies:
        raise ValueError("average_params needs at least one policy")
    shares = [1 / len(policies)] * len(policies) if weights is None else list(weights)
    if len(shares) != len(policies) or not abs(sum(shares) - 1) <= 1e-6:
        raise ValueError(
            f"weights must be {len(policies)} numbers that add up to 1, got {list(shares)}"
        )
    return jax.tree.map(
        lambda *leaves: sum(share * leaf for share, leaf in zip(shares, leaves, strict=True)),
        *policies,
    )


def low_rank(model: Model, base: Any, *, rank: int, scale: float = 1.0) -> Model:
    r"""A model whose parameters are low-rank corrections of a frozen base: LoRA.

    .. math:: W = W_0 + \mathrm{scale}\,A B, \qquad A \in R^{m \times r},\ B \in R^{r \times n}

    for every matrix of the base (leading axes of a stacked matrix are kept). B starts at 0, so the
    model starts as the base. `tr.FixedReference(jax.tree.map(jnp.zeros_like, params))` is the base
    under the same adapter: the same function with the correction off.

    Args:
        model: the base's model.
        base: its parameters; they are not trained.
        rank: r, at least 1.
        scale: of the correction.

    Raises:
        ValueError: a rank below 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> table = Model(init=lambda key: jnp.eye(4), apply=lambda params, tokens: params[tokens])
        >>> adapted = low_rank(table, jnp.eye(4), rank=1)
        >>> params = adapted.init(jax.random.key(0))
        >>> adapted.apply(params, jnp.array([[2]])).tolist()
        [[[0.0, 0.0, 1.0, 0.0]]]

    Source: E. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685.
    """
    if rank < 1:
        raise ValueError(f"rank={rank} must be at least 1")
    leaves, structure = jax.tree.flatten(base)
    matrices = [i for i, leaf in enumerate(leaves) if leaf.ndim >= 2]

    def init(key):
        adapter = {}
        for i, fold in zip(matrices, jax.random.split(key, len(matrices)), strict=True):
            *lead, rows, columns = leaves[i].shape
            a = jax.random.normal(fold, (*lead, rows, rank), leaves[i].dtype) / rows**0.5
            adapter[str(i)] = (a, jnp.zeros((*lead, rank, columns), leaves[i].dtype))
        return adapter

    def merged(params):
        whole = list(leaves)
        for i in matrices:
            a, b = params[str(i)]
            whole[i] = jax.lax.stop_gradient(leaves[i]) + scale * (a @ b)
        return structure.unflatten(whole)

    def through(function):
        if function is None:
            return None
        # The signature tells whether segments are understood, so it is kept.
        return _with_params(function, merged)

    return dataclasses.replace(
        model,
        init=init,
        apply=through(model.apply),
        hidden=through(model.hidden),
        head=_low_rank_head(model, base, scale, merged),
        decode=None,
    )


def _low_rank_head(model, base, scale, merged):
    """The head with its correction as an adapter, so that no gradient of the frozen matrix's size is ever formed.

    That takes a head whose weight is a matrix of the base as it is; of any other the merged matrix is.
    """
    if model.head is None:
        return None
    place = _place_of_weight(model.head, base)

    def head(params):
        if place is None or str(place) not in params:
            return model.head(merged(params))
        frozen = jax.lax.stop_gradient(model.head(base))
        frozen = frozen if isinstance(frozen, LinearHead) else LinearHead(weight=frozen)
        dtype = jnp.asarray(frozen.weight).dtype
        a, b = (factor.astype(dtype) for factor in params[str(place)])
        adapter = (scale * b.T, a.T) if frozen.tied else (scale * a, b)
        return dataclasses.replace(frozen, adapter=adapter)

    return head


def _place_of_weight(head, base) -> int | None:
    """Which leaf of the base the head's weight is, but for its dtype; None if it is something else."""
    found = jax.eval_shape(head, base)
    if isinstance(found, LinearHead) and found.adapter is not None:
        return None
    traced = jax.make_jaxpr(head)(base).jaxpr
    # A LinearHead's weight is its first leaf.
    variable = traced.outvars[0]
    casts = {
        equation.outvars[0]: equation.invars[0]
        for equation in traced.eqns
        if equation.primitive.name == "convert_element_type"
    }
    while variable in casts:
        variable = casts[variable]
    return traced.invars.index(variable) if variable in traced.invars else None


def _with_params(function, of):
    @functools.wraps(function)
    def call(params, tokens, **packing):
        return function(of(params), tokens, **packing)

    return call
