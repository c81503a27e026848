"""Watcher: a process that reports changed files of the project to the master. For --reload.

It is a separate process because watchdog needs threads, and a process that forks must not have threads. It exits when its channel
is closed or the master exits. All signals stay blocked in it, so signals to the process group do not end it.
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

from forkserve.base import greenlets, privileges
from forkserve.devreload.filesystems import misses_changes, type_of
from forkserve.devreload.git import is_at_work, lock_of
from forkserve.devreload.polling import Polling
from forkserve.devreload.sites import Sites
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

CHECK_ROOTS_EVERY: Final = 0.3  # seconds between two checks that the project's directories were not replaced
LONGEST_CHECKOUT: Final = 10.0  # seconds after which a change is reported even if git is still at work in the project
LONGEST_WAIT: Final = 1.0  # seconds after which a change is reported even if more follow, or the file is still open for writing
EVENT_TIME: Final = 0.05  # seconds after which the event of a change has arrived here
FILE_TIME_LAG: Final = 0.02  # seconds by which the times of files may be behind the clock
MANY: Final = 500  # paths in one message
STANDARD_STREAMS: Final = 3  # descriptors
_EVENTS_LOST: Final = object()  # an event: inotify has lost others


@dataclass(frozen=True, slots=True)
class Watch:
    """What to watch, and how."""

    folders: tuple[str, ...]  # the real paths of the project's directories
    rules: Rules
    delay: float
    engine: str
    since: float  # the clock time since which changes are reported
    sites: tuple[str, ...] = ()  # directories of installed packages


def become_watcher(channel: Channel, watch: Watch, settings: Settings, master: int) -> NoReturn:
    """Run the watcher in this process, and exit. The process was just forked with all signals blocked."""
    code = 1
    try:
        greenlets.take_out(greenlets.THREADS)
        gc.freeze()  # the collector must not close descriptors of the master's objects: their numbers are used again here
        signal.set_wakeup_fd(-1)
        os.closerange(STANDARD_STREAMS, channel.fileno())
        os.closerange(channel.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(STANDARD_STREAMS):
            os.dup2(null, descriptor)  # another process may wait until all copies of the old stream are closed
        os.close(null)
        set_title("watcher", settings.name)
        privileges.drop(settings)
        end_with(master, signal.SIGKILL)  # SIGKILL, because it may be busy with a large directory
        Watcher(channel, watch).run()
        code = 0
    except BaseException:  # noqa: BLE001 - only the message may leave this process
        with contextlib.suppress(Exception):
            channel.send(Failed("the watcher failed", traceback=traceback.format_exc()))
    finally:
        os._exit(code)


class Watcher:
    """Collects changes, and reports them."""

    def __init__(self, channel: Channel, watch: Watch) -> None:
        from forkserve.devreload.watches import Watches  # noqa: PLC0415 - imports watchdog, which the master does not need

        self._channel = channel
        self._watch = watch
        self._events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._wake_reader, self._wake_writer = os.pipe()
        os.set_blocking(self._wake_reader, False)
        os.set_blocking(self._wake_writer, False)
        self._tree = Tree(watch.folders, watch.rules)
        self._watches: Watches = Watches(self._tree, watch.rules.extra, self._put)
        self._polling: Polling | None = None
        self._roots = {folder: _identity(folder) for folder in watch.folders}  # None: it does not exist
        self._git_locks = list(filter(None, map(lock_of, watch.folders)))
        self._check_roots_at = self._check_sites_at = 0.0
        self._sites = Sites(watch.sites)
        self._installed: list[str] = []  # records of packages that were installed or removed, and not reported yet
        self._changed: dict[str, bool] = {}  # files, with whether they existed before
        self._removed: set[str] = set()  # directories
        self._writing: set[str] = set()  # files that are open for writing
        self._events_lost = False
        self._first_at = self._last_at = self._busy_until = 0.0  # of the changes that are not reported yet
        self._rest_number = 0  # of the master's last request to confirm that all changes are reported
        self._rest_requested_at = inf

    def run(self) -> None:
        """Watch until the channel ends."""
        threading.excepthook = lambda found: self._put(found.exc_value or RuntimeError("a thread of watchdog has ended"))
        self._open()
        since = (self._watch.since - FILE_TIME_LAG) * 1e9
        # It is unknown whether such a file is new. It counts as an old file that has changed, because a new file that the first
        # load has written must cause no reload.
        self._record((file, True) for file, stamp in self._tree.files() if stamp.ctime >= since)
        self._channel.send(Watching(polls=self._polling is not None))
        while not self._channel.closed:
            self._wait()
            for order in self._channel.receive():
                match order:
                    case WatchFiles(files) if self._polling:
                        self._polling.frequent_files.update(files)
                    case AskForRest(number):
                        self._rest_number, self._rest_requested_at = number, time.monotonic()
                    case LogFiles(descriptors=passed):  # the watcher has no log
                        close_all(passed)
            self._channel.flush()
            self._take_events()
            self._poll_or_check_roots()
            self._check_sites()
            if self._due() <= time.monotonic() and not self._postpone():
                self._report()
            if self._rest_due() <= time.monotonic():
                self._channel.send(AtRest(self._rest_number))
                self._rest_requested_at = inf

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._channel, select.POLLIN | (select.POLLOUT if self._channel.unsent else 0))
        poll.register(self._wake_reader, select.POLLIN)
        until = min(self._due(), self._rest_due(), self._polling.due if self._polling else self._check_roots_at)
        poll.poll(max(0.0, until - time.monotonic()) * 1000 + 1)

    # Watching or polling.

    def _open(self) -> None:
        """Begin to watch. Poll if the setting says so, if the kernel may miss changes, or if inotify is not available."""
        from forkserve.devreload.watches import on_overflow  # noqa: PLC0415 - as above

        kind = self._shared_type() if self._watch.engine == "auto" else ""
        if kind:
            text = f"files are polled for changes: the kernel may miss changes on {kind}"
            self._channel.send(Log(logging.INFO, f"{text} (--reload-engine inotify: do not poll)"))
        if kind or self._watch.engine == "poll":
            self._polling = Polling(self._tree)
            return
        on_overflow(lambda: self._put(_EVENTS_LOST))
        try:
            self._watches.open()
        except OSError as error:
            self._poll_instead(error)
        self._tree.open()

    def _shared_type(self) -> str:
        """Return the type of a file system of the project that other machines may change; empty if there is none."""
        with contextlib.suppress(OSError), open("/proc/self/mountinfo", "rb") as file:
            mounts = os.fsdecode(file.read())
            return next(filter(misses_changes, (type_of(folder, mounts) for folder in self._watch.folders)), "")
        return ""

    def _poll_instead(self, error: OSError) -> None:
        self._channel.send(Log(logging.WARNING, f"files are polled for changes: {error.strerror or error}"))
        self._watches.close()
        self._polling = Polling(self._tree)

    def _watch_again(self, folder: str | None = None) -> None:
        """Watch a new directory; None: watch all directories again."""
        try:
            if self._polling is None and folder is None:
                self._watches.open()
            elif self._polling is None and folder is not None:
                self._watches.renew(folder)
        except OSError as error:
            self._poll_instead(error)

    # Events.

    def _put(self, event: object) -> None:
        """Pass an event or an error to the main thread. Called in a thread of watchdog."""
        self._events.put(event)
        with contextlib.suppress(BlockingIOError):  # the main thread is awake already
            os.write(self._wake_writer, b"!")

    def _take_events(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_reader, 65536)
        while not self._events.empty():
            event = self._events.get()
            if event is _EVENTS_LOST:
                self._events_lost = True
                self._record([], happened=True)
            elif isinstance(event, OSError) and self._polling is None:
                self._poll_instead(event)
            elif isinstance(event, BaseException):
                raise event
            elif self._polling is None:
                self._handle(event)

    def _handle(self, event: Any) -> None:
        self._follow_writing(event)
        for path in (os.fsdecode(event.src_path), os.fsdecode(event.dest_path)):
            if path and (event.is_directory or os.path.isdir(path)):
                self._handle_folder(path)
            elif path and self._tree.is_relevant(path):
                self._record([(path, self._tree.has_file(path))])

    def _follow_writing(self, event: Any) -> None:
        """Record which files are being written. They are empty at first, so their report must wait."""
        path = os.fsdecode(event.src_path)
        if self._watches.is_writing(event) and self._tree.is_relevant(path):
            self._writing.add(path)
        elif event.event_type in ("closed", "moved", "deleted"):
            self._writing.discard(path)

    def _handle_folder(self, path: str) -> None:
        """Handle a directory that is new, moved, replaced or removed."""
        is_link = os.path.islink(path)
        for old in self._tree.targets_of(path) if is_link else ():
            if old != os.path.realpath(path):
                self._drop_folder(old)
        if os.path.isdir(path):
            real = self._tree.real_folder(path, is_link=is_link)
            if real is None or (self._tree.is_same(real) and self._watches.covers(real)):
                return
            self._watch_again(real)
            self._list_folder(real)
            return
        if path in self._roots:
            self._roots[path] = None
        self._drop_folder(path)

    def _drop_folder(self, path: str) -> None:
        """Record that a directory was removed or left the project."""
        is_projects = self._tree.holds(os.path.join(path, "_"))
        self._watches.forget(path)
        self._record(((file, True) for file in self._tree.forget(path)), happened=is_projects)
        if is_projects:
            self._removed.add(path)

    def _list_folder(self, folder: str) -> None:
        """List a new or replaced directory, and record all its files as changed."""
        before = self._tree.renew(folder)
        self._record((file, file in before) for file, _ in self._tree.files(folder))

    def _poll_or_check_roots(self) -> None:
        """Poll, or check that the project's directories are still the watched ones.

        The kernel does not report that such a directory was moved, or was removed while it is the working directory of a process.
        """
        if self._polling is not None:
            self._record_seen(self._polling.look())
        elif self._check_roots_at <= time.monotonic():
            self._check_roots_at = time.monotonic() + CHECK_ROOTS_EVERY
            for folder, before in self._roots.items():
                self._roots[folder] = there = _identity(folder)
                if there is not None and there != before:
                    self._watch_again(folder)
                    self._list_folder(folder)

    def _check_sites(self) -> None:
        if self._check_sites_at <= time.monotonic():
            self._check_sites_at = time.monotonic() + CHECK_ROOTS_EVERY
            if changed := self._sites.changed():
                self._installed += changed
                self._record([], happened=True)

    def _record_seen(self, seen: Iterable[Seen]) -> None:
        """Record what a look has found."""
        for path, existed in seen:
            if not self._tree.is_relevant(path):
                self._removed.add(path)
            self._record([(path, existed)] if path not in self._removed else [], happened=True)

    def _record(self, files: Iterable[Seen], *, happened: bool = False) -> None:
        """Record changed files, to be reported when no more follow. With `happened`, record a change even without a file."""
        for path, existed in files:
            self._changed.setdefault(path, existed)
            happened = True
        if happened:
            self._last_at = time.monotonic()
            self._first_at = self._first_at or self._last_at

    def _due(self) -> float:
        if not self._first_at:
            return inf
        longest = max(self._first_at + max(LONGEST_WAIT, self._watch.delay), self._busy_until)
        return longest if self._writing else min(self._last_at + self._watch.delay, longest)

    def _postpone(self) -> bool:
        """Postpone the report, within bounds, while git is at work or a look is unfinished. Return whether it was postponed."""
        now = time.monotonic()
        since = self._polling.looked_at if self._polling else inf
        if now < self._first_at + LONGEST_CHECKOUT and any(is_at_work(lock, since) for lock in self._git_locks):
            self._last_at = self._busy_until = now + EVENT_TIME + self._poll_period
        elif self._polling is not None and self._polling.is_looking and now < self._first_at + LONGEST_WAIT:
            self._last_at = now
        else:
            return False
        return True

    @property
    def _poll_period(self) -> float:
        """Seconds after which polling has noticed a change; 0 with inotify."""
        return self._polling.period if self._polling else 0.0

    def _rest_due(self) -> float:
        return inf if self._first_at else self._rest_requested_at + EVENT_TIME + self._poll_period

    def _report(self) -> None:
        """Report the changes. Of the files that are relevant in any case, report at most one message full."""
        since = self._polling.looked_at if self._polling else time.time()
        if self._events_lost:
            self._events_lost = False
            self._watch_again()
            self._record_seen(seen for found in self._tree.look() for seen in found)
        for path in self._changed:
            self._tree.update(path)
        included = [*self._installed, *(path for path in sorted(self._changed) if self._tree.included(path))]
        self._installed = []
        others = sorted(self._changed.keys() - included | self._removed)
        made = {path for path, existed in self._changed.items() if existed != self._tree.has_file(path)}
        self._changed, self._removed, self._writing, self._first_at = {}, set(), set(), 0.0
        for start in range(0, len(others) or 1, MANY):
            some = others[start : start + MANY]
            more = start + MANY < len(others)
            self._channel.send(Changed(more, included[:MANY], some, sorted(made.intersection(some)), since))
            included = []


def _identity(folder: str) -> tuple[int, int] | None:
    """Return the device and inode of a directory; None if it does not exist."""
    with contextlib.suppress(OSError):
        found = os.stat(folder)
        if stat.S_ISDIR(found.st_mode):
            return found.st_dev, found.st_ino
    return None
