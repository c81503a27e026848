"""Text with a reason at the end of each line, as all three front ends read it: `#` to the end of the line. Pure."""

import contextlib
import re
from collections.abc import Iterator

WIDEST = 80  # reasons are put in one column for lines up to this width
PLAIN = re.compile(r"[^\s\"'`\\;{}$#]+")
REFUSED = re.compile(r"[\"'`\\;{}$#\x00-\x1f\x7f]")


class Page:
    """A configuration in the making.

    Args:
        indent: What one level is indented by.
        end: What ends a directive.
        aligned: Whether the reasons of neighbouring lines stand in one column.
    """

    def __init__(self, *, indent: str = "    ", end: str = ";", aligned: bool = True) -> None:
        self._indent, self._end, self._aligned = indent, end, aligned
        self._before = "  " if aligned else " "
        self._lines: list[tuple[str, str]] = []
        self._level = 0

    def say(self, text: str, why: str = "") -> None:
        """Add a directive, and why it is there."""
        self._add(text + self._end, why)

    def note(self, *lines: str) -> None:
        """Add lines of comment."""
        for line in lines:
            self._add(f"# {line}".rstrip())

    def gap(self) -> None:
        """Add an empty line."""
        self._lines.append(("", ""))

    @contextlib.contextmanager
    def section(self, head: str, why: str = "") -> Iterator[None]:
        """Add a line, and indent what follows."""
        self._add(head, why)
        self._level += 1
        yield
        self._level -= 1

    @contextlib.contextmanager
    def block(self, head: str, why: str = "") -> Iterator[None]:
        """Add a block in braces."""
        with self.section(f"{head} {{" if head else "{", why):
            yield
        self._add("}")

    def _add(self, text: str, why: str = "") -> None:
        self._lines.append((self._indent * self._level + text, why))

    @property
    def text(self) -> str:
        """All of it."""
        column, found = 0, []
        for number, (text, why) in enumerate(self._lines):
            if not number or not self._lines[number - 1][0]:  # a paragraph begins
                column = self._column(number)
            found.append(f"{text:<{column}}{self._before}# {why}" if why else text)
        return "\n".join(found) + "\n"

    def _column(self, start: int) -> int:
        wide = 0
        for text, why in self._lines[start:]:
            if not text:
                break
            if why and len(text) <= WIDEST:
                wide = max(wide, len(text))
        return wide if self._aligned else 0


def seconds(value: float) -> str:
    """Write a duration as nginx, HAProxy and Caddy read it."""
    return f"{round(value)}s" if value == round(value) else f"{max(1, round(value * 1000))}ms"


def quoted(path: str) -> str:
    """Write a path as all three read it. Raises ValueError for one with characters that mean something to any of them."""
    if bad := REFUSED.search(path):
        raise ValueError(f"{path!r} has the character {bad[0]!r}, which a front end's configuration cannot hold in a path")
    return path if PLAIN.fullmatch(path) else f'"{path}"'
