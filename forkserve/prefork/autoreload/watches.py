"""Watches: what of a project is given to the watchdog library, and the files that are there. In the watcher.

Not the project's directory as a whole: what is excluded is left out, as an inotify watch for each directory of
`node_modules` would be slow to set up, and there may not be that many. A directory without any such thing below it is
watched as a tree, and others one by one. Where inotify has no more to give, watchdog leaves out what is further below
and does not say so; hence `exhausted`.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from watchdog import events
from watchdog.observers import Observer
from watchdog.observers.polling import PollingObserver

from forkserve.prefork.autoreload.patterns import fixed_part
from forkserve.prefork.libc import libc

if TYPE_CHECKING:
    from collections.abc import Sequence

    from forkserve.prefork.autoreload.patterns import Rules

POLL_EVERY: Final = 0.3  # seconds between two looks at all files, where nothing better can be had
WANTED: Final = (
    *(events.FileCreatedEvent, events.FileModifiedEvent, events.FileClosedEvent, events.FileMovedEvent, events.FileDeletedEvent),
    *(events.DirCreatedEvent, events.DirMovedEvent, events.DirDeletedEvent),
    *((events.FileAttribEvent,) if hasattr(events, "FileAttribEvent") else ()),  # `touch`; once a FileModifiedEvent as well
)
# Whether a file that is written is an event of its own, and a second one comes when that is done.
_TELLS_WRITING: Final = sys.platform == "linux" and Observer is not PollingObserver and hasattr(events, "FileAttribEvent")
EXHAUSTED: Final = "there are no more inotify watches (see fs.inotify.max_user_watches)"
_ANY: Final = 0x400  # IN_DELETE_SELF


class Watches:
    """All that is watched.

    Args:
        folders: Where the project really is.
        rules: What belongs to it.
        on_event: Gets each event; called in a thread of watchdog's.
    """

    def __init__(self, folders: Sequence[str], rules: Rules, on_event: Callable[[events.FileSystemEvent], None]) -> None:
        self.polls = False
        self._folders = folders
        self._rules = rules
        self._handler = events.FileSystemEventHandler()
        self._handler.dispatch = on_event  # type: ignore[method-assign, assignment]
        self._observer: Any = None
        self._watched: dict[str, Any] = {}  # directory to what watchdog calls a watch
        self._links: dict[str, str] = {}  # where a linked directory really is, to where the project has it

    def open(self, *, polls: bool) -> None:
        """Watch everything. Raises OSError where the system does not let us, or no longer."""
        if self._observer is not None:
            self._observer.stop()
        self._watched.clear()
        self._links.clear()
        self.polls = polls
        self._observer = PollingObserver(timeout=POLL_EVERY) if polls else Observer()
        self._observer.start()
        for folder in self._folders:
            if os.path.isdir(folder):
                self.add(folder)
        for glob in self._rules.extra:
            self._add_extra(glob)

    @property
    def period(self) -> float:
        """Seconds between two looks; 0 where the system tells."""
        return POLL_EVERY if self.polls else 0.0

    def add(self, folder: str) -> None:
        """Watch a directory of the project, and what is below it. Raises OSError."""
        for path, is_tree in self._plan(folder)[1]:
            self._schedule(path, is_tree=is_tree)
        if not self.polls and exhausted():
            raise OSError(0, EXHAUSTED)

    def forget(self, folder: str) -> None:
        """Watch a directory no more, nor what is below it: it is not there."""
        for path in [path for path in self._watched if _is_below(path, folder)]:
            with contextlib.suppress(KeyError, OSError):
                self._observer.unschedule(self._watched.pop(path))
        for real in [real for real, link in self._links.items() if _is_below(link, folder)]:
            del self._links[real]

    def covers(self, folder: str) -> bool:
        """Whether changes in a directory are noticed: it is watched, or below one that is watched as a tree."""
        if os.path.islink(folder):
            return os.path.realpath(folder) in self._links
        return any(
            folder == path or (watch.is_recursive and _is_below(folder, path)) for path, watch in list(self._watched.items())
        )

    def logical(self, path: str) -> str:
        """The path as the project has it, which may lead over a link."""
        for real, link in self._links.items():
            if _is_below(path, real):
                return link + path[len(real) :]
        return path

    def is_writing(self, event: events.FileSystemEvent) -> bool:
        """Whether an event says that a file is being written: a FileClosedEvent comes when that is done."""
        return _TELLS_WRITING and not self.polls and isinstance(event, events.FileModifiedEvent)

    def matters(self, path: str) -> bool:
        """Whether a module may be loaded from a file, or it matters in any case."""
        return self._rules.module(self.logical(path)) or self.included(path)

    def included(self, path: str) -> bool:
        """Whether a file matters though no module was loaded from it."""
        return self._rules.included(self.logical(path)) or self._rules.included(path)

    def files(self, folder: str, since: float = 0.0) -> Iterator[str]:
        """The files below a directory of the project that matter and were written since that time of the clock."""
        for entry in _entries(folder):
            with contextlib.suppress(OSError):  # gone meanwhile
                if entry.is_dir():
                    if self._rules.holds(self.logical(entry.path)) and not entry.is_symlink():
                        yield from self.files(entry.path, since)
                elif self.matters(entry.path) and entry.stat().st_mtime >= since:
                    yield entry.path
        for real, link in list(self._links.items()):
            if os.path.dirname(link) == self.logical(folder):
                yield from self.files(real, since)

    def _plan(self, folder: str) -> tuple[bool, list[tuple[str, bool]]]:
        """Return whether a directory can be watched as a tree; and what to watch, each with whether it is one."""
        is_tree = True
        linked: list[tuple[str, bool]] = []
        subfolders: list[tuple[bool, list[tuple[str, bool]]]] = []
        for entry in _folders(folder):
            logical = self.logical(entry.path)
            if not self._rules.holds(logical) or _is_environment(entry.path):
                is_tree = is_tree and not any(_folders(entry.path))  # a cache has none, and weighs nothing
            elif entry.is_symlink():
                real = os.path.realpath(entry.path)
                if self._rules.below(os.path.join(real, "_")) is None and real not in self._links:
                    self._links[real] = logical
                    linked += self._plan(real)[1]
            else:
                subfolders.append(self._plan(entry.path))
        is_tree = is_tree and all(whole for whole, _ in subfolders)
        # A tree has its subfolders in it, but not what is linked from there.
        below = [one for _, found in subfolders for one in (found[1:] if is_tree else found)]
        return is_tree, [(folder, is_tree), *below, *linked]

    def _add_extra(self, glob: str) -> None:
        folder = fixed_part(glob)
        if os.path.isdir(folder) and not self.covers(folder):
            self._schedule(folder, is_tree="/" in glob[len(folder) + 1 :])

    def _schedule(self, path: str, *, is_tree: bool) -> None:
        if path in self._watched:
            with contextlib.suppress(KeyError, OSError):
                self._observer.unschedule(self._watched.pop(path))
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # it was there a moment ago
            self._watched[path] = self._observer.schedule(self._handler, path, recursive=is_tree, event_filter=list(WANTED))


def exhausted() -> bool:
    """Whether inotify has nothing left to give."""
    if libc is None:
        return False
    instance = libc.inotify_init1(os.O_CLOEXEC)
    if instance < 0:
        return True
    try:
        return bool(libc.inotify_add_watch(instance, b"/", _ANY) < 0)
    finally:
        os.close(instance)


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _is_environment(folder: str) -> bool:
    return any(os.path.lexists(os.path.join(folder, mark)) for mark in ("pyvenv.cfg", "conda-meta"))


def _entries(folder: str) -> list[os.DirEntry[str]]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return list(entries)
    return []


def _folders(folder: str) -> list[os.DirEntry[str]]:
    return [entry for entry in _entries(folder) if entry.is_dir()]
