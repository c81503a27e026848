"""Stacks as text: leaves out the frames of forkserve, and of what runs it, so that those of the app remain.

The text is that of `faulthandler`: a head for each thread, and a line for each frame, the most recent call first. A process that
is stuck in native code can write no other.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import Final

_FRAME: Final = re.compile(r'  File "(?P<file>.*)", line (?:\d+|\?\?\?) in (?P<name>.*)')
_PACKAGE: Final = str(Path(__file__).parents[1]) + os.sep
_LIBRARY: Final = os.path.dirname(os.__file__) + os.sep
_INSTALLED: Final = re.compile(r"[/\\](site|dist)-packages[/\\]")
_LOOP: Final = re.compile(r"[/\\]uvloop[/\\]")


class _Kind(Enum):
    APP = "app"
    OWN = "own"
    RUNNER = "runner"  # of the standard library, or the script that has started us: ours if it stands between our frames


def trim(text: str) -> str:
    """Return stacks without our frames; where the app waits in a function of ours, that function stays."""
    lines: list[str] = []
    frames: list[str] = []
    left_out = 0
    for line in [*text.split("\n"), None]:
        if line is not None and _FRAME.fullmatch(line):
            frames.append(line)
            continue
        kept = list(_trimmed(frames))
        left_out += len(frames) - len(kept)
        lines += kept
        frames = []
        if line is not None:
            lines.append(line)
    if left_out:
        lines.append(f"({left_out} frame{'s' * (left_out != 1)} of forkserve left out)")
    return "\n".join(lines)


def is_own(files: Iterable[str]) -> bool:
    """Whether none of these source files is of the app."""
    return all(_kind_of(file, "") is not _Kind.APP for file in files)


def _trimmed(frames: list[str]) -> Iterator[str]:
    """Yield the frames of one thread that remain."""
    kinds = [_kind(frame) for frame in frames]
    if _Kind.OWN not in kinds:
        yield from frames
        return
    if _Kind.APP not in kinds:
        yield frames[kinds.index(_Kind.OWN)] + "  (forkserve)"
        return
    last = max(place for place, kind in enumerate(kinds) if kind is _Kind.APP)
    for place in range(last + 1):
        if kinds[place] is _Kind.APP:
            yield frames[place]
        elif kinds[place] is _Kind.OWN:
            beyond = next(kind for kind in kinds[place + 1 :] if kind is not _Kind.RUNNER)
            if _Kind.APP not in kinds[:place] and beyond is _Kind.APP:
                yield frames[place]  # the function that the app has called
        elif not _stands_between_own(kinds, place):
            yield frames[place]


def _stands_between_own(kinds: list[_Kind], place: int) -> bool:
    """Whether the nearest frames of another kind on both sides are ours; the inner end counts as the app's."""
    before = [kind for kind in kinds[:place] if kind is not _Kind.RUNNER]
    after = [kind for kind in kinds[place:] if kind is not _Kind.RUNNER]
    return bool(before) and before[-1] is _Kind.OWN and after[0] is _Kind.OWN


def _kind(frame: str) -> _Kind:
    found = _FRAME.fullmatch(frame)
    return _Kind.APP if found is None else _kind_of(found["file"], found["name"])


def _kind_of(file: str, name: str) -> _Kind:
    if file.startswith(_PACKAGE):
        return _Kind.OWN
    if file.startswith("<frozen ") or _LOOP.search(file) or (name == "<module>" and os.path.basename(file) == "forkserve"):
        return _Kind.RUNNER
    return _Kind.RUNNER if file.startswith(_LIBRARY) and not _INSTALLED.search(file) else _Kind.APP
