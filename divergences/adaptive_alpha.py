"""AlphaNet's adaptive α-divergence: per row, the larger of two."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from divax.divergences.alpha import Alpha
from divax.divergences.base import AbstractDivergence, InfiniteAt, check_range, divergence
from divax.divergences.clipped_alpha import ClippedAlpha
from divax.divergences.f_divergence import AbstractFDivergence
from divax.divergences.numerics import Scalar
from divax.divergences.row_mixture import AbstractRowMixture


@divergence
class AdaptiveAlpha(AbstractRowMixture):
    """max(D_α−, D_α+) per row: the α-divergence that is the worse of two, one mode seeking, one mode covering.

    The gradient is that of the larger one, hence of the value. `clip` is AlphaNet's bound on the importance weight (p/q)^α,
    as in `ClippedAlpha`: with it both the value and the gradient are those of the clipped divergences, and the row's
    choice is made between them. (AlphaNet's code returns a surrogate whose value means nothing, leaves α = 1 unclipped
    and clips the bare ratio at α = 0; its gradients are these for all other α.)

    Called with logits `[..., V]`, returns `[...]` in nats, float32. Masking as in `AbstractDivergence.__call__`; +inf where
    either of the two is. A clip outside (1, ∞) is a ValueError.

    Attributes:
        alpha_min: the first α, AlphaNet's −1.
        alpha_max: the second α, AlphaNet's +1.
        clip: bound on (p/q)^α, > 1 (AlphaNet's 5); None leaves the weights alone.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> target, model = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.001, 0.999]))
        >>> [round(float(dv.AdaptiveAlpha(clip=clip)(target, model)), 4) for clip in (None, 5.0)]
        [2.7612, 0.9536]

    Source: D. Wang et al., "AlphaNet: Improved Training of Supernets with Alpha-Divergence", arXiv:2102.07954, §3.
    """

    spec_name = "adaptive_alpha"
    formula = "max(D_α−, D_α+)"

    alpha_min: Scalar = -1.0
    alpha_max: Scalar = 1.0
    clip: Scalar | None = None

    def __post_init__(self):
        if self.clip is not None:
            check_range(self, "clip", 1, float("inf"), ends="open")

    @property
    def components(self) -> tuple[AbstractFDivergence, ...]:
        """The divergences of `alpha_min` and of `alpha_max`."""
        if self.clip is None:
            return Alpha(alpha=self.alpha_min), Alpha(alpha=self.alpha_max)
        return (
            ClippedAlpha(alpha=self.alpha_min, clip=self.clip),
            ClippedAlpha(alpha=self.alpha_max, clip=self.clip),
        )

    def row_weights(
        self, target: jax.Array, model: jax.Array, values: Sequence[jax.Array]
    ) -> tuple[jax.Array, ...]:
        """1 for the larger one, 0 for the other."""
        low, high = values
        return low > high, ~(low > high)

    @property
    def infinite_at(self) -> InfiniteAt:
        """Where either is."""
        first, second = (div.infinite_at for div in self.components)
        return InfiniteAt(
            first.target_zero | second.target_zero, first.model_zero | second.model_zero
        )

    def normalized(self) -> AbstractDivergence:
        """Itself: both have curvature 1."""
        return self
