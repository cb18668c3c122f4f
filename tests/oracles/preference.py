"""Preference losses transcribed in NumPy float64 from their papers, and the generators in u = policy/reference.

Nothing here imports the library. Scores are derivatives of the textbook generator f(u), centred so that f'(1) = 0.
"""

import numpy as np

SCORES = {
    "reverse_kl": lambda u: np.log(u),
    "forward_kl": lambda u: 1 - 1 / u,
    # f = ½[u log u − (u+1) log((u+1)/2)]
    "jensen_shannon": lambda u: 0.5 * np.log(2 * u / (1 + u)),
    # f = ½(√u − 1)²
    "squared_hellinger": lambda u: 0.5 * (1 - 1 / np.sqrt(u)),
    # f = (u−1) log u
    "jeffreys": lambda u: np.log(u) + 1 - 1 / u,
    # f = u log u − u + 1 + ½(u−1)²
    "chi2_kl(0.5)": lambda u: np.log(u) + u - 1,
    # f = 1/u + u − 2
    "forward_chi2": lambda u: 1 - 1 / u**2,
    "0.7*forward_kl + 0.3*reverse_kl": lambda u: 0.7 * (1 - 1 / u) + 0.3 * np.log(u),
    "reverse_chi2 + 0.5*reverse_kl": lambda u: 2 * (u - 1) + 0.5 * np.log(u),
}


def logistic(x):
    return np.logaddexp(0, -np.asarray(x, float))


def sigmoid(x):
    return np.exp(-logistic(x))


def logit(p):
    return np.log(p) - np.log1p(-p)


MARGIN_LOSSES = {
    "Logistic": lambda d, beta: logistic(d),
    "RobustLogistic": lambda d, beta: (0.9 * logistic(d) - 0.1 * logistic(-d)) / 0.8,
    "Hinge": lambda d, beta: np.maximum(0, 1 - d),
    "SquaredHinge": lambda d, beta: np.maximum(0, 1 - d) ** 2,
    "Squared": lambda d, beta: (d / beta - 1 / (2 * beta)) ** 2,
    "ExoPair": lambda d, beta: (
        sigmoid(d) * (np.log(sigmoid(d)) - np.log(1 - 1e-3))
        + sigmoid(-d) * (np.log(sigmoid(-d)) - np.log(1e-3))
    ),
    "Exponential": lambda d, beta: np.exp(-d),
    "DiscoPop": lambda d, beta: (
        (1 - sigmoid(d / 0.05)) * logistic(d) + sigmoid(d / 0.05) * np.exp(-d)
    ),
}

ABSOLUTE_LOSSES = {
    "NcaPair": lambda w, v, beta: (
        logistic(beta * w) + 0.5 * logistic(-beta * w) + 0.5 * logistic(-beta * v)
    ),
    "BcoPair": lambda w, v, beta: logistic(beta * w) + logistic(-beta * v),
    "SppoHard": lambda w, v, beta: (w - 0.5 / beta) ** 2 + (v + 0.5 / beta) ** 2,
    "ApoZero": lambda w, v, beta: (1 - sigmoid(beta * w)) + sigmoid(beta * v),
    "ApoDown": lambda w, v, beta: sigmoid(beta * w) + (1 - sigmoid(beta * (w - v))),
}

# The margin at which the expected loss is least when the label is right with probability p.
MINIMISERS = {
    "Logistic": lambda p: logit(p),
    "RobustLogistic": lambda p: logit((p - 0.1) / 0.8),
    "Squared": lambda p: (2 * p - 1) / 2,
    "SquaredHinge": lambda p: 2 * p - 1,
    "ExoPair": lambda p: (2 * p - 1) * np.log((1 - 1e-3) / 1e-3),
    "Exponential": lambda p: 0.5 * logit(p),
    # Found by a search on the published formula, to two digits (spec, §5).
    "DiscoPop": lambda p: np.interp(p, [0.55, 0.65, 0.75, 0.85], [0.63, 0.95, 1.33, 1.88]),
}
