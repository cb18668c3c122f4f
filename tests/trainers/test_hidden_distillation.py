"""Distillation from states and heads is distillation from logits, in less memory."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from state_models import gap, states_model, temporary_bytes, text_batch

from divax import divergences as dv
from divax import trainers as tr
from divax.objectives import OfLogits, TokenDistillation, dist, sequence_mean

V = 37
MIXED = TokenDistillation(
    divergence=0.4 * dv.ForwardKL() + dv.JensenShannon(), temperature=2.0, distill_weight=0.6
)
SCHEDULED = tr.Scheduled(
    at=lambda step: TokenDistillation(
        divergence=dv.Alpha(alpha=0.3 + 0.1 * step.astype(float)),
        distill_weight=0.5,
        reduction=sequence_mean,
    )
)


def live():
    model = states_model(V, 6, seed=3)
    return tr.LiveTeacher(model, model.init(jax.random.key(0)))


def cached(batch, temperature):
    rows = dv.cache_top_k(live()(batch) / temperature, k=5)
    return dataclasses.replace(batch, teacher=jax.tree.map(np.asarray, rows))


def stepped(how, student, teacher, objective, batch, mesh=None, micro_batches=1, measured=True):
    """One update, and the measures after it."""
    trainer = tr.distillation(
        student=student,
        teacher=teacher,
        objective=objective,
        optimizer=optax.sgd(0.3),
        vocab_size=V,
        micro_batches=micro_batches,
        mesh=mesh,
        implementation=how,
    )
    state, metrics = trainer.step(trainer.init(jax.random.key(0)), batch)
    return state.params, metrics, trainer.evaluate(state, [batch]) if measured else {}


@pytest.mark.parametrize(
    ("how", "teacher", "objective", "options", "micro_batches", "devices", "measured"),
    [
        ("fast", "live", MIXED, {"rank": 2, "packed": True}, 2, None, True),
        ("lean", "live", SCHEDULED, {"softcap": 3.0}, 1, None, False),
        ("lean", "live", MIXED, {"packed": True}, 1, (2, 4), False),
        ("fast", "cache", MIXED, {"rank": 2}, 1, (8, 1), True),
    ],
)
@pytest.mark.usefixtures("x64")
def test_a_step_is_that_of_all_logits(
    how, teacher, objective, options, micro_batches, devices, measured
):
    """Loss, every metric, updated parameters, and all measures; heads padded differently."""
    options = dict(options)
    batch = text_batch(V, packed=options.pop("packed", False))
    if teacher == "cache":
        batch, held = cached(batch, 2.0), tr.CachedTeacher(2.0)
    else:
        held = live()
    mesh = None if devices is None else jax.make_mesh(devices, ("data", "fsdp"))
    found, expected = (
        stepped(
            name,
            states_model(V + 3, 4, **options),
            held,
            objective,
            batch,
            mesh,
            micro_batches,
            measured,
        )
        for name in (how, "reference")
    )
    assert gap(found, expected) < 1e-9


def test_the_default_is_all_logits_while_they_are_few():
    """The same program."""
    programs = []
    for how in (None, "reference"):
        trainer = tr.distillation(
            student=states_model(V, 4),
            teacher=live(),
            optimizer=optax.sgd(0.3),
            implementation=how,
        )
        state = jax.eval_shape(trainer.init, jax.random.key(0))
        program = str(jax.make_jaxpr(trainer.step)(state, text_batch(V)))
        programs.append(re.sub(r" at 0x\w+", "", program))
    assert programs[0] == programs[1]
    assert f"8,10,{V}]" in programs[0]


def step_of(how, mesh=None):
    """A trainer's jitted step, with what it takes, at 2048 tokens of a vocabulary of 16384."""
    big, width = 16384, 32
    student = states_model(big, width)
    teacher = tr.LiveTeacher(student, student.init(jax.random.key(0)))
    trainer = tr.distillation(
        student=student, teacher=teacher, optimizer=optax.sgd(0.1), implementation=how, mesh=mesh
    )
    return trainer, text_batch(big, 32, 64)


def test_memory_is_that_of_a_chunk():
    sizes = {}
    for how in ("reference", None):
        trainer, batch = step_of(how)
        state = jax.eval_shape(trainer.init, jax.random.key(0))
        sizes[how] = temporary_bytes(trainer.step, state, jax.tree.map(jnp.asarray, batch))
    assert sizes[None] < sizes["reference"] / 4, sizes


def test_no_logits_travel_between_devices():
    """Each device walks its own rows: what is added up is all that they exchange."""
    mesh = jax.make_mesh((8,), ("data",))
    trainer, batch = step_of("fast", mesh)
    state = trainer.init(jax.random.key(0))
    placed = jax.device_put(batch, jax.NamedSharding(mesh, jax.P("data")))
    text = jax.jit(trainer.step).lower(state, placed).compile().as_text()
    assert text is not None
    assert "all-reduce" in text
    assert "all-gather" not in text


def test_what_is_wrong_is_said():
    plain = dataclasses.replace(states_model(V, 4), hidden=None)
    make = functools.partial(tr.distillation, teacher=live(), optimizer=optax.sgd(0.1))
    with pytest.raises(ValueError, match="give the student's Model a hidden and a head"):
        make(student=plain, implementation="fast")
    with pytest.raises(ValueError, match="OfLogits reads all logits"):
        make(student=states_model(V, 4), objective=OfLogits(dist), implementation="lean")
    with pytest.raises(ValueError, match="'quick' is none of"):
        make(student=plain, implementation="quick")  # type: ignore[arg-type]
    table = tr.FunctionTeacher(lambda _, batch: jnp.zeros((*batch.tokens.shape, V)))
    ensemble = tr.EnsembleTeacher((live(), table))
    whole = make(student=states_model(V, 4), teacher=ensemble, implementation="fast")
    with pytest.raises(ValueError, match="the teacher gives all of its logits"):
        whole.step(whole.init(jax.random.key(0)), text_batch(V))
