"""Functions whose derivatives are those of another function, wherever JAX takes them apart.

`jax.custom_jvp` says the same, but loops and branches forget such a rule when JAX splits what a first derivative keeps from
what it moves: the second derivative then goes through the function itself. A primitive keeps its rule.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
from jax.interpreters import ad, batching, mlir, partial_eval


def differentiated_as(plain: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Decorator: the function computes its value, and `plain`, which equals it, its derivatives.

    Of any order and mode, under `jax.vmap`, `jax.lax.scan`, `jax.checkpoint` and `jax.shard_map`. Both are functions of a
    module: of a first argument that is hashable, and pytrees of numbers and arrays.

    Args:
        plain: for JAX to differentiate.

    Returns:
        What decorates a function that JAX may compile but need not differentiate.

    Example:
        >>> import jax.numpy as jnp
        >>> def plain(power, x):
        ...     return x**power
        >>> @differentiated_as(plain)
        ... def rounded(power, x):
        ...     return jnp.round(x**power)
        >>> float(rounded(3, 1.1)), round(float(jax.grad(rounded, argnums=1)(3, 1.1)), 6)
        (1.0, 3.63)
    """

    def decorate(fun: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(fun)
        def kept(static: Hashable, *args: Any) -> Any:
            leaves, tree = jax.tree.flatten(args)
            value, derivatives = _of_leaves(fun, static, tree), _of_leaves(plain, static, tree)
            found = _kept().bind(*leaves, fun=value, plain=derivatives)
            return jax.tree.unflatten(jax.tree.structure(jax.eval_shape(value, *leaves)), found)

        return kept

    return decorate


@dataclasses.dataclass(frozen=True)
class _OfLeaves:
    """A function of arrays, equal to another one that is made of the same.

    Attributes:
        fun: of `static` and pytrees.
        static: its first argument.
        tree: structure of the others.
        outputs: which of the results' leaves somebody wants; None for all.
        mapped: by which axes of its arrays it is mapped, innermost first.
    """

    fun: Callable[..., Any]
    static: Hashable
    tree: Any
    outputs: tuple[int, ...] | None = None
    mapped: tuple[tuple[int | None, ...], ...] = ()

    def __call__(self, *leaves: jax.Array) -> Any:
        fun = self._of_one
        for axes in self.mapped:
            fun = jax.vmap(fun, in_axes=axes)
        return fun(*leaves)

    def _of_one(self, *leaves: jax.Array) -> Any:
        found = self.fun(self.static, *jax.tree.unflatten(self.tree, leaves))
        if self.outputs is None:
            return found
        found = jax.tree.leaves(found)
        return [found[i] for i in self.outputs]

    def along(self, axes: tuple[int | None, ...]) -> _OfLeaves:
        return dataclasses.replace(self, mapped=(*self.mapped, axes))

    def only(self, used: Sequence[bool]) -> _OfLeaves:
        outputs = range(len(used)) if self.outputs is None else self.outputs
        return dataclasses.replace(self, outputs=tuple(itertools.compress(outputs, used)))


# The same object for the same function: what JAX traced of it, it finds again.
_of_leaves = functools.lru_cache(_OfLeaves)


@functools.cache
def _kept() -> Any:
    """The primitive, made when somebody needs it: what JAX has for it loads Pallas, a tenth of a second."""
    from jax.extend.core import Primitive

    kept = Primitive("differentiated_as")
    kept.multiple_results = True
    kept.def_impl(_run)
    kept.def_abstract_eval(_abstract)
    ad.primitive_jvps[kept] = _jvp
    batching.primitive_batchers[kept] = _batched
    partial_eval.dce_rules[kept] = _pruned
    mlir.register_lowering(kept, mlir.lower_fun(_lowered))
    return kept


def _run(*leaves, fun: _OfLeaves, plain: _OfLeaves):
    del plain
    return jax.tree.leaves(_compiled(fun)(*leaves))


@functools.lru_cache
def _compiled(fun: _OfLeaves):
    return jax.jit(fun)


def _abstract(*avals, fun: _OfLeaves, plain: _OfLeaves):
    del plain
    return jax.make_jaxpr(fun)(*avals).out_avals


def _jvp(primals, tangents, *, fun: _OfLeaves, plain: _OfLeaves):
    moving = [not isinstance(dot, ad.Zero) for dot in tangents]

    def of_moving(*moved):
        rest = iter(moved)
        return plain(*(next(rest) if m else x for x, m in zip(primals, moving, strict=True)))

    pairs = [(x, dot) for x, dot, m in zip(primals, tangents, moving, strict=True) if m]
    dots = jax.jvp(of_moving, *zip(*pairs, strict=True))[1]
    found = _kept().bind(*primals, fun=fun, plain=plain)
    return found, [_tangent(*pair) for pair in zip(found, jax.tree.leaves(dots), strict=True)]


def _tangent(x: jax.Array, dot: Any) -> Any:
    """Of a number; JAX knows those of integers by their type."""
    return ad.Zero(jax.typeof(x).to_tangent_aval()) if dot.dtype == jax.dtypes.float0 else dot


def _batched(leaves, axes, *, fun: _OfLeaves, plain: _OfLeaves):
    found = _kept().bind(*leaves, fun=fun.along(axes), plain=plain.along(axes))
    return found, (0,) * len(found)


def _pruned(used: Sequence[bool], *rest):
    """Without the outputs that nobody uses."""
    eqn = rest[-1]  # Before it, JAX 0.12 says which references live.
    if not any(used):
        return [False] * len(eqn.invars), None
    params = {name: of.only(used) for name, of in eqn.params.items()}
    outvars = list(itertools.compress(eqn.outvars, used))
    return [True] * len(eqn.invars), eqn.replace(params=params, outvars=outvars)


def _lowered(*leaves, fun: _OfLeaves, plain: _OfLeaves):
    from jax.extend.core import jaxpr_as_fun

    del plain
    program = jax.make_jaxpr(fun)(*leaves)
    # What is not used keeps XLA from dropping sums of a reduction.
    useful, _ = partial_eval.dce_jaxpr(program.jaxpr, [True] * len(program.out_avals), True)
    return jaxpr_as_fun(program.replace(jaxpr=useful))(*leaves)
