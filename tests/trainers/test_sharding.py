"""Eight devices do what one does, and arrays lie where they should."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from divax import trainers as tr
from divax.trainers.sharding import state_sharding

MESHES = {
    "data": ((8,), ("data",)),
    "fsdp": ((8,), ("fsdp",)),
    "both": ((2, 4), ("data", "fsdp")),
}


def mesh_of(name):
    # As a user would make it: in JAX 0.10 and later its axes are explicit by default.
    return jax.make_mesh(*MESHES[name])


@functools.cache
def three_steps(mesh_name, micro_batches):
    """State, metrics and measures after three steps of a tiny transformer's distillation."""
    model = tr.transformer(
        tr.TransformerConfig(vocab_size=8, layers=1, width=8, heads=2, kv_heads=1)
    )
    trainer = tr.distillation(
        student=model,
        teacher=tr.LiveTeacher(model, model.init(jax.random.key(4))),
        optimizer=optax.sgd(0.3, momentum=0.9),
        micro_batches=micro_batches,
        mesh=None if mesh_name is None else mesh_of(mesh_name),
    )

    def batch(step):
        generator = np.random.default_rng(step)
        mask = np.arange(6) < generator.integers(1, 7, size=(16, 1))
        return tr.Batch(generator.integers(8, size=(16, 6)).astype("i4"), mask.astype("f4"))

    state, metrics = trainer.init(jax.random.key(0)), {}
    for i in range(3):
        state, metrics = trainer.step(state, batch(i))
    return state, metrics, trainer.evaluate(state, [batch(9)])


@pytest.mark.parametrize(("name", "micro_batches"), [("data", 1), ("fsdp", 2), ("both", 2)])
def test_eight_devices_equal_one(name, micro_batches):
    alone, loss, measured = three_steps(None, 1)
    spread, spread_loss, spread_measured = three_steps(name, micro_batches)
    for a, b in zip(jax.tree.leaves(alone.params), jax.tree.leaves(spread.params), strict=True):
        # Three updates below 1, float32, in another order of summation.
        np.testing.assert_allclose(a, b, atol=2e-5)
    np.testing.assert_allclose(loss["loss"], spread_loss["loss"], rtol=1e-5)
    assert spread_measured == pytest.approx(measured, rel=1e-4, abs=1e-6)
    assert len(spread.params["head"].sharding.device_set) == 8


def test_the_dictionary_model_in_double_precision(x64, key, adam):
    """The same comparison without room for rounding."""
    model = tr.Model(
        init=lambda key: {"logits": jax.random.normal(key, (16, 16), jnp.float64)},
        apply=lambda params, tokens: params["logits"][tokens],
    )
    tokens = np.random.default_rng(0).integers(16, size=(16, 5)).astype(np.int32)

    def run(mesh):
        trainer = tr.language_model(model=model, optimizer=adam(0.1), mesh=mesh)
        state = trainer.init(key)
        for _ in range(3):
            state, _ = trainer.step(state, tr.Batch(tokens=tokens))
        return np.asarray(state.params["logits"])

    alone = run(None)
    for name in MESHES:
        np.testing.assert_allclose(run(mesh_of(name)), alone, atol=1e-12)


def test_parameters_and_moments_lie_together(key, adam):
    model = tr.Model(
        init=lambda key: {"head": jax.random.normal(key, (16, 24))},
        apply=lambda params, tokens: params["head"][tokens],
    )
    for name, spec in {
        "data": PartitionSpec(),
        "fsdp": PartitionSpec(None, "fsdp"),
        "both": PartitionSpec(None, "fsdp"),
    }.items():
        trainer = tr.language_model(model=model, optimizer=adam(1e-3), mesh=mesh_of(name))
        state = trainer.init(key)
        state, _ = trainer.step(state, tr.Batch(tokens=np.zeros((8, 4), np.int32)))
        moments = state.opt_state[0]
        for tree in (state.params, moments.mu, moments.nu):
            head = tree["head"]
            assert head.sharding.is_equivalent_to(
                jax.sharding.NamedSharding(mesh_of(name), spec), head.ndim
            )
        if name == "fsdp":
            assert state.params["head"].addressable_shards[0].data.shape == (16, 3)


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((16, 64), (None, "fsdp")),
        ((64, 16), ("fsdp",)),
        ((7, 16), (None, "fsdp")),
        ((7, 9), ()),
        ((), ()),
        ((0, 8), ()),
    ],
)
def test_the_largest_divisible_axis_is_sharded(shape, spec):
    assert state_sharding(mesh_of("fsdp"), shape).spec == PartitionSpec(*spec)


def test_devices_must_divide_the_batch(table, key):
    trainer = tr.language_model(model=table, optimizer=optax.sgd(1.0), mesh=mesh_of("data"))
    with pytest.raises(ValueError, match="batch of 12 rows does not divide over the mesh's 8"):
        trainer.step(trainer.init(key), tr.Batch(tokens=np.zeros((12, 4), np.int32)))
