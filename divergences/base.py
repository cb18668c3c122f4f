"""What a divergence is: a frozen value object, called with logits, closed under sums, scalar multiples and duality."""

from __future__ import annotations

import abc
import dataclasses
import typing
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from divax.divergences.numerics import Scalar, is_traced
from divax.divergences.support import Support, apply_support

_Class = TypeVar("_Class", bound=type)


@typing.dataclass_transform(
    frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field,)
)
def divergence(cls: _Class) -> _Class:
    """Class decorator: a frozen, keyword-only dataclass that JAX treats as a pytree of its hyper-parameters.

    Numbers are leaves (one trace serves every value; `grad` and `vmap` over them work); a field declared with
    `metadata={"static": True}` is part of the structure. Equality, hash, repr and pickle are the dataclass's.

    Example:
        >>> @divergence
        ... class Power:
        ...     exponent: float = 2.0
        >>> jax.tree.leaves(Power(exponent=3.0))
        [3.0]
    """
    cls = dataclasses.dataclass(frozen=True, kw_only=True)(cls)  # type: ignore[assignment]
    _register_pytree(cls)
    return cls


def _register_pytree(cls: type) -> None:
    """Registers a dataclass as a pytree whose structure knows its class.

    `jax.tree_util.register_dataclass` would be shorter, but in JAX 0.10 to 0.12 its structures are equal for two
    classes with fields of the same names, and `jit` then now and then takes one divergence for another.
    """
    fields = dataclasses.fields(cls)
    static = tuple(field.name for field in fields if field.metadata.get("static"))
    leaves = tuple(field.name for field in fields if not field.metadata.get("static"))
    keys = tuple(jax.tree_util.GetAttrKey(name) for name in leaves)

    def flatten(div):
        values = tuple(getattr(div, name) for name in leaves)
        return values, tuple(getattr(div, name) for name in static)

    def flatten_with_keys(div):
        values, structure = flatten(div)
        return tuple(zip(keys, values, strict=True)), structure

    def unflatten(structure, values):
        # Not through __init__: leaves may be tracers, or placeholders of JAX's that no range check understands.
        div = object.__new__(cls)
        for name, value in zip((*leaves, *static), (*values, *structure), strict=True):
            object.__setattr__(div, name, value)
        return div

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)


class InfiniteAt(NamedTuple):
    """Where a divergence is +inf: on atoms impossible under the target, or under the model.

    Example:
        >>> from divax import divergences as dv
        >>> dv.ForwardKL().infinite_at
        InfiniteAt(target_zero=False, model_zero=True)
    """

    target_zero: Any
    model_zero: Any


class AbstractDivergence(abc.ABC):
    """D(target, model) of categorical distributions given by logits, one value per row, in nats.

    Subclasses are final; behaviour is varied by wrapping. A new one states `rows`, `infinite_at`, `formula` and
    `spec_name`, and gets dtype handling, masks, support policies, sums, multiples and duality from here.

    Example:
        >>> from divax import divergences as dv
        >>> @dv.divergence
        ... class SquaredLogitGap(dv.AbstractDivergence):
        ...     spec_name, formula = "squared_logit_gap", "½ Σ (t − s)²"
        ...     def rows(self, target, model):
        ...         return 0.5 * jnp.sum((target - model) ** 2, -1)
        ...     @property
        ...     def infinite_at(self):
        ...         return dv.InfiniteAt(True, True)
        >>> float((2 * SquaredLogitGap())(jnp.zeros(2), jnp.ones(2)))
        2.0
    """

    spec_name: ClassVar[str]
    """Snake-case name, as `get` understands it."""
    formula: ClassVar[str]
    """One line of mathematics for tables, with p the target and q the model."""

    @abc.abstractmethod
    def rows(self, target: jax.Array, model: jax.Array) -> jax.Array:
        """The divergence of each row: logits `[..., V]` of one float dtype to `[...]`; −inf logits allowed."""

    @property
    @abc.abstractmethod
    def infinite_at(self) -> InfiniteAt:
        """On which kind of support mismatch the value is +inf."""

    def __call__(
        self,
        target: ArrayLike,
        model: ArrayLike,
        *,
        where: ArrayLike | None = None,
        support: Support = "inf",
    ) -> jax.Array:
        """D(softmax(target), softmax(model)) over the last axis.

        Args:
            target: logits `[..., V]` of what is held fixed (teacher, reference policy). Any float dtype; bfloat16 and
                float16 are upcast to float32 before anything is computed. Log-probabilities are logits too.
            model: logits `[..., V]` of what is trained; leading axes broadcast against the target's.
            where: boolean, broadcastable to the logits: tokens to leave out of both distributions, which are
                renormalised over the rest.
            support: what to do with atoms on which the value is +inf: "inf" returns +inf, "mask" drops those atoms and
                renormalises, "floor" gives them probability 1e-10 (relative to the rest) on the side that rules them
                out. Atoms with a finite contribution are exact in all three.

        Returns:
            `[...]`, float32 (float64 if an input is float64), at least 0 and exactly 0 for equal rows. A row in which
            either side has no possible token gives 0. Gradients are never NaN; where the value is +inf they are those
            of its finite part.

        Raises:
            TypeError: logits that are not floating point.
            ValueError: vocabularies of different sizes, or leading shapes or a `where` that do not broadcast.
        """
        target, model = _prepare(target, model, where)
        target, model = apply_support(target, model, support, self.infinite_at)
        return _with_dtype(self, target.dtype).rows(target, model)

    @property
    def name(self) -> str:
        """The specification that `get` turns back into this object, such as `alpha(0.5)`."""
        return spec_of(self.spec_name, self)

    def dual(self) -> AbstractDivergence:
        """The divergence with its arguments swapped: D̃(p, q) = D(q, p)."""
        from divax.divergences.algebra import Dual

        return Dual(inner=self)

    def normalized(self) -> AbstractDivergence:
        """This divergence divided by its curvature f″(1), so that D ≈ ½·Var_q(logit difference) near equality.

        Members so normalised can be swapped for each other without retuning a learning rate or β.
        """
        raise ValueError(f"{self.name} has no curvature f''(1) to be normalised by")

    def __add__(self, other: object) -> AbstractDivergence:
        from divax.divergences.algebra import mixture

        if not isinstance(other, AbstractDivergence):
            return NotImplemented
        return mixture((1.0, self), (1.0, other))

    def __radd__(self, other: object) -> AbstractDivergence:
        # `sum([...])` starts from the integer zero.
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def __mul__(self, factor: Scalar) -> AbstractDivergence:
        from divax.divergences.algebra import mixture

        if isinstance(factor, AbstractDivergence):
            return NotImplemented
        return mixture((factor, self))

    __rmul__ = __mul__


def spec_of(spec_name: str, div: Any) -> str:
    """`name` or `name(value)` or `name(a=…, b=…)` from the fields that differ in no way from numbers or strings."""
    shown = {
        field.name: getattr(div, field.name)
        for field in dataclasses.fields(div)
        if getattr(div, field.name) is not None
    }
    texts = {name: _show(value) for name, value in shown.items()}
    if not texts:
        return spec_name
    first = dataclasses.fields(div)[0].name
    if list(texts) == [first]:
        return f"{spec_name}({texts[first]})"
    return f"{spec_name}({', '.join(f'{name}={text}' for name, text in texts.items())})"


def _show(value: object) -> str:
    if is_traced(value):
        return "…"
    if isinstance(value, bool | int | str):
        return repr(value)
    if jnp.ndim(value) == 0:  # type: ignore[arg-type]
        return f"{float(value):.12g}"  # type: ignore[arg-type]
    return f"<array {'×'.join(map(str, jnp.shape(value)))}>"  # type: ignore[arg-type]


def check_range(
    div: object,
    parameter: str,
    low: float,
    high: float,
    *,
    ends: Literal["closed", "open", "half-open"],
) -> None:
    """Raises ValueError when a concrete hyper-parameter lies outside its interval (traced ones are not looked at)."""
    value = getattr(div, parameter)
    if not isinstance(value, bool | int | float):
        return
    above = low < value if ends == "open" else low <= value
    below = value <= high if ends == "closed" else value < high
    if not (above and below):
        brackets = {"closed": "[]", "open": "()", "half-open": "[)"}[ends]
        raise ValueError(
            f"{type(div).__name__}: {parameter}={value} is outside {brackets[0]}{low:g}, {high:g}{brackets[1]}"
        )


def _prepare(target: ArrayLike, model: ArrayLike, where: ArrayLike | None):
    target, model = jnp.asarray(target), jnp.asarray(model)
    for role, logits in (("target", target), ("model", model)):
        if not jnp.issubdtype(logits.dtype, jnp.floating):
            raise TypeError(f"{role} logits must be floating point, got {logits.dtype}")
        if logits.ndim == 0 or logits.shape[-1] == 0:
            raise ValueError(
                f"{role} logits need a non-empty last axis (V), got shape {logits.shape}"
            )
    if target.shape[-1] != model.shape[-1]:
        raise ValueError(
            f"target has {target.shape[-1]} tokens and model has {model.shape[-1]} on the last axis: a divergence needs one"
            " vocabulary; truncate both to the tokenizer's real size if they only differ in padding"
        )
    try:
        shape = jnp.broadcast_shapes(target.shape, model.shape)
    except ValueError:
        raise ValueError(
            f"target {target.shape} and model {model.shape} do not broadcast"
        ) from None
    double = jnp.float64 in (target.dtype, model.dtype)
    dtype = jnp.float64 if double else jnp.float32
    target = jnp.broadcast_to(target.astype(dtype), shape)
    model = jnp.broadcast_to(model.astype(dtype), shape)
    if where is not None:
        keep = _kept(where, shape)
        target, model = jnp.where(keep, target, -jnp.inf), jnp.where(keep, model, -jnp.inf)
    return target, model


def _kept(where: ArrayLike, shape: tuple[int, ...]) -> jax.Array:
    keep = jnp.asarray(where, bool)
    try:
        return jnp.broadcast_to(keep, shape)
    except ValueError:
        raise ValueError(
            f"where {keep.shape} does not broadcast to the logits {shape}; a mask of rows goes over the values"
        ) from None


def _with_dtype(div: AbstractDivergence, dtype: Any) -> AbstractDivergence:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(dtype), div)
