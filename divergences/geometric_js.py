"""The geometric Jensen–Shannon divergence: both KLs to the normalised geometric mean."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from divax.divergences.base import AbstractDivergence, InfiniteAt, check_range, divergence
from divax.divergences.jeffreys import Jeffreys
from divax.divergences.numerics import Scalar, difference
from divax.divergences.renyi import affinity
from divax.divergences.row_wise import AbstractRowDivergence
from divax.divergences.rows import Rows


@divergence
class GeometricJS(AbstractRowDivergence):
    """Geometric Jensen–Shannon divergence, w·KL(p‖g) + (1 − w)·KL(q‖g) with g = p^w·q^{1−w}/Z.

    It equals w(1 − w)·Jeffreys + log Z. The weight w = `target_weight` multiplies the target, as in `JensenShannon` (the
    source's α is 1 − w). The mean g is softmax(w·t + (1 − w)·s), which needs no mixture in probability space; but unlike
    the arithmetic JS the value is unbounded. With the KLs reversed it would be the Chernoff coefficient −log Z.

    Called with logits `[..., V]`, returns `[...]` in nats, float32. Masking as in `AbstractDivergence.__call__`; +inf on
    any mismatch of supports. Curvature w(1 − w). A weight outside (0, 1) is a ValueError.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> target, model = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
        >>> round(float(dv.GeometricJS()(target, model)), 6)
        0.033995

    Source: F. Nielsen, "On the Jensen–Shannon Symmetrization of Distances Relying on Abstract Means", arXiv:1904.04017,
    def. 3.
    """

    spec_name = "geometric_js"
    formula = "w KL(p‖g) + (1−w) KL(q‖g), g ∝ p^w q^(1−w)"

    target_weight: Scalar = 0.5

    def __post_init__(self):
        check_range(self, "target_weight", 0, 1, ends="open")

    def value(self, rows: Rows) -> jax.Array:
        """w(1 − w)·J + log Z, of which the first term is twice the second near equality: no digit to speak of is lost."""
        w = self.target_weight
        jeffreys = jnp.sum(Jeffreys().summand(rows.common), -1)
        log_z = affinity(rows, w, 1 - w).log_z
        value = w * (1 - w) * jeffreys + log_z
        return jnp.where(rows.has_p_only | rows.has_q_only, jnp.inf, jnp.maximum(value, 0))

    def slopes(self, rows: Rows) -> tuple[jax.Array, jax.Array]:
        """w(1 − w)·∂J + w(r − p) and w(1 − w)·∂J + (1 − w)(r − q), r = g."""
        w = self.target_weight
        return self.slopes_at(affinity(rows, w, 1 - w).log_z, rows)

    def slopes_at(self, log_z: jax.Array, rows: Rows) -> tuple[jax.Array, jax.Array]:
        """The same with log Z known, `[...]`."""
        pair, w, log_z = rows.common, self.target_weight, log_z[..., None]
        r = jnp.exp(pair.log_power(w) - log_z)
        from_p = difference(r, pair.p, (w - 1) * pair.log_u - log_z)
        from_q = difference(r, pair.q, w * pair.log_u - log_z)
        jeffreys = Jeffreys()
        by_target = w * (1 - w) * jeffreys.target_slope(pair) + w * from_p
        return by_target, w * (1 - w) * jeffreys.model_slope(pair) + (1 - w) * from_q

    @property
    def infinite_at(self) -> InfiniteAt:
        """On any mismatch."""
        return InfiniteAt(True, True)

    @property
    def curvature(self) -> Any:
        """w(1 − w)."""
        return self.target_weight * (1 - self.target_weight)

    def dual(self) -> AbstractDivergence:
        """The weight of the other side."""
        return GeometricJS(target_weight=1 - self.target_weight)
