"""Preference training from states and heads is that from logits, in less memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from state_models import gap, states_model, temporary_bytes, text_batch

from divax import trainers as tr

V = 23


def pairs(packed, rows=8):
    """Every row's completions against the next row's."""
    batch, segments = text_batch(V, rows, packed=packed), 2 if packed else 1
    index = np.arange(rows * segments, dtype=np.int32)
    return tr.PairBatch(
        completions=batch,
        chosen=index,
        rejected=np.roll(index, -1),
        weights=(index % 3 + 1).astype(np.float32),
        segments=segments,
    )


def labelled(rows=8):
    index = np.arange(rows, dtype=np.int32)
    return tr.LabelledBatch(
        completions=text_batch(V, rows),
        labelled=index,
        desirable=index % 2 == 0,
        weights=np.ones(rows, np.float32),
        mismatched=np.roll(index, 1),
        mismatched_weights=np.ones(rows, np.float32),
    )


def stepped(make, how, model, batch, **options):
    """One update from other parameters than the reference's, and the measures after it."""
    held, params = model.init(jax.random.key(1)), model.init(jax.random.key(0))
    trainer = make(
        policy=model,
        params=params,
        reference=tr.FixedReference(held),
        optimizer=optax.sgd(0.3),
        from_reference=False,
        implementation=how,
        **options,
    )
    state, metrics = trainer.step(trainer.init(jax.random.key(0)), batch)
    return state.params, metrics, trainer.evaluate(state, [batch])


@pytest.mark.parametrize(
    ("make", "how", "packed", "devices", "options"),
    [
        (tr.preference, "fast", True, None, {"micro_batches": 2}),
        (
            tr.preference,
            "lean",
            False,
            (2, 4),
            {"objective": tr.OnPolicyWeighted(objective=tr.FDivergenceDPO(beta=0.5))},
        ),
        (tr.unpaired_preference, "fast", False, (8, 1), {}),
    ],
)
@pytest.mark.usefixtures("x64")
def test_a_step_is_that_of_all_logits(make, how, packed, devices, options):
    """Loss, metrics, updated parameters and measures; the head's weight is frozen under an adapter."""
    batch = pairs(packed) if make is tr.preference else labelled()
    mesh = None if devices is None else jax.make_mesh(devices, ("data", "fsdp"))
    found, expected = (
        stepped(make, name, model, batch, mesh=mesh, **options)
        for name, model in (
            (how, states_model(V, 4, rank=2, softcap=2.0)),
            (None, dataclasses.replace(states_model(V, 4, rank=2, softcap=2.0), hidden=None)),
        )
    )
    assert gap(found, expected) < 1e-9


def test_memory_is_that_of_a_chunk():
    """At 2048 tokens of a vocabulary of 16384."""
    big, sizes = 16384, {}
    model = states_model(big, 32)
    batch = dataclasses.replace(pairs(False, 32), completions=text_batch(big, 32, 64))
    for name, policy in (("dense", dataclasses.replace(model, hidden=None)), ("default", model)):
        trainer = tr.preference(
            policy=policy,
            params=model.init(jax.random.key(0)),
            reference=tr.FixedReference(model.init(jax.random.key(0))),
            optimizer=optax.sgd(0.1),
            from_reference=False,
        )
        state = jax.eval_shape(trainer.init, jax.random.key(0))
        sizes[name] = temporary_bytes(trainer.step, state, jax.tree.map(jnp.asarray, batch))
    assert sizes["default"] < sizes["dense"] / 4, sizes


def test_nothing_but_log_probs_travels_between_devices():
    """Each walks its own rows, in three chunks."""
    mesh = jax.make_mesh((8,), ("data",))
    model = states_model(V, 4)
    trainer = tr.preference(
        policy=model,
        params=model.init(jax.random.key(0)),
        reference=tr.FixedReference(model.init(jax.random.key(0))),
        optimizer=optax.sgd(0.1),
        from_reference=False,
        mesh=mesh,
        chunk_size=4,
        implementation="fast",
    )
    state = trainer.init(jax.random.key(0))
    placed = jax.device_put(pairs(False), jax.NamedSharding(mesh, jax.P("data")))
    text = jax.jit(trainer.step).lower(state, placed).compile().as_text()
    assert text is not None
    gathered = [line for line in text.splitlines() if " all-gather" in line]
    assert gathered
    assert all("f32[8]" in line.split("all-gather(")[0] for line in gathered), gathered
