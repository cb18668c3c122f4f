"""Divergences from strings, for command lines and sweeps."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from divax.divergences.adaptive_alpha import AdaptiveAlpha
from divax.divergences.adaptive_kl import AdaptiveKL
from divax.divergences.alpha import Alpha
from divax.divergences.alpha_beta import AlphaBeta, Beta
from divax.divergences.arithmetic_geometric import ArithmeticGeometric
from divax.divergences.base import AbstractDivergence
from divax.divergences.chi2 import ForwardChi2, ReverseChi2
from divax.divergences.clipped_alpha import ClippedAlpha
from divax.divergences.entropy_gate import EntropyGatedKL
from divax.divergences.escort import CauchySchwarz, Gamma, Hoelder
from divax.divergences.frontier_integral import FrontierIntegral
from divax.divergences.geometric_js import GeometricJS
from divax.divergences.hellinger import SquaredHellinger
from divax.divergences.jeffreys import Jeffreys
from divax.divergences.jensen_shannon import InterpolatedJS, JensenShannon
from divax.divergences.kl import ForwardKL, ReverseKL
from divax.divergences.log1p_abs import Log1pAbs
from divax.divergences.log_variance import LogVariance
from divax.divergences.modified_gan import ModifiedGAN
from divax.divergences.named import chi2_kl, cressie_read, t_power, tsallis
from divax.divergences.ordered import Cramer, Wasserstein1
from divax.divergences.renyi import Bhattacharyya, Renyi
from divax.divergences.sinkhorn import Sinkhorn
from divax.divergences.skew_chi2 import SkewChi2
from divax.divergences.skew_kl import SkewForwardKL, SkewReverseKL
from divax.divergences.skewed import skewed
from divax.divergences.symmetrized import symmetrized
from divax.divergences.tempered import Tempered
from divax.divergences.total_variation import TotalVariation
from divax.divergences.triangular import Triangular

_MEMBERS: Mapping[str, Callable[..., AbstractDivergence]] = {
    member.spec_name: member
    for member in (
        ForwardKL,
        ReverseKL,
        Jeffreys,
        JensenShannon,
        InterpolatedJS,
        Alpha,
        ForwardChi2,
        ReverseChi2,
        SquaredHellinger,
        TotalVariation,
        Triangular,
        SkewForwardKL,
        SkewReverseKL,
        SkewChi2,
        ArithmeticGeometric,
        FrontierIntegral,
        ModifiedGAN,
        Log1pAbs,
        ClippedAlpha,
        Renyi,
        Bhattacharyya,
        Gamma,
        CauchySchwarz,
        Hoelder,
        Beta,
        AlphaBeta,
        GeometricJS,
        LogVariance,
        AdaptiveKL,
        AdaptiveAlpha,
        EntropyGatedKL,
        Sinkhorn,
        Wasserstein1,
        Cramer,
    )
} | {build.__name__: build for build in (chi2_kl, cressie_read, tsallis, t_power)}
_WRAPPERS: dict[str, Callable[..., AbstractDivergence]] = {
    "dual": lambda div: div.dual(),
    "normalized": lambda div: div.normalized(),
    "symmetrized": symmetrized,
    "skewed": skewed,
    "tempered": lambda div, temperature, power: Tempered(
        inner=div, temperature=temperature, power=power
    ),
}


def names() -> tuple[str, ...]:
    """The names that `get` understands, in the order of the table of contents.

    Example:
        >>> from divax import divergences as dv
        >>> dv.names()[:3]
        ('forward_kl', 'reverse_kl', 'jeffreys')
    """
    return tuple(_MEMBERS)


def get(spec: str) -> AbstractDivergence:
    """The divergence that a specification describes; the inverse of `.name`.

    A specification is `name`, `name(value)` or `name(parameter=value, …)`, multiples and sums of these, and `dual(…)`,
    `normalized(…)`, `symmetrized(…)`, `skewed(…, skew=a)` or `tempered(…, temperature=T, power=k)` around any of them. It
    is parsed, never evaluated.

    Args:
        spec: the specification.

    Returns:
        The divergence.

    Raises:
        ValueError: not a specification, an unknown name or parameter (the nearest ones are offered), or a value that
            the divergence refuses.

    Example:
        >>> from divax import divergences as dv
        >>> dv.get("alpha(0.5)")
        Alpha(alpha=0.5)
        >>> dv.get("0.7*forward_kl + 0.3*reverse_kl").name
        '0.7*forward_kl + 0.3*reverse_kl'
        >>> dv.get("forwardkl")
        Traceback (most recent call last):
        ...
        ValueError: unknown divergence 'forwardkl'; did you mean forward_kl, skew_forward_kl, forward_chi2?
    """
    try:
        tree = ast.parse(spec.strip(), mode="eval").body
    except SyntaxError:
        raise ValueError(_malformed(spec)) from None
    result = _build(tree, spec)
    if not isinstance(result, AbstractDivergence):
        raise ValueError(_malformed(spec))
    return result


def _build(node: ast.expr, spec: str) -> Any:
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.Name(id=name):
            return _member(name, [], {})
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _combine(_build(left, spec), _build(right, spec), "+", spec)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _combine(_build(left, spec), _build(right, spec), "*", spec)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            named = {str(k.arg): _build(k.value, spec) for k in keywords}
            return _member(name, [_build(arg, spec) for arg in args], named)
    raise ValueError(_malformed(spec))


def _combine(left: Any, right: Any, operator: str, spec: str) -> Any:
    numbers = [not isinstance(side, AbstractDivergence) for side in (left, right)]
    if operator == "+" and not any(numbers):
        return left + right
    if operator == "*" and sum(numbers) == 1:
        return left * right
    raise ValueError(_malformed(spec))


def _member(name: str, values: list[Any], named: dict[str, Any]) -> Any:
    if name in _WRAPPERS:
        if len(values) != 1 or not isinstance(values[0], AbstractDivergence):
            raise ValueError(f"{name}(…) takes one divergence, such as {name}(forward_kl)")
        build = functools.partial(_WRAPPERS[name], values[0])
        return build(**_parameters(name, build, [], named))
    if name not in _MEMBERS:
        raise ValueError(f"unknown divergence {name!r}; {_nearest(name, [*_MEMBERS, *_WRAPPERS])}")
    build = _MEMBERS[name]
    return build(**_parameters(name, build, values, named))


def _parameters(
    name: str, build: Callable[..., Any], values: list[Any], named: dict[str, Any]
) -> dict[str, Any]:
    """The arguments of a member or a wrapper by name, checked against what it takes."""
    signature = inspect.signature(build).parameters
    known = list(signature)
    if len(values) > min(1, len(known)):
        takes = f"one unnamed value ({known[0]})" if known else "no parameter"
        raise ValueError(f"{name} takes {takes}, got {len(values)}")
    parameters = dict(zip(known, values, strict=False))
    for parameter, value in named.items():
        if parameter not in known:
            offered = _nearest(parameter, known) if known else "it takes none"
            raise ValueError(f"{name} has no parameter {parameter!r}; {offered}")
        if parameter in parameters:
            raise ValueError(f"{name}: {parameter} is given twice")
        parameters[parameter] = value
    missing = [
        each
        for each, one in signature.items()
        if one.default is one.empty and each not in parameters
    ]
    if missing:
        raise ValueError(f"{name} needs {' and '.join(missing)}")
    fields = dataclasses.fields(build) if dataclasses.is_dataclass(build) else ()
    static = {field.name for field in fields if field.metadata.get("static")}
    for parameter, value in parameters.items():
        if parameter not in static and (
            isinstance(value, bool) or not isinstance(value, int | float)
        ):
            raise ValueError(f"{name}: {parameter} must be a number, got {value!r}")
    return parameters


def _nearest(word: str, words: list[str]) -> str:
    containing = [known for known in words if word and word in known]
    near = (difflib.get_close_matches(word, words, n=3, cutoff=0.5) or containing)[:3]
    return f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(words)}"


def _malformed(spec: str) -> str:
    return (
        f"cannot read the divergence {spec!r}: write name, name(value) or name(parameter=value, …), and sums such as"
        " 0.7*forward_kl + 0.3*reverse_kl"
    )
