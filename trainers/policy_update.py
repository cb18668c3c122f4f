"""What a rollout is used for: streams and credit once, then updates on its minibatches."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from divax.divergences.fused_linear import Implementation
from divax.objectives import (
    ConflictShaping,
    Credit,
    PolicyGradientMethod,
    Regularizer,
    TopEntropy,
    replay_penalty,
    return_to_go,
    terminal_rewards,
    value_loss,
)
from divax.objectives.arguments import is_static
from divax.trainers.batch import Batch
from divax.trainers.model import Model, hidden_states
from divax.trainers.policy_walk import Held, by_token, loss_and_streams
from divax.trainers.replay import Replay
from divax.trainers.state import TrainState
from divax.trainers.step import mean_gradient
from divax.trainers.token_streams import (
    Against,
    SamplingSettings,
    TokenStreams,
    UnreadStreams,
    full_streams,
    hidden_streams,
    kept_tokens,
    sampled_log_probs,
    unread_streams,
)


class ValueHead(NamedTuple):
    """A value of every prefix, linear in the policy's hidden states.

    Attributes:
        model: the policy's; its gradient reaches the shared states.
        weight: of the value function's loss.

    Example:
        >>> ValueHead._fields
        ('model', 'weight')
    """

    model: Model
    weight: float = 0.5

    @classmethod
    def of(cls, model: Model) -> "ValueHead":
        """A head on a model that exposes its hidden states.

        Raises:
            ValueError: it does not.
        """
        if model.hidden is None:
            raise ValueError(
                "this method needs a value function, which reads the model's hidden states: give the "
                "Model a hidden function, or take a method without one, such as rloo or grpo"
            )
        return cls(model)

    def init(self, params: Any) -> dict[str, jax.Array]:
        """A head that says 0."""
        assert self.model.hidden is not None
        states = jax.eval_shape(self.model.hidden, params, jnp.zeros((1, 1), jnp.int32))
        return {"kernel": jnp.zeros(states.shape[-1]), "bias": jnp.zeros(())}

    def values(self, params: Any, head: dict[str, jax.Array], batch: Batch) -> jax.Array:
        """`[B, T]`, of the prefix before each token."""
        states = hidden_states(self.model, params, batch).astype(jnp.float32)
        return jnp.roll(states @ head["kernel"] + head["bias"], 1, axis=1)


class Needs(NamedTuple):
    """What a method reads beside log-probs; decided before its numbers are traced.

    Attributes:
        whole: entropies, or logits.
        logits: the policy's and the reference's.

    Example:
        >>> from divax import objectives
        >>> Needs.of(objectives.grpo()), Needs.of(objectives.gtpo())
        (Needs(whole=False, logits=False), Needs(whole=True, logits=False))
    """

    whole: bool
    logits: bool

    @classmethod
    def of(cls, method: PolicyGradientMethod) -> "Needs":
        """Of a method."""
        logits = getattr(method.regularizer, "estimator", None) == "full_vocabulary"
        bonus = not is_static(method.entropy_weight) or method.entropy_weight != 0
        shaped = any(isinstance(one, ConflictShaping | TopEntropy) for one in method.shaping)
        return cls(bonus or shaped or logits, logits)


class Policy(NamedTuple):
    """The trained parameters: the policy's, and those of a value head where there is one.

    Attributes:
        model: the policy's model.
        settings: the sampler's.
        head: `None` for methods without a value function.
        needs: which streams the method reads.
        mesh: the trainer's.
        implementation: as in `hidden_streams`.

    Example:
        >>> Policy._fields
        ('model', 'settings', 'head', 'needs', 'mesh', 'implementation')
    """

    model: Model
    settings: SamplingSettings
    head: ValueHead | None
    needs: "Needs"
    mesh: Mesh | None = None
    implementation: Implementation | None = None

    @classmethod
    def of(
        cls,
        model: Model,
        settings: SamplingSettings,
        method: PolicyGradientMethod,
        mesh: Mesh | None = None,
        implementation: Implementation | None = None,
    ) -> "Policy":
        """What a method needs of a model."""
        head = ValueHead.of(model) if method.advantage.needs_values else None
        return cls(model, settings, head, Needs.of(method), mesh, implementation)

    def start(self, params: Any) -> Any:
        """What is trained."""
        if self.head is None:
            return params
        return {"policy": params, "value": self.head.init(params)}

    def params_of(self, trained: Any) -> Any:
        """The policy's parameters alone."""
        return trained if self.head is None else trained["policy"]

    def streams(
        self, params: Any, batch: Batch, kept: Any, *, whole: bool, against: Against | None = None
    ) -> TokenStreams:
        """Of a policy's parameters; with entropies, and divergences or logits, where the whole is asked for."""
        if not whole and kept is None:
            how = self.implementation
            return sampled_log_probs(
                self.model, params, batch, self.settings, mesh=self.mesh, implementation=how
            )
        unread = None if kept is not None else self.unread(params, batch, against)
        if unread is not None:
            return hidden_streams(unread, self.mesh)
        return full_streams(self.model, params, batch, self.settings, kept)

    def unread(self, params: Any, batch: Batch, against: Against | None) -> UnreadStreams | None:
        """States and heads in place of the logits, if there are any and they are worth it."""
        return unread_streams(
            self.model,
            params,
            batch,
            self.settings,
            against=against,
            mesh=self.mesh,
            implementation=self.implementation,
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Experience:
    """A rollout with everything that its updates hold fixed; all `[B, T]`, or `[B, T, V]` for `kept`.

    Example:
        >>> [field.name for field in dataclasses.fields(Experience)][:3]
        ['tokens', 'mask', 'credit']
    """

    tokens: jax.Array
    mask: jax.Array
    credit: Credit
    old_logps: jax.Array
    sampler_logps: jax.Array
    reference_logps: jax.Array | None
    kept: jax.Array | None
    returns: jax.Array | None
    old_values: jax.Array | None

    @classmethod
    def of(
        cls,
        actor: Policy,
        method: PolicyGradientMethod,
        trained: Any,
        reference: Any,
        rows: dict[str, jax.Array],
        group_size: int,
    ) -> "Experience":
        """The streams of old policy and reference, and the credit, from the rows of a rollout."""
        params, batch = actor.params_of(trained), Batch(tokens=rows["tokens"], mask=rows["mask"])
        kept = kept_tokens(actor.model, params, batch, actor.settings)
        against = None
        if actor.needs.logits and method.penalty_in_credit:
            against = _against(method, reference)
        old = actor.streams(params, batch, kept, whole=actor.needs.whole, against=against)
        held = TokenStreams(None)  # type: ignore[arg-type]
        if reference is not None and method.regularizer is not None:
            held = actor.streams(reference, batch, kept, whole=actor.needs.logits)
        values = None
        if actor.head is not None:
            values = actor.head.values(params, trained["value"], batch)
        credit = method.credit(
            rewards=rows["rewards"],
            mask=batch.mask,
            group_size=group_size,
            values=values,
            old_logps=old.log_probs,
            reference_logps=held.log_probs,
            old_logits=old.logits if actor.needs.logits else None,
            reference_logits=held.logits,
            old_divergences=old.divergences,
            tokens=batch.tokens,
            entropies=old.entropies,
        )
        returns = None if values is None else _returns(method, rows["rewards"], batch.mask)
        fixed = cls(
            batch.tokens,
            batch.mask,
            credit,
            old.log_probs,
            rows["sampler_logps"],
            held.log_probs,
            kept,
            returns,
            values,
        )
        return jax.lax.stop_gradient(fixed)


@dataclasses.dataclass(frozen=True)
class Updates:
    """How often and in which parts a rollout is used.

    Attributes:
        epochs: passes over it.
        minibatches: updates of a pass, on rows at random.
        micro_batches: parts that an update is computed in; it does not depend on them.

    Raises:
        ValueError: a number below 1.

    Example:
        >>> Updates(epochs=2, minibatches=4).count
        8
    """

    epochs: int = 1
    minibatches: int = 1
    micro_batches: int = 1

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(
                    f"{field.name} must be at least 1, got {getattr(self, field.name)}"
                )

    @property
    def count(self) -> int:
        """Updates of a rollout."""
        return self.epochs * self.minibatches

    def run(
        self,
        actor: Policy,
        method: PolicyGradientMethod,
        optimizer: optax.GradientTransformation,
        state: TrainState,
        experience: Experience,
        key: jax.Array,
        reference: Any,
        replay: Replay | None,
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """All updates of a rollout, compiled as one; metrics are means over them."""
        rows = experience.tokens.shape[0]
        if rows % self.minibatches:
            raise ValueError(f"{self.minibatches} minibatches do not divide {rows} completions")
        size = rows // self.minibatches
        losses = _Losses(actor, method, self.micro_batches)

        def one(carry, index_and_key):
            params, opt_state = carry
            index, key = index_and_key
            part = jax.tree.map(lambda x: x[index], experience)
            grads, metrics = losses.gradient(params, part, key, reference, replay)
            changes, opt_state = optimizer.update(grads, opt_state, params)
            metrics["grad_norm"] = optax.tree.norm(grads)
            return (optax.apply_updates(params, changes), opt_state), metrics

        keys = jax.random.split(key, self.count)
        orders = jax.vmap(lambda k: jax.random.permutation(k, rows))(keys[:: self.minibatches])
        index = orders.reshape(self.count, size) if self.count > 1 else jnp.arange(rows)[None]
        (params, opt_state), metrics = jax.lax.scan(
            one, (state.params, state.opt_state), (index, keys)
        )
        metrics = {name: jnp.mean(values) for name, values in metrics.items()}
        return dataclasses.replace(state, params=params, opt_state=opt_state), metrics


class _Losses(NamedTuple):
    """The gradient of a minibatch: of the method, of its replay, of the value function."""

    actor: Policy
    method: PolicyGradientMethod
    micro_batches: int

    def gradient(self, trained, part: Experience, key, reference, replay):
        grads, loss, metrics = mean_gradient(
            self.of_method, trained, part, key, (reference,), micro_batches=self.micro_batches
        )
        report = {"loss": loss.mean(), **{name: value.mean() for name, value in metrics.items()}}
        if replay is not None:
            rows = replay.draw(key, part.tokens.shape[0])
            more, loss, _ = mean_gradient(
                self.of_replay, trained, rows, key, micro_batches=self.micro_batches
            )
            grads = jax.tree.map(jnp.add, grads, more)
            report["replay/penalty"] = loss.mean()
        if self.actor.head is not None:
            weight = self.actor.head.weight
            more, loss, _ = mean_gradient(
                self.of_values, trained, part, key, micro_batches=self.micro_batches
            )
            grads = jax.tree.map(lambda a, b: a + weight * b, grads, more)
            report["value/loss"] = loss.mean()
        return grads, report

    def of_method(self, trained, part: Experience, key, reference):
        del key
        batch, method, needs = (
            Batch(tokens=part.tokens, mask=part.mask),
            self.method,
            self.actor.needs,
        )
        params = self.actor.params_of(trained)
        wants_logits = needs.logits and not method.penalty_in_credit
        against = _against(method, reference) if wants_logits else None
        unread = self.actor.unread(params, batch, against) if by_token(method) else None
        if unread is not None:
            mesh = self.actor.mesh
            loss, now = loss_and_streams(
                method, unread, _held(method, part), entropies=needs.whole, mesh=mesh
            )
            return loss, self.measured(now, part, None)[1]
        now = self.actor.streams(params, batch, part.kept, whole=needs.whole, against=against)
        held = None
        if wants_logits and now.divergences is None:
            held = self.actor.streams(reference, batch, part.kept, whole=True).logits
        return self.measured(now, part, held)

    def measured(self, now: TokenStreams, part: Experience, reference_logits: jax.Array | None):
        """The method's loss and metrics from streams."""
        return self.method.loss(
            model_logps=now.log_probs,
            credit=part.credit,
            mask=part.mask,
            old_logps=part.old_logps,
            sampler_logps=part.sampler_logps,
            reference_logps=part.reference_logps,
            model_logits=None if reference_logits is None else now.logits,
            reference_logits=reference_logits,
            divergences=now.divergences,
            entropies=now.entropies if self.actor.needs.whole else None,
        )

    def of_replay(self, trained, rows: Replay, key):
        del key
        batch = Batch(tokens=rows.tokens, mask=rows.mask)
        now = self.actor.streams(self.actor.params_of(trained), batch, None, whole=False)
        assert self.method.replay is not None
        return replay_penalty(
            model_logps=now.log_probs,
            reference_logps=rows.reference_logps,
            mask=rows.mask,
            regularizer=self.method.replay,
            reduction=self.method.reduction,
        )

    def of_values(self, trained, part: Experience, key):
        del key
        assert self.actor.head is not None
        batch = Batch(tokens=part.tokens, mask=part.mask)
        values = self.actor.head.values(trained["policy"], trained["value"], batch)
        assert part.returns is not None
        return value_loss(
            values=values, returns=part.returns, mask=part.mask, old_values=part.old_values
        )


def _against(method: PolicyGradientMethod, reference: Any) -> Against:
    """The reference, for a regulariser of whole distributions."""
    assert isinstance(method.regularizer, Regularizer)
    return Against(reference, method.regularizer.divergence)


def _held(method: PolicyGradientMethod, part: Experience) -> Held:
    """What is known of the tokens of an update."""
    weights: Any = jnp.ones(part.mask.shape, part.old_logps.dtype)
    if method.correction is not None:
        weights = method.correction.weights(part.old_logps, part.sampler_logps, part.mask)
    return Held(
        *part.credit, part.mask, part.old_logps, part.reference_logps, sample_weights=weights
    )


def _returns(method: PolicyGradientMethod, rewards: jax.Array, mask: Any) -> jax.Array:
    """The value function's target: the reward that is still to come, without the penalty.

    As a baseline it leaves the gradient unbiased whatever it says.
    """
    discount = getattr(method.advantage, "discount", 1.0)
    known = jnp.where(jnp.isfinite(rewards), rewards, 0)
    return return_to_go(terminal_rewards(known, mask), mask, discount)
