"""Measures of next-token predictions in NumPy, float64, one position at a time."""

import numpy as np


def log_softmax(x):
    x = np.asarray(x, np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def positions(tokens, mask=None, segments=None):
    """(row, time, label) of every scored position of a causal model."""
    for b in range(tokens.shape[0]):
        for t in range(tokens.shape[1] - 1):
            counted = mask is None or mask[b, t + 1]
            together = segments is None or segments[b, t] == segments[b, t + 1]
            if counted and together:
                yield b, t, tokens[b, t + 1]


def measures(student, teacher, tokens, mask=None, bins=15):
    """perplexity, accuracy, ece, forward_kl, reverse_kl, agreement."""
    lq, lp = log_softmax(student), log_softmax(teacher)
    nll, right, sure, forward, reverse, agree = [], [], [], [], [], []
    for b, t, label in positions(tokens, mask):
        q, p = lq[b, t], lp[b, t]
        nll.append(-q[label])
        right.append(float(q.argmax() == label))
        sure.append(float(np.exp(q.max())))
        forward.append(float(np.sum(np.exp(p) * (p - q))))
        reverse.append(float(np.sum(np.exp(q) * (q - p))))
        agree.append(float(q.argmax() == p.argmax()))
    return {
        "perplexity": float(np.exp(np.mean(nll))),
        "accuracy": np.mean(right),
        "ece": expected_calibration_error(sure, right, bins),
        "forward_kl": np.mean(forward),
        "reverse_kl": np.mean(reverse),
        "agreement": np.mean(agree),
    }


def expected_calibration_error(sure, right, bins):
    error = 0.0
    for i in range(bins):
        inside = [j for j, c in enumerate(sure) if i / bins < c <= (i + 1) / bins]
        if inside:
            gap = np.mean([right[j] for j in inside]) - np.mean([sure[j] for j in inside])
            error += len(inside) / len(sure) * abs(gap)
    return error
