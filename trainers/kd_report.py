"""The table and the picture of `divax kd`."""

from pathlib import Path

from divax.trainers.kd_experiment import ALONE, TEACHER

_COLUMNS = {
    "perplexity": "{:.3f}",
    "agreement": "{:.1%}",
    "forward_kl": "{:.4f}",
    "reverse_kl": "{:.4f}",
    "ece": "{:.4f}",
    "parameters": "{:,.0f}",
}


def table(rows: dict[str, dict[str, float]]) -> str:
    """Rows of measures as aligned text.

    Args:
        rows: per model, `perplexity`, `agreement` with the teacher, `forward_kl` and `reverse_kl`
            to it (nats per token), `ece` and `parameters`.

    Example:
        >>> print(table({"teacher": dict(perplexity=4.0, agreement=1.0, forward_kl=0.0,
        ...     reverse_kl=0.0, ece=0.01, parameters=1000)}))
                 perplexity  agreement  forward_kl  reverse_kl     ece  parameters
        teacher       4.000     100.0%      0.0000      0.0000  0.0100       1,000
    """
    cells = [["", *_COLUMNS]]
    cells += [
        [name, *(form.format(row[column]) for column, form in _COLUMNS.items())]
        for name, row in rows.items()
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in cells
    ]
    return "\n".join(lines)


def curves(
    points: dict[str, list[tuple[int, float]]], rows: dict[str, dict[str, float]], path: Path
) -> str:
    """Draws the validation curves and the distances to the teacher; returns the path as text.

    Args:
        points: per student, (step, validation perplexity).
        rows: the table.
        path: a PNG file.

    Raises:
        ImportError: matplotlib is not installed.

    Example:
        >>> import pathlib, tempfile
        >>> row = dict(perplexity=5.0, forward_kl=0.2, reverse_kl=0.3)
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "curves.png"
        >>> _ = curves({"forward_kl": [(1, 9.0), (2, 5.0)]},
        ...            {"teacher": row, "forward_kl": row}, path)
        >>> path.stat().st_size > 1000
        True
    """
    # The figure is made without pyplot, so no backend, window or global state is involved.
    from matplotlib.figure import Figure

    height = max(4.2, 1.2 + 0.7 * (len(rows) - 1))
    figure = Figure(figsize=(11, height), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    colours = {name: f"C{i}" for i, name in enumerate(n for n in points if n != ALONE)}
    colours[ALONE] = "0.35"
    _draw_curves(left, points, rows, colours)
    _draw_distances(right, rows, colours)
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, dpi=150, format="png")
    partial.replace(path)
    return str(path)


def _draw_curves(axes, points, rows, colours) -> None:
    for name, series in points.items():
        steps, values = zip(*series, strict=True)
        label = f"{name}: {rows[name]['perplexity']:.3f}" if name in rows else name
        style = "--" if name == ALONE else "-"
        axes.plot(steps, values, style, color=colours[name], linewidth=1.8, marker=".", label=label)
    teacher = rows[TEACHER]["perplexity"]
    axes.axhline(
        teacher, color="black", linewidth=1, linestyle=":", label=f"teacher: {teacher:.3f}"
    )
    last = [series[-1][1] for series in points.values()]
    # From the teacher to where the students part; the first steps would flatten all the rest.
    low, high = min(teacher, *last), max(last)
    span = max(high - low, 0.01 * low)
    axes.set_ylim(low - 0.15 * span, high + 3 * span)
    axes.set(xlabel="step", ylabel="validation perplexity", title="Learning curves")
    axes.legend(title="at the end", loc="upper right", frameon=False)
    axes.grid(alpha=0.25)


def _draw_distances(axes, rows, colours) -> None:
    names = [name for name in rows if name != TEACHER]
    for offset, key, shade in ((-0.18, "forward_kl", 1.0), (0.18, "reverse_kl", 0.45)):
        places = [i + offset for i in range(len(names))]
        values = [rows[name][key] for name in names]
        tints = [colours[name] for name in names]
        bars = axes.barh(places, values, height=0.34, color=tints, alpha=shade)
        axes.bar_label(bars, [f"{key}  {value:.3f}" for value in values], padding=3, fontsize=8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.margins(x=0.5)
    axes.set(xlabel="nats per token", title="Distance to the teacher")
    axes.grid(alpha=0.25, axis="x")
