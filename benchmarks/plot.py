"""Bars as SVG, without a library. The picture has a background of its own, so it can be read on light and dark pages."""

from __future__ import annotations

import dataclasses
from xml.sax.saxutils import escape

WIDTH, LABEL, VALUE, BAR, GAP, TITLE, EDGE = 760, 190, 70, 16, 6, 34, 14
STYLE = """\
.page { fill: #ffffff; stroke: #d0d7de } text { font: 13px system-ui, sans-serif; fill: #1f2328 } .title { font-weight: 600 }
.bar { fill: #8c959f } .ours { fill: #0969da } .spread { stroke: #1f2328; stroke-width: 1.5 } .label { text-anchor: end }
@media (prefers-color-scheme: dark) {
.page { fill: #161b22; stroke: #30363d } text { fill: #e6edf3 } .bar { fill: #6e7681 } .ours { fill: #4493f8 }
.spread { stroke: #e6edf3 } }
"""


@dataclasses.dataclass(frozen=True)
class Bar:
    """A bar: a median, and the least and the greatest value."""

    label: str
    value: float
    least: float
    greatest: float
    text: str
    """What stands behind it."""
    ours: bool


def bars(panels: list[tuple[str, list[Bar]]], description: str) -> str:
    """Return a picture with a group of bars below each title; each group has a scale of its own, from 0."""
    parts, top = [], EDGE
    for title, rows in panels:
        scale = (WIDTH - LABEL - VALUE - 2 * EDGE) / max((row.greatest for row in rows), default=1.0)
        parts.append(f'<text class="title" x="{EDGE}" y="{top + 16}">{escape(title)}</text>')
        top += TITLE - GAP
        for row in rows:
            parts += _row(row, top, scale)
            top += BAR + GAP
        top += GAP
    height = top + EDGE - GAP
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">\n'
        f"<title>{escape(description)}</title>\n<style>\n{STYLE}</style>\n"
        f'<rect class="page" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="6"/>\n'
    )
    return head + "\n".join(parts) + "\n</svg>\n"


def _row(row: Bar, top: int, scale: float) -> list[str]:
    left, middle, baseline = LABEL + EDGE, top + BAR / 2, top + BAR - 4
    return [
        f'<text class="label" x="{left - 8}" y="{baseline}">{escape(row.label)}</text>',
        f'<rect class="{"ours" if row.ours else "bar"}" x="{left}" y="{top}" width="{row.value * scale:.1f}" height="{BAR}"/>',
        f'<path class="spread" d="M{left + row.least * scale:.1f} {middle}H{left + row.greatest * scale:.1f}"/>',
        f'<text x="{left + row.greatest * scale + 8:.1f}" y="{baseline}">{escape(row.text)}</text>',
    ]
