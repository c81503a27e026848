"""Watches: what of a project is given to the watchdog library. In the watcher.

Not the project's directory as a whole: what is excluded is left out, as an inotify watch for each directory of
`node_modules` would be slow to set up, and there may not be that many. A directory without any such thing below it is
watched as a tree, and others one by one. Where inotify has no more to give, watchdog leaves out what is further below
and does not say so; hence `exhausted`. Nor does it say, or it says only in a log, that inotify's queue was too short for
what has happened; hence `on_overflow`.
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

if TYPE_CHECKING:
    from collections.abc import Sequence

    from forkserve.devreload.tree import Tree

WANTED: Final = (
    *(events.FileCreatedEvent, events.FileModifiedEvent, events.FileClosedEvent, events.FileMovedEvent, events.FileDeletedEvent),
    *(events.DirCreatedEvent, events.DirMovedEvent, events.DirDeletedEvent),
    *((events.FileAttribEvent,) if hasattr(events, "FileAttribEvent") else ()),  # `touch`; once a FileModifiedEvent as well
)
HAS_EVENTS: Final = Observer is not PollingObserver  # else watchdog would poll, which we do better
# Whether a file that is written is an event of its own, and a second one comes when that is done.
_TELLS_WRITING: Final = sys.platform == "linux" and HAS_EVENTS and hasattr(events, "FileAttribEvent")
EXHAUSTED: Final = "there are no more inotify watches (see fs.inotify.max_user_watches)"
NONE: Final = "this system has no events for that"
_ANY: Final = 0x400  # IN_DELETE_SELF
_Q_OVERFLOW: Final = 0x4000  # IN_Q_OVERFLOW


class Watches:
    """All that is watched.

    Args:
        tree: What belongs to the project.
        extra: Absolute globs of files that matter wherever they are.
        on_event: Gets each event; called in a thread of watchdog's.
    """

    def __init__(self, tree: Tree, extra: Sequence[str], on_event: Callable[[events.FileSystemEvent], None]) -> None:
        self._tree = tree
        self._extra = extra
        self._handler = events.FileSystemEventHandler()
        self._handler.dispatch = on_event  # type: ignore[method-assign, assignment]
        self._observer: Any = None
        self._watched: dict[str, Any] = {}  # directory to what watchdog calls a watch

    def open(self) -> None:
        """Watch everything, instead of what was watched before. Raises OSError where the system does not let us, or no longer."""
        self.close()
        if not HAS_EVENTS:
            raise OSError(0, NONE)
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
        """Watch nothing any more."""
        if self._observer is not None:
            self._observer.stop()
        self._observer = None
        self._watched.clear()

    def renew(self, folder: str) -> None:
        """Watch a directory of the project that is new, or another one than before, and what is below it. Raises OSError."""
        was = folder in self._watched
        self.forget(folder)
        if was or not self.covers(folder):
            self._add(folder)
        self._check()  # in a tree watchdog has done it

    def _add(self, folder: str) -> None:
        for path, is_tree in self._plan(folder, set())[1]:
            self._schedule(path, is_tree=is_tree)
        self._check()

    @staticmethod
    def _check() -> None:
        if exhausted():
            raise OSError(0, EXHAUSTED)

    def forget(self, folder: str) -> None:
        """Watch a directory no more, nor what is below it: it is not there."""
        for path in [path for path in self._watched if is_below(self._tree.logical(path), folder) or is_below(path, folder)]:
            with contextlib.suppress(KeyError, OSError):
                self._observer.unschedule(self._watched.pop(path))

    def covers(self, folder: str) -> bool:
        """Whether changes in a real directory are noticed: it is watched, or below one that is watched as a tree."""
        return any(
            folder == path or (watch.is_recursive and is_below(folder, path)) for path, watch in list(self._watched.items())
        )

    @staticmethod
    def is_writing(event: events.FileSystemEvent) -> bool:
        """Whether an event says that a file is being written: a FileClosedEvent comes when that is done."""
        return _TELLS_WRITING and isinstance(event, events.FileModifiedEvent)

    def _plan(self, folder: str, planned: set[str]) -> tuple[bool, list[tuple[str, bool]]]:
        """Return whether a directory can be watched as a tree; and what to watch, each with whether it is one."""
        is_tree = True
        linked: list[tuple[str, bool]] = []
        subfolders: list[tuple[bool, list[tuple[str, bool]]]] = []
        for entry in _folders(folder):
            if not self._tree.holds(entry.path) or is_environment(one.name for one in entries(entry.path)):
                is_tree = is_tree and not any(_folders(entry.path))  # a cache has none, and weighs nothing
            elif entry.is_symlink():
                real = os.path.realpath(entry.path)
                if not self._tree.is_projects(real) and real not in planned:
                    planned.add(real)
                    self._tree.links.setdefault(real, self._tree.logical(entry.path))
                    linked += self._plan(real, planned)[1]
            else:
                subfolders.append(self._plan(entry.path, planned))
        is_tree = is_tree and all(whole for whole, _ in subfolders)
        # A tree has its subfolders in it, but not what is linked from there.
        below = [one for _, found in subfolders for one in (found[1:] if is_tree else found)]
        return is_tree, [(folder, is_tree), *below, *linked]

    def _schedule(self, path: str, *, is_tree: bool) -> None:
        if path in self._watched:
            with contextlib.suppress(KeyError, OSError):
                self._observer.unschedule(self._watched.pop(path))
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # it was there a moment ago
            self._watched[path] = self._observer.schedule(self._handler, path, recursive=is_tree, event_filter=list(WANTED))


def on_overflow(call: Callable[[], object]) -> bool:
    """Have it called, in a thread of watchdog's, when inotify has lost events; return whether this version of watchdog lets us.

    What inotify says then is read by watchdog, which has no word for it that reaches a handler.
    """
    try:
        from watchdog.observers import inotify_c  # noqa: PLC0415 - it cannot be imported anywhere but on Linux
    except Exception:  # noqa: BLE001 - whatever it is there
        return False
    kinds = [kind for kind in vars(inotify_c).values() if isinstance(kind, type) and hasattr(kind, "_parse_event_buffer")]
    for kind in kinds:
        kind._parse_event_buffer = staticmethod(_listening(kind._parse_event_buffer, call))  # noqa: SLF001
    return bool(kinds)


def _listening(parse: Callable[[bytes], Iterator[Any]], call: Callable[[], object]) -> Callable[[bytes], Iterator[Any]]:
    def parsed(buffer: bytes) -> Iterator[Any]:
        for event in parse(buffer):
            if event[1] & _Q_OVERFLOW:
                call()
            yield event

    return parsed


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


def _folders(folder: str) -> list[os.DirEntry[str]]:
    found = []
    for entry in entries(folder):
        with contextlib.suppress(OSError):  # a link that leads round in circles
            if entry.is_dir():
                found.append(entry)
    return found
