"""Divergences outside the f-family in arbitrary precision, transcribed from their textbook definitions on probabilities.

Powers and logarithms of probabilities as the papers print them: no escorts, no divided differences, no log-ratios.
"""

import mpmath as mp
from oracles.categorical import softmax

INF = mp.inf


def _sum(function, p, q):
    return mp.fsum(function(a, b) for a, b in zip(p, q, strict=True))


def _power(base, exponent):
    """x^e with 0^0 = 0 outside the support and 0^negative = +inf."""
    if base == 0:
        return INF if exponent < 0 else mp.mpf(0)
    return base**exponent


def _affinity(p, q, a):
    return mp.fsum(x**a * y ** (1 - a) for x, y in zip(p, q, strict=True) if x > 0 and y > 0)


def renyi(p, q, order):
    a = mp.mpf(order)
    if a >= 1 and any(x > 0 and y == 0 for x, y in zip(p, q, strict=True)):
        return INF
    if a == 1:
        return _sum(lambda x, y: x * mp.log(x / y) if x > 0 else mp.mpf(0), p, q)
    z = _affinity(p, q, a)
    return INF if z == 0 else mp.log(z) / (a - 1)


def bhattacharyya(p, q):
    z = _sum(lambda x, y: mp.sqrt(x * y), p, q)
    return INF if z == 0 else -mp.log(z)


def gamma(p, q, gamma):
    g = mp.mpf(gamma)
    if g == 0:
        return renyi(p, q, 1)
    cross = _sum(lambda x, y: x * _power(y, g), p, q)
    if cross == 0:
        return INF
    own = mp.log(mp.fsum(x ** (1 + g) for x in p)) / (g * (1 + g))
    return own + mp.log(mp.fsum(y ** (1 + g) for y in q)) / (1 + g) - mp.log(cross) / g


def cauchy_schwarz(p, q):
    cross = _sum(lambda x, y: x * y, p, q)
    if cross == 0:
        return INF
    return -mp.log(cross / mp.sqrt(mp.fsum(x * x for x in p) * mp.fsum(y * y for y in q)))


def hoelder(p, q, exponent, power):
    a, g = mp.mpf(exponent), mp.mpf(power)
    b = a / (a - 1)
    cross = _sum(lambda x, y: _power(x, g / a) * _power(y, g / b), p, q)
    if cross == 0:
        return INF
    norms = mp.fsum(_power(x, g) for x in p) ** (1 / a) * mp.fsum(_power(y, g) for y in q) ** (
        1 / b
    )
    return -mp.log(cross / norms)


def beta(p, q, beta):
    b = mp.mpf(beta)
    if b == 0:
        return renyi(p, q, 1)
    return _sum(lambda x, y: y ** (1 + b) - (1 + 1 / b) * x * _power(y, b) + x ** (1 + b) / b, p, q)


def alpha_beta(p, q, alpha, beta):
    """Cichocki, Cruces and Amari's four cases, each with its own formula."""
    a, b = mp.mpf(alpha), mp.mpf(beta)

    def one(x, y):
        if x == 0 and y == 0:
            return mp.mpf(0)
        if x == 0:
            return y ** (a + b) / (a * (a + b)) if a > 0 and a + b > 0 else INF
        if y == 0:
            return x ** (a + b) / (b * (a + b)) if b > 0 and a + b > 0 else INF
        if a == 0 and b == 0:
            return mp.log(x / y) ** 2 / 2
        if a == 0:
            return (y**b * mp.log(y**b / x**b) - y**b + x**b) / b**2
        if b == 0:
            return (x**a * mp.log(x**a / y**a) - x**a + y**a) / a**2
        if a + b == 0:
            return (mp.log(y**a / x**a) + (x / y) ** a - 1) / a**2
        return -(x**a * y**b - a / (a + b) * x ** (a + b) - b / (a + b) * y ** (a + b)) / (a * b)

    return _sum(one, p, q)


def log_variance(p, q, reference):
    pairs = [(x, y) for x, y in zip(p, q, strict=True) if x > 0 or y > 0]
    weights = {
        "model": [y for _, y in pairs],
        "target": [x for x, _ in pairs],
        "uniform": [mp.mpf(1) for _ in pairs],
    }[reference]
    seen = [(w, x, y) for w, (x, y) in zip(weights, pairs, strict=True) if w > 0]
    if any(x == 0 or y == 0 for _, x, y in seen):
        return INF
    total = mp.fsum(w for w, _, _ in seen)
    mean = mp.fsum(w * mp.log(y / x) for w, x, y in seen) / total
    return mp.fsum(w * (mp.log(y / x) - mean) ** 2 for w, x, y in seen) / total


def geometric_js(p, q, target_weight):
    w = mp.mpf(target_weight)
    if any((x == 0) != (y == 0) for x, y in zip(p, q, strict=True)):
        return INF
    z = _affinity(p, q, w)
    total = mp.mpf(0)
    for x, y in zip(p, q, strict=True):
        if x > 0:
            g = x**w * y ** (1 - w) / z
            total += w * x * mp.log(x / g) + (1 - w) * y * mp.log(y / g)
    return total


def generalized_cauchy_schwarz(rows):
    k = len(rows)
    cross = mp.fsum(mp.fprod(column) for column in zip(*rows, strict=True))
    norms = mp.fprod(mp.fsum(x**k for x in row) ** (mp.mpf(1) / k) for row in rows)
    return INF if cross == 0 else -mp.log(cross / norms)


def value(member, target, model, digits=60, **parameters):
    with mp.workdps(digits):
        return globals()[member](softmax(target, digits), softmax(model, digits), **parameters)


def gradient(member, target, model, side, digits=60, **parameters):
    """∂D/∂logits of one side by central differences; 60 digits and a step of 1e-20 leave 40 exact ones."""
    with mp.workdps(digits):
        h = mp.mpf(10) ** -20
        rows = [
            [mp.mpf(x) if x != float("-inf") else x for x in logits] for logits in (target, model)
        ]

        def moved(j, sign):
            shifted = [list(row) for row in rows]
            shifted[side][j] += sign * h
            return value(member, shifted[0], shifted[1], digits, **parameters)

        return [
            mp.mpf(0) if isinstance(x, float) else (moved(j, 1) - moved(j, -1)) / (2 * h)
            for j, x in enumerate(rows[side])
        ]
