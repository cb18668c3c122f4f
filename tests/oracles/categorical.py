"""Divergences of categorical distributions in arbitrary precision, from their textbook definitions on probabilities.

Nothing here shares a formula with the library: no log-ratios, no Bregman forms, generators as the literature prints them,
supports by the extended definition Σ_{q>0} q·f(p/q) + f′(∞)·p(q = 0).
"""

from collections.abc import Callable

import mpmath as mp

INF = mp.inf


def softmax(logits, digits: int = 60):
    with mp.workdps(digits):
        values = [mp.mpf(x) if x != "-inf" and x != float("-inf") else None for x in logits]
        top = max(v for v in values if v is not None)
        weights = [mp.mpf(0) if v is None else mp.exp(v - top) for v in values]
        total = mp.fsum(weights)
        return [w / total for w in weights]


def _xlogx(x):
    return mp.mpf(0) if x == 0 else x * mp.log(x)


def _alpha(a):
    a = mp.mpf(str(a))

    def f(u):
        if u == 0:
            return 1 / a if a > 0 else INF
        return (u**a - 1 - a * (u - 1)) / (a * (a - 1))

    return f, (1 / (1 - a) if a < 1 else INF)


def _js(w):
    w = mp.mpf(str(w))
    v = 1 - w
    return (lambda u: w * _xlogx(u) - _xlogx(w * u + v)), -w * mp.log(w)


def _skew_forward(a):
    a = mp.mpf(str(a))

    def f(u):
        v = a * u + 1 - a
        return (mp.mpf(0) if u == 0 else u * mp.log(u / v)) - (1 - a) * (u - 1)

    return f, -mp.log(a) - (1 - a)


def _skew_reverse(a):
    a = mp.mpf(str(a))
    return (lambda u: -mp.log((1 - a) * u + a) + (1 - a) * (u - 1)), 1 - a


def _scaled(factor, member):
    f, slope = member
    return (lambda u: factor * f(u)), factor * slope


def _interpolated(beta):
    beta = mp.mpf(str(beta))
    return _scaled(1 / (beta * (1 - beta)), _js(beta))


_PARAMETRIC: dict[str, Callable] = {
    "alpha": _alpha,
    "jensen_shannon": _js,
    "interpolated_js": _interpolated,
    "skew_forward_kl": _skew_forward,
    "skew_reverse_kl": _skew_reverse,
}

_PLAIN = {
    "forward_kl": (lambda u: _xlogx(u) - u + 1, INF),
    "reverse_kl": (lambda u: INF if u == 0 else -mp.log(u) + u - 1, mp.mpf(1)),
    "jeffreys": (lambda u: INF if u == 0 else (u - 1) * mp.log(u), INF),
    "forward_chi2": (lambda u: (u - 1) ** 2, INF),
    "reverse_chi2": (lambda u: INF if u == 0 else (u - 1) ** 2 / u, mp.mpf(1)),
    "squared_hellinger": (lambda u: (mp.sqrt(u) - 1) ** 2 / 2, mp.mpf("0.5")),
    "total_variation": (lambda u: abs(u - 1) / 2, mp.mpf("0.5")),
    "triangular": (lambda u: (u - 1) ** 2 / (u + 1), mp.mpf(1)),
}


def generator(spec: str):
    """(f, f′(∞)) in standard form for a specification such as alpha(0.5)."""
    name, _, rest = spec.partition("(")
    if rest:
        return _PARAMETRIC[name](rest.rstrip(")"))
    return _PLAIN[name]


def has(spec: str) -> bool:
    name = spec.partition("(")[0]
    return name in _PARAMETRIC or name in _PLAIN


def value(spec: str, target, model, digits: int = 60):
    """D(softmax(target), softmax(model))."""
    with mp.workdps(digits):
        f, slope = generator(spec)
        p, q = softmax(target, digits), softmax(model, digits)
        total = mp.mpf(0)
        for pi, qi in zip(p, q, strict=True):
            if qi > 0:
                total += qi * f(pi / qi)
            elif pi > 0:
                total += slope * pi
        return total


def model_gradient(spec: str, target, model, digits: int = 60):
    """∂D/∂(model logits) = q_j·(g_j − Σ q·g) with g = f − u·f′ and f′ a difference of 60-digit values."""
    with mp.workdps(digits):
        f, _ = generator(spec)
        p, q = softmax(target, digits), softmax(model, digits)

        def g(u):
            if u == 0:
                return f(u)
            h = u * mp.mpf(10) ** -20
            return f(u) - u * (f(u + h) - f(u - h)) / (2 * h)

        slopes = [g(pi / qi) if qi > 0 else mp.mpf(0) for pi, qi in zip(p, q, strict=True)]
        mean = mp.fsum(qi * slope for qi, slope in zip(q, slopes, strict=True))
        return [qi * (slope - mean) for qi, slope in zip(q, slopes, strict=True)]
