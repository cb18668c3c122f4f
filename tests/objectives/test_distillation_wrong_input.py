"""`distillation` on wrong input: one line that says what is wrong and what to do."""

import jax.numpy as jnp
import numpy as np
import pytest
from oracles.distillation import B, T, V

from divax import divergences as dv
from divax.objectives import distillation

WRONG = [
    (
        {"teacher_logits": np.zeros((B, T, V + 7), np.float32)},
        ValueError,
        rf"vocabularies differ: {V} and {V + 7}. Same tokenizer padded differently: pass "
        r"vocab_size=.*Different tokenizers: .* use a cross-tokenizer objective",
    ),
    (
        {"vocab_size": V + 1},
        ValueError,
        rf"vocab_size must lie between 1 and the vocabulary of student_logits \({V}\), got {V + 1}",
    ),
    ({"vocab_size": 0}, ValueError, "vocab_size must lie between 1 and"),
    (
        {"vocab_size": 8.0},
        TypeError,
        "vocab_size must be an integer known at trace time, got float",
    ),
    (
        {"teacher_logits": np.zeros((B, T + 1, V), np.float32)},
        ValueError,
        r"must agree in every axis but the last: run both models on the same tokens",
    ),
    (
        {"labels": np.zeros((B, T - 1), int)},
        ValueError,
        r"labels must have one entry per row of student_logits, shape \(3, 4\), got \(3, 3\); "
        "divax.objectives.align_causal shifts labels",
    ),
    ({"labels": np.zeros((B, T))}, TypeError, "labels must be integers, got float"),
    ({"mask": np.ones(B)}, ValueError, r"mask must have one entry per row .* got \(3,\)"),
    ({"labels": None}, ValueError, "distill_weight=0.5 mixes in .* labels is None; pass labels="),
    (
        {"labels": None, "distill_weight": jnp.float32(1.0)},
        ValueError,
        "labels is None; pass labels=, or leave distill_weight at the number 1",
    ),
    ({"distill_weight": 1.5}, ValueError, r"distill_weight must lie in \[0, 1\], got 1.5"),
    ({"distill_weight": -0.1}, ValueError, r"distill_weight must lie in \[0, 1\], got -0.1"),
    (
        {"distill_weight": np.ones(2)},
        ValueError,
        r"must be a scalar, got shape \(2,\); use jax.vmap",
    ),
    ({"temperature": 0.0}, ValueError, "temperature must be positive and finite, got 0.0"),
    ({"temperature": np.inf}, ValueError, "temperature must be positive and finite, got inf"),
    ({"temperature": float("nan")}, ValueError, "temperature must be positive and finite, got nan"),
    ({"temperature": np.ones((2,))}, ValueError, r"temperature must be a scalar, got shape \(2,\)"),
    ({"divergence": "forward_kl"}, TypeError, r"divax.divergences.get\('forward_kl'\) makes one"),
    ({"divergence": dv.ReverseKL}, TypeError, "got ReverseKL; pass an instance such as ForwardKL"),
    ({"divergence": 0.5}, TypeError, "divergence must be a divergence, got float"),
    (
        {"divergence": lambda t, s: jnp.sum(t - s)},
        ValueError,
        r"the value of the divergence must have one entry per row .* got \(\)",
    ),
    (
        {"student_logits": np.zeros((B, T, V), int)},
        TypeError,
        "student_logits must be floating-point logits, got int",
    ),
    (
        {"teacher_logits": np.zeros((B, T, 0), np.float32)},
        ValueError,
        "teacher_logits needs a vocabulary on the last axis",
    ),
]


@pytest.mark.parametrize(("change", "error", "message"), WRONG)
def test_wrong_input_says_what_is_wrong_and_what_to_do(batch, change, error, message):
    with pytest.raises(error, match=message):
        distillation(**{**batch, "distill_weight": 0.5, **change})
