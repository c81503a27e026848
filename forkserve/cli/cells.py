"""Cells: values from a server as text in columns, escaped."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from forkserve.base.logs import printable

Row = Mapping[str, Any]
GAP = "  "
INDENT = "        "  # of the rest of a line that is too long


def cell(value: object) -> str:
    """Return a value as text; None is a dash."""
    if value is None:
        return "-"
    return printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def rows_of(value: Any) -> list[Row]:
    """Return the rows in a list of a result."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def line(text: str, width: int | None) -> str:
    """Return a line that is not wider than *width*; None: no limit."""
    return text if width is None or len(text) <= width else text[: max(width - 1, 0)] + "~"


def wrapped(text: str, width: int) -> list[str]:
    """Return a line as lines that are not wider than *width*, those after the first indented: its end may matter most."""
    first, rest, room = text[:width], text[width:], max(width - len(INDENT), 1)
    return [first, *(INDENT + rest[at : at + room] for at in range(0, len(rest), room))]


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return rows below their heads, in columns."""
    cells = [list(heads), *([cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    return [GAP.join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def fitted(
    heads: Sequence[str],
    rows: Sequence[Sequence[object]],
    importance: Sequence[str],
    width: int | None,
    shortened: tuple[str, int],
) -> list[str]:
    """Return a table of at most *width* columns: columns without a value and the least important ones are left out first.

    Args:
        heads: The heads.
        rows: The rows.
        importance: The heads, the most important ones first.
        width: The columns of the terminal; None: everything is shown.
        shortened: The head of the column that is cut, and the columns that it keeps.
    """
    if width is None:
        return table(heads, rows)
    texts = [[cell(value) for value in row] for row in rows]
    needed = {head: max([len(head), *(len(row[place]) for row in texts)]) for place, head in enumerate(heads)}
    needed[shortened[0]] = min(needed[shortened[0]], max(shortened[1], len(shortened[0])))
    empty = {head for place, head in enumerate(heads) if all(row[place] == "-" for row in texts)}
    kept: list[str] = []
    left = width + len(GAP)
    for head in sorted(importance, key=lambda one: one in empty):
        if needed[head] + len(GAP) <= left:
            kept.append(head)
            left -= needed[head] + len(GAP)
        elif head not in empty:
            break
    places = [place for place, head in enumerate(heads) if head in kept]
    return [
        line(one, width) for one in table([heads[place] for place in places], [[row[place] for place in places] for row in texts])
    ]


def duration(seconds: float | None) -> str | None:
    """Return seconds in at most two units: `45s`, `3m 20s`, `2h 5m`, `4d 3h`."""
    if seconds is None:
        return None
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = int(seconds)
    for unit_size, unit, smaller, part in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= unit_size:
            return f"{whole // unit_size}{unit} {whole % unit_size // smaller}{part}"
    return f"{whole}s"


def size(count: int | None) -> str | None:
    """Return bytes in MiB."""
    return None if count is None else f"{count / (1 << 20):.1f}M"
