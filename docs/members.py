"""Writes `docs/members.md`, the table member × property, from the code: `python docs/members.py`."""

import dataclasses
import inspect
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from divax import divergences as dv
from divax.divergences.checks import known_exceptions
from divax.divergences.value_laws import contracts

HEADER = """# Members

Generated from the code by `python docs/members.py`; a test holds the two together. p = softmax(target), q = softmax(model).

- *Range*, *curvature* f″(1) and the flags are those at the default hyper-parameters.
- *Infinite where*: p = 0 is a token that the target rules out and the model does not, q = 0 the other way round.
- *f-DPO*: the link falls to −∞, so that f-DPO with it is exact. *Contracts*: merging tokens never increases it.
- A dash: it is not defined there, or nothing is promised.
"""

COLUMNS = (
    "member",
    "formula",
    "range",
    "infinite where",
    "symmetric",
    "smooth",
    "f-DPO",
    "contracts",
    "curvature",
    "defaults",
    "source",
)

OTHERS = """## Built from others, or from arrays

Not in `names()`: they wrap another divergence, need an array, or solve the same problem another way.
"""

EXCUSED = """## Laws from which members excuse themselves

Every member obeys every law that applies to it, as `divax check MEMBER` shows, but for these.
"""


def document() -> str:
    """The whole file."""
    members = {name: dv.get(name) for name in dv.names()}
    parts = [HEADER, _table(COLUMNS, [_row(name, div) for name, div in members.items()])]
    columns = ("class", "formula", "needs", "source")
    parts += [OTHERS, _table(columns, [_other_row(cls) for cls in _others(members)])]
    parts += [EXCUSED, _table(("members", "laws", "reason"), _excused(members))]
    return "\n".join(parts)


def _row(name: str, div: dv.AbstractDivergence) -> list[str]:
    build: Callable[..., Any] = type(div) if type(div).spec_name == name else getattr(dv, name)
    formula = _escaped(div.formula) if build is type(div) else f"`{div.name}`"
    f_divergence = isinstance(div, dv.AbstractFDivergence)
    if f_divergence:
        top, symmetric = float(div.f_at_zero + div.slope_at_infinity), bool(div.symmetric)
        flags = [_word(bool(div.smooth)), _word(bool(div.admissible))]
        limit = _range(top)
    else:
        top, symmetric = _probed(div)
        flags = ["–", "–"]
        limit = _range(top) if math.isinf(top) else "≥ 0"
    infinite = _infinite(div, math.isinf(top))
    return [
        f"`{name}`",
        formula,
        limit,
        infinite,
        _word(symmetric),
        *flags,
        "yes" if contracts(div) else "–",
        _curvature(div),
        _defaults(build),
        _source(build),
    ]


def _probed(div: dv.AbstractDivergence) -> tuple[float, bool]:
    """The value for disjoint supports, and whether swapping the arguments of one pair changes nothing."""
    first, second = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
    # One row of each disjoint pair, then the same pair of rows both ways round.
    alone = np.where(np.eye(4, dtype=bool)[:2], 0, -np.inf).astype(np.float32)
    value = np.asarray(
        div(np.stack([alone[0], first, second]), np.stack([alone[1], second, first]))
    )
    return float(value[0]), bool(np.isclose(value[1], value[2], rtol=1e-4))


def _infinite(div: dv.AbstractDivergence, disjoint: bool) -> str:
    at_zero = zip(("p = 0", "q = 0"), div.infinite_at, strict=True)
    sides = [side for side, infinite in at_zero if bool(infinite)]
    return ", ".join(sides) or ("disjoint supports" if disjoint else "nowhere")


def _range(top: float) -> str:
    return "[0, ∞)" if math.isinf(top) else f"[0, {_number(top)}]"


def _curvature(div: dv.AbstractDivergence) -> str:
    try:
        normalized = div.normalized()
    except ValueError:
        return "–"
    # Normalising divides by the curvature, as a sum whose weights say so.
    weights = [getattr(one, "weights", (1.0,))[0] for one in (div, normalized)]
    found = getattr(div, "curvature", weights[0] / weights[1])
    note = "" if "curvature" not in known_exceptions(div) else " (see below)"
    return _number(float(found)) + note


def _defaults(build: Callable[..., Any]) -> str:
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(build).parameters.items()
        if parameter.default is not parameter.empty and parameter.default is not None
    }
    shown = [f"{name} = {_value(value)}" for name, value in defaults.items()]
    return ", ".join(shown) or "–"


def _value(value: Any) -> str:
    plain = isinstance(value, bool | int | str)
    return f"{value!r}" if plain else _number(float(value))


def _excused(members: dict[str, dv.AbstractDivergence]) -> list[list[str]]:
    """One row per member and reason."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, div in members.items():
        for law, reason in known_exceptions(div).items():
            found.setdefault((name, reason), []).append(f"`{law}`")
    return [[f"`{name}`", ", ".join(laws), reason] for (name, reason), laws in found.items()]


def _others(members: dict[str, dv.AbstractDivergence]) -> list[type]:
    classes = [value for value in vars(dv).values() if inspect.isclass(value)]
    return [
        cls
        for cls in classes
        if issubclass(cls, dv.AbstractDivergence)
        and not inspect.isabstract(cls)
        and cls.spec_name not in members
    ]


def _other_row(cls: type[dv.AbstractDivergence]) -> list[str]:
    needed = [
        field.name
        for field in dataclasses.fields(cls)  # type: ignore[arg-type]
        if field.default is field.default_factory is dataclasses.MISSING
    ]
    return [f"`{cls.__name__}`", _escaped(cls.formula), ", ".join(needed) or "–", _source(cls)]


def _source(thing: Callable[..., Any]) -> str:
    found = re.search(r"Source: (.+?)(?:\n\s*\n|\Z)", inspect.getdoc(thing) or "", re.DOTALL)
    return _escaped(" ".join(found[1].split())).rstrip(".") if found else "–"


def _word(flag: bool) -> str:
    return "yes" if flag else "no"


def _number(value: float) -> str:
    return f"{value:.4g}"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def _table(columns: tuple[str, ...], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(document(), encoding="utf-8")
