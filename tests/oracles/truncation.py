"""Temperature, top-k and top-p in NumPy, float64, token by token."""

import numpy as np


def truncated(logits, temperature=1.0, top_k=None, top_p=None):
    """The probabilities [V] that are sampled from, and top-p's distance from deciding otherwise."""
    logits = np.asarray(logits, np.float64)
    if temperature == 0:
        probabilities = np.zeros(len(logits))
        probabilities[np.argmax(logits)] = 1
        return probabilities, np.inf
    weights = np.exp((logits - logits.max()) / temperature)
    probabilities = weights / weights.sum()
    ranked = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:top_k]
    kept, margin = ranked, np.inf
    if top_p is not None and top_p < 1:
        left, kept, covered = probabilities[ranked].sum(), [], 0.0
        for i in ranked:
            if covered / left >= top_p:
                break
            kept.append(i)
            margin = min(margin, abs(top_p - covered / left))
            covered += probabilities[i]
        margin = min(margin, abs(top_p - covered / left))
    out = np.zeros(len(logits))
    out[kept] = probabilities[kept]
    return out / out.sum(), margin


def log_softmax(logits):
    shifted = np.asarray(logits, np.float64) - np.max(logits, axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
