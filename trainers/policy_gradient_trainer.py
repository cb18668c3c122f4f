"""Regularised policy gradients: groups of samples, their rewards, and a few exact updates on them."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from divax import objectives
from divax.divergences.fused_linear import Implementation
from divax.objectives import AbstractBetaControl, BetaState, PolicyGradientMethod
from divax.trainers.implementation import check_states
from divax.trainers.model import Model
from divax.trainers.policy_update import Experience, Policy, Updates
from divax.trainers.problems import Problems, Scorer
from divax.trainers.reference import AbstractReference, MovingReference, reset_reference
from divax.trainers.replay import Replay
from divax.trainers.rollout_collection import Collector, Groups
from divax.trainers.sharding import automatic, place_batch, place_state, state_sharding
from divax.trainers.state import TrainState
from divax.trainers.step import stated_learning_rate
from divax.trainers.token_streams import SamplingSettings
from divax.trainers.trainer import Trainer


class PolicyGradientState(NamedTuple):
    """What is kept beside the parameters, as the `opt_state` of a `TrainState`.

    Attributes:
        optimizer: the optimizer's own state; with `following`, the reference's parameters in it.
        beta: where the controller of the regulariser's weight stands.

    Example:
        >>> PolicyGradientState._fields
        ('optimizer', 'beta')
    """

    optimizer: Any
    beta: BetaState


def policy_gradient(
    *,
    policy: Model,
    params: Any,
    scorer: Scorer,
    settings: SamplingSettings,
    optimizer: optax.GradientTransformation,
    method: PolicyGradientMethod,
    reference: AbstractReference | None = None,
    group_size: int = 8,
    prompts: int = 16,
    updates: Updates = Updates(),  # noqa: B008 (frozen value)
    control: AbstractBetaControl | None = None,
    replay: Replay | None = None,
    shape_rewards: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
    drop_unfinished: bool = False,
    reset_above: float | None = None,
    mesh: Mesh | None = None,
    rollout_mesh: Mesh | None = None,
    implementation: Implementation | None = None,
) -> Trainer:
    """Trains a policy on rewards of its own samples, held to a reference by any regulariser.

    A step samples `group_size` completions of each of its prompts, asks the scorer for their
    rewards (the device samples on meanwhile), turns these into credit once, and makes
    `updates.epochs` passes over the rollout. A completion without a reward is left out of
    everything and counted. Everything random is a function of the state's key and step.

    Args:
        policy: the model that is trained.
        params: the parameters that it starts from.
        scorer: rewards of completions; see `scored_by` and `RewardPool`.
        settings: the sampler's; its temperature and truncation are replayed in all streams.
        optimizer: any Optax transformation.
        method: a preset such as `objectives.grpo()`, or one put together.
        reference: `FixedReference(params)`, or `MovingReference()` with a `following` optimizer;
            needed where the method has a regulariser.
        group_size: completions of a prompt.
        prompts: prompts of a step; batches hold so many problems, or a multiple (dynamic sampling:
            problems that all completions solve, or none, are replaced by further ones).
        updates: how a rollout is used.
        control: of the regulariser's weight; `None` leaves it as it is.
        replay: completions of the reference, for a method with a replay.
        shape_rewards: rewards `[B]` and lengths `[B]` to rewards, such as a penalty on length.
        drop_unfinished: completions that no stop token ended do not count.
        reset_above: nats per completion: when the measured log-ratio to a moving reference comes to
            more, the reference becomes the policy. `None`: never.
        mesh: of the updates; see `divax.trainers.sharding`.
        rollout_mesh: of the sampler, where another layout suits it better; `None` takes `mesh`.
        implementation: of log-probs, entropies and whole-vocabulary divergences under an untruncated
            sampler, of a policy that exposes `hidden` and `head`: "fast" and "lean" as in
            `objectives.token_statistics`, "reference" from all logits; default: by the number of
            logits of a device, "reference" up to 4 million.

    Returns:
        A `Trainer` on `Problems`. `evaluate` gives the mean `reward`, `length`, and the shares of
        completions that were `finished` and that `failed`.

    Raises:
        ValueError: a method whose regulariser has no reference, or whose replay has no buffer; a
            reset of a reference that does not move.

    Example:
        >>> import jax, jax.numpy as jnp, numpy as np, optax
        >>> from divax import objectives, trainers as tr
        >>> table = tr.Model(
        ...     init=lambda key: jnp.zeros((4, 4)), apply=lambda params, tokens: params[tokens]
        ... )
        >>> trainer = tr.policy_gradient(
        ...     policy=table, params=jnp.zeros((4, 4)), settings=tr.SamplingSettings(1),
        ...     scorer=tr.scored_by(lambda about, completion: completion == (3,)),
        ...     optimizer=optax.sgd(2.0), method=objectives.rloo(beta=0.0), prompts=1, group_size=64,
        ...     reference=tr.FixedReference(jnp.zeros((4, 4))),
        ... )
        >>> problems = tr.Problems(np.array([[0]]), np.array([[1]]), (None,))
        >>> state, first = trainer.step(trainer.init(jax.random.key(0)), problems)
        >>> state, second = trainer.step(state, problems)
        >>> bool(second["reward"] > first["reward"])
        True

    Source: as the method's.
    """
    _check(method, reference, replay, reset_above)
    if mesh is not None:
        mesh = automatic(mesh)
    check_states(policy, implementation, "policy")
    actor = Policy.of(policy, settings, method, mesh, implementation)
    collector = Collector(policy, scorer, settings, group_size, prompts, mesh=rollout_mesh or mesh)
    engine = _Engine(
        actor, optimizer, updates, group_size, control or _constant(method), reset_above
    )

    def create(key):
        run_key, _ = jax.random.split(key)
        fresh = actor.start(jax.tree.map(jnp.copy, params))
        state = TrainState.create(fresh, optimizer, run_key)
        return dataclasses.replace(
            state, opt_state=PolicyGradientState(state.opt_state, engine.control.init())
        )

    init, update, place = _jitted(create, engine, mesh)
    frozen = method, place_state(reference, mesh), place_state(replay, mesh)

    def step(state: TrainState, problems: Problems) -> tuple[TrainState, dict[str, Any]]:
        draw, order = jax.random.split(jax.random.fold_in(state.key, state.step))
        groups = collector.collect(actor.params_of(state.params), problems, draw)
        rows = place(_rollout(groups, shape_rewards, drop_unfinished))
        state, metrics = update(state, rows, order, *frozen)
        return state, {**metrics, **_measured(groups)}

    def evaluate(state: TrainState, batches: Iterable[Problems]) -> dict[str, float]:
        own, totals = actor.params_of(state.params), []
        for number, problems in enumerate(batches):
            whole = dataclasses.replace(collector, prompts=len(problems.about))
            totals.append(whole.collect(own, problems, jax.random.key(number)))
        return _summary(totals)

    return Trainer(init=init, step=step, evaluate=evaluate)


class _Engine(NamedTuple):
    """The device's part of a step."""

    actor: Policy
    optimizer: optax.GradientTransformation
    updates: Updates
    group_size: int
    control: AbstractBetaControl
    reset_above: float | None

    def step(self, state, rows, key, method, reference, replay):
        kept: PolicyGradientState = state.opt_state
        method = _with_beta(method, kept.beta.beta)
        held = None if reference is None else reference.params_at(kept.optimizer)
        if isinstance(reference, MovingReference):
            # It follows all that is trained.
            held = self.actor.params_of(held)
        experience = Experience.of(self.actor, method, state.params, held, rows, self.group_size)
        inner = dataclasses.replace(state, opt_state=kept.optimizer)
        inner, metrics = self.updates.run(
            self.actor, method, self.optimizer, inner, experience, key, held, replay
        )
        drift = metrics.get("reference/log_ratio", jnp.zeros(()))
        live = jnp.max(experience.mask, axis=1)
        length = jnp.sum(experience.mask) / jnp.maximum(jnp.sum(live), 1)
        whole = drift * length.astype(drift.dtype)
        beta = self.control.update(kept.beta, whole)
        metrics = {**metrics, "beta": kept.beta.beta, **stated_learning_rate(inner.opt_state)}
        opt_state = inner.opt_state
        if self.reset_above is not None:
            now = whole > self.reset_above
            metrics["reference/reset"] = now.astype(jnp.float32)
            opt_state = reset_reference(opt_state, inner.params, now)
        after = PolicyGradientState(opt_state, beta)
        return TrainState(inner.params, after, state.step + 1, state.key), metrics


def _constant(method: PolicyGradientMethod) -> AbstractBetaControl:
    regularizer = method.regularizer
    return objectives.FixedBeta(beta=0.0 if regularizer is None else regularizer.beta)


def _with_beta(method: PolicyGradientMethod, beta: jax.Array) -> PolicyGradientMethod:
    if method.regularizer is None:
        return method
    regularizer: Any = dataclasses.replace(method.regularizer, beta=beta)  # type: ignore[type-var]
    return dataclasses.replace(method, regularizer=regularizer)


def _check(method, reference, replay, reset_above) -> None:
    if reset_above is not None and not isinstance(reference, MovingReference):
        raise ValueError(
            "reset_above resets a tr.MovingReference() with a tr.following optimizer; share=0 leaves "
            "all moves to it"
        )
    if method.regularizer is not None and reference is None:
        raise ValueError(
            "the method has a regularizer, so it needs a reference such as tr.FixedReference(params)"
        )
    if (method.replay is None) != (replay is None):
        missing = "a replay buffer" if replay is None else "no replay buffer: it has no replay"
        raise ValueError(f"the method needs {missing}")


def _jitted(create, engine, mesh):
    def advance(*arguments):
        return engine.step(*arguments)

    if mesh is None:
        return jax.jit(create), jax.jit(advance, donate_argnums=0), lambda rows: rows
    layout = jax.tree.map(
        lambda x: state_sharding(mesh, x.shape), jax.eval_shape(create, jax.random.key(0))
    )
    init = jax.jit(create, out_shardings=layout)
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    update = jax.jit(advance, donate_argnums=0, out_shardings=(layout, everywhere))
    return init, update, lambda rows: place_batch(rows, mesh)


def _rollout(groups: Groups, shape_rewards, drop_unfinished: bool) -> dict[str, np.ndarray]:
    """The rows that the device needs; rewards stay float32 whatever the model computes in."""
    rewards, mask = groups.rewards, groups.mask
    if shape_rewards is not None:
        rewards = np.asarray(shape_rewards(rewards, groups.lengths), np.float32)
    if drop_unfinished:
        mask = mask * groups.stopped[:, None]
    return {
        "tokens": groups.tokens,
        "mask": mask.astype(np.float32),
        "sampler_logps": groups.sampler_logps,
        "rewards": rewards,
    }


def _measured(groups: Groups) -> dict[str, np.ndarray]:
    known = groups.rewards[np.isfinite(groups.rewards)]
    values = {
        "reward": known.mean() if known.size else np.nan,
        "reward_std": known.std() if known.size else np.nan,
        "length": groups.lengths.mean(),
        "finished": groups.stopped.mean(),
        "failed_rewards": groups.failed,
        "completions": groups.drawn,
    }
    return {name: np.float32(value) for name, value in values.items()}


def _summary(totals: list[Groups]) -> dict[str, float]:
    if not totals:
        raise ValueError("evaluation got no problem")
    rewards = np.concatenate([groups.rewards for groups in totals])
    known = rewards[np.isfinite(rewards)]
    return {
        "reward": float(known.mean()) if known.size else float("nan"),
        "length": float(np.concatenate([groups.lengths for groups in totals]).mean()),
        "finished": float(np.concatenate([groups.stopped for groups in totals]).mean()),
        "failed": float(1 - known.size / rewards.size),
    }
