"""Polling: when to look at which files of a project. Its cost is limited, whatever the number of files. In the watcher.

There are two kinds of looks. The frequent look covers all directories, because their dates show whether there are new files. It
also covers the files that the app has loaded, those that have changed before, and those that are relevant in any case. The
complete look covers all other files too. It is made less often, and in slices.
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
SHARE: Final = 0.025  # of a processor, for each of the two kinds of looks
SLICE: Final = 0.02  # seconds after which a look pauses, so that the watcher can do other work


def period(cpu: float, wall: float) -> float:
    """Return the number of seconds until the next look. Pure.

    Args:
        cpu: Processor time of the last look, in seconds.
        wall: Duration of the last look, in seconds. On a slow file system it is much longer than `cpu`; then the file system is
            not polled all the time.
    """
    return max(POLL_EVERY, cpu / SHARE, wall)


class Polling:
    """Both kinds of looks at a project.

    Args:
        tree: The project. It is listed now, unless it was listed before.
    """

    def __init__(self, tree: Tree) -> None:
        self.frequent_files: set[str] = set()  # loaded or changed files
        self._tree = tree
        self._frequent = _Look(lambda: tree.look([*self.frequent_files, *tree.included_files]))
        self._complete = _Look(tree.look)
        tree.open()  # after `looked_at` is set, because later looks find only what has changed since this listing

    @property
    def due(self) -> float:
        """When the next slice of a look is due, on the monotonic clock."""
        return min(self._frequent.due, self._complete.due)

    @property
    def is_looking(self) -> bool:
        """Whether a frequent look is unfinished."""
        return self._frequent.is_unfinished

    @property
    def looked_at(self) -> float:
        """The clock time since which changes of frequently polled files may be unseen."""
        return self._frequent.looked_at

    @property
    def period(self) -> float:
        """Seconds after which a change of a frequently polled file has been noticed."""
        return self._frequent.period + SLICE

    def look(self) -> list[Seen]:
        """Do one slice of each look that is due; return what has changed, as in `Tree.look`."""
        changed = [seen for look in (self._frequent, self._complete) if look.due <= time.monotonic() for seen in look.proceed()]
        self.frequent_files.update(path for path, _ in changed)
        return changed


class _Look:
    """One kind of look: made in slices, and repeated after a period that depends on its cost."""

    def __init__(self, begin: Callable[[], Iterator[list[Seen]]]) -> None:
        self.due = -inf
        self.period = POLL_EVERY
        self._begin = begin
        self._steps: Iterator[list[Seen]] | None = None
        self._cpu = 0.0
        self._began = 0.0
        self._began_at = self.looked_at = time.time()

    @property
    def is_unfinished(self) -> bool:
        """Whether the look has begun, but not ended."""
        return self._steps is not None

    def proceed(self) -> list[Seen]:
        """Do one slice; return what has changed."""
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
