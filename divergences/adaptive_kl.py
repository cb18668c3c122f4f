"""Adaptive KL: forward and reverse KL mixed by how much of their difference lies in the teacher's head."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from divax.divergences.base import AbstractDivergence, InfiniteAt, check_range, divergence
from divax.divergences.f_divergence import AbstractFDivergence
from divax.divergences.head_mask import head_mask
from divax.divergences.head_reading import head_share
from divax.divergences.kl import ForwardKL, ReverseKL
from divax.divergences.numerics import Scalar
from divax.divergences.row_blocks import by_machine
from divax.divergences.row_mixture import AbstractRowMixture
from divax.divergences.rows import log_softmax


@divergence
class AdaptiveKL(AbstractRowMixture):
    """Adaptive KL (AKL), w·KL(p‖q) + (1 − w)·KL(q‖p) with w = Σ_head |p − q| / Σ |p − q|.

    The head is the smallest set of the target's likeliest tokens whose mass reaches `head_mass`; each row has its own w,
    through which no gradient flows (so this is no gradient of the value: the value with w frozen is what descends).
    `compat="reference"` cuts the head where the authors' code does: the token that crosses the mass goes to the tail,
    except when it is the first. At p = q, where w is 0/0, w = ½.

    Called with logits `[..., V]`, returns `[...]` in nats, float32. Masking as in `AbstractDivergence.__call__`; +inf on
    any mismatch of supports, as both KLs are weighted unless w is 0 or 1. A head_mass outside (0, 1) is a ValueError.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> target, model = jnp.log(jnp.array([0.6, 0.2, 0.2])), jnp.log(jnp.array([0.2, 0.3, 0.5]))
        >>> round(float(dv.AdaptiveKL(head_mass=0.5)(target, model)), 6)  # w = ½
        0.377439

    Source: T. Wu et al., "Rethinking Kullback-Leibler Divergence in Knowledge Distillation for Large Language Models",
    arXiv:2404.02657, §4.
    """

    spec_name = "adaptive_kl"
    formula = "w KL(p‖q) + (1−w) KL(q‖p), w = head share of |p − q|"

    known_exceptions: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("model_gradient", "target_gradient", "second_order"), "no gradient flows through w"
    )

    head_mass: Scalar = 0.5
    compat: Literal["reference"] | None = dataclasses.field(default=None, metadata={"static": True})

    def __post_init__(self):
        check_range(self, "head_mass", 0, 1, ends="open")
        if self.compat not in (None, "reference"):
            raise ValueError(f"AdaptiveKL: compat={self.compat!r} is neither None nor 'reference'")

    @property
    def components(self) -> tuple[AbstractFDivergence, ...]:
        """Both KLs."""
        return ForwardKL(), ReverseKL()

    def row_weights(
        self, target: jax.Array, model: jax.Array, values: Sequence[jax.Array]
    ) -> tuple[jax.Array, ...]:
        """W and 1 − w."""
        share = self.head_share(target, model)
        return share, 1 - share

    def head_share(self, target: jax.Array, model: jax.Array) -> jax.Array:
        """W `[...]` from logits `[..., V]`: the head's share of Σ |p − q|, ½ for equal rows."""
        whole, mass = self.compat is None, self.head_mass
        there = lambda t, s: head_share(t, s, mass, crossing_token_in_head=whole)  # noqa: E731
        return by_machine(self._share, there, None, target, model)

    def _share(self, target: jax.Array, model: jax.Array) -> jax.Array:
        head = head_mask(target, self.head_mass, crossing_token_in_head=self.compat is None)
        gap = jnp.abs(jnp.exp(log_softmax(target)) - jnp.exp(log_softmax(model)))
        in_head = jnp.sum(jnp.where(head, gap, 0), -1)
        total = jnp.sum(gap, -1)
        return jnp.where(total > 0, in_head / jnp.where(total > 0, total, 1), 0.5)

    @property
    def infinite_at(self) -> InfiniteAt:
        """Infinite on any mismatch."""
        return InfiniteAt(True, True)

    def normalized(self) -> AbstractDivergence:
        """Itself: both KLs have curvature 1."""
        return self
