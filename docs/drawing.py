"""The drawing of the packages as SVG: each package stands above those that it imports."""  # noqa: INP001 - a script beside the pages

from __future__ import annotations

from collections.abc import Mapping

WIDTH, HEIGHT = 124, 30
"""Of a box."""
COLUMN, FLOOR = 144, 62
"""From one column, or floor, to the next."""
ROOMS = ("prefork", "", "http")
"""Prefixes of names, from left to right; what has none of them stands between."""
MARGIN = 20
STYLE = """
text { font: 13px sans-serif; text-anchor: middle; dominant-baseline: central; fill: #24292f }
.room { fill: #eef2f7; stroke: #c3ccd8 } .name { font-size: 12px; fill: #6a7685 }
.box { fill: #fff; stroke: #3f51b5 } path { fill: none; stroke: #5c6f91; stroke-opacity: .8 }
marker path { fill: #5c6f91; stroke: none }
@media (prefers-color-scheme: dark) {
  text { fill: #e6e8ee } .room { fill: #232a36; stroke: #3c4658 } .name { fill: #9aa7ba }
  .box { fill: #161b24; stroke: #93a1f5 } path { stroke: #8b9cc0 } marker path { fill: #8b9cc0 }
}"""


def svg(imports: Mapping[str, set[str]]) -> str:
    """Return the drawing.

    Args:
        imports: Each package, lower ones first, with those to which an arrow leads.
    """
    floors: dict[str, int] = {}
    for name, others in imports.items():
        floors[name] = 1 + max((floors[other] for other in others), default=-1)
    top = max(floors.values())
    rows: dict[tuple[str, int], list[str]] = {}
    for name, floor in floors.items():
        rows.setdefault((_room(name), floor), []).append(name)
    widths = {room: max(len(names) for (one, _), names in rows.items() if one == room) * COLUMN for room in ROOMS}
    starts = {room: MARGIN + sum(widths[one] + MARGIN for one in ROOMS[: ROOMS.index(room)]) for room in ROOMS}
    places: dict[str, tuple[int, int]] = {}
    for (room, floor), names in rows.items():
        for index, name in enumerate(names):
            x = starts[room] + widths[room] * (2 * index + 1) // (2 * len(names))
            places[name] = x, MARGIN + HEIGHT + (top - floor) * FLOOR
    width, height = starts[ROOMS[-1]] + widths[ROOMS[-1]] + MARGIN, (top + 1) * FLOOR + MARGIN + HEIGHT // 2
    parts = [
        _frame(room, starts[room], widths[room], [places[name] for name in places if _room(name) == room])
        for room in ROOMS
        if room
    ]
    parts += [_arrow(places[name], places[other]) for name, others in imports.items() for other in sorted(others)]
    parts += [_box(name, *place) for name, place in places.items()]
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">',
        f"<title>The packages of forkserve, each above those that it imports</title><style>{STYLE}</style>",
        '<marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">',
        '<path d="M0 0 8 4 0 8Z"/></marker>',
        *parts,
        "</svg>\n",
    ])  # fmt: skip


def _room(name: str) -> str:
    first = name.partition(".")[0]
    return first if first in ROOMS else ""


def _frame(room: str, x: int, width: int, places: list[tuple[int, int]]) -> str:
    top, bottom = min(y for _, y in places) - HEIGHT, max(y for _, y in places) + HEIGHT
    return (
        f'<rect class="room" x="{x}" y="{top - 14}" width="{width}" height="{bottom - top + 14}" rx="8"/>'
        f'<text class="name" x="{x + 36}" y="{top - 3}">{room}</text>'
    )


def _box(name: str, x: int, y: int) -> str:
    return (
        f'<rect class="box" x="{x - WIDTH // 2}" y="{y - HEIGHT // 2}" width="{WIDTH}" height="{HEIGHT}" rx="5"/>'
        f'<text x="{x}" y="{y}">{name}</text>'
    )


def _arrow(above: tuple[int, int], below: tuple[int, int]) -> str:
    (x, y), (to_x, to_y) = (above[0], above[1] + HEIGHT // 2), (below[0], below[1] - HEIGHT // 2 - 1)
    bend = (to_y - y) // 2
    return f'<path d="M{x} {y}C{x} {y + bend} {to_x} {to_y - bend} {to_x} {to_y}" marker-end="url(#tip)"/>'
