"""BD-KD's entropy gate: both KLs, the one that the student's confidence calls for weighted up."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from divax.divergences.base import AbstractDivergence, InfiniteAt, check_range, divergence
from divax.divergences.f_divergence import AbstractFDivergence
from divax.divergences.kl import ForwardKL, ReverseKL
from divax.divergences.logit_reading import Reading, Side, centres, classes, reduced
from divax.divergences.numerics import Scalar
from divax.divergences.row_blocks import by_machine
from divax.divergences.row_mixture import AbstractRowMixture
from divax.divergences.rows import log_softmax


def entropy(logits: jax.Array) -> jax.Array:
    """−Σ p·log p of each row, nats: logits `[..., V]` to `[...]`; impossible tokens add nothing.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(entropy(jnp.array([0.0, 0.0, -jnp.inf]))), 6)  # log 2
        0.693147
    """
    log_p = log_softmax(logits)
    possible = log_p > -jnp.inf
    return -jnp.sum(jnp.where(possible, jnp.exp(log_p) * jnp.where(possible, log_p, 0), 0), -1)


@divergence
class EntropyGatedKL(AbstractRowMixture):
    """BD-KD's student loss, w_F·KL(p‖q) + w_R·KL(q‖p): w_F = ν where H(p) > H(q), w_R = ν where H(q) > H(p), else 1.

    A student too sure of itself is spread out (forward KL), one too uncertain is concentrated (reverse KL). The gate passes
    no gradient and is a step: the value jumps where the entropies cross, except that there both KLs often are small.
    Symmetric: swapping the rows swaps the gate with the KLs.

    Called with logits `[..., V]`, returns `[...]` in nats, float32. Masking as in `AbstractDivergence.__call__`; +inf on
    any mismatch of supports. An emphasis ν outside [1, ∞) is a ValueError.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> target, model = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
        >>> round(float(dv.EntropyGatedKL(emphasis=3.0)(target, model)), 6)  # 3·KL(p‖q) + KL(q‖p)
        0.562335

    Source: I. Amara, N. Sepahvand, B. Meyer, W. Gross, J. Clark, "BD-KD: Balancing the Divergences for Online Knowledge
    Distillation", arXiv:2212.12965, its student loss; the gate and ν = 3 as in the code of ABKD (`bdkd`).
    """

    spec_name = "entropy_gated_kl"
    formula = "w_F KL(p‖q) + w_R KL(q‖p), ν on the side of the larger entropy"

    emphasis: Scalar = 3.0

    def __post_init__(self):
        check_range(self, "emphasis", 1, math.inf, ends="half-open")

    @property
    def components(self) -> tuple[AbstractFDivergence, ...]:
        """Both KLs."""
        return ForwardKL(), ReverseKL()

    def row_weights(
        self, target: jax.Array, model: jax.Array, values: Sequence[jax.Array]
    ) -> tuple[jax.Array, ...]:
        """ν for the side of the larger entropy, else 1."""
        gap = by_machine(_entropy_gap, _gap_from_one_reading, None, target, model)
        return jnp.where(gap > 0, self.emphasis, 1), jnp.where(gap < 0, self.emphasis, 1)

    @property
    def infinite_at(self) -> InfiniteAt:
        """On any mismatch."""
        return InfiniteAt(True, True)

    def dual(self) -> AbstractDivergence:
        """Itself."""
        return self

    def normalized(self) -> AbstractDivergence:
        """Divided by 1 + ν, the sum of both weights."""
        return (1 / (1 + self.emphasis)) * self


def _entropy_gap(target: jax.Array, model: jax.Array) -> jax.Array:
    """H(p) − H(q)."""
    return entropy(target) - entropy(model)


def _gap_from_one_reading(target: jax.Array, model: jax.Array) -> jax.Array:
    """The same where reading takes the time: H = log Σ e^(x − c) − E[x − c] for any number c near the logits."""
    pairs = list(zip((target, model), centres(target, model), strict=True))
    sides = [
        Side(x, (jnp.ones_like(x), jnp.where(jnp.isinf(x), 0, x - c[..., None]))) for x, c in pairs
    ]
    read = reduced(Reading(*sides, classes(target, model)))

    def entropy_at(side: Side, centre: jax.Array) -> jax.Array:
        total, weighted = side.sums
        # +inf logits are alike; a row without a possible token has entropy 0.
        log_total = jnp.where(jnp.isinf(side.top), 0, side.top - centre) + jnp.log(
            jnp.where(total > 0, total, 1)
        )
        return log_total - weighted / jnp.where(total > 0, total, 1)

    one, other = zip((read.target, read.model), (c for _, c in pairs), strict=True)
    return entropy_at(*one) - entropy_at(*other)
