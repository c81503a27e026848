"""Watcher: a process that tells the master which of the project's files have changed. For --reload.

A process of its own, because watchdog works with threads, which one that forks must not have. It ends with its channel,
by order, or with the master; signals that hit the whole group do nothing to it, as they are blocked here for good.
"""

from __future__ import annotations

import contextlib
import gc
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

from forkserve.prefork import privileges
from forkserve.prefork.process import end_with, set_title

if TYPE_CHECKING:
    from collections.abc import Iterable

    from forkserve.prefork.autoreload.patterns import Rules
    from forkserve.prefork.autoreload.watches import Watches
    from forkserve.prefork.channel import Channel
    from forkserve.settings import Settings

LOOK_EVERY: Final = 0.3  # seconds between two looks whether the project is where it was
LONGEST_DELAY: Final = 1.0  # seconds after which a change is told although more come, or the file is still being written
AT_REST: Final = 0.05  # seconds in which news of a change that was made already come here
GRAIN: Final = 0.02  # seconds by which the times of files may be behind the clock
MANY: Final = 500  # paths in one message
STANDARD: Final = 3  # descriptors


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
            os.dup2(null, descriptor)  # somebody may wait for the end of what was here
        os.close(null)
        set_title("watcher", settings.name)
        privileges.drop(settings)
        end_with(master, signal.SIGKILL)  # it may be busy with a large directory
        Watcher(channel, watch).run()
        code = 0
    except BaseException:  # noqa: BLE001 - nothing may leave this process but its last words
        with contextlib.suppress(Exception):
            channel.send({"type": "failed", "traceback": traceback.format_exc()})
    finally:
        os._exit(code)


class Watcher:
    """Looks, collects, and tells."""

    def __init__(self, channel: Channel, watch: Watch) -> None:
        from forkserve.prefork.autoreload.watches import Watches  # noqa: PLC0415 - and with it watchdog, which the master never needs

        self._channel = channel
        self._watch = watch
        self._events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._bell, self._ringer = os.pipe()
        os.set_blocking(self._bell, False)
        os.set_blocking(self._ringer, False)
        self._watches: Watches = Watches(watch.folders, watch.rules, self._put)
        self._roots = {folder: _identity(folder) for folder in watch.folders}  # None: it is not there
        self._look_at = 0.0
        self._changed: set[str] = set()
        self._gone: set[str] = set()  # directories
        self._writing: set[str] = set()  # files that are open for that
        self._first_at = self._last_at = 0.0
        self._asked = 0  # the number of the master's question whether all changes are told
        self._asked_at = inf

    def run(self) -> None:
        """Watch until told to end."""
        threading.excepthook = lambda found: self._put(found.exc_value or RuntimeError("a thread of watchdog has ended"))
        self._open(polls=self._watch.engine == "poll")
        self._note(file for folder in self._watch.folders for file in self._watches.files(folder, self._watch.since - GRAIN))
        self._channel.send({"type": "watching", "polls": self._watches.polls})
        while not self._channel.closed:
            self._wait()
            for order in self._channel.receive():
                if order["type"] == "end":
                    return
                self._asked, self._asked_at = order["number"], time.monotonic()
            self._channel.flush()
            self._take()
            if self._look_at <= time.monotonic():
                self._look_at_roots()
            if self._due() <= time.monotonic():
                self._tell()
            if self._rest_due() <= time.monotonic():
                self._channel.send({"type": "at_rest", "number": self._asked})
                self._asked_at = inf

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._channel, select.POLLIN | (select.POLLOUT if self._channel.unsent else 0))
        poll.register(self._bell, select.POLLIN)
        until = min(self._due(), self._rest_due(), self._look_at)
        poll.poll(max(0.0, until - time.monotonic()) * 1000 + 1)

    # What is watched.

    def _open(self, *, polls: bool) -> None:
        try:
            self._watches.open(polls=polls)
        except OSError as error:
            if polls:
                raise
            self._poll_instead(error)

    def _poll_instead(self, error: OSError) -> None:
        self._channel.send({"type": "warning", "text": f"files are polled for changes: {error.strerror or error}"})
        self._watches.open(polls=True)

    def _add(self, folder: str) -> None:
        """Watch a directory that is new; all that is in it has changed."""
        try:
            self._watches.add(folder)
        except OSError as error:
            self._poll_instead(error)
        self._note(self._watches.files(folder))

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
            if isinstance(event, BaseException):
                raise event
            self._follow_writing(event)
            for path in (os.fsdecode(event.src_path), os.fsdecode(event.dest_path)):
                if path and (event.is_directory or os.path.isdir(path)):
                    self._look_at_directory(path)
                elif path and self._watches.matters(path):
                    self._note([path])

    def _follow_writing(self, event: Any) -> None:
        """Know which files are being written, as at first there is nothing in them."""
        path = os.fsdecode(event.src_path)
        if self._watches.is_writing(event) and self._watches.matters(path):
            self._writing.add(path)
        elif event.event_type in ("closed", "moved", "deleted"):
            self._writing.discard(path)

    def _look_at_directory(self, path: str) -> None:
        """See what became of a directory: it is new, or has come from elsewhere, or is no more."""
        if os.path.isdir(path):
            if not self._watches.covers(path) and self._watch.rules.holds(self._watches.logical(path)):
                self._add(path)
            return
        self._watches.forget(path)
        if path in self._roots:
            self._roots[path] = None
        if self._watch.rules.holds(self._watches.logical(os.path.join(path, "_"))):
            self._gone.add(path)
            self._note([])

    def _look_at_roots(self) -> None:
        """See whether the project's directories are still those that are watched.

        The system does not tell when one is moved away, or removed while it is somebody's working directory.
        """
        self._look_at = time.monotonic() + LOOK_EVERY
        for folder, before in self._roots.items():
            self._roots[folder] = there = _identity(folder)
            if there is not None and there != before:
                self._watches.forget(folder)
                self._add(folder)

    def _note(self, files: Iterable[str]) -> None:
        """Remember what has changed, to tell of it when nothing more comes."""
        noted = set(files)
        self._changed |= noted
        if noted or self._gone:
            self._last_at = time.monotonic()
            self._first_at = self._first_at or self._last_at

    def _due(self) -> float:
        if not self._first_at:
            return inf
        longest = self._first_at + max(LONGEST_DELAY, self._watch.delay)
        return longest if self._writing else min(self._last_at + self._watch.delay, longest)

    def _rest_due(self) -> float:
        return inf if self._first_at else self._asked_at + AT_REST + self._watches.period

    def _tell(self) -> None:
        """Tell the master all files that modules may have been loaded from; of those that matter in any case, a few."""
        included = [path for path in sorted(self._changed) if self._watches.included(path)]
        others = sorted(self._changed.difference(included) | self._gone)
        self._changed, self._gone, self._writing, self._first_at = set(), set(), set(), 0.0
        for start in range(0, len(others) or 1, MANY):
            self._channel.send({"type": "changed", "included": included[:MANY], "others": others[start : start + MANY]})
            included = []


def _identity(folder: str) -> tuple[int, int] | None:
    """Which directory it is; None if there is none."""
    with contextlib.suppress(OSError):
        found = os.stat(folder)
        if stat.S_ISDIR(found.st_mode):
            return found.st_dev, found.st_ino
    return None
