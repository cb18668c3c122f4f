"""The tempered divergence: both rows softened, and the power of the temperature said aloud."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from divax.divergences.base import AbstractDivergence, InfiniteAt, divergence
from divax.divergences.logit_gradient import is_zero
from divax.divergences.numerics import Scalar, is_traced
from divax.divergences.row_wise import scaled


@divergence
class Tempered(AbstractDivergence):
    """T^k·D(softmax(t/T), softmax(s/T)), the k chosen by the caller and not by habit.

    k = 2 keeps the gradient's size as T grows for every smooth f-divergence, Rényi and gamma; distances (total variation,
    √JS, Wasserstein-1) are of first order and need k = 1; k = 0 is the divergence of the softened rows itself. This is the
    temperature of the loss; that of a sampler is none of its business.

    Called with logits `[..., V]`, returns `[...]`, float32; masking as in `AbstractDivergence.__call__`, and infinite where
    the inner divergence is. A temperature that is not positive is a ValueError.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> target, model = jnp.array([2.0, 0.0]), jnp.array([0.0, 1.0])
        >>> hot = [dv.Tempered(inner=dv.ForwardKL(), temperature=T, power=2.0) for T in (1.0, 10.0, 1000.0)]
        >>> [round(float(div(target, model)), 4) for div in hot]  # ½·Var(t − s) = 1.125
        [0.8287, 1.1208, 1.125]

    Source: G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, §2.1.
    """

    spec_name = "tempered"
    formula = "T^k D(softmax(t/T), softmax(s/T))"
    # Softening and merging tokens do not commute.
    data_processing = False
    known_exceptions: ClassVar[Mapping[str, str]] = {
        "curvature": "near p = q it weighs logits by the softened q, not by q"
    }

    inner: AbstractDivergence
    temperature: Scalar
    power: Scalar

    def __post_init__(self):
        if isinstance(self.temperature, int | float) and not self.temperature > 0:
            raise ValueError(f"Tempered: temperature={self.temperature} must be positive")

    def rows(self, target: jax.Array, model: jax.Array) -> jax.Array:
        """The inner divergence of the softened rows, times T^k."""
        softened = self.inner.rows(
            _divided(target, self.temperature), _divided(model, self.temperature)
        )
        factor = jnp.asarray(self.temperature, softened.dtype) ** self.power
        return scaled(factor, softened)

    @property
    def infinite_at(self) -> InfiniteAt:
        """Where the inner one is."""
        return self.inner.infinite_at

    @property
    def name(self) -> str:
        """`tempered(…, temperature=…, power=…)`."""
        texts = (
            "…" if is_traced(x) else f"{float(x):.12g}" for x in (self.temperature, self.power)
        )
        temperature, power = texts
        return f"tempered({self.inner.name}, temperature={temperature}, power={power})"

    def dual(self) -> AbstractDivergence:
        """The inner dual, tempered."""
        return Tempered(inner=self.inner.dual(), temperature=self.temperature, power=self.power)

    def normalized(self) -> AbstractDivergence:
        """The inner one normalised, tempered: curvature 1 at high temperature if k = 2."""
        return Tempered(
            inner=self.inner.normalized(), temperature=self.temperature, power=self.power
        )


@jax.custom_jvp
def _divided(logits: jax.Array, temperature: Scalar) -> jax.Array:
    """Logits over T; infinite ones as they are, others stay finite.

    Without a comparison, also in its derivative: a GPU writes masks down for all who read them.
    """
    most = jnp.finfo(logits.dtype).max
    bounds = jnp.minimum(logits, -most), jnp.maximum(logits, most)
    return jax.lax.clamp(bounds[0], logits / temperature, bounds[1])


@functools.partial(_divided.defjvp, symbolic_zeros=True)
def _divided_jvp(primals, tangents):
    (logits, temperature), (dot, temperature_dot) = primals, tangents
    divided, tangent = _divided(logits, temperature), jnp.zeros_like(logits)
    if not is_zero(dot):
        tangent += dot / temperature
    if not is_zero(temperature_dot):
        # Infinite logits do not depend on T.
        finite = jnp.where(jnp.isfinite(divided), divided, 0)
        tangent -= finite * (temperature_dot / temperature)
    return divided, tangent
