"""Objectives of tokens by themselves are, from states and heads, what they are of logits."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divax import objectives as ob

B, T, V = 2, 4, 11
LABELS = np.array([[3, 1, -100, 0], [10, 4, 2, -100]])
MASK = np.array([[1.0, 0.5, 1.0, 0.0], [1.0, 1.0, 2.0, 1.0]])
# What shares no code with the others; `dkd` is in tests/trainers/test_hidden_objectives.py, within a whole step.
OBJECTIVES = {
    "nkd": ob.OfLogits(
        jax.tree_util.Partial(ob.nkd, non_target_weight=np.array(0.7), reduction=ob.sequence_mean)
    ),
    "sampled": ob.SampledDistillation(
        estimator="reinforce", importance="token", reduction=ob.ConstantSum(constant=5.0)
    ),
    "ensemble": ob.TokenDistillation(distill_weight=0.4),
    "prefix": ob.SampledDistillation(importance="prefix", cap=2.0),
    "minillm": ob.MiniLLM(discount=0.9, whiten=True),
    "match": ob.SequenceMatch(discount=0.9),
    "contrastive": ob.ContrastiveDistillation(teacher_gap=0.02, student_gap=0.01),
    "labels": ob.LabelCrossEntropy(reduction=ob.sequence_mean),
}
OF_COMPLETIONS = ("prefix", "minillm", "match", "contrastive")


def rows_of(student, teachers, name):
    """The states of a row that does not count are NaN; of the ensemble's teachers each row has its own weights."""
    made = [ob.HiddenLogits(hidden=h, head=w) for h, w in (*teachers, student)]
    combined = ob.CombinedLogits(
        parts=tuple(made[:2]),
        weights=jnp.asarray(np.random.default_rng(4).random((B, T, 2))),
        combine=ob.mixture_of_teachers,
    )
    return ob.HiddenRows(
        student=made[2],
        teacher=combined if name == "ensemble" else made[0],
        labels=jnp.asarray(LABELS),
        mask=jnp.asarray(MASK),
        sampler_logps=jnp.full((B, T), -2.0),
        writers=jnp.array([1, 2]),
    )


def pair(shapes, seed):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.normal(size=shape)) for shape in shapes)


@pytest.mark.usefixtures("x64")
def test_they_are_what_they_are_of_logits():
    """Value, metrics and gradients by states and head, of chunks that overlap; the student's head is padded."""
    student = pair([(B, T, 3), (3, V + 2)], 0)
    teachers = [pair([(B, T, 5), (5, V)], seed) for seed in (1, 2)]

    def total(of, name, student):
        hidden, head = student
        hidden = hidden.at[0, 3].set(jnp.nan) if of is fused else hidden
        loss, metrics = of(rows_of((hidden, head), teachers, name), name)
        return loss.total, (loss.count, metrics)

    def fused(rows, name):
        objective = OBJECTIVES[name]
        assert objective.takes_hidden
        if name == "labels":
            return ob.cross_entropy_from_hidden(
                hidden=rows.student.hidden,
                head=rows.student.head,
                labels=rows.labels,
                mask=rows.mask,
                vocab_size=V,
                reduction=objective.reduction,
                chunk=3,
                vocab_chunk=4,
                implementation="lean",
            )
        if name in OF_COMPLETIONS:
            return objective.from_hidden(rows, vocab_size=V, implementation="fast")
        return ob.objective_from_hidden(
            objective, rows, vocab_size=V, chunk=3, implementation="fast"
        )

    def dense(rows, name):
        return OBJECTIVES[name](rows.dense(V))

    @jax.jit
    def both(student):
        return {
            name: [
                jax.value_and_grad(functools.partial(total, of, name), has_aux=True)(student)
                for of in (fused, dense)
            ]
            for name in OBJECTIVES
        }

    for name, (found, expected) in both(student).items():
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9, err_msg=name)


def test_who_takes_hidden_states():
    """Not correlations across rows, or unknown functions."""
    assert not ob.OfLogits(ob.dist).takes_hidden
    assert all(ob.OfLogits(each).takes_hidden for each in (ob.dkd, ob.nkd, ob.pld, ob.logit_mse))
    assert ob.distillm(compat="distillm").takes_hidden  # type: ignore[attr-defined]
    assert not ob.TokenDistillation(divergence=lambda t, s: jnp.sum(t - s, -1)).takes_hidden
    assert ob.AsPublished(objective=ob.MiniLLM.published(), difference="").takes_hidden
    assert not ob.LabelCrossEntropy().reads_teacher


def test_padded_teachers_are_not_combined_unless_cut():
    teachers = [pair([(B, T, 5), (5, V)], seed) for seed in (1, 2)]
    rows = rows_of(pair([(B, T, 3), (3, V)], 0), teachers, "ensemble")
    with pytest.raises(ValueError, match="must be the 9 tokens, got 11: pass vocab_size=9"):
        ob.objective_from_hidden(ob.TokenDistillation(), rows, vocab_size=9)


def test_every_row_has_its_own_weights_of_teachers():
    teachers = [pair([(B, T, 5), (5, V)], seed) for seed in (1, 2)]
    rows = rows_of(pair([(B, T, 3), (3, V)], 0), teachers, "ensemble")
    shared = dataclasses.replace(rows.teacher, weights=jnp.ones(2))  # type: ignore[type-var]
    words = re.escape(
        f"weights must be {(B, T, 2)}, one for each row and model, got (2,): pass jnp.broad"
    )
    with pytest.raises(ValueError, match=words):
        ob.TokenDistillation().from_hidden(dataclasses.replace(rows, teacher=shared))
    with pytest.raises(ValueError, match=words):
        shared.logits()
