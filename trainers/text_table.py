"""Rows of text as aligned columns."""

import unicodedata
from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Lines of columns two spaces apart; the first `left` columns to the left, the others to the right.

    Args:
        rows: equally long rows of cells, the header first.
        left: how many columns are words.

    Example:
        >>> print(aligned([["", "loss"], ["a", "1.25"], ["bb", "10.5"]]))
            loss
        a   1.25
        bb  10.5
    """
    widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            _pad(cell, width, i < left)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _width(cell: str) -> int:
    """Columns on a terminal: combining marks take none."""
    return sum(not unicodedata.combining(character) for character in cell)


def _pad(cell: str, width: int, to_the_left: bool) -> str:
    blank = " " * (width - _width(cell))
    return cell + blank if to_the_left else blank + cell
