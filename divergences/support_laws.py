"""Laws of supports and sizes: impossible tokens, infinities, one-hot rows, extreme logits, V = 1 and V = 150 000."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from divax.divergences.f_divergence import AbstractFDivergence
from divax.divergences.law import ROWS, Trial, close, law, needs_free_vocabulary

LARGE = 150_000


def _probabilities(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits - np.logaddexp.reduce(logits, -1, keepdims=True))


def impossible(trial: Trial, logits: np.ndarray) -> np.ndarray:
    """The logits with a random set of tokens ruled out, never all of them."""
    ruled_out = trial.rng.random(logits.shape) < 0.4
    ruled_out[np.arange(len(logits)), trial.rng.integers(0, logits.shape[1], len(logits))] = False
    return np.where(ruled_out, -np.inf, logits)


@law(
    "a token impossible on both sides, or left out by `where`, is as good as absent",
    needs_free_vocabulary,
)
def absent_tokens(trial: Trial) -> None:
    """−inf on both sides equals a smaller vocabulary, in value and gradient, and `where=` does the same."""
    target, model = trial.logits(), trial.logits()
    keep = np.arange(trial.vocab_size) < max(1, trial.vocab_size - 2)
    small = trial.value_and_gradients(target[:, keep], model[:, keep])
    masked = trial.value_and_gradients(
        np.where(keep, target, -np.inf), np.where(keep, model, -np.inf)
    )
    shown = {"target": target, "model": model, "kept": keep}
    for got, want in zip(masked, small, strict=True):
        got = got if got.ndim == 1 else got[:, keep]
        trial.require(close(got, want, 1e-9, 1e-10), "−inf", **shown, got=got, want=want)
    for slope in masked[1:]:
        trial.require(slope[:, ~keep] == 0, "gradient at −inf", **shown, gradient=slope)
    got = trial.div(target, model, where=keep[None])
    trial.require(close(got, small[0], 1e-9, 1e-12), "where", **shown, got=got, want=small[0])


@law("D is +inf exactly where `infinite_at` says, and elsewhere the limit of logits → −∞")
def one_sided_tokens(trial: Trial) -> None:
    """A token possible on one side only contributes f(0) or f′(∞) per unit of mass, +inf included."""
    infinite = [bool(flag) for flag in trial.div.infinite_at]
    for side in (0, 1):
        pair = [trial.logits(), trial.logits()]
        pair[side] = np.where(np.arange(trial.vocab_size) == 1, -np.inf, pair[side])
        got = trial.value(*pair)
        shown = {"target": pair[0], "model": pair[1], "D": got}
        if infinite[side]:
            trial.require(got == np.inf, "infinite_at says +inf", **shown)
        else:
            # e^−600 is a normal float64, and already indistinguishable from zero in any finite limit.
            pair[side] = np.where(np.isinf(pair[side]), -600.0, pair[side])
            want = trial.value(*pair)
            trial.require(close(got, want, 1e-6, 1e-9), "the limit", **shown, limit=want)


@law('support="mask" is D without the tokens that make it infinite; "floor" is finite')
def support_policies(trial: Trial) -> None:
    """Only tokens on which this divergence is infinite are touched."""
    target, model = impossible(trial, trial.logits()), impossible(trial, trial.logits())
    infinite = trial.div.infinite_at
    bad = (np.isinf(target) & ~np.isinf(model) & bool(infinite.target_zero)) | (
        np.isinf(model) & ~np.isinf(target) & bool(infinite.model_zero)
    )
    got = np.asarray(trial.div(target, model, support="mask"))
    want = trial.value(np.where(bad, -np.inf, target), np.where(bad, -np.inf, model))
    shown = {"target": target, "model": model, "got": got, "want": want}
    trial.require(close(got, want, 1e-9, 1e-12), "mask", **shown)
    floored = np.asarray(trial.div(target, model, support="floor"))
    trial.require(np.isfinite(floored) & (floored >= 0), "floor", **shown, floored=floored)


@law(
    "one-hot rows: +inf at a token is −inf at all others; q_y·f(1/q_y) + (1 − q_y)·f(0) for a generator"
)
def one_hot(trial: Trial) -> None:
    """Both ways to write a one-hot row, on either side, and the closed form of the f-divergences."""
    other = trial.logits()
    label = trial.rng.integers(0, trial.vocab_size, ROWS)
    hot = np.arange(trial.vocab_size) == label[:, None]
    hard, certain = np.where(hot, 0.0, -np.inf), np.where(hot, np.inf, other)
    mass = _probabilities(other)[np.arange(ROWS), label]
    for swap in (False, True):
        order = (lambda a, b: (b, a)) if swap else (lambda a, b: (a, b))
        want, got = trial.value(*order(hard, other)), trial.value(*order(certain, other))
        shown = {"logits": other, "label": label, "got": got, "want": want}
        trial.require(close(got, want, 1e-9), "a +inf logit", **shown)
        if isinstance(trial.div, AbstractFDivergence):
            form = _one_hot_generator(trial.div.dual() if swap else trial.div, mass)
            trial.require(close(want, form, 1e-7, 1e-10), "the closed form", **shown, form=form)


def _one_hot_generator(div: AbstractFDivergence, mass: np.ndarray) -> np.ndarray:
    return mass * np.asarray(div.f(1 / mass)) + (1 - mass) * np.asarray(div.f_at_zero)


def adversarial_logits(trial: Trial) -> Any:
    """Pairs in float32: huge, tiny, one-sided, disjoint, equal, one-hot and empty rows, in all combinations."""

    def kinds() -> list[np.ndarray]:
        plain, huge = trial.logits(3.0), trial.logits(1e4)
        ends = trial.rng.choice([-1e4, 0.0, 1e4], plain.shape)
        holes = impossible(trial, trial.logits(3.0))
        one = np.where(np.arange(trial.vocab_size) == 0, 0.0, -np.inf) + 0 * plain
        certain = np.where(np.arange(trial.vocab_size) == 0, np.inf, plain)
        return [plain, huge, ends, holes, one, certain, np.full_like(plain, -np.inf), 0 * plain]

    for target, model in itertools.product(kinds(), kinds()):
        yield target.astype(np.float32), model.astype(np.float32)


@law("no NaN and no negative value, and no NaN in a gradient, whatever the logits")
def never_nan(trial: Trial) -> None:
    """64 combinations of adversarial rows."""
    for target, model in adversarial_logits(trial):
        value, *slopes = trial.value_and_gradients(target, model)
        shown = {"target": target, "model": model, "D": value}
        trial.require(value >= 0, "the value", **shown)
        for slope in slopes:
            trial.require(~np.isnan(slope), "the gradient", **shown, gradient=slope)


@law("a row without a possible token on either side is worth 0")
def empty_rows(trial: Trial) -> None:
    """It is no distribution, and must not spoil a batch."""
    full, empty = trial.logits(), np.full((ROWS, trial.vocab_size), -np.inf)
    for pair in ((full, empty), (empty, full), (empty, empty)):
        value, *slopes = trial.value_and_gradients(*pair)
        shown = {"target": pair[0], "model": pair[1], "D": value}
        trial.require(value == 0, "the value", **shown)
        for slope in slopes:
            trial.require(slope == 0, "the gradient", **shown, gradient=slope)


@law("with one token there is one distribution: D = 0", needs_free_vocabulary)
def single_token(trial: Trial) -> None:
    """V = 1."""
    target, model = (trial.logits(10.0)[:, :1] for _ in range(2))
    value, *slopes = trial.value_and_gradients(target, model)
    trial.require(value == 0, "the value", target=target, model=model, D=value)
    for slope in slopes:
        trial.require(np.abs(slope) <= 1e-12, "the gradient", target=target, gradient=slope)


@law("V = 150 000 in float32 agrees with float64, and has a finite gradient", needs_free_vocabulary)
def large_vocabulary(trial: Trial) -> None:
    """One row of language-model size."""
    target, model = (3 * trial.rng.standard_normal(LARGE).astype(np.float32) for _ in range(2))
    got, pullback = jax.vjp(lambda t, s: trial.div(t, s), jnp.asarray(target), jnp.asarray(model))
    want = trial.div(target.astype(np.float64), model.astype(np.float64))
    shown = {"target": target, "model": model, "got": got, "want": want}
    trial.require(close(got, want, 2e-4), "the value", **shown)
    for slope in pullback(jnp.ones_like(got)):
        trial.require(np.isfinite(slope).all(), "the gradient", **shown, gradient=slope)
