"""A decoder-only transformer in NumPy, float64, written from the papers' formulas with loops."""

from typing import Any

import numpy as np


def rms_norm(x, scale, epsilon=1e-6):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + epsilon) * scale


def rope(vector, position, base):
    """Rotates pairs (i, i + d/2) of one head's vector by position * base^(-2i/d)."""
    size = len(vector)
    out = np.empty(size)
    for i in range(size // 2):
        angle = position * base ** (-2 * i / size)
        a, b = vector[i], vector[i + size // 2]
        out[i] = a * np.cos(angle) - b * np.sin(angle)
        out[i + size // 2] = a * np.sin(angle) + b * np.cos(angle)
    return out


def attention(query, key, value, segments, base):
    """query [T, H, d], key and value [T, K, d]: head h reads key-value head h // (H / K)."""
    time, heads, size = query.shape
    group = heads // key.shape[1]
    out = np.zeros_like(query)
    for h in range(heads):
        for t in range(time):
            seen = [s for s in range(t + 1) if segments[s] == segments[t]]
            rotated = rope(query[t, h], t, base)
            scores = np.array([rotated @ rope(key[s, h // group], s, base) for s in seen])
            weights = np.exp(scores / np.sqrt(size) - np.max(scores / np.sqrt(size)))
            weights /= weights.sum()
            out[t, h] = sum(w * value[s, h // group] for w, s in zip(weights, seen, strict=True))
    return out


def decoder(params, tokens, *, layers, heads, kv_heads, base, segments=None):
    """Logits [T, V] of one sequence."""
    params = _float64(params)
    segments = np.zeros(len(tokens)) if segments is None else segments
    x = params["embed"]["embedding"][tokens]
    time, width = x.shape
    for layer in range(layers):
        block = params[f"block_{layer}"]
        normed = rms_norm(x, block["attention_norm"]["scale"])
        query = (normed @ block["query"]["kernel"]).reshape(time, heads, -1)
        both = (normed @ block["key_value"]["kernel"]).reshape(time, 2 * kv_heads, -1)
        read = attention(query, both[:, :kv_heads], both[:, kv_heads:], segments, base)
        x = x + read.reshape(time, width) @ block["attention_out"]["kernel"]
        normed = rms_norm(x, block["mlp_norm"]["scale"])
        wide = normed @ block["gate_up"]["kernel"]
        gate, up = wide[:, : wide.shape[1] // 2], wide[:, wide.shape[1] // 2 :]
        x = x + (gate / (1 + np.exp(-gate)) * up) @ block["down"]["kernel"]
    return rms_norm(x, params["norm"]["scale"]) @ params["head"]


def _float64(tree) -> Any:
    if isinstance(tree, dict):
        return {name: _float64(branch) for name, branch in tree.items()}
    return np.asarray(tree, np.float64)
