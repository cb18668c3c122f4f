"""The table and the picture of `divax zoo`."""

import math
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from divax.divergences import AbstractDivergence, AbstractFDivergence, FMixture, Mixture
from divax.trainers.errors import RunError
from divax.trainers.picture import save_picture
from divax.trainers.text_table import aligned

_FLAGS = ("admissible", "bounded", "symmetric", "smooth")
_HEADER = ["divergence", "formula", "range", "f(0)", "f'(∞)", "f''(1)", *_FLAGS]


def table(members: Mapping[str, AbstractDivergence]) -> str:
    """One row per divergence; what only f-divergences have is a dash elsewhere.

    Args:
        members: by the specification that was asked for; a sum shows as that, its formula as the sum.

    Example:
        >>> from divax import divergences as dv
        >>> print(table({"squared_hellinger": dv.SquaredHellinger()}).splitlines()[1].split()[-6:])
        ['0.5', '0.25', 'yes', 'yes', 'yes', 'yes']
    """
    return aligned([_HEADER, *(_row(spec, member) for spec, member in members.items())], left=2)


def _row(spec: str, member: AbstractDivergence) -> list[str]:
    words = [member.name, member.formula]
    if isinstance(member, Mixture | FMixture):
        words = [spec, member.name]
    if not isinstance(member, AbstractFDivergence):
        return [*words, "≥ 0", *["–"] * (len(_HEADER) - 3)]
    limits = member.f_at_zero, member.slope_at_infinity
    top = _number(sum(limits))
    upper = f"[0, {top})" if top == "∞" else f"[0, {top}]"
    curvature = _number(member.curvature) if member.smooth else "–"
    flags = ["yes" if getattr(member, flag) else "no" for flag in _FLAGS]
    return [*words, upper, *map(_number, limits), curvature, *flags]


def _number(value: float) -> str:
    return "∞" if math.isinf(value) else f"{float(value):.4g}"


def draw(members: Mapping[str, AbstractDivergence], path: Path) -> str:
    """Draws f(u), and the pull −g(u) on a model logit against log u; returns the path as text.

    Args:
        members: by specification; those that are no f-divergences have neither curve and are left out.
        path: a PNG file.

    Raises:
        RunError: matplotlib is missing, there is nothing to draw, or the file cannot be written.

    Example:
        >>> import pathlib, tempfile
        >>> from divax import divergences as dv
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "zoo.png"
        >>> _ = draw({spec: dv.get(spec) for spec in ("forward_kl", "reverse_kl")}, path)
        >>> path.stat().st_size > 1000
        True
    """
    curves = {s: member for s, member in members.items() if isinstance(member, AbstractFDivergence)}
    if not curves:
        raise RunError("--plot draws f-divergences, and none is listed")
    try:
        # The figure is made without pyplot, so no backend, window or global state is involved.
        from matplotlib import colormaps
        from matplotlib.figure import Figure
    except ImportError:
        raise RunError("--plot needs matplotlib: pip install 'divax[plot]'") from None
    figure = Figure(figsize=(13, 6), layout="constrained")
    left, right = figure.subplots(1, 2)
    colours = colormaps["turbo"](np.linspace(0.03, 0.97, len(curves)))
    for i, ((spec, member), colour) in enumerate(zip(curves.items(), colours, strict=True)):
        style = dict(color=colour, linestyle=("-", "--", "-.")[i % 3], linewidth=1.8)
        u = np.linspace(0.005, 4, 800)
        left.plot(u, np.asarray(member.f(jnp.asarray(u, jnp.float32))), label=spec, **style)
        log_u = np.linspace(-8, 8, 801)
        pull = -np.asarray(member.link(jnp.asarray(-log_u, jnp.float32)))
        right.plot(log_u, pull, label=spec, **style)
    _label(left, right)
    figure.legend(*left.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return save_picture(figure, path)


def _label(left, right) -> None:
    left.set(xlabel="u = target/model", ylabel="f(u)", ylim=(0, 3), xlim=(0, 4), title="Generators")
    right.set_yscale("symlog", linthresh=1)
    right.axvline(0, color="0.7", linewidth=0.8)
    right.axhline(0, color="0.7", linewidth=0.8)
    right.set(
        xlabel="log(target/model)",
        ylabel="pull on the model's logit per unit of its probability",
        title="Gradient weight −g(u): how hard a mismatch pulls",
        ylim=(-1e3, 1e3),
    )
    for axes in (left, right):
        axes.grid(alpha=0.25)
