"""Generators of the later f-divergences as the literature prints them, in arbitrary precision; each with f′(∞)."""

from typing import Any

import mpmath as mp
from oracles.categorical import softmax

INF = mp.inf


def skew_chi2(u, skew):
    a = mp.mpf(skew)
    if u == 0:
        return 1 / (1 - a) if a < 1 else INF
    return (u - 1) ** 2 / (a * u + 1 - a)


def arithmetic_geometric(u):
    return INF if u == 0 else (1 + u) * mp.log((1 + u) / (2 * mp.sqrt(u)))


def frontier_integral(u):
    if u == 0:
        return mp.mpf("0.5")
    return mp.mpf(0) if u == 1 else (u + 1) / 2 - u * mp.log(u) / (u - 1)


def modified_gan(u):
    return INF if u == 0 else mp.log((1 + u) / (2 * u)) + (u - 1) / 2


def log1p_abs(u):
    return INF if u == 0 else max(u, 1 / u) - 1


def alpha(u, alpha):
    a = mp.mpf(alpha)
    if u == 0:
        return 1 / a if a > 0 else INF
    if a == 1:
        return u * mp.log(u) - u + 1
    if a == 0:
        return u - 1 - mp.log(u)
    return (u**a - 1 - a * (u - 1)) / (a * (a - 1))


def clipped_alpha(u, alpha, clip):
    """The α-generator up to u* = c^{1/α}, its tangent there beyond."""
    a, c = mp.mpf(alpha), mp.mpf(clip)
    whole = globals()["alpha"]
    if a == 0 or (u > 0 and u**a <= c) or (u == 0 and a > 0):
        return whole(u, alpha)
    edge = c ** (1 / a)
    slope = mp.log(edge) if a == 1 else (edge ** (a - 1) - 1) / (a - 1)
    return whole(edge, alpha) + slope * (u - edge)


SLOPES = {
    "skew_chi2": lambda skew: 1 / mp.mpf(skew) if skew > 0 else INF,
    "arithmetic_geometric": lambda: INF,
    "frontier_integral": lambda: mp.mpf("0.5"),
    "modified_gan": lambda: mp.mpf("0.5"),
    "log1p_abs": lambda: mp.mpf(1),
    "clipped_alpha": lambda alpha, clip: (
        1 / (1 - mp.mpf(alpha))
        if alpha <= 0
        else mp.log(clip)
        if alpha == 1
        else (mp.mpf(clip) ** ((alpha - 1) / mp.mpf(alpha)) - 1) / (mp.mpf(alpha) - 1)
    ),
}


def generator(name, **parameters):
    """f(u) of a member."""
    return lambda u: globals()[name](u, **parameters)


def value(name, target, model, digits: Any = 60, **parameters: Any):
    """Σ_{q>0} q·f(p/q) + f′(∞)·p(q = 0)."""
    with mp.workdps(digits):
        total, slope = mp.mpf(0), SLOPES[name](**parameters)
        for p, q in zip(softmax(target, digits), softmax(model, digits), strict=True):
            if q > 0:
                total += q * generator(name, **parameters)(p / q)
            elif p > 0:
                total += slope * p
        return total


def gradient(name, target, model, side, digits=50, **parameters):
    """∂D/∂logits of one side, by central differences with a step of 1e-18 at 50 digits."""
    with mp.workdps(digits):
        h = mp.mpf(10) ** -18
        rows = [[mp.mpf(x) if x != float("-inf") else x for x in row] for row in (target, model)]

        def moved(j, sign):
            shifted = [list(row) for row in rows]
            shifted[side][j] += sign * h
            return value(name, shifted[0], shifted[1], digits, **parameters)

        return [
            mp.mpf(0) if isinstance(x, float) else (moved(j, 1) - moved(j, -1)) / (2 * h)
            for j, x in enumerate(rows[side])
        ]
