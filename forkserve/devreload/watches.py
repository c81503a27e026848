"""Watches: the directories of a project that the watchdog library watches. In the watcher.

Excluded directories are not watched: an inotify watch for each directory of `node_modules` would be slow to set up, and the
number of watches is limited. A directory with no excluded directory below it is watched as a tree; others are watched one by one.

watchdog hides two errors. When inotify has no watch left, it skips further directories silently; `exhausted` detects this. When
inotify's queue overflows, no handler is called; `on_overflow` reports this.
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

from forkserve.base.libc import libc
from forkserve.devreload.patterns import fixed_part
from forkserve.devreload.tree import entries, is_below, is_environment

PLANS: Final = 8
"""How often the directories to watch are listed again, at most: a program may create directories all the time."""

if TYPE_CHECKING:
    from collections.abc import Sequence

    from forkserve.devreload.tree import Tree

WANTED: Final = (
    *(events.FileCreatedEvent, events.FileModifiedEvent, events.FileClosedEvent, events.FileMovedEvent, events.FileDeletedEvent),
    *(events.DirCreatedEvent, events.DirMovedEvent, events.DirDeletedEvent),
    *((events.FileAttribEvent,) if hasattr(events, "FileAttribEvent") else ()),  # `touch`; a FileModifiedEvent in older versions
)
HAS_EVENTS: Final = Observer is not PollingObserver  # otherwise watchdog would poll; `polling` costs less
# Whether an event reports that a file is being written, and another one that it was closed.
_REPORTS_WRITING: Final = sys.platform == "linux" and HAS_EVENTS and hasattr(events, "FileAttribEvent")
EXHAUSTED: Final = "no inotify watches are left (see fs.inotify.max_user_watches)"
NO_EVENTS: Final = "this system does not report changes"
_IN_DELETE_SELF: Final = 0x400
_IN_Q_OVERFLOW: Final = 0x4000


class Watches:
    """All watched directories.

    Args:
        tree: The files of the project.
        extra: Absolute globs of relevant files, inside or outside of the project.
        on_event: Called with each event, in a thread of watchdog.
    """

    def __init__(self, tree: Tree, extra: Sequence[str], on_event: Callable[[events.FileSystemEvent], None]) -> None:
        self._tree = tree
        self._extra = extra
        self._handler = events.FileSystemEventHandler()
        self._handler.dispatch = on_event  # type: ignore[method-assign, assignment]
        self._observer: Any = None
        self._watched: dict[str, Any] = {}  # watchdog's watch objects, by directory

    def open(self) -> None:
        """Watch everything, in place of the earlier watches. Raises OSError if the system has no events or no watch left."""
        self.close()
        if not HAS_EVENTS:
            raise OSError(0, NO_EVENTS)
        self._observer = Observer()
        self._observer.start()
        for folder in self._tree.roots:
            if os.path.isdir(folder):
                self._add(folder)
        for glob in self._extra:
            folder = fixed_part(glob)
            if os.path.isdir(folder) and not self.covers(folder):
                self._schedule(folder, is_tree="/" in glob[len(folder) + 1 :])

    def close(self) -> None:
        """Stop watching."""
        if self._observer is not None:
            self._observer.stop()
        self._observer = None
        self._watched.clear()

    def renew(self, folder: str) -> None:
        """Watch a new or replaced directory of the project, and its subdirectories. Raises OSError."""
        was = folder in self._watched
        self.forget(folder)
        if was or not self.covers(folder):
            self._add(folder)
        self._check()  # below a watched tree, watchdog has added the watches itself

    def _add(self, folder: str) -> None:
        """Watch a directory and its subdirectories. Plan again until there is nothing new, but not for ever.

        No event reports a subdirectory that is created after the plan has listed its parent, but before the parent is watched.
        """
        done: set[tuple[str, bool]] = set()
        for _ in range(PLANS):
            new = [one for one in self._plan(folder, set())[1] if one not in done]
            for path, is_tree in new:
                self._schedule(path, is_tree=is_tree)
            done.update(new)
            self._check()
            if not new:
                break

    @staticmethod
    def _check() -> None:
        if exhausted():
            raise OSError(0, EXHAUSTED)

    def forget(self, folder: str) -> None:
        """Stop watching a removed directory and its subdirectories."""
        for path in [path for path in self._watched if is_below(self._tree.logical(path), folder) or is_below(path, folder)]:
            with contextlib.suppress(KeyError, OSError):
                self._observer.unschedule(self._watched.pop(path))

    def covers(self, folder: str) -> bool:
        """Whether changes in a real directory are noticed: it is watched, or is below a watched tree."""
        return any(
            folder == path or (watch.is_recursive and is_below(folder, path)) for path, watch in list(self._watched.items())
        )

    @staticmethod
    def is_writing(event: events.FileSystemEvent) -> bool:
        """Whether an event reports that a file is being written. A FileClosedEvent follows."""
        return _REPORTS_WRITING and isinstance(event, events.FileModifiedEvent)

    def _plan(self, folder: str, planned: set[str]) -> tuple[bool, list[tuple[str, bool]]]:
        """Return whether a directory can be watched as a tree; and the directories to watch, each with whether it is a tree."""
        is_tree = True
        linked: list[tuple[str, bool]] = []
        subfolders: list[tuple[bool, list[tuple[str, bool]]]] = []
        for entry in _folders(folder):
            if not self._tree.holds(entry.path) or is_environment(one.name for one in entries(entry.path)):
                is_tree = is_tree and not any(_folders(entry.path))  # one without subdirectories costs one watch
            elif entry.is_symlink():
                real = os.path.realpath(entry.path)
                if not self._tree.is_projects(real) and real not in planned:
                    planned.add(real)
                    self._tree.links.setdefault(real, self._tree.logical(entry.path))
                    linked += self._plan(real, planned)[1]
            else:
                subfolders.append(self._plan(entry.path, planned))
        is_tree = is_tree and all(whole for whole, _ in subfolders)
        # A tree includes its subfolders, but not the targets of links in them.
        below = [one for _, found in subfolders for one in (found[1:] if is_tree else found)]
        return is_tree, [(folder, is_tree), *below, *linked]

    def _schedule(self, path: str, *, is_tree: bool) -> None:
        if path in self._watched:
            with contextlib.suppress(KeyError, OSError):
                self._observer.unschedule(self._watched.pop(path))
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # it was removed just now
            self._watched[path] = self._observer.schedule(self._handler, path, recursive=is_tree, event_filter=list(WANTED))


def on_overflow(call: Callable[[], object]) -> bool:
    """Call a function, in a thread of watchdog, when inotify has lost events. Return whether this version of watchdog allows it.

    watchdog reads inotify's event for this, but passes it to no handler.
    """
    try:
        from watchdog.observers import inotify_c  # noqa: PLC0415 - it can be imported only on Linux
    except Exception:  # noqa: BLE001 - other systems raise various exceptions
        return False
    kinds = [kind for kind in vars(inotify_c).values() if isinstance(kind, type) and hasattr(kind, "_parse_event_buffer")]
    for kind in kinds:
        kind._parse_event_buffer = staticmethod(_with_callback(kind._parse_event_buffer, call))  # noqa: SLF001
    return bool(kinds)


def _with_callback(parse: Callable[[bytes], Iterator[Any]], call: Callable[[], object]) -> Callable[[bytes], Iterator[Any]]:
    def parsed(buffer: bytes) -> Iterator[Any]:
        for event in parse(buffer):
            if event[1] & _IN_Q_OVERFLOW:
                call()
            yield event

    return parsed


def exhausted() -> bool:
    """Whether inotify has no instance or no watch left."""
    if libc is None:
        return False
    instance = libc.inotify_init1(os.O_CLOEXEC)
    if instance < 0:
        return True
    try:
        return bool(libc.inotify_add_watch(instance, b"/", _IN_DELETE_SELF) < 0)
    finally:
        os.close(instance)


def _folders(folder: str) -> list[os.DirEntry[str]]:
    found = []
    for entry in entries(folder):
        with contextlib.suppress(OSError):  # a circle of links
            if entry.is_dir():
                found.append(entry)
    return found
