"""Laws of generators: everything that a member derives from f is one and the same f."""

from __future__ import annotations

import numpy as np

from divax.divergences.law import Trial, close, law, needs_generator, needs_smoothness

# log u away from a possible kink at u = 1, near it and far from it.
_LOG_U = np.array([-12.0, -6.0, -2.0, -0.7, -0.1, -1e-3, 1e-3, 0.1, 0.7, 2.0, 6.0, 12.0])
_STEP = 1e-5


@law("f(1) = f′(1) = 0, f ≥ 0 and f′ increasing: standard form and convexity", needs_generator)
def standard_form(trial: Trial) -> None:
    """A generator in standard form has non-negative summands."""
    div, u = trial.generator, np.exp(_LOG_U)
    at_one = np.asarray([div.f(1.0), div.df(1.0)])
    trial.require(np.abs(at_one) <= 1e-14, "at u = 1", got=at_one)
    trial.require(np.asarray(div.f(u)) >= 0, "f is negative", u=u, f=div.f(u))
    slopes = np.asarray(div.df(u))
    falls = np.diff(slopes) < -1e-12 * (1 + np.abs(slopes[1:]))
    trial.require(~falls, "f′ decreases", u=u, df=slopes)


@law("D(p, q) = Σ q·f(p/q)", needs_generator)
def generator_sum(trial: Trial) -> None:
    """The value from logits is the textbook sum over probabilities."""
    for target, model in trial.ordinary():
        p, q = (np.exp(x - np.logaddexp.reduce(x, -1, keepdims=True)) for x in (target, model))
        want = np.sum(q * np.asarray(trial.generator.f(p / q)), -1)
        got = trial.value(target, model)
        shown = {"target": target, "model": model, "got": got, "want": want}
        trial.require(close(got, want, 1e-8, 1e-14), "the sum", **shown)


def _difference(function, x: np.ndarray, step: np.ndarray | float) -> np.ndarray:
    return (np.asarray(function(x + step)) - np.asarray(function(x - step))) / (2 * step)


@law("df and d2f are f′ and f″, and weight(s) = u²·f″(u) at u = e^−s", needs_generator)
def generator_derivatives(trial: Trial) -> None:
    """By finite differences with a step relative to u."""
    div, u = trial.generator, np.exp(_LOG_U)
    want = _difference(div.f, u, _STEP * u)
    noise = 1e-10 * np.abs(np.asarray(div.f(u))) / u
    ok = np.abs(np.asarray(div.df(u)) - want) <= 1e-6 * np.abs(want) + noise + 1e-9
    trial.require(ok, "df", u=u, got=div.df(u), want=want)
    want = _difference(div.df, u, _STEP * u)
    noise = 1e-10 * (1 + np.abs(np.asarray(div.df(u)))) / u
    ok = np.abs(np.asarray(div.d2f(u)) - want) <= 1e-6 * np.abs(want) + noise
    trial.require(ok, "d2f", u=u, got=div.d2f(u), want=want)
    got, want = np.asarray(div.weight(-_LOG_U)), u * u * np.asarray(div.d2f(u))
    trial.require(close(got, want, 1e-9, 1e-12), "weight", u=u, got=got, want=want)


@law("link(s) = f(u) − u·f′(u) at u = e^−s, link′ = weight, link(0) = 0", needs_generator)
def link(trial: Trial) -> None:
    """The f-DPO score is the derivative of the dual generator at model/target."""
    div, u = trial.generator, np.exp(_LOG_U)
    f, df = np.asarray(div.f(u)), np.asarray(div.df(u))
    got, want = np.asarray(div.link(-_LOG_U)), f - u * df
    noise = 1e-12 * (np.abs(f) + np.abs(u * df)) + 1e-13
    ok = np.abs(got - want) <= 1e-8 * np.abs(want) + noise
    trial.require(ok, "f − u·f′", s=-_LOG_U, got=got, want=want)
    trial.require(abs(float(div.link(0.0))) <= 1e-14, "at s = 0", got=div.link(0.0))
    slope = _difference(div.link, -_LOG_U, _STEP)
    got = np.asarray(div.weight(-_LOG_U))
    ok = np.abs(got - slope) <= 1e-6 * np.abs(slope) + 1e-10 * (1 + np.abs(want))
    trial.require(ok, "its slope is not the weight", s=-_LOG_U, got=got, want=slope)


@law("df_inverse undoes df, and link_inverse undoes link", needs_generator, needs_smoothness)
def inverses(trial: Trial) -> None:
    """Up to what the rounding of the score itself allows."""
    div, s = trial.generator, np.linspace(-6.0, 6.0, 25)
    u, weight = np.exp(-s), np.asarray(div.weight(s))
    score = np.asarray(div.link(s))
    # Where f′ is flat every u is an inverse.
    rounding = np.divide(1e-13, weight, out=np.full_like(s, np.inf), where=weight > 0)
    allowed = 1e-7 + rounding * (1 + np.abs(score))
    got = np.asarray(div.link_inverse(score))
    trial.require(np.abs(got - s) <= allowed, "link_inverse", s=s, got=got, score=score)
    slope = np.asarray(div.df(u))
    # d f′/d log u = u·f″(u) = weight/u.
    allowed = 1e-7 + rounding * (1 + np.abs(slope)) * u
    got = np.log(np.asarray(div.df_inverse(slope)))
    trial.require(np.abs(got + s) <= allowed, "df_inverse", log_u=-s, got=got, slope=slope)


@law(
    "f*(y) = sup over u of u·y − f(u): Fenchel–Young, −f(0) below f′(0), +inf above f′(∞)",
    needs_generator,
)
def conjugate(trial: Trial) -> None:
    """Equality at y = f′(u), an upper bound everywhere, and both ends of the domain."""
    div, u = trial.generator, np.exp(_LOG_U[np.abs(_LOG_U) <= 6])
    f, y = np.asarray(div.f(u)), np.asarray(div.df(u))
    got, want = np.asarray(div.conjugate(y)), u * y - f
    noise = 1e-8 * (np.abs(u * y) + np.abs(f)) + 1e-12
    trial.require(np.abs(got - want) <= noise, "equality at y = f′(u)", u=u, got=got, want=want)
    bound = u[None] * y[:, None] - f[None]
    slack = 1e-8 * (np.abs(u[None] * y[:, None]) + np.abs(f[None])) + 1e-12
    trial.require(got[:, None] >= bound - slack, "Fenchel–Young", y=y, got=got)
    low, high = float(div.limits.df_at_zero), float(div.slope_at_infinity)
    if np.isfinite(low):
        below = float(div.conjugate(low - 0.5))
        ok = close(below, -float(div.f_at_zero), 1e-9, 1e-9)
        trial.require(ok, "below f′(0) it is −f(0)", y=low - 0.5, got=below)
    if np.isfinite(high):
        above = float(div.conjugate(high + 0.5))
        trial.require(above == np.inf, "above f′(∞) it is +inf", y=high + 0.5, got=above)


@law(
    "limits: f(0), f′(∞), f′(0) and the link's floor are what f and its link tend to",
    needs_generator,
)
def limits(trial: Trial) -> None:
    """Approached at 150 and 300 nats: a finite limit comes nearer, an infinite one recedes."""
    div, far = trial.generator, np.array([150.0, 300.0])
    zero, infinity = np.exp(-far), np.exp(far)
    approaches = {
        "f_at_zero": np.asarray(div.f(zero)),
        "slope_at_infinity": np.asarray(div.f(infinity)) / infinity,
        "df_at_zero": np.asarray(div.df(zero)),
        "link_floor": np.asarray(div.link(-far)),
    }
    for name, path in approaches.items():
        limit = float(getattr(div.limits, name))
        if np.isfinite(limit):
            gap = np.abs(path - limit)
            ok = gap[1] <= 0.6 * gap[0] or gap[1] <= 1e-5 * (1 + abs(limit))
        else:
            sign = np.sign(limit)
            ok = sign * path[1] >= 1.5 * sign * path[0] > 0
        trial.require(ok, f"{name} = {limit:g}", at_150_and_300_nats=path)
    flags = {
        "admissible": np.isneginf(float(div.limits.link_floor)),
        "bounded": np.isfinite(float(div.f_at_zero) + float(div.slope_at_infinity)),
    }
    for name, want in flags.items():
        got = bool(getattr(div, name))
        trial.require(got == want, f"the flag {name} is {got}")
