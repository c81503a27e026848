"""Watcher: a process that reports to the master which of the project's files have changed. For --reload.

A process of its own, because watchdog works with threads, which one that forks must not have. It ends with its channel,
by order, or with the master; signals that hit the whole group do nothing to it, as they are blocked here for good.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import queue
import select
import signal
import stat
import threading
import time
import traceback
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any, Final, NoReturn

from forkserve.base import privileges
from forkserve.devreload.filesystems import tells_too_little, type_of
from forkserve.devreload.git import index_of, is_at_work
from forkserve.devreload.polling import Polling
from forkserve.devreload.tree import Seen, Tree
from forkserve.prefork.ipc.descriptors import close_all
from forkserve.prefork.ipc.messages import AskForRest, AtRest, Changed, Failed, Log, LogFiles, WatchFiles, Watching
from forkserve.prefork.worker.boot import end_with, set_title

if TYPE_CHECKING:
    from collections.abc import Iterable

    from forkserve.config.settings import Settings
    from forkserve.devreload.patterns import Rules
    from forkserve.devreload.watches import Watches
    from forkserve.prefork.ipc.channel import Channel

LOOK_EVERY: Final = 0.3  # seconds between two looks whether the project is where it was
LONGEST_CHECKOUT: Final = 10.0  # seconds after which a change is reported although git is still at work in the project
LONGEST_DELAY: Final = 1.0  # seconds after which a change is reported although more follow, or the file is still being written
AT_REST: Final = 0.05  # seconds in which news of a change that was made already come here
GRAIN: Final = 0.02  # seconds by which the times of files may be behind the clock
MANY: Final = 500  # paths in one message
STANDARD: Final = 3  # descriptors
_LOST: Final = object()  # an event: others were lost


@dataclass(frozen=True, slots=True)
class Watch:
    """What to watch: the project's real directories, and from which time of the clock on a change counts."""

    folders: tuple[str, ...]
    rules: Rules
    delay: float
    engine: str
    since: float


def become_watcher(channel: Channel, watch: Watch, settings: Settings, master: int) -> NoReturn:
    """Watch in this process, which was just forked with all signals blocked, and exit."""
    code = 1
    try:
        gc.freeze()  # garbage of the master must not close what gets one of its descriptors here
        signal.set_wakeup_fd(-1)
        os.closerange(STANDARD, channel.fileno())
        os.closerange(channel.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(STANDARD):
            os.dup2(null, descriptor)  # a process may wait for the end of what was here
        os.close(null)
        set_title("watcher", settings.name)
        privileges.drop(settings)
        end_with(master, signal.SIGKILL)  # it may be busy with a large directory
        Watcher(channel, watch).run()
        code = 0
    except BaseException:  # noqa: BLE001 - nothing may leave this process but its last words
        with contextlib.suppress(Exception):
            channel.send(Failed("the watcher failed", traceback=traceback.format_exc()))
    finally:
        os._exit(code)


class Watcher:
    """Looks, collects, and reports."""

    def __init__(self, channel: Channel, watch: Watch) -> None:
        from forkserve.devreload.watches import Watches  # noqa: PLC0415 - and with it watchdog, which the master never needs

        self._channel = channel
        self._watch = watch
        self._events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._bell, self._ringer = os.pipe()
        os.set_blocking(self._bell, False)
        os.set_blocking(self._ringer, False)
        self._tree = Tree(watch.folders, watch.rules)
        self._watches: Watches = Watches(self._tree, watch.rules.extra, self._put)
        self._polling: Polling | None = None
        self._roots = {folder: _identity(folder) for folder in watch.folders}  # None: it is not there
        self._repositories = list(filter(None, map(index_of, watch.folders)))
        self._look_at = 0.0
        self._changed: dict[str, bool] = {}  # files, with whether they were there before
        self._gone: set[str] = set()  # directories
        self._writing: set[str] = set()  # files that are open for that
        self._lost = False  # inotify has lost events
        self._first_at = self._last_at = self._busy_until = 0.0
        self._asked = 0  # the number of the master's request to confirm that all changes are reported
        self._asked_at = inf

    def run(self) -> None:
        """Watch until the channel ends."""
        threading.excepthook = lambda found: self._put(found.exc_value or RuntimeError("a thread of watchdog has ended"))
        self._open()
        since = (self._watch.since - GRAIN) * 1e9
        # Whether they are new cannot be known; those that an app writes as it is loaded for the first time must not reload it.
        self._note((file, True) for file, stamp in self._tree.files() if stamp.ctime >= since)
        self._channel.send(Watching(polls=self._polling is not None))
        while not self._channel.closed:
            self._wait()
            for order in self._channel.receive():
                match order:
                    case WatchFiles(files) if self._polling:
                        self._polling.often.update(files)
                    case AskForRest(number):
                        self._asked, self._asked_at = number, time.monotonic()
                    case LogFiles(descriptors=passed):  # it has no log
                        close_all(passed)
            self._channel.flush()
            self._take()
            self._look()
            if self._due() <= time.monotonic() and not self._is_busy():
                self._tell()
            if self._rest_due() <= time.monotonic():
                self._channel.send(AtRest(self._asked))
                self._asked_at = inf

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._channel, select.POLLIN | (select.POLLOUT if self._channel.unsent else 0))
        poll.register(self._bell, select.POLLIN)
        until = min(self._due(), self._rest_due(), self._polling.due if self._polling else self._look_at)
        poll.poll(max(0.0, until - time.monotonic()) * 1000 + 1)

    # What is watched.

    def _open(self) -> None:
        """Watch, or poll: where the setting says so, where the kernel does not know of all changes, or can do no more."""
        from forkserve.devreload.watches import on_overflow  # noqa: PLC0415 - as above

        kind = self._shared() if self._watch.engine == "auto" else ""
        if kind:
            text = f"files are polled for changes: on {kind}, others may change them without this system's notice"
            self._channel.send(Log(logging.INFO, f"{text} (--reload-engine inotify: watch them all the same)"))
        if kind or self._watch.engine == "poll":
            self._tree.open()
            self._polling = Polling(self._tree)
            return
        on_overflow(lambda: self._put(_LOST))
        try:
            self._watches.open()
        except OSError as error:
            self._poll_instead(error)
        self._tree.open()

    def _shared(self) -> str:
        """Return the type of the file system of a directory of the project that is not this system's alone."""
        with contextlib.suppress(OSError), open("/proc/self/mountinfo", "rb") as file:
            mounts = os.fsdecode(file.read())
            return next(filter(tells_too_little, (type_of(folder, mounts) for folder in self._watch.folders)), "")
        return ""

    def _poll_instead(self, error: OSError) -> None:
        self._channel.send(Log(logging.WARNING, f"files are polled for changes: {error.strerror or error}"))
        self._watches.close()
        self._polling = Polling(self._tree)

    def _watch_again(self, folder: str | None = None) -> None:
        """Watch a new directory, or (None) every directory again."""
        try:
            if self._polling is None and folder is None:
                self._watches.open()
            elif self._polling is None and folder is not None:
                self._watches.renew(folder)
        except OSError as error:
            self._poll_instead(error)

    # What has happened.

    def _put(self, event: object) -> None:
        """Hand an event, or an error, to the main thread. In a thread of watchdog's."""
        self._events.put(event)
        with contextlib.suppress(BlockingIOError):  # it is awake already
            os.write(self._ringer, b"!")

    def _take(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._bell, 65536)
        while not self._events.empty():
            event = self._events.get()
            if event is _LOST:
                self._lost = True
                self._note([], happened=True)
            elif isinstance(event, OSError) and self._polling is None:
                self._poll_instead(event)
            elif isinstance(event, BaseException):
                raise event
            elif self._polling is None:
                self._obey(event)

    def _obey(self, event: Any) -> None:
        self._follow_writing(event)
        for path in (os.fsdecode(event.src_path), os.fsdecode(event.dest_path)):
            if path and (event.is_directory or os.path.isdir(path)):
                self._look_at_directory(path)
            elif path and self._tree.matters(path):
                self._note([(path, self._tree.knows(path))])

    def _follow_writing(self, event: Any) -> None:
        """Know which files are being written, as at first there is nothing in them."""
        path = os.fsdecode(event.src_path)
        if self._watches.is_writing(event) and self._tree.matters(path):
            self._writing.add(path)
        elif event.event_type in ("closed", "moved", "deleted"):
            self._writing.discard(path)

    def _look_at_directory(self, path: str) -> None:
        """See what became of a directory: it is new, or has come from elsewhere, or is another one, or is no more."""
        is_link = os.path.islink(path)
        for old in self._tree.linked(path) if is_link else ():
            if old != os.path.realpath(path):
                self._lose(old)
        if os.path.isdir(path):
            real = self._tree.followed(path, is_link=is_link)
            if real is None or (self._tree.is_same(real) and self._watches.covers(real)):
                return
            self._watch_again(real)
            self._add(real)
            return
        if path in self._roots:
            self._roots[path] = None
        self._lose(path)

    def _lose(self, path: str) -> None:
        """Note that a directory is not there any more, or not in the project."""
        was = self._tree.holds(os.path.join(path, "_"))
        self._watches.forget(path)
        self._note(((file, True) for file in self._tree.forget(path)), happened=was)
        if was:
            self._gone.add(path)

    def _add(self, folder: str) -> None:
        """See a directory that is new, or another one than before; all that is in it has changed."""
        before = self._tree.renew(folder)
        self._note((file, file in before) for file, _ in self._tree.files(folder))

    def _look(self) -> None:
        """Poll, or see whether the project's directories are still those that are watched.

        The system does not report that one is moved away, or removed while it is a process's working directory.
        """
        if self._polling is not None:
            self._note_seen(self._polling.look())
        elif self._look_at <= time.monotonic():
            self._look_at = time.monotonic() + LOOK_EVERY
            for folder, before in self._roots.items():
                self._roots[folder] = there = _identity(folder)
                if there is not None and there != before:
                    self._watch_again(folder)
                    self._add(folder)

    def _note_seen(self, seen: Iterable[Seen]) -> None:
        """Remember what a look has found."""
        for path, was in seen:
            if not self._tree.matters(path):
                self._gone.add(path)
            self._note([(path, was)] if path not in self._gone else [], happened=True)

    def _note(self, files: Iterable[Seen], *, happened: bool = False) -> None:
        """Remember what has changed, to report it when nothing more follows."""
        for path, was in files:
            self._changed.setdefault(path, was)
            happened = True
        if happened:
            self._last_at = time.monotonic()
            self._first_at = self._first_at or self._last_at

    def _due(self) -> float:
        if not self._first_at:
            return inf
        longest = max(self._first_at + max(LONGEST_DELAY, self._watch.delay), self._busy_until)
        return longest if self._writing else min(self._last_at + self._watch.delay, longest)

    def _is_busy(self) -> bool:
        """Whether more is sure to come: git is at work, or a look is half done; then wait a little longer, within bounds."""
        now = time.monotonic()
        since = self._polling.looked_at if self._polling else inf
        if now < self._first_at + LONGEST_CHECKOUT and any(is_at_work(lock, since) for lock in self._repositories):
            self._last_at = self._busy_until = now + AT_REST + self._period
        elif self._polling is not None and self._polling.is_looking and now < self._first_at + LONGEST_DELAY:
            self._last_at = now
        else:
            return False
        return True

    @property
    def _period(self) -> float:
        """Seconds from a change until it must have been seen, beside what the system takes."""
        return self._polling.period if self._polling else 0.0

    def _rest_due(self) -> float:
        return inf if self._first_at else self._asked_at + AT_REST + self._period

    def _tell(self) -> None:
        """Report all files that modules may have been loaded from; of those that matter in any case, a few."""
        if self._lost:
            self._lost = False
            self._watch_again()
            self._note_seen(seen for found in self._tree.look() for seen in found)
        for path in self._changed:
            self._tree.update(path)
        included = [path for path in sorted(self._changed) if self._tree.included(path)]
        others = sorted(self._changed.keys() - included | self._gone)
        made = {path for path, was in self._changed.items() if was != self._tree.knows(path)}
        self._changed, self._gone, self._writing, self._first_at = {}, set(), set(), 0.0
        for start in range(0, len(others) or 1, MANY):
            some = others[start : start + MANY]
            more = start + MANY < len(others)
            self._channel.send(Changed(more, included[:MANY], some, sorted(made.intersection(some))))
            included = []


def _identity(folder: str) -> tuple[int, int] | None:
    """Which directory it is; None if there is none."""
    with contextlib.suppress(OSError):
        found = os.stat(folder)
        if stat.S_ISDIR(found.st_mode):
            return found.st_dev, found.st_ino
    return None
