"""Sums, multiples and duals of divergences."""

from __future__ import annotations

import functools
import math
import operator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences.base import AbstractDivergence, InfiniteAt, divergence
from divax.divergences.f_divergence import AbstractFDivergence, Limits
from divax.divergences.monotone import invert_increasing
from divax.divergences.numerics import Scalar, choose, is_traced
from divax.divergences.rows import Pair, pair_at


def mixture(*terms: tuple[Scalar, AbstractDivergence]) -> AbstractDivergence:
    """Σ weight·divergence, flattened; an f-divergence when every part is one.

    Args:
        *terms: pairs (weight, divergence); weights are non-negative numbers or traced scalars.

    Returns:
        A `Mixture` or an `FMixture`; a single part of weight 1 is returned as it is.

    Raises:
        ValueError: a negative weight, which would not give a divergence.

    Example:
        >>> from divax import divergences as dv
        >>> mixture((0.5, dv.ForwardKL()), (0.5, dv.ReverseKL())).name
        '0.5*forward_kl + 0.5*reverse_kl'
    """
    flat: list[tuple[Scalar, AbstractDivergence]] = []
    for weight, part in terms:
        if not is_traced(weight) and jnp.ndim(weight) == 0 and float(weight) < 0:
            raise ValueError(f"{float(weight):g}*{part.name}: a negative multiple is no divergence")
        if isinstance(part, Mixture | FMixture):
            flat += [(weight * w, p) for w, p in zip(part.weights, part.parts, strict=True)]
        else:
            flat.append((weight, part))
    weights, parts = tuple(w for w, _ in flat), tuple(p for _, p in flat)
    if len(parts) == 1 and not is_traced(weights[0]) and bool(weights[0] == 1):
        return parts[0]
    f_parts = tuple(part for part in parts if isinstance(part, AbstractFDivergence))
    if len(f_parts) == len(parts):
        return FMixture(weights=weights, parts=f_parts)
    return Mixture(weights=weights, parts=parts)


def _mixture_name(weights: tuple[Scalar, ...], parts: tuple[AbstractDivergence, ...]) -> str:
    def term(weight, part):
        if is_traced(weight):
            return f"…*{part.name}"
        return part.name if float(weight) == 1 else f"{float(weight):.12g}*{part.name}"

    return " + ".join(term(weight, part) for weight, part in zip(weights, parts, strict=True))


def _sum(weights: tuple[Scalar, ...], values: Any) -> Any:
    """Σ weight·value; a weight of 0 removes its part even where that is infinite."""
    terms = [_times(w, v) for w, v in zip(weights, values, strict=True)]
    return functools.reduce(operator.add, terms)


def _times(weight: Scalar, value: Any) -> Any:
    # The infinite value is selected, not multiplied: ∞·0 in the derivative by the weight would be NaN.
    infinite = abs(value) == math.inf
    finite = weight * choose(infinite, 0.0, value)
    return choose(infinite, choose(weight == 0, 0.0, value), finite)


def _sum_arrays(weights: tuple[Scalar, ...], values: list[jax.Array]) -> jax.Array:
    terms = [w * jnp.where(w == 0, 0, v) for w, v in zip(weights, values, strict=True)]
    return functools.reduce(operator.add, terms)


def _any_infinite(weights: tuple[Scalar, ...], parts: tuple[AbstractDivergence, ...]) -> InfiniteAt:
    flags = [
        InfiniteAt(*(choose(w > 0, flag, False) for flag in part.infinite_at))
        for w, part in zip(weights, parts, strict=True)
    ]
    return InfiniteAt(
        functools.reduce(operator.or_, [flag.target_zero for flag in flags]),
        functools.reduce(operator.or_, [flag.model_zero for flag in flags]),
    )


@divergence
class Mixture(AbstractDivergence):
    """Σ weight·divergence of any divergences; made by `+` and `*`.

    Called with logits `[..., V]`, returns `[...]`, float32; masking as in `AbstractDivergence.__call__`.

    Example:
        >>> from divax import divergences as dv
        >>> (0.7 * dv.AdaptiveKL() + 0.3 * dv.ReverseKL()).name
        '0.7*adaptive_kl(0.5) + 0.3*reverse_kl'
    """

    spec_name = "mixture"
    formula = "Σ w D"

    weights: tuple[Scalar, ...]
    parts: tuple[AbstractDivergence, ...]

    def rows(self, target: jax.Array, model: jax.Array) -> jax.Array:
        """Weighted sum of the parts' rows."""
        return _sum_arrays(self.weights, [part.rows(target, model) for part in self.parts])

    @property
    def infinite_at(self) -> InfiniteAt:
        """Infinite where a part of positive weight is."""
        return _any_infinite(self.weights, self.parts)

    @property
    def name(self) -> str:
        """The sum, written out."""
        return _mixture_name(self.weights, self.parts)

    def dual(self) -> Mixture:
        """The same sum of the duals."""
        return Mixture(weights=self.weights, parts=tuple(part.dual() for part in self.parts))


@divergence
class FMixture(AbstractFDivergence):
    """Σ weight·f-divergence, itself an f-divergence with the generator Σ weight·f; made by `+` and `*`.

    The inverses of a sum have no closed form; they are found by bisection and differentiated implicitly.
    Called with logits `[..., V]`, returns `[...]`, float32; masking as in `AbstractDivergence.__call__`.

    Example:
        >>> from divax import divergences as dv
        >>> chi2_kl = dv.ReverseKL() + dv.ReverseChi2()
        >>> chi2_kl.name, bool(chi2_kl.admissible), chi2_kl.curvature
        ('reverse_kl + reverse_chi2', True, 3.0)
    """

    spec_name = "mixture"
    formula = "Σ w D"

    weights: tuple[Scalar, ...]
    parts: tuple[AbstractFDivergence, ...]

    def summand(self, pair: Pair) -> jax.Array:
        """Σ w·q·f(u)."""
        return _sum_arrays(self.weights, [part.summand(pair) for part in self.parts])

    def target_slope(self, pair: Pair) -> jax.Array:
        """Σ w·p·f′(u)."""
        return _sum_arrays(self.weights, [part.target_slope(pair) for part in self.parts])

    def model_slope(self, pair: Pair) -> jax.Array:
        """Σ w·q·g(u)."""
        return _sum_arrays(self.weights, [part.model_slope(pair) for part in self.parts])

    def link(self, s: ArrayLike) -> jax.Array:
        """Σ w·link(s), each part's in its own way."""
        return _sum_arrays(self.weights, [part.link(s) for part in self.parts])

    def weight(self, s: ArrayLike) -> jax.Array:
        """Σ w·weight(s)."""
        return _sum_arrays(self.weights, [part.weight(s) for part in self.parts])

    def log_df_inverse(self, y: ArrayLike) -> jax.Array:
        """Closed for a single part, numerical otherwise."""
        y = jnp.asarray(y)
        if len(self.parts) == 1:
            return self.parts[0].log_df_inverse(y / self.weights[0])
        return invert_increasing(lambda x: self.target_slope(pair_at(jnp.zeros_like(x), -x)), y)

    def link_inverse(self, score: ArrayLike) -> jax.Array:
        """Closed for a single part, numerical otherwise."""
        score = jnp.asarray(score)
        if len(self.parts) == 1:
            return self.parts[0].link_inverse(score / self.weights[0])
        return invert_increasing(self.link, score)

    @property
    def limits(self) -> Limits:
        """Weighted sums of the parts' limits."""
        every = [part.limits for part in self.parts]
        return Limits(*(_sum(self.weights, values) for values in zip(*every, strict=True)))

    @property
    def symmetric(self) -> bool:  # type: ignore[override]
        """When every part is, or the parts come in dual pairs of equal weight."""
        terms = list(zip(self.weights, self.parts, strict=True))
        if any(is_traced(*jax.tree.leaves(term)) for term in terms):
            return all(part.symmetric for part in self.parts)
        return sorted(map(str, terms)) == sorted(str((w, part.dual())) for w, part in terms)

    @property
    def smooth(self) -> bool:  # type: ignore[override]
        """When every part is."""
        return all(part.smooth for part in self.parts)

    @property
    def name(self) -> str:
        """The sum, written out."""
        return _mixture_name(self.weights, self.parts)

    def dual(self) -> FMixture:
        """The same sum of the duals."""
        return FMixture(weights=self.weights, parts=tuple(part.dual() for part in self.parts))


@divergence
class Dual(AbstractDivergence):
    """D̃(p, q) = D(q, p) of a divergence that has no dual of its own; made by `.dual()`.

    Called with logits `[..., V]`, returns `[...]`, float32; masking as in `AbstractDivergence.__call__`.

    Example:
        >>> from divax import divergences as dv
        >>> dv.AdaptiveKL().dual().name
        'dual(adaptive_kl(0.5))'
    """

    spec_name = "dual"
    formula = "D(q, p)"

    inner: AbstractDivergence

    def rows(self, target: jax.Array, model: jax.Array) -> jax.Array:
        """The inner divergence with its arguments swapped."""
        return self.inner.rows(model, target)

    @property
    def infinite_at(self) -> InfiniteAt:
        """The inner one's, swapped."""
        inner = self.inner.infinite_at
        return InfiniteAt(target_zero=inner.model_zero, model_zero=inner.target_zero)

    @property
    def name(self) -> str:
        """`dual(…)`."""
        return f"dual({self.inner.name})"

    def dual(self) -> AbstractDivergence:
        """The inner divergence."""
        return self.inner


@divergence
class FDual(AbstractFDivergence):
    """The f-divergence generated by u·f(1/u); made by `.dual()` of a user's generator.

    Called with logits `[..., V]`, returns `[...]`, float32; masking as in `AbstractDivergence.__call__`.

    Example:
        >>> import jax.numpy as jnp
        >>> from divax import divergences as dv
        >>> mine = dv.from_generator(lambda u: u * jnp.log(u), name="mine")
        >>> mine.dual().name, bool(mine.dual().admissible)
        ('dual(mine)', True)
    """

    spec_name = "dual"
    formula = "D(q, p)"
    # Left to the inner divergence, which a class attribute cannot see.
    symmetric: ClassVar[bool] = False

    inner: AbstractFDivergence

    def summand(self, pair: Pair) -> jax.Array:
        """The inner summand of the swapped pair."""
        return self.inner.summand(pair.swap())

    def target_slope(self, pair: Pair) -> jax.Array:
        """The inner model slope of the swapped pair."""
        return self.inner.model_slope(pair.swap())

    def model_slope(self, pair: Pair) -> jax.Array:
        """The inner target slope of the swapped pair."""
        return self.inner.target_slope(pair.swap())

    def df(self, u: ArrayLike) -> jax.Array:
        """The inner link at s = log u."""
        return self.inner.link(jnp.log(u))

    def weight(self, s: ArrayLike) -> jax.Array:
        """h̃(u) = h(1/u)·u, from f̃″(u) = f″(1/u)/u³."""
        s = jnp.asarray(s)
        return self.inner.weight(-s) * jnp.exp(-s)

    def log_df_inverse(self, y: ArrayLike) -> jax.Array:
        """The inner link's inverse."""
        return self.inner.link_inverse(y)

    def link_inverse(self, score: ArrayLike) -> jax.Array:
        """The inner derivative's inverse."""
        return self.inner.log_df_inverse(score)

    @property
    def limits(self) -> Limits:
        """The inner limits, swapped in pairs."""
        inner = self.inner.limits
        return Limits(inner.slope_at_infinity, inner.f_at_zero, inner.link_floor, inner.df_at_zero)

    @property
    def smooth(self) -> bool:  # type: ignore[override]
        """As the inner one."""
        return self.inner.smooth

    @property
    def name(self) -> str:
        """`dual(…)`."""
        return f"dual({self.inner.name})"

    def dual(self) -> AbstractFDivergence:
        """The inner divergence."""
        return self.inner
