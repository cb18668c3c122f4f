"""Matplotlib figures to PNG files that are whole or not there."""

from pathlib import Path
from typing import TYPE_CHECKING

from divax.trainers.errors import RunError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_picture(figure: "Figure", path: Path) -> str:
    """Writes the figure beside its place and renames it; returns the path as text.

    Args:
        figure: made without pyplot, so that no backend, window or global state is involved.
        path: a PNG file.

    Raises:
        RunError: the file cannot be written.

    Example:
        >>> import pathlib, tempfile
        >>> from matplotlib.figure import Figure
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "empty.png"
        >>> save_picture(Figure(), path) == str(path)
        True
    """
    partial = path.with_name(path.name + ".partial")
    try:
        figure.savefig(partial, dpi=150, format="png")
        partial.replace(path)
    except OSError as error:
        raise RunError(f"cannot write the picture {path}: {error.strerror}") from None
    return str(path)
