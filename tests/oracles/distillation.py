"""Row losses in NumPy float64, written from the formulas: probabilities first, then sums."""

import numpy as np

B, T, V = 3, 4, 9  # the batch of the tests


def softmax(logits):
    exponentials = np.exp(np.asarray(logits, np.float64) - np.max(logits, axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def forward_kl(p, q):
    return sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def reverse_kl(p, q):
    return forward_kl(q, p)


def jensen_shannon(p, q):
    middle = (p + q) / 2
    return forward_kl(p, middle) / 2 + forward_kl(q, middle) / 2


def entropy(p):
    return -sum(a * np.log(a) for a in p if a > 0)


def loss_rows(student, teacher, labels, divergence, *, temperature, weight, scale_by_t2=True):
    """One loss per row of `[N, V]` logits; a negative label gives NaN: such rows are masked."""
    scale = temperature**2 if scale_by_t2 else 1.0
    rows = []
    for s, t, y in zip(student, teacher, labels, strict=True):
        soft = divergence(softmax(np.divide(t, temperature)), softmax(np.divide(s, temperature)))
        hard = -np.log(softmax(s)[y]) if y >= 0 else np.nan
        rows.append(weight * scale * soft + (1 - weight) * hard)
    return np.array(rows)


def forward_kl_gradient(student, teacher, labels, *, temperature, weight):
    """Gradient of `loss_rows` under the forward KL with respect to the student's logits."""
    onehot = np.eye(student.shape[-1])[labels]
    soft = softmax(student / temperature) - softmax(teacher / temperature)
    return weight * temperature * soft + (1 - weight) * (softmax(student) - onehot)


def live(batch):
    """Which rows of a batch count."""
    return batch["mask"].astype(bool) & (batch["labels"] >= 0)


def batch_rows(batch, divergence, **options):
    """`loss_rows` of a batch `[B, T, V]`, as `[B, T]`."""
    student, teacher = (batch[k].reshape(-1, V) for k in ("student_logits", "teacher_logits"))
    rows = loss_rows(student, teacher, batch["labels"].reshape(-1), divergence, **options)
    return rows.reshape(B, T)
