"""Distillation from hidden states is distillation of the logits: loss, gradients, metrics."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divax import divergences as dv
from divax import objectives as ob

B, T, V = 2, 4, 11
CASES = {
    "kl": {"divergence": dv.ForwardKL(), "temperature": 2.0, "distill_weight": 0.6},
    "plain": {"divergence": dv.JensenShannon()},
    "sequences": {
        "divergence": 0.3 * dv.ReverseKL() + dv.ForwardKL(),
        "distill_weight": 0.25,
        "reduction": ob.sequence_mean,
        "scale_by_t2": False,
        "temperature": 0.5,
    },
    "constant": {
        "divergence": dv.Renyi(order=0.5),
        "distill_weight": 0.5,
        "temperature": 3.0,
        "reduction": functools.partial(ob.constant_sum, constant=5.0),
    },
}


def arrays() -> tuple[dict[str, Any], jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    shapes = {
        "student_hidden": (B, T, 3),
        "student_head": (3, V + 2),
        "teacher_hidden": (B, T, 5),
        "teacher_head": (5, V),
    }
    a: dict[str, Any] = {
        name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()
    }
    labels = jnp.asarray([[3, 1, -100, 0], [10, 4, 2, -100]])
    mask = jnp.asarray([[1.0, 0.5, 1.0, 0.0], [1.0, 1.0, 2.0, 1.0]])
    return a, labels, mask


@pytest.mark.parametrize("how", ["fast", "lean"])
@pytest.mark.usefixtures("x64")
def test_it_is_distillation_of_the_logits(how):
    """Both sides' NaN in rows that do not count included; the dense loss is the oracle."""
    a, labels, mask = arrays()

    def fused(case, student, a):
        a = a | {"student_hidden": student[0].at[0, 3].set(jnp.nan), "student_head": student[1]}
        loss, metrics = ob.distillation_from_hidden(
            **a,
            labels=labels,
            mask=mask,
            vocab_size=V,
            implementation=how,
            chunk=3,
            vocab_chunk=4,
            **case,
        )
        return loss.total, (loss.count, metrics)

    def dense(case, student, a):
        loss, metrics = ob.distillation(
            student_logits=student[0] @ student[1],
            teacher_logits=a["teacher_hidden"] @ a["teacher_head"],
            labels=labels,
            mask=mask,
            vocab_size=V,
            **case,
        )
        return loss.total, (loss.count, metrics)

    @jax.jit
    def both(student, a):
        return {
            name: [
                jax.value_and_grad(functools.partial(of, case), has_aux=True)(student, a)
                for of in (fused, dense)
            ]
            for name, case in CASES.items()
        }

    for name, (found, expected) in both((a["student_hidden"], a["student_head"]), a).items():
        assert set(found[0][1][1]) == set(expected[0][1][1])
        gaps = jax.tree.map(lambda x, y: float(jnp.max(jnp.abs(x - y))), found, expected)
        assert max(jax.tree.leaves(gaps)) < 1e-10, (name, gaps)


@pytest.mark.usefixtures("x64")
def test_a_cache_takes_the_teachers_place():
    """Value, gradients and metrics, coverages included; rows that do not count hold anything."""
    a, labels, mask = arrays()
    kept = dv.cache_top_k(a["teacher_hidden"] @ a["teacher_head"] / 2.0, k=4)
    kept = kept._replace(ids=kept.ids.at[0, 3].set(-7), logits=kept.logits.at[1, 3].set(jnp.nan))
    cases = {name: {**CASES[name], "temperature": 2.0} for name in ("kl", "sequences")}

    def fused(case, student):
        loss, metrics = ob.distillation_from_hidden(
            student_hidden=student[0].at[0, 3].set(jnp.nan),
            student_head=student[1],
            teacher=kept,
            labels=labels,
            mask=mask,
            vocab_size=V,
            chunk=3,
            implementation="fast",
            **case,
        )
        return loss.total, (loss.count, metrics)

    def dense(case, student):
        loss, metrics = ob.distillation(
            student_logits=student[0] @ student[1],
            teacher_logits=kept,
            labels=labels,
            mask=mask,
            vocab_size=V,
            **case,
        )
        return loss.total, (loss.count, metrics)

    @jax.jit
    def both(student):
        grad = functools.partial(jax.value_and_grad, has_aux=True)
        return [
            [grad(functools.partial(of, c))(student) for c in cases.values()]
            for of in (fused, dense)
        ]

    found, expected = both((a["student_hidden"], a["student_head"]))
    assert "student_coverage" in found[0][0][1][1]
    gaps = jax.tree.map(lambda x, y: float(jnp.max(jnp.abs(x - y))), found, expected)
    assert max(jax.tree.leaves(gaps)) < 1e-10, gaps


def test_what_is_wrong_is_said():
    a, labels, mask = arrays()
    with pytest.raises(ValueError, match="pass vocab_size="):
        ob.distillation_from_hidden(**a, labels=labels, mask=mask)
    with pytest.raises(ValueError, match="labels"):
        ob.distillation_from_hidden(**a, vocab_size=V, distill_weight=0.5)
    with pytest.raises(ValueError, match="a teacher is missing"):
        ob.distillation_from_hidden(**{**a, "teacher_head": None})
    kept = dv.cache_top_k(jnp.zeros((B, T, V)), k=2)
    with pytest.raises(ValueError, match="teacher is a cache"):
        ob.distillation_from_hidden(**a, teacher=kept)
    a["teacher_hidden"] = jnp.ones((1, 5))
    with pytest.raises(ValueError, match="same tokens"):
        ob.distillation_from_hidden(**a, vocab_size=V)
