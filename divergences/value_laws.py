"""Laws of values: sign, zero, invariances, duality, data processing, curvature, precision, dtypes."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from divax.divergences.f_divergence import AbstractFDivergence
from divax.divergences.law import ROWS, Trial, close, law

HALVES = (jnp.bfloat16, jnp.float16)


@law("D is [..., V], [..., V] → [...], float32, or float64 for float64 logits")
def shape_and_dtype(trial: Trial) -> None:
    """Leading axes broadcast; the result has the wider of float32 and the inputs' dtype."""
    target, model = trial.logits(rows=6).reshape(2, 3, -1), trial.logits(rows=1)[0]
    for dtype in (np.float32, np.float64):
        model_block = np.broadcast_to(model, target.shape)
        out = trial.div(target.astype(dtype), model.astype(dtype))
        trial.require(out.shape == (2, 3), "the shape should be (2, 3)", got=np.asarray(out.shape))
        trial.require(out.dtype == dtype, f"{np.dtype(dtype)} logits gave {out.dtype}")
        want = trial.div(target.astype(dtype), model_block.astype(dtype))
        trial.require(close(out, want, 1e-5), "broadcasting should not change it", got=out)


@law("bfloat16 and float16 logits are upcast before anything is computed")
def half_precision(trial: Trial) -> None:
    """The value of half-precision logits is that of the same numbers in float32, bit for bit."""
    target, model = trial.logits(rows=ROWS), trial.logits(rows=ROWS)
    for dtype in HALVES:
        halves = jnp.asarray(target).astype(dtype), jnp.asarray(model).astype(dtype)
        floats = [half.astype(jnp.float32) for half in halves]
        got, want = np.asarray(trial.div(*halves)), np.asarray(trial.div(*floats))
        trial.require(got.dtype == np.float32, f"{np.dtype(dtype)} logits gave {got.dtype}")
        shown = {"target": floats[0], "model": floats[1], "got": got, "want": want}
        trial.require(got == want, f"{np.dtype(dtype)} differs from float32", **shown)


@law("D(p, q) ≥ 0")
def non_negative(trial: Trial) -> None:
    """No value is negative, in either precision, near and far."""
    for target, model in trial.ordinary():
        for dtype in (np.float32, np.float64):
            value = trial.value(target.astype(dtype), model.astype(dtype))
            trial.require(value >= 0, f"in {np.dtype(dtype)}", target=target, model=model, D=value)


@law("D(p, p) = 0 exactly")
def zero_at_equality(trial: Trial) -> None:
    """For equal logits, in either precision."""
    for scale in (0.3, 3.0, 30.0):
        for dtype in (np.float32, np.float64):
            target = trial.logits(scale).astype(dtype)
            value = trial.value(target, target)
            trial.require(value == 0, f"in {np.dtype(dtype)}", target=target, D=value)


@law("the gradient of D at p = q is 0")
def flat_at_equality(trial: Trial) -> None:
    """Equality is a minimum: both gradients vanish there up to rounding."""
    for scale in (0.3, 3.0, 30.0):
        for dtype in (np.float32, np.float64):
            target = trial.logits(scale).astype(dtype)
            for slope in trial.value_and_gradients(target, target)[1:]:
                small = np.abs(slope) <= 8 * np.finfo(dtype).eps
                trial.require(small, "gradient", target=target, gradient=slope)


@law("D(p, q) > 0 for p ≠ q")
def separates(trial: Trial) -> None:
    """Different distributions are told apart, also close ones."""
    for target, model in trial.ordinary():
        value = trial.value(target, model)
        trial.require(value > 0, "the two differ", target=target, model=model, D=value)


@law("adding a constant to a row of logits changes nothing")
def shift_invariant(trial: Trial) -> None:
    """Logits are log-probabilities up to a constant per row, on either side."""
    for target, model in trial.ordinary():
        want = trial.value(target, model)
        a, b = (trial.rng.uniform(-50, 50, (ROWS, 1)) for _ in range(2))
        got = trial.value(target + a, model + b)
        shown = {"target": target, "model": model, "shifts": np.hstack([a, b])}
        ok = close(got, want, 1e-8, 1e-12)
        trial.require(ok, "D moved", **shown, got=got, want=want)


@law("renaming the tokens changes nothing, and renames the gradient")
def permutation_equivariant(trial: Trial) -> None:
    """One permutation of both arguments permutes gradients and leaves values."""
    for target, model in trial.ordinary():
        order = trial.rng.permutation(trial.vocab_size)
        want = trial.value_and_gradients(target, model)
        got = trial.value_and_gradients(target[:, order], model[:, order])
        shown = {"target": target, "model": model, "order": order}
        trial.require(close(got[0], want[0], 1e-9, 1e-13), "D", **shown, got=got[0], want=want[0])
        for new, old in zip(got[1:], want[1:], strict=True):
            scale = 1e-9 * (1 + np.abs(old).max())
            ok = close(new, old[:, order], 1e-8, scale)
            trial.require(ok, "gradient", **shown, got=new, want=old[:, order])


@law("D̃(q, p) = D(p, q) for the dual D̃, whose dual is D; D(q, p) = D(p, q) for a symmetric D")
def duality(trial: Trial) -> None:
    """`.dual()` swaps the arguments, twice is nothing, and the flag `symmetric` tells the truth."""
    dual = trial.div.dual()
    for target, model in trial.ordinary():
        want = trial.value(target, model)
        shown = {"target": target, "model": model, "want": want}
        got = trial.value(model, target, dual)
        trial.require(close(got, want, 1e-9, 1e-13), "of the dual", **shown, got=got)
        got = trial.value(target, model, dual.dual())
        trial.require(close(got, want, 1e-9, 1e-13), "of the dual's dual", **shown, got=got)
        if getattr(trial.div, "symmetric", False):
            got = trial.value(model, target)
            trial.require(
                close(got, want, 1e-9, 1e-13), "it calls itself symmetric", **shown, D=got
            )


def contracts(div: Any) -> bool:
    """Whether data processing is promised: by every f-divergence, by who says so, by multiples, sums and duals of such.

    A wrapper that treats tokens one by one before it calls the inner divergence says `data_processing = False`.
    """
    said = getattr(div, "data_processing", None)
    if isinstance(div, AbstractFDivergence) or said is not None:
        return said is not False
    parts = [*getattr(div, "parts", ()), *([div.inner] if hasattr(div, "inner") else [])]
    return bool(parts) and all(contracts(part) for part in parts)


def _promises_no_contraction(trial: Trial) -> str | None:
    return None if contracts(trial.div) else "no f-divergence, and promises no data processing"


@law("merging tokens never increases D (data processing)", _promises_no_contraction)
def data_processing(trial: Trial) -> None:
    """Coarse-graining by a random map of tokens to tokens loses information, never gains any."""
    for target, model in trial.ordinary():
        for _ in range(4):
            into = trial.rng.integers(0, trial.vocab_size, trial.vocab_size)
            merged = [_merge(logits, into) for logits in (target, model)]
            fine, coarse = trial.value(target, model), trial.value(*merged)
            ok = coarse <= fine * (1 + 1e-10) + 1e-13
            shown = {"target": target, "model": model, "token_map": into}
            trial.require(ok, "D grew", **shown, before=fine, after=coarse)


def _merge(logits: np.ndarray, into: np.ndarray) -> np.ndarray:
    merged = np.full_like(logits, -np.inf)
    for token, place in enumerate(into):
        merged[:, place] = np.logaddexp(merged[:, place], logits[:, token])
    return merged


def _without_curvature(trial: Trial) -> str | None:
    try:
        trial.div.normalized()
    except ValueError:
        return "it has no curvature"
    return None


@law(
    "D(p, q) = ½·curvature·Var_q(Δlogits) + O(Δ³), and curvature 1 once normalized",
    _without_curvature,
)
def curvature(trial: Trial) -> None:
    """A step of 1e-4 shows the curvature to about 1e-4, and better where the mean over ±Δ removes the cubic term."""
    target, direction = trial.logits(), trial.logits()
    q = np.exp(target - np.logaddexp.reduce(target, -1, keepdims=True))
    mean = np.sum(q * direction, -1, keepdims=True)
    variance = np.sum(q * (direction - mean) ** 2, -1)
    claims = [(trial.div.normalized(), 1.0)]
    if hasattr(trial.div, "curvature"):
        claims.append((trial.div, float(trial.div.curvature)))  # type: ignore[attr-defined]
    for div, want in claims:
        step = 1e-4
        either = [div(target, target + sign * step * direction) for sign in (1, -1)]
        got = np.mean(either, 0) / (0.5 * step**2 * variance)
        shown = {"target": target, "direction": direction, "got": got}
        trial.require(close(got, want, 1e-4), f"the curvature should be {want:g}", **shown)


@law("float32 is accurate to three digits where p and q differ by 1e-3 (no cancellation)")
def precise_near_equality(trial: Trial) -> None:
    """Against the same float32 logits evaluated in float64.

    The rounding of a row's log-normaliser drops out to first order, unless a kink lets it through: then it costs up to
    one float32 spacing of the total mass, 1.
    """
    kinked = not getattr(trial.div, "smooth", True)
    absolute = float(np.finfo(np.float32).eps) if kinked else 0.0
    for step in (1e-2, 1e-3):
        target = trial.logits(2.0).astype(np.float32)
        model = (target + trial.logits(step)).astype(np.float32)
        got = trial.value(target, model)
        want = trial.value(target.astype(np.float64), model.astype(np.float64))
        shown = {"target": target, "model": model, "got": got, "want": want}
        trial.require(close(got, want, 1e-3, absolute), "float32 lost its digits", **shown)
