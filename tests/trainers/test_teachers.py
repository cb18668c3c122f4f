"""The teacher's slot: a model, a cache, the student's past, a function, the model without its adapters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from divax import divergences as dv
from divax import trainers as tr
from divax.objectives import LabelCrossEntropy, OfLogits, TokenDistillation, dkd
from divax.trainers.sharding import place_state
from divax.trainers.teacher_ensemble import Combination

V = 7


def cached(batch, teacher, k, temperature=1.0):
    return dataclasses.replace(batch, teacher=dv.cache_top_k(teacher(batch) / temperature, k=k))


def losses(student, teacher, batches, key, steps=2, **options):
    options = {"optimizer": optax.sgd(0.5), **options}
    trainer = tr.distillation(student=student, teacher=teacher, **options)
    state, found = trainer.init(key), []
    for step in range(steps):
        state, metrics = trainer.step(state, batches(step))
        found.append(float(metrics["loss"]))
    return found, state, trainer


def test_a_cache_of_everything_is_the_teacher(table, teacher, batches, key):
    objective = TokenDistillation(divergence=dv.JensenShannon(), temperature=2.0)
    live, state, trainer = losses(table, teacher, batches, key, objective=objective)
    from_cache, _, other = losses(
        table, tr.CachedTeacher(temperature=2.0),
        lambda step: cached(batches(step), teacher, V, 2.0), key, objective=objective,
    )  # fmt: skip
    assert from_cache == pytest.approx(live, rel=1e-5)
    # Evaluation knows of a cache what it can, and of no cache the student alone.
    measured = other.evaluate(state, [cached(batches(5), teacher, V)])
    whole = trainer.evaluate(state, [batches(5)])
    assert set(whole) - set(measured) == {f"teacher/{n}" for n in ("perplexity", "accuracy", "ece")}
    assert measured == pytest.approx({name: whole[name] for name in measured}, rel=1e-5)
    fewer = other.evaluate(state, [cached(batches(5), teacher, 3)])
    assert fewer["forward_kl"] < whole["forward_kl"]
    assert set(other.evaluate(state, [batches(5)])) == {"perplexity", "accuracy", "ece"}


def test_the_students_past_teaches(table, batches, key):
    """An exponential moving average, step by step in NumPy."""
    share, rate = 0.25, 0.5
    trainer = tr.distillation(
        student=table,
        teacher=tr.FollowingTeacher(table),
        objective=TokenDistillation(distill_weight=0.5),
        optimizer=tr.following(optax.sgd(rate), share=share),
    )
    state = trainer.init(key)
    teacher = np.asarray(state.params["logits"], np.float64)
    for step in range(4):
        before = jax.tree.map(np.array, state.params)
        batch = batches(step)
        expected = tr.distillation(
            student=table,
            teacher=tr.LiveTeacher(table, {"logits": jnp.asarray(teacher, jnp.float32)}),
            objective=TokenDistillation(distill_weight=0.5),
            optimizer=optax.sgd(rate),
        )
        alone = dataclasses.replace(expected.init(key), params=jax.tree.map(jnp.asarray, before))
        alone, told = expected.step(alone, batch)
        state, metrics = trainer.step(state, batch)
        assert float(metrics["loss"]) == pytest.approx(float(told["loss"]), rel=1e-5)
        np.testing.assert_allclose(
            state.params["logits"], alone.params["logits"], rtol=1e-5, atol=1e-6
        )
        moved = np.asarray(state.params["logits"], np.float64)
        teacher = share * moved + (1 - share) * teacher
        held = state.opt_state.optimizer.reference["logits"]
        np.testing.assert_allclose(held, teacher, rtol=1e-5, atol=1e-6)


def test_generations_teach_each_other(table, batches, key):
    """A hard copy every third step: the teacher is the student of the generation before."""
    optimizer = tr.following(optax.sgd(0.5), share=1.0, every=3)
    _, state, _ = losses(
        table, tr.FollowingTeacher(table), batches, key, steps=3, optimizer=optimizer,
        objective=TokenDistillation(distill_weight=0.5),
    )  # fmt: skip
    np.testing.assert_array_equal(
        state.params["logits"], state.opt_state.optimizer.reference["logits"]
    )


def test_the_model_without_its_adapters_teaches(batches, key):
    model = tr.transformer(tr.TransformerConfig(vocab_size=V, layers=1, width=8, heads=2))
    base = model.init(jax.random.key(3))
    student = tr.low_rank(model, base, rank=2)
    adapters = student.init(key)
    without = tr.LiveTeacher(student, jax.tree.map(jnp.zeros_like, adapters))
    np.testing.assert_allclose(
        without(batches(0)), tr.LiveTeacher(model, base)(batches(0)), atol=1e-6
    )
    found, state, _ = losses(student, without, batches, key, objective=TokenDistillation())
    assert found == pytest.approx([0.0, 0.0], abs=1e-6)
    # Towards another teacher it is the adapters that learn, and nothing else is trained.
    other = tr.LiveTeacher(model, model.init(jax.random.key(8)))
    found, state, _ = losses(student, other, lambda step: batches(0), key, steps=8)
    assert found[-1] < found[0]
    assert jax.tree.structure(state.params) == jax.tree.structure(adapters)


def test_any_function_teaches(table, teacher, batches, key):
    as_function = tr.FunctionTeacher(
        lambda logits, batch: logits[jnp.asarray(batch.tokens)], teacher.params["logits"]
    )
    assert losses(table, as_function, batches, key)[0] == losses(table, teacher, batches, key)[0]
    absent = tr.FunctionTeacher(lambda arrays, batch: None)
    found, _, _ = losses(table, absent, batches, key, objective=LabelCrossEntropy())
    assert np.isfinite(found).all()


def test_a_sharded_teacher_stays_where_it_is(teacher, batches, key):
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"))
    model = tr.transformer(tr.TransformerConfig(vocab_size=V, layers=1, width=8, heads=2))
    params = model.init(jax.random.key(3))
    own = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    spread = jax.tree.map(
        lambda x: jax.device_put(x, own) if x.ndim == 2 and x.shape[0] == 8 else x, params
    )
    alone = losses(model, tr.LiveTeacher(model, params), batches, key, steps=1)[0]
    found = losses(model, tr.LiveTeacher(model, spread), batches, key, steps=1, mesh=mesh)[0]
    assert found == pytest.approx(alone, rel=1e-5)
    placed = jax.tree.leaves(place_state(spread, mesh))
    kept = [x.sharding.spec == own.spec for x in placed if x.shape[0] == 8 and x.ndim == 2]
    assert kept
    assert all(kept)


def test_several_teachers_teach_as_their_mixture_or_product(table, teacher, batches, key):
    """An update under the ensemble, and the mean of the updates under each teacher alone."""
    other = tr.LiveTeacher(table, table.init(jax.random.key(7)))
    pairs: list[tuple[str, Combination]] = [("forward_kl", "mixture"), ("reverse_kl", "product")]
    for spec, combine in pairs:
        objective = TokenDistillation(divergence=dv.get(spec))

        def update(teacher, objective=objective):
            _, state, _ = losses(table, teacher, batches, key, steps=1, objective=objective)
            return np.asarray(state.params["logits"])

        both = update(tr.EnsembleTeacher((teacher, other), np.array([0.25, 0.75]), combine))
        np.testing.assert_allclose(both, 0.25 * update(teacher) + 0.75 * update(other), atol=1e-5)
    nested = tr.EnsembleTeacher((teacher, tr.FollowingTeacher(table)))
    optimizer = tr.following(optax.sgd(0.5), share=0.1)
    assert np.isfinite(losses(table, nested, batches, key, optimizer=optimizer)[0]).all()
    # Whoever predicts the labels is believed: here all tokens are 3.
    sure = tr.LiveTeacher(table, {"logits": 20.0 * jnp.eye(V)[None, 3].repeat(V, axis=0)})
    wrong = tr.LiveTeacher(table, {"logits": 20.0 * jnp.eye(V)[None, 2].repeat(V, axis=0)})
    threes = tr.Batch(tokens=jnp.full((2, 4), 3))
    believed = tr.LabelWeightedTeacher((wrong, sure))(threes)
    np.testing.assert_allclose(believed[:, 0], jax.nn.log_softmax(sure(threes))[:, 0], atol=1e-3)
    with pytest.raises(ValueError, match="a CachedTeacher has a few of them or none"):
        losses(table, tr.EnsembleTeacher((teacher, tr.CachedTeacher())), batches, key)
    with pytest.raises(ValueError, match=r"weights must be \[2\], got the shape \(3,\)"):
        tr.EnsembleTeacher((teacher, other), np.ones(3))


def test_teachers_that_pad_their_vocabularies_are_cut_before_they_are_combined(batches):
    """As without what they say of ids that no token has; also weighed by the labels."""
    own = np.random.default_rng(0).standard_normal((2, V, V)).astype(np.float32)
    wide = np.pad(own, ((0, 0), (0, 0), (0, 3)), constant_values=9)
    gather = tr.Model(init=lambda key: None, apply=lambda params, tokens: params[tokens])
    alone = tuple(tr.LiveTeacher(gather, jnp.asarray(one)) for one in own)
    padded = tuple(tr.LiveTeacher(gather, jnp.asarray(x)) for x in (wide[0], wide[1, :, : V + 1]))
    batch = jax.tree.map(jnp.asarray, batches(0))
    for kind in (tr.EnsembleTeacher, tr.LabelWeightedTeacher):
        found = kind(padded, combine="product", vocab_size=V)(batch)
        np.testing.assert_array_equal(found, kind(alone, combine="product")(batch))
    with pytest.raises(ValueError, match=rf"teachers of {V + 1}, {V + 3} logits .* vocab_size"):
        tr.EnsembleTeacher(padded)(batch)
    with pytest.raises(ValueError, match=rf"teachers of {V} logits .* \(now {V + 1}\)"):
        tr.EnsembleTeacher(alone, vocab_size=V + 1)(batch)


def test_packed_rows_are_worth_what_single_ones_are(key):
    """Two documents in a row, or one to a row: the same loss and the same update."""
    model = tr.transformer(tr.TransformerConfig(vocab_size=V, layers=1, width=8, heads=2))
    teacher = tr.LiveTeacher(model, model.init(jax.random.key(3)))
    generator = np.random.default_rng(0)
    documents = [generator.integers(V, size=(4, size)).astype(np.int32) for size in (5, 3)]
    packed = tr.Batch(
        tokens=np.concatenate(documents, axis=1),
        segment_ids=np.repeat([0, 1], [5, 3])[None].repeat(4, axis=0).astype(np.int32),
    )
    rows = np.concatenate([np.pad(d, ((0, 0), (0, 5 - d.shape[1]))) for d in documents])
    mask = np.repeat([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], 4, axis=0).astype(np.float32)
    objective = TokenDistillation(divergence=dv.JensenShannon(), distill_weight=0.7)
    one = losses(model, teacher, lambda step: packed, key, objective=objective)
    other = losses(model, teacher, lambda step: tr.Batch(rows, mask), key, objective=objective)
    assert one[0] == pytest.approx(other[0], rel=2e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), one[1].params, other[1].params
    )


def test_what_has_no_meaning_is_refused(table, teacher, batches, key):
    with pytest.raises(ValueError, match="cache holds the teacher at temperature 1, and the"):
        tr.distillation(
            student=table, teacher=tr.CachedTeacher(), optimizer=optax.sgd(0.1),
            objective=TokenDistillation(temperature=2.0),
        )  # fmt: skip
    with pytest.raises(ValueError, match="TokenDistillation needs a teacher, and there is none"):
        losses(table, tr.CachedTeacher(), batches, key)
    with pytest.raises(ValueError, match="dkd needs all of the teacher's logits"):
        losses(
            table, tr.CachedTeacher(), lambda step: cached(batches(step), teacher, 3), key,
            objective=OfLogits(dkd),
        )  # fmt: skip
    with pytest.raises(TypeError, match="a MovingReference lives in the optimizer's state"):
        losses(table, tr.FollowingTeacher(table), batches, key)
    broken = tr.LiveTeacher(table, {"logits": teacher.params["logits"].at[2, 3].set(jnp.nan)})
    trainer = tr.distillation(student=table, teacher=broken, optimizer=optax.sgd(0.1))
    with pytest.raises(
        tr.NonFiniteError, match=r"loss is nan \(the teacher's logits are not finite\)"
    ):
        tr.fit(trainer, batches, steps=3, key=key)
