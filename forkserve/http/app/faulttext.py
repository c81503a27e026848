"""What is wrong, from the text of a load error: the error line first, then the place in the user's own code. Pure."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_FRAME: Final = re.compile(r'  File "(?P<file>.*)", line (?P<line>\d+)(?:, in (?P<name>.*))?')
_LIBRARY: Final = re.compile(r"/(?:site|dist)-packages/|/lib/python3[^/]*/|^<")
_TRACEBACK: Final = "Traceback (most recent call last):"


class Fault(NamedTuple):
    """A load error.

    Attributes:
        headline: The exception with its message; without a traceback, the first line of the text.
        place: File, line and function; empty if there is no traceback.
        source: The lines of code there.
    """

    headline: str
    place: str
    source: str


def is_library(file: str, folder: str) -> bool:
    """Return whether a file is not the user's own code. `folder` is that of the project, which may be in a library's place."""
    return _LIBRARY.search(file.removeprefix(f"{folder}/")) is not None


def read_fault(text: str, folder: str) -> Fault:
    """Return the error of a text. File names below a directory are shown without it."""
    first, _, trace = text.partition("\n\n")
    lines = trace.rpartition(_TRACEBACK)[2].splitlines()
    frames: list[tuple[re.Match[str], list[str]]] = []
    headline = ""
    for line in lines:
        if match := _FRAME.fullmatch(line):
            frames.append((match, []))
        elif line.startswith("    ") and frames and not headline:
            frames[-1][1].append(line[4:])
        elif line and not line.startswith(" ") and not headline:
            headline = line
    if not frames or not headline:
        return Fault(first.strip(), "", "")
    own = [one for one in frames if not is_library(one[0]["file"], folder)]
    match, source = (own or frames)[-1]
    name = f", in {match['name']}" if match["name"] and match["name"] != "<module>" else ""
    return Fault(headline, f"{match['file'].removeprefix(f'{folder}/')}, line {match['line']}{name}", "\n".join(source))
