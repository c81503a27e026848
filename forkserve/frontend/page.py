"""Page: configuration text with a comment at the end of each line; all three front ends have `#` comments. Pure."""

import contextlib
import re
from collections.abc import Iterator

WIDEST = 80  # comments of lines up to this width are aligned
PLAIN = re.compile(r"[^\s\"'`\\;{}$#]+")
REFUSED = re.compile(r"[\"'`\\;{}$#\x00-\x1f\x7f]")


class Page:
    """Builds the text of a configuration.

    Args:
        indent: The indentation of one level.
        end: The end of a directive.
        aligned: Whether comments of neighbouring lines are aligned.
    """

    def __init__(self, *, indent: str = "    ", end: str = ";", aligned: bool = True) -> None:
        self._indent, self._end, self._aligned = indent, end, aligned
        self._before = "  " if aligned else " "
        self._lines: list[tuple[str, str]] = []
        self._level = 0

    def say(self, text: str, why: str = "") -> None:
        """Add a directive, and the reason for it."""
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
        """The whole text."""
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
    """Return a duration in the notation of nginx, HAProxy and Caddy."""
    return f"{round(value)}s" if value == round(value) else f"{max(1, round(value * 1000))}ms"


def quoted(path: str) -> str:
    """Return a path in the notation of all three. Raises ValueError for characters that are special in any of them."""
    if bad := REFUSED.search(path):
        raise ValueError(f"{path!r} has the character {bad[0]!r}, which a front end's configuration cannot hold in a path")
    return path if PLAIN.fullmatch(path) else f'"{path}"'
