"""Policy gradients from states and heads are those from logits, in less memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from state_models import gap, states_model, temporary_bytes

from divax import divergences as dv
from divax import objectives
from divax import trainers as tr
from divax.trainers.policy_update import Experience, Policy

V, PROMPTS, GROUP = 19, 4, 4
PROBLEMS = tr.Problems(np.arange(1, 9, dtype=np.int32).reshape(4, 2), np.ones((4, 2)), (0, 1, 2, 3))
SCORER = tr.scored_by(lambda about, completion: float(sum(completion) % 5))
TOKEN_KL = objectives.Regularizer(
    divergence=dv.JensenShannon(), estimator="full_vocabulary", placement="loss", level="token"
)
TO_GO = objectives.Regularizer(estimator="full_vocabulary", placement="reward_to_go")
METHODS = {
    "grpo": objectives.grpo(),
    "bonus": dataclasses.replace(
        objectives.grpo(),
        regularizer=TOKEN_KL,
        entropy_weight=0.1,
        reduction=objectives.TokenMean(),
    ),
    # Its tokens do not count by themselves: the gradient takes a second walk.
    "sequences": dataclasses.replace(
        objectives.gspo(), regularizer=TO_GO, reduction=objectives.ConstantSum()
    ),
}


def stepped(model, how, method, **options):
    """One step, samples included, from other parameters than the reference's."""
    held = model.init(jax.random.key(1))
    trainer = tr.policy_gradient(
        policy=model,
        params=model.init(jax.random.key(0)),
        scorer=SCORER,
        settings=tr.SamplingSettings(4, temperature=0.8, stop_token=0),
        optimizer=optax.sgd(0.3),
        method=METHODS[method],
        reference=tr.FixedReference(held),
        group_size=GROUP,
        prompts=PROMPTS,
        implementation=how,
        **options,
    )
    state, metrics = trainer.step(trainer.init(jax.random.key(0)), PROBLEMS)
    return state.params, metrics


@pytest.mark.parametrize(
    ("how", "method", "devices", "options"),
    [
        ("fast", "grpo", None, {"updates": tr.Updates(epochs=2, micro_batches=2)}),
        ("lean", "bonus", (8, 1), {}),
        ("fast", "sequences", None, {}),
    ],
)
@pytest.mark.usefixtures("x64")
def test_a_step_is_that_of_all_logits(how, method, devices, options):
    """Updated parameters and metrics; the head's weight is frozen under an adapter."""
    if devices is not None:
        options = {**options, "mesh": jax.make_mesh(devices, ("data", "fsdp"))}
    model = states_model(V, 4, rank=2, softcap=2.0)
    found = stepped(model, how, method, **options)
    expected = stepped(dataclasses.replace(model, hidden=None), None, method, **options)
    assert gap(found, expected) < 1e-9


def test_memory_is_that_of_a_chunk():
    """At 2048 tokens of a vocabulary of 16384, with entropies and whole-vocabulary divergences."""
    big, sizes = 16384, {}
    rows = {
        "tokens": jnp.ones((32, 64), jnp.int32),
        "mask": jnp.ones((32, 64)),
        "sampler_logps": jnp.zeros((32, 64)),
        "rewards": jnp.arange(32.0),
    }
    model = states_model(big, 32)
    params = jax.eval_shape(model.init, jax.random.key(0))
    for name, policy in (("dense", dataclasses.replace(model, hidden=None)), ("default", model)):
        method, optimizer = METHODS["bonus"], optax.sgd(0.1)
        actor = Policy.of(policy, tr.SamplingSettings(8), method)

        def update(params, rows, method=method, actor=actor, optimizer=optimizer):
            held = jax.tree.map(jnp.zeros_like, params)
            experience = Experience.of(actor, method, params, held, rows, 4)
            state = tr.TrainState.create(params, optimizer, jax.random.key(0))
            return tr.Updates().run(
                actor, method, optimizer, state, experience, state.key, held, None
            )

        sizes[name] = temporary_bytes(update, params, rows)
    assert sizes["default"] < sizes["dense"] / 4, sizes
