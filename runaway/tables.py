"""Lines in columns, for people."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from liborch.plain_text import neutral


def columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines whose columns are as wide as they need to be; on a terminal the last one is cut to what fits."""
    cells = [[neutral(cell).replace("\n", " ").replace("\t", " ") for cell in row] for row in rows]
    widths = [max([len(title), *(len(row[at]) for row in cells)]) for at, title in enumerate(head[:-1])]
    room = width() - sum(widths) - 2 * len(widths)
    lines = []
    for row in [list(head), *cells]:
        last = row[-1] if len(row[-1]) <= room or room < 8 else row[-1][: room - 1] + "…"
        lines.append(
            "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), last]).rstrip()
        )
    return lines


def width() -> int:
    """Of the terminal; where there is none, anything fits."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError):
        return 1 << 20
