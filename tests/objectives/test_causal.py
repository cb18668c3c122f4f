import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from divax.objectives import align_causal, distillation


def oracle(tokens, mask, segments):
    """The targets position by position."""
    labels, weights = np.full(tokens.shape, -100), np.zeros(tokens.shape)
    for b, row in enumerate(tokens):
        for t in range(len(row) - 1):
            same = segments is None or segments[b][t] == segments[b][t + 1]
            if same and mask[b][t + 1] != 0 and row[t + 1] >= 0:
                labels[b, t], weights[b, t] = row[t + 1], mask[b][t + 1]
    return labels, weights


@pytest.fixture
def batch():
    random = np.random.default_rng(0)
    tokens = random.integers(0, 50, size=(4, 9))
    tokens[0, 3] = tokens[2, 8] = -100
    weights = random.integers(0, 3, size=tokens.shape) / 2
    segments = np.sort(random.integers(0, 3, size=tokens.shape), axis=-1)
    return tokens, weights, segments


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("with_segments", [False, True])
def test_agrees_with_the_definition_position_by_position(batch, with_mask, with_segments):
    tokens, mask, segments = batch
    mask = mask if with_mask else None
    segments = segments if with_segments else None
    labels, weights = jax.jit(align_causal)(tokens, mask, segments)
    expected = oracle(tokens, np.ones(tokens.shape) if mask is None else mask, segments)
    np.testing.assert_array_equal(labels, expected[0])
    np.testing.assert_array_equal(weights, expected[1])
    assert (labels.dtype, weights.dtype) == (jnp.int32, jnp.float32)


def test_bytes_as_uint8_keep_their_labels():
    labels, mask = align_causal(np.array([[200, 255, 3]], np.uint8))
    assert labels.tolist() == [[255, 3, -100]]
    assert mask.tolist() == [[1, 1, 0]]


def test_one_token_has_no_target():
    labels, mask = align_causal(np.array([[7]]))
    assert (labels.tolist(), mask.tolist()) == ([[-100]], [[0.0]])


def test_moving_the_prompt_boundary_by_one_changes_one_position():
    tokens = np.arange(8)[None]
    positions = np.arange(8)[None]
    before = np.asarray(align_causal(tokens, positions >= 3).mask)
    after = np.asarray(align_causal(tokens, positions >= 4).mask)
    assert np.flatnonzero(before != after).tolist() == [2]  # position 2 predicts token 3


def test_last_token_of_a_packed_segment_is_excluded():
    _, mask = align_causal(np.arange(7)[None], segment_ids=np.array([[1, 1, 1, 2, 2, 3, 3]]))
    assert mask.tolist() == [[1, 1, 0, 1, 0, 1, 0]]


def test_student_equal_to_teacher_and_label_at_its_mode(key):
    tokens = np.random.default_rng(0).integers(0, 11, size=(2, 6))
    labels, mask = align_causal(tokens)
    logits = jax.random.normal(key, (2, 6, 11)) + 9 * jax.nn.one_hot(labels, 11)
    loss, metrics = distillation(
        student_logits=logits, teacher_logits=logits, labels=labels, mask=mask
    )
    assert float(loss.count) == 10
    assert float(loss.total) == 0.0
    assert float(metrics["agreement"].mean()) == 1.0
    # A label at the mode costs less than log 2, as nothing else does: the pairing is right.
    wrong = jnp.roll(labels, 1, axis=-1)
    _, shifted = distillation(student_logits=logits, teacher_logits=logits, labels=wrong, mask=mask)
    assert float(metrics["cross_entropy"].mean()) < 0.1 < float(shifted["cross_entropy"].mean())


def test_packed_documents_give_the_sums_of_unpacked_ones(key, x64):
    """The rows of a model that sees one document at a time: packing adds and loses nothing."""
    lengths, vocabulary = (4, 3, 5), 7
    documents = [np.random.default_rng(n).integers(0, vocabulary, size=n) for n in lengths]
    keys = jax.random.split(key, 2 * len(lengths))
    students = [
        jax.random.normal(k, (1, n, vocabulary)) for k, n in zip(keys[:3], lengths, strict=True)
    ]
    teachers = [
        jax.random.normal(k, (1, n, vocabulary)) for k, n in zip(keys[3:], lengths, strict=True)
    ]

    @jax.jit
    def loss(student, teacher, targets):
        labels, mask = targets
        return distillation(
            student_logits=student,
            teacher_logits=teacher,
            labels=labels,
            mask=mask,
            distill_weight=0.5,
        )[0]

    apart = [
        loss(s, t, align_causal(d[None]))
        for s, t, d in zip(students, teachers, documents, strict=True)
    ]
    merged = functools.reduce(operator.add, apart)
    segments = np.repeat(np.arange(3), lengths)[None]
    packed = loss(
        jnp.concatenate(students, axis=1),
        jnp.concatenate(teachers, axis=1),
        align_causal(np.concatenate(documents)[None], segment_ids=segments),
    )
    assert float(packed.count) == float(merged.count) == sum(lengths) - len(lengths)
    np.testing.assert_allclose(packed.total, merged.total, rtol=1e-13)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"tokens": np.ones((1, 3))}, TypeError, "tokens must be integers, got float"),
        ({"tokens": np.int32(3)}, ValueError, r"tokens needs a time axis \[..., T\], got a scalar"),
        (
            {"tokens": np.ones((1, 3), int), "mask": np.ones((1, 2))},
            ValueError,
            r"mask must have the shape of tokens \(1, 3\), got \(1, 2\)",
        ),
        (
            {"tokens": np.ones((1, 3), int), "segment_ids": np.ones(3, int)},
            ValueError,
            r"segment_ids must have the shape of tokens \(1, 3\), got \(3,\)",
        ),
        (
            {"tokens": np.ones((1, 3), int), "segment_ids": np.ones((1, 3))},
            TypeError,
            "segment_ids must be integers, got float",
        ),
    ],
)
def test_wrong_input_says_what_is_wrong(arguments, error, message):
    with pytest.raises(error, match=message):
        align_causal(**arguments)
