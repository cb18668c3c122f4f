"""The batch of the distillation tests."""

import numpy as np
import pytest
from oracles.distillation import B, T, V


@pytest.fixture
def batch():
    """Logits `[B, T, V]` with one ignored label and one masked tail."""
    random = np.random.default_rng(0)
    labels = random.integers(0, V, size=(B, T))
    labels[0, 1] = -100
    mask = np.ones((B, T), bool)
    mask[1, 2:] = False
    student, teacher = random.normal(scale=2.0, size=(2, B, T, V)).astype(np.float32)
    return {"student_logits": student, "teacher_logits": teacher, "labels": labels, "mask": mask}
