"""Language models, and objectives other than `TokenDistillation`, from states and heads: the same, in less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from state_models import gap, states_model, temporary_bytes, text_batch

from divax import objectives as ob
from divax import trainers as tr
from divax.trainers.hidden_distillation import HiddenDistillation

V = 37


def language(how, model, mesh=None, **options):
    return tr.language_model(
        model=model, optimizer=optax.sgd(0.3), implementation=how, mesh=mesh, **options
    )


def two_teachers():
    live = [states_model(V + seed, 6, seed=seed) for seed in (3, 4)]
    return tuple(tr.LiveTeacher(one, one.init(jax.random.key(0))) for one in live)


def distilled(how, model, mesh, objective, **options):
    return tr.distillation(
        student=model,
        teacher=tr.EnsembleTeacher(two_teachers(), np.array([1.0, 2.0]), vocab_size=V),
        objective=objective,
        optimizer=optax.sgd(0.3),
        implementation=how,
        mesh=mesh,
        **options,
    )


DKD = tr.Scheduled(
    at=lambda step: ob.OfLogits(
        jax.tree_util.Partial(ob.dkd, non_target_weight=2.0 + step.astype(float))
    )
)


@pytest.mark.parametrize(
    ("make", "how", "devices", "options"),
    [
        (language, "lean", (2, 2), {"reduction": ob.sequence_mean, "micro_batches": 2}),
        (distilled, "fast", (8, 1), {"objective": DKD}),
    ],
)
@pytest.mark.usefixtures("x64")
def test_a_step_is_that_of_all_logits(make, how, devices, options):
    """Loss, metrics, updated parameters and all measures; all heads are padded, each in its way."""
    batch = text_batch(V, packed=True)
    mesh = None if devices is None else jax.make_mesh(devices, ("data", "fsdp"))

    def stepped(how):
        trainer = make(how, states_model(V + 3, 4), mesh, vocab_size=V, **options)
        state, metrics = trainer.step(trainer.init(jax.random.key(0)), batch)
        return state.params, metrics, trainer.evaluate(state, [batch])

    assert gap(stepped(how), stepped("reference")) < 1e-9


@pytest.mark.usefixtures("x64")
def test_teachers_weighed_by_labels_combine_the_same():
    """Each device weighs its own rows, by its own labels."""
    teacher = tr.LabelWeightedTeacher(two_teachers(), vocab_size=V)
    mesh = jax.make_mesh((8,), ("data",))
    batch = jax.tree.map(jnp.asarray, text_batch(V))

    def combined(batch):
        made = teacher.unread(batch, mesh)
        assert made is not None
        return made.logits()

    found = jax.jit(combined)(batch)
    assert gap(found, jax.jit(lambda batch: teacher(batch))(batch)) < 1e-9


@pytest.mark.usefixtures("x64")
def test_returns_are_whitened_over_all_devices():
    """Value and gradients are those of one device that has all rows."""
    model, teacher = states_model(V, 4), two_teachers()[0]
    batch = jax.tree.map(jnp.asarray, text_batch(V))
    drawn = jnp.asarray(np.random.default_rng(0).normal(-3, 1, batch.tokens.shape))

    def found(mesh):
        hidden = HiddenDistillation(model, V, mesh, "fast")

        @jax.jit
        def loss(params):
            unread = hidden.unread(params, batch, teacher)
            assert unread is not None
            objective = ob.MiniLLM.published()
            return hidden.loss(objective, unread, batch, "fast", drawn)[0].mean()

        return jax.value_and_grad(loss)(model.init(jax.random.key(0)))

    assert gap(found(jax.make_mesh((8,), ("data",))), found(None)) < 1e-9


@pytest.mark.parametrize("objective", [None, ob.DirectPreferenceDistillation()])
def test_memory_is_that_of_a_chunk(objective):
    """At 2048 tokens of a vocabulary of 16384, by default."""
    big, sizes = 16384, {}
    model = states_model(big, 32)
    batch = jax.tree.map(jnp.asarray, text_batch(big, 32, 64))
    teacher = tr.LiveTeacher(model, model.init(jax.random.key(0)))
    for how in ("reference", None):
        trainer = language(how, model)
        if objective is not None:
            trainer = tr.distillation(
                student=model,
                teacher=teacher,
                objective=objective,
                optimizer=optax.sgd(0.1),
                implementation=how,
            )
        state = jax.eval_shape(trainer.init, jax.random.key(0))
        sizes[how] = temporary_bytes(trainer.step, state, batch)
    assert sizes[None] < sizes["reference"] / 5, sizes


def test_no_logits_travel_between_devices():
    mesh = jax.make_mesh((8,), ("data",))
    trainer = language("fast", states_model(V, 4), mesh)
    state = trainer.init(jax.random.key(0))
    placed = jax.device_put(text_batch(V), jax.NamedSharding(mesh, jax.P("data")))
    text = jax.jit(trainer.step).lower(state, placed).compile().as_text()
    assert text is not None
    assert "all-reduce" in text
    assert "all-gather" not in text


def test_labels_need_no_teacher():
    """One that gives all of its logits is not asked for them, and does not stand in the way."""
    model = states_model(V, 4)
    teacher = tr.FunctionTeacher(lambda _, batch: jnp.full((*batch.tokens.shape, V), jnp.nan))
    trainer = tr.distillation(
        student=model,
        teacher=teacher,
        objective=ob.LabelCrossEntropy(),
        optimizer=optax.sgd(0.3),
        implementation="fast",
    )
    state = jax.eval_shape(trainer.init, jax.random.key(0))
    program = str(jax.make_jaxpr(trainer.step)(state, text_batch(V)))
    assert f"8,10,{V}]" not in program
