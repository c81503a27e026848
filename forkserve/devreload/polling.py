"""Polling: when to look at which files of a project, so that it costs little however many there are. In the watcher.

What the app has loaded, what has changed before, and what matters in any case is looked at often, with all directories,
whose dates say whether something is new there. All other files are looked at more seldom, a few at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from math import inf
from typing import TYPE_CHECKING, Final

from forkserve.devreload.tree import Seen

if TYPE_CHECKING:
    from forkserve.devreload.tree import Tree

POLL_EVERY: Final = 0.3  # seconds between two looks, at least
SHARE: Final = 0.025  # of a processor, for each of the two kinds of look
SLICE: Final = 0.02  # seconds, after which a look lets other things be done


def period(cpu: float, wall: float) -> float:
    """Return after how many seconds to look again. Pure.

    Args:
        cpu: Seconds of a processor that the last look took.
        wall: Seconds that it took; much more than that if the file system is slow, which then is not polled all the time.
    """
    return max(POLL_EVERY, cpu / SHARE, wall)


class Polling:
    """Both kinds of look at a project.

    Args:
        tree: The project.
    """

    def __init__(self, tree: Tree) -> None:
        self.often: set[str] = set()  # files
        self._tree = tree
        self._often = _Look(lambda: tree.look([*self.often, *tree.often]))
        self._whole = _Look(tree.look)

    @property
    def due(self) -> float:
        """When there is something to be done, by the monotonic clock."""
        return min(self._often.due, self._whole.due)

    @property
    def is_looking(self) -> bool:
        """Whether a look at the directories, and at what is looked at often, is half done."""
        return self._often.is_under_way

    @property
    def looked_at(self) -> float:
        """The time of the clock from which on a change has perhaps not been seen yet."""
        return self._often.looked_at

    @property
    def period(self) -> float:
        """Seconds from a change of a file that is looked at often until it must have been seen."""
        return self._often.period + SLICE

    def look(self) -> list[Seen]:
        """Do what is due, for a moment; return what has changed, as `Tree.look`."""
        changed = [seen for look in (self._often, self._whole) if look.due <= time.monotonic() for seen in look.go_on()]
        self.often.update(path for path, _ in changed)
        return changed


class _Look:
    """One kind: done in slices, then again after a period that its cost decides."""

    def __init__(self, begin: Callable[[], Iterator[list[Seen]]]) -> None:
        self.due = -inf
        self.period = POLL_EVERY
        self._begin = begin
        self._steps: Iterator[list[Seen]] | None = None
        self._cpu = 0.0
        self._began = 0.0
        self._began_at = self.looked_at = time.time()

    @property
    def is_under_way(self) -> bool:
        """Whether it is half done."""
        return self._steps is not None

    def go_on(self) -> list[Seen]:
        """Look for a moment; return what has changed."""
        now, cpu = time.monotonic(), time.thread_time()
        if self._steps is None:
            self._steps, self._began, self._cpu = self._begin(), now, 0.0
            self._began_at = time.time()
        until, changed = now + SLICE, list[Seen]()
        for found in self._steps:
            changed += found
            now = time.monotonic()
            if now >= until:
                break
        else:
            self._steps = None
        self._cpu += time.thread_time() - cpu
        if self._steps is None:
            now, self.looked_at = time.monotonic(), self._began_at
            self.period = period(self._cpu, now - self._began)
            self.due = now + self.period
        return changed
