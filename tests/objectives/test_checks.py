"""Objectives obey every law; each law catches an objective that breaks it, by name and with the inputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divax import divergences as dv
from divax import objectives
from divax.objectives import ObjectiveCase, Weighted, token_mean

B, T, V = 4, 3, 5


def example():
    random = np.random.default_rng(7)
    student, teacher = random.standard_normal((2, B, T, V))
    return {
        "student_logits": student,
        "teacher_logits": teacher,
        "mask": (np.arange(T) < np.array([[3], [1], [2], [3]])).astype(np.float32),
    }


def case(objective, **changes):
    given = {"differentiated": "student_logits", "held_fixed": "teacher_logits", "mask": "mask"}
    return ObjectiveCase(**{"objective": objective, "inputs": example(), **given, **changes})


def rows(student, teacher, mask):
    """Squared distance, with the rows that do not count silenced before anything is computed."""
    live = (mask != 0)[..., None]
    student, teacher = (jnp.where(live, x, 0).astype(mask.dtype) for x in (student, teacher))
    return jnp.sum((student - jax.lax.stop_gradient(teacher)) ** 2, -1)


def right(*, student_logits, teacher_logits, mask):
    loss = token_mean(rows(student_logits, teacher_logits, mask), mask)
    return loss, {"distance": jax.lax.stop_gradient(loss)}


def returns_a_mean(**inputs):
    return right(**inputs)[0].mean(), {}


def draws_noise_in_numpy(*, student_logits, **inputs):
    noise = np.random.default_rng().standard_normal(student_logits.shape)
    return right(student_logits=student_logits + noise.astype(student_logits.dtype), **inputs)


def freezes_a_factor(*, student_logits, teacher_logits, mask):
    frozen = jax.lax.stop_gradient(student_logits)
    loss, metrics = right(student_logits=student_logits, teacher_logits=teacher_logits, mask=mask)
    live = rows(student_logits, frozen + 1, mask)
    return loss + token_mean(live, mask), metrics


def trains_the_teacher(*, student_logits, teacher_logits, mask):
    live = (mask != 0)[..., None]
    gap = jnp.where(live, student_logits - teacher_logits, 0).astype(mask.dtype)
    return token_mean(jnp.sum(gap * gap, -1), mask), {}


def reports_the_loss_itself(**inputs):
    loss, _ = right(**inputs)
    return loss, {"loss": loss}


def multiplies_by_the_mask(*, student_logits, teacher_logits, mask):
    gap = (student_logits - jax.lax.stop_gradient(teacher_logits)).astype(mask.dtype)
    return Weighted(jnp.sum(jnp.sum(gap * gap, -1) * mask), jnp.sum(mask)), {}


def counts_the_batch(**inputs):
    loss, _ = right(**inputs)
    return Weighted(loss.total, jnp.full_like(loss.total, inputs["mask"].shape[0])), {}


def takes_the_mean_of_the_batch(**inputs):
    mean = right(**inputs)[0].mean()
    return Weighted(mean, jnp.sum(inputs["mask"])), {}


def weighs_by_position(*, mask, **inputs):
    # Within each half of the batch, so that the halves still add up.
    place = jnp.arange(mask.shape[0]) % 2 + 1
    return right(mask=mask * place.astype(mask.dtype)[:, None], **inputs)


def asks_the_host(*, mask, **inputs):
    shape = jax.ShapeDtypeStruct(mask.shape, mask.dtype)
    return right(mask=jax.pure_callback(np.asarray, shape, mask), **inputs)


def subtracts_in_half_precision(*, student_logits, teacher_logits, mask):
    gap = student_logits - jax.lax.stop_gradient(teacher_logits)
    return right(student_logits=gap, teacher_logits=jnp.zeros_like(gap), mask=mask)


CULPRITS = {
    "weighted": returns_a_mean,
    "jit_equals_eager": draws_noise_in_numpy,
    "gradient": freezes_a_factor,
    "held_fixed": trains_the_teacher,
    "no_gradient_in_metrics": reports_the_loss_itself,
    "masked_rows": multiplies_by_the_mask,
    "all_masked": counts_the_batch,
    "additive": takes_the_mean_of_the_batch,
    "permutation": weighs_by_position,
    "vmap": asks_the_host,
    "half_precision": subtracts_in_half_precision,
}


def test_every_law_has_a_culprit():
    assert set(CULPRITS) == set(objectives.LAWS)


@pytest.mark.parametrize("law", CULPRITS)
def test_the_law_catches_its_culprit_and_no_law_before_it_does(law):
    culprit = CULPRITS[law]
    with pytest.raises(dv.BrokenLaw) as broken:
        objectives.check_objective(case(culprit))
    message = str(broken.value)
    statement = objectives.LAWS[law].statement
    assert message.startswith(f"{culprit.__name__} breaks the law '{law}', {statement}: ")
    assert broken.value.law == law
    assert "\n" not in message


def test_the_right_one_obeys_all():
    verdicts = objectives.check_objective(case(right))
    assert [verdict.law for verdict in verdicts] == list(objectives.LAWS)
    assert all(verdict.cases > 0 and verdict.skipped is None for verdict in verdicts)


def distillation_case():
    inputs = example()
    inputs["labels"] = np.random.default_rng(8).integers(0, V, (B, T))
    inputs["labels"][0, 0] = -100
    # A token impossible for both, and hyper-parameters as traced inputs.
    for name in ("student_logits", "teacher_logits"):
        inputs[name][:, :, 2] = -np.inf
    inputs["labels"][inputs["labels"] == 2] = 1
    inputs |= {"temperature": 1.7, "distill_weight": 0.6}
    objective = functools.partial(objectives.distillation, reduction=objectives.sequence_mean)
    return case(objective, inputs=inputs)


def cross_entropy_case():
    inputs = {"logits": example()["student_logits"], "mask": example()["mask"] > 0}
    inputs["labels"] = np.random.default_rng(9).integers(0, V, (B, T), dtype=np.int32)
    return ObjectiveCase(
        objective=objectives.cross_entropy, inputs=inputs, differentiated="logits", mask="mask"
    )


def test_distillation_obeys_all():
    verdicts = objectives.check_objective(distillation_case())
    assert all(verdict.cases > 0 for verdict in verdicts)


def test_cross_entropy_obeys_all_that_applies():
    skipped = {v.law: v.skipped for v in objectives.check_objective(cross_entropy_case())}
    assert {law: reason for law, reason in skipped.items() if reason} == {
        "held_fixed": "no input is named as held fixed"
    }


def test_the_inputs_in_the_error_reproduce_it():
    with pytest.raises(dv.BrokenLaw) as broken:
        objectives.check_law(case(multiplies_by_the_mask), "masked_rows")
    inputs = {name: broken.value.inputs[name].astype(np.float32) for name in example()}
    loss, _ = multiplies_by_the_mask(**inputs)
    assert np.isnan(loss.total)
    assert np.isfinite(right(**inputs)[0].total)


def leaks_a_gradient(*, student_logits, teacher_logits, mask):
    # Selected after the square root, whose slope at 0 is infinite: the value is right, the gradient NaN.
    gap = jnp.sqrt(jnp.sum((student_logits - jax.lax.stop_gradient(teacher_logits)) ** 2, -1))
    loss = token_mean(jnp.where(mask != 0, gap, 0), mask)
    return loss, {}


def test_a_gradient_that_leaks_through_a_select_is_caught():
    with pytest.raises(dv.BrokenLaw, match=r"gradient by student_logits moved with nan"):
        objectives.check_law(case(leaks_a_gradient), "masked_rows")


def branches_on_a_value(**inputs):
    loss, metrics = right(**inputs)
    return (loss if loss.total > 0 else 2 * loss), metrics


def test_an_exception_inside_the_objective_is_the_law_broken():
    with pytest.raises(dv.BrokenLaw, match=r"'weighted'.*it raised TracerBoolConversionError"):
        objectives.check_objective(case(branches_on_a_value))


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (lambda **x: right(**x)[0], "it returned Weighted, no (loss, metrics)"),
        (lambda **x: (right(**x)[0], []), "the metrics are list, no mapping"),
        (lambda **x: (right(**x)[0], {"d": x["mask"].sum()}), "d is DynamicJaxprTracer"),
        (lambda **x: (Weighted(x["mask"][0], x["mask"].sum()), {}), "the loss is float32[3]"),
        (
            lambda **x: (-0.5 * Weighted(x["mask"].sum(), x["mask"].sum() * jnp.nan), {}),
            "count, got=nan",
        ),
    ],
)
def test_what_is_not_weighted_is_said(objective, message):
    with pytest.raises(dv.BrokenLaw) as broken:
        objectives.check_law(case(objective), "weighted")
    assert message in str(broken.value)


def test_what_the_case_does_not_say_is_not_applicable():
    inputs = {"student_logits": np.zeros((1, V))}

    def norm(*, student_logits):
        return token_mean(jnp.sum(student_logits**2, -1), jnp.ones(student_logits.shape[:-1])), {}

    one = ObjectiveCase(objective=norm, inputs=inputs, differentiated=("student_logits",))
    skipped = {law: objectives.check_law(one, law).skipped for law in NEEDS}
    assert skipped == NEEDS


NEEDS = {
    "masked_rows": "no mask is named",
    "all_masked": "no mask is named",
    "held_fixed": "no input is named as held fixed",
    "additive": "the example's batch has fewer than two rows",
    "permutation": "the example's batch has fewer than two rows",
}


def test_a_known_exception_is_skipped_with_its_reason_unless_asked_for():
    one = case(freezes_a_factor, known_exceptions={"gradient": "a surrogate"})
    assert objectives.check_law(one, "gradient").skipped == "a surrogate"
    with pytest.raises(dv.BrokenLaw, match="'gradient'"):
        objectives.check_objective(one, laws=["gradient"])


def test_an_odd_batch_is_split_into_rows():
    inputs = {name: value[:3] for name, value in example().items()}
    assert objectives.check_law(case(right, inputs=inputs), "additive").cases > 0
    with pytest.raises(dv.BrokenLaw, match="'additive'"):
        objectives.check_law(case(takes_the_mean_of_the_batch, inputs=inputs), "additive")


def test_an_unknown_law_offers_the_nearest():
    with pytest.raises(ValueError, match=r"unknown law 'aditive'; did you mean additive"):
        objectives.check_law(case(right), "aditive")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"differentiated": "student"}, ValueError, "'student' is not among the inputs; did you"),
        ({"mask": "msk"}, ValueError, "did you mean mask"),
        ({"differentiated": ()}, ValueError, "there is no gradient to check"),
        ({"inputs": {**example(), "mask": np.zeros((B, T))}}, ValueError, "counts no row"),
        ({"inputs": {**example(), "divergence": dv.ForwardKL()}}, TypeError, "functools.partial"),
        ({"inputs": {**example(), "teacher_logits": [1, 2]}}, TypeError, "it is int64"),
        ({"batched": ("mask", "scale"), "inputs": {**example(), "scale": [1, 2]}}, ValueError, "4"),
    ],
)
def test_wrong_cases_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        case(right, **changes)
