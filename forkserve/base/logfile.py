"""LogFile: how every process of a server writes to a log. It never blocks, and no line is torn.

Lines that a file, pipe, terminal or socket does not take at once wait in a queue of bounded size (`LineQueue`). Lines that do not
fit there are lost and counted, and the count is logged when there is room again. The owner of each event loop calls `flush` at
the time of `next_flush`.

A pipe is often shared with other programs, so its O_NONBLOCK must not be set here; and after a check for room, another process
may fill it before the write. So a pipe or terminal is opened once more, if the system allows that: the new opening is not shared,
and does not block. Pieces for a pipe are whole lines of at most PIPE_BUF bytes, which the system writes whole or not at all
(POSIX write). Only a longer line can be mixed with lines of other processes.

A full disk may take a part of a line. That part is removed again, if no process has written behind it. Otherwise the rest of the
line is kept in any case, and written first when there is room.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Final

from forkserve.base import files
from forkserve.base.appending import append, as_socket, may_write, opened_again, wait_for_room, write_if_ready, write_to_file
from forkserve.base.errors import ConfigError
from forkserve.base.linequeue import MOST_WAITING, LineQueue

APPENDING: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT
SHORTEST_PAUSE: Final = 0.001
LONGEST_PAUSE: Final = 0.1
STANDARD: Final = (1, 2)
LAST_WAIT: Final = 1.0  # seconds, at the end of a process
_MOMENT: Final = 0.01
FULL: Final = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
NO_READING: Final = "nothing can be written"


class _State:
    """The state of all logs of this process."""

    def __init__(self) -> None:
        self.files: weakref.WeakSet[LogFile] = weakref.WeakSet()
        self.lost = 0  # lines, for good
        self.complain: Callable[[str], object] = lambda text: None
        self.waiting: Callable[[], object] | None = None
        self.opens_own = True
        self.needs_care = False


_state = _State()


class LogFile:
    """A file opened for appending, or an inherited descriptor (`path` None); the descriptor keeps its number.

    With an *owner* (uid and gid), a file that is made here is given to it. An existing file keeps its owner.
    """

    takes_output = True
    """Whether stdout or stderr can be redirected to it."""

    def __init__(self, descriptor: int, path: str | None = None, owner: files.Owner = None, name: str = "") -> None:
        self.descriptor = descriptor
        self.path = path
        self.owner = owner
        self.name = name  # in messages about lost lines; empty for the error log, which needs room for them first
        self._queue = LineQueue()
        self._lock = threading.RLock()
        self._flushing = False
        self._own: int | socket.socket | None = None  # an opening of the same file that is not shared
        self._send: Callable[[bytes], int] | None = None
        self._most = select.PIPE_BUF
        self._pause = 0.0
        self._retry_at = 0.0
        self._why = ""
        self._broken = False  # lines written now are lost
        self._said = False  # it is logged that lines are lost
        _state.files.add(self)

    @classmethod
    def open(cls, path: str, owner: files.Owner = None, name: str = "") -> LogFile:
        """Open the file of *path*. Raises ConfigError if it cannot be written.

        `/dev/stdout`, `/dev/fd/N` and links to them mean the descriptor: another opening of the same file would have a position
        of its own, and a socket cannot be opened.
        """
        try:
            with files.find(path) as place:
                if (number := place.own_descriptor()) is None:
                    return cls(place.open(APPENDING, owner=owner), path, owner, name)
                if not may_write(number):
                    raise ConfigError(f"cannot write the log file {path}: descriptor {number} is open for reading only")
                return cls(number if number in STANDARD else os.dup(number), None, None, name)
        except OSError as error:
            raise ConfigError(f"cannot write the log file {path}: {error.strerror}") from None

    # Writing.

    def write(self, data: bytes) -> None:
        """Append *data*, whole lines: now, or when there is room. Never blocks, and raises nothing. Any thread."""
        with self._lock:
            self._queue.put(data)
            if not self._flushing:  # else this is a signal handler, and the interrupted call goes on with the queue
                self._flush()
        self._report_lost()

    def flush(self) -> bool:
        """Write the waiting lines, as far as possible; return whether none is left. Any thread."""
        with self._lock:
            if not self._flushing and self._queue:
                self._flush()
        self._report_lost()
        return not self._queue

    def _flush(self) -> None:
        self._flushing = True
        try:
            while self._queue:
                if not self.send_from(self._queue):
                    self._wait(NO_READING)
                    return
            self._pause = self._retry_at = 0.0
            self._broken = False
        except OSError as error:
            if self.may_recover(error):
                self._wait(error.strerror or str(error))
            else:
                self._why, self._broken = error.strerror or str(error), True
                self._queue.lose(all_of_it=True)
                _state.needs_care = True
        finally:
            self._flushing = False

    def may_recover(self, error: OSError) -> bool:
        """Whether lines wait after an error: a disk may get room, and a named pipe another reader."""
        return error.errno in FULL or (error.errno == errno.EPIPE and self.path is not None)

    def _wait(self, why: str) -> None:
        self._why, _state.needs_care = why, True
        self._pause = min(max(2 * self._pause, SHORTEST_PAUSE), LONGEST_PAUSE)
        self._retry_at = time.monotonic() + self._pause
        if _state.waiting is not None:
            _state.waiting()

    def _report_lost(self) -> None:
        """Log that lines are lost, and their number once there is room. Without the lock: that is a line in a log too."""
        if not self._queue.lost or self._flushing:
            return
        with self._lock:
            if not self._queue and not self._broken:
                lost, self._queue.lost, self._said = self._queue.lost, 0, False
                _state.lost += lost
                lines = "1 line of {} was" if lost == 1 else f"{lost} lines of {{}} were"
                text = f"{lines.format(self.name or 'this log')} lost: {self._why}"
            elif self.name and not self._said:
                self._said = True
                text = f"lines of {self.name} are lost: {self._why}"
            else:
                return
        _state.complain(text)

    def give_up(self) -> None:
        """Drop the waiting lines."""
        with self._lock:
            self._queue.lose(all_of_it=True)

    @property
    def unsaid(self) -> int:
        """The number of lost lines that has not been logged."""
        return self._queue.lost

    # How a piece is written, by the kind of file.

    def send_from(self, queue: LineQueue) -> int:
        """Write as much of a piece of the queue as possible without blocking; return the number of bytes. Raises OSError."""
        if self._send is None:
            self.prepare()
        assert self._send is not None
        try:
            count = self._send(queue.piece(self._most))
        except (BlockingIOError, InterruptedError):
            return 0
        queue.went(count)
        return count

    def prepare(self) -> None:
        """Find out how to write to the descriptor without blocking, while this process has the privileges for that."""
        self.let_go()
        self._most, self._send = select.PIPE_BUF, lambda piece: write_if_ready(self.descriptor, piece)
        try:
            found = os.fstat(self.descriptor).st_mode
        except OSError:  # closed, as each write will report
            return
        if stat.S_ISREG(found) or (stat.S_ISCHR(found) and not os.isatty(self.descriptor)):
            self._most, self._send = MOST_WAITING, lambda piece: write_to_file(self.descriptor, piece)
            if stat.S_ISREG(found):
                append(self.descriptor)
        elif not _state.opens_own:
            return
        elif stat.S_ISSOCK(found):
            self._own = sock = as_socket(self.descriptor)
            self._send = lambda piece: sock.send(piece, socket.MSG_DONTWAIT)
        elif (own := opened_again(self.descriptor)) is not None:
            self._own = own
            self._send = lambda piece: os.write(own, piece)

    def let_go(self) -> None:
        """Close the second opening, so that only the descriptor itself is left. It is prepared again when it is needed."""
        own, self._own, self._send = self._own, None, None
        if isinstance(own, socket.socket):
            own.close()
        elif own is not None:
            os.close(own)

    def close(self) -> None:
        """Close the file and its descriptor."""
        self.let_go()
        os.close(self.descriptor)

    def wait_until_ready(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for room; a regular file always seems to have some."""
        return wait_for_room(self.descriptor, timeout)

    # Rotation.

    def reopen(self) -> None:
        """Reopen the path if the file was moved away.

        Raises OSError if the path cannot be opened; the old file is kept then.
        """
        if (new := self.reopened()) is not None:
            self.become(new)
            os.close(new)

    def reopened(self) -> int | None:
        """Open the path again and return the descriptor; None if the path still leads to this file. Raises OSError."""
        if self.path is None:
            return None
        with files.find(self.path) as place:
            if place.identity() == files.identity(os.fstat(self.descriptor)):
                return None
            return place.open(APPENDING, owner=self.owner)

    def is_current(self) -> bool:
        """Return whether the path still leads to this file, as far as this process can see."""
        if self.path is None:
            return True
        try:
            with files.find(self.path) as place:
                return place.identity() == files.identity(os.fstat(self.descriptor))
        except OSError:
            return False

    def become(self, descriptor: int) -> None:
        """Continue in the file of another descriptor, which the caller closes. Waiting lines go there, but not half a line."""
        if os.path.samestat(os.fstat(descriptor), os.fstat(self.descriptor)):
            return
        self.flush()
        with self._lock:
            self._queue.lose_rest()
            os.dup2(descriptor, self.descriptor, inheritable=False)
            self.prepare()

    # Upgrades and forks.

    def waiting(self) -> bytes:
        """Return the waiting lines."""
        return self._queue.piece(sys.maxsize)

    def go_on_with(self, data: bytes, lost: int) -> None:
        """Take over the waiting lines of the previous program."""
        self._queue.put(data)
        self._queue.lost += lost

    def forget(self) -> None:
        """Leave the waiting lines to the parent, in a child just forked. A thread that is not in the child may hold the lock."""
        self._queue, self._lock, self._flushing, self._said = LineQueue(), threading.RLock(), False, False

    @property
    def retry_at(self) -> float | None:
        """When to `flush`, in monotonic seconds; None if no lines wait."""
        return self._retry_at if self._queue else None


# All logs of this process.


def complain_by(complain: Callable[[str], object]) -> None:
    """Set the function that is called with a message about lost lines."""
    _state.complain = complain


def when_waiting(call: Callable[[], object] | None) -> None:
    """Set the function that is called whenever lines have to wait: in any thread, also in a signal handler."""
    _state.waiting = call


def flush() -> float | None:
    """Write the waiting lines that are due; return the seconds until the next call, None if no lines wait."""
    now = time.monotonic()
    for one in list(_state.files):
        if (at := one.retry_at) is not None and at <= now:
            one.flush()
    return None if (at := next_flush()) is None else max(0.0, at - time.monotonic())


def needs_care() -> bool:
    """Return whether lines wait, or were lost, since the last `look_after`."""
    return _state.needs_care


def look_after() -> int:
    """Flush, and return the number of lines that this process has lost so far."""
    _state.needs_care = False
    _state.needs_care |= flush() is not None
    return lost()


def next_flush() -> float | None:
    """Return when to call `flush`, in monotonic seconds; None if no lines wait."""
    return min((at for one in list(_state.files) if (at := one.retry_at) is not None), default=None)


def lost(*, unsaid: bool = True) -> int:
    """Return the number of lines that this process has lost so far; without *unsaid*, only those that were logged."""
    return _state.lost + (sum(one.unsaid for one in list(_state.files)) if unsaid else 0)


def count_lost(lines: int) -> None:
    """Count lines that were lost outside of a `LogFile`."""
    _state.lost += lines


def finish(limit: float = LAST_WAIT) -> int:
    """Write the rest, waiting up to *limit* seconds in all; the process is about to end.

    Returns the number of lost lines that was not logged.
    """
    end = time.monotonic() + limit
    for one in list(_state.files):
        while not one.flush() and (left := end - time.monotonic()) > 0:
            one.wait_until_ready(left)
            time.sleep(min(_MOMENT, left))  # a full disk and a broken pipe always seem to have room
        one.give_up()
    return sum(one.unsaid for one in list(_state.files))


def let_go() -> None:
    """Keep nothing open but the descriptors themselves, from now on. In a process that the application has forked.

    It may outlive the server, and must not keep the files of the server's stdout and stderr open.
    """
    _state.opens_own = False
    for one in list(_state.files):
        one.let_go()


def has_moved(descriptor: int) -> None:
    """Note that a descriptor leads to another file now: second openings of the former one are closed."""
    for one in list(_state.files):
        if one.descriptor == descriptor:
            one.let_go()


def _after_fork() -> None:
    _state.lost, _state.waiting = 0, None
    for one in list(_state.files):
        one.forget()


os.register_at_fork(after_in_child=_after_fork)
