"""LogFile: the one way in which every process of a server writes to a log. It never waits, and no line is torn.

What a file, pipe, terminal or socket does not take at once waits in a queue of bounded size (`LineQueue`); what finds no room
there is lost and counted. When there is room again, the count is said. Whoever owns a loop calls `flush` when `next_flush` says.

A pipe is often shared with programs that know nothing of us, so its O_NONBLOCK is not ours to set, and between a look
whether there is room and a write that other process may have filled it. So a pipe or terminal is opened once more, where the
system allows that: that opening is ours alone and does not block. Pieces for a pipe are whole lines of at most PIPE_BUF bytes,
which the system writes whole or not at all (POSIX write). Only a line that is longer than that can be mixed with another
process's.

A full disk may take a part of a line. That part is taken back, if nobody has written behind it; else the rest of the line is
kept, whatever is lost, and comes first when there is room.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
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
from forkserve.base.errors import ConfigError

APPENDING: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT
MOST_WAITING: Final = 1 << 20  # bytes, of one log of one process
SHORTEST_PAUSE: Final = 0.001
LONGEST_PAUSE: Final = 0.1
STANDARD: Final = (1, 2)
LAST_WAIT: Final = 1.0  # seconds, at the end of a process
_MOMENT: Final = 0.01
FULL: Final = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
NO_READING: Final = "nothing can be written"


class LineQueue:
    """Lines that wait for room. It reads and writes nothing.

    Attributes:
        lost: How many lines were lost; set it to 0 when that was said.
    """

    def __init__(self, most: int = MOST_WAITING) -> None:
        self._most = most
        self._data = bytearray()
        self._torn = False  # a part of the first line has gone
        self.lost = 0

    def __bool__(self) -> bool:
        return bool(self._data)

    def put(self, data: bytes) -> None:
        """Add whole lines. If they have no room, the last ones of them are lost; a single piece has room in an empty queue."""
        if self._data and len(self._data) + len(data) > self._most:
            end = data.rfind(b"\n", 0, max(0, self._most - len(self._data))) + 1
            self.lost += data.count(b"\n", end)
            data = data[:end]
        self._data += data

    def piece(self, most: int) -> bytes:
        """Return what to write next: as many whole lines as fit in `most` bytes, or the beginning of one that is longer."""
        if len(self._data) <= most:
            return bytes(self._data)
        return bytes(self._data[: self._data.rfind(b"\n", 0, most) + 1 or most])

    def went(self, count: int) -> None:
        """Take out what was written."""
        if count:
            self._torn = self._data[count - 1] != ord("\n")
            del self._data[:count]

    def lose(self, *, all_of_it: bool = False) -> None:
        """Empty it; but the rest of a line that has begun to go out is kept, if not `all_of_it`."""
        kept = self._data.find(b"\n") + 1 if self._torn and not all_of_it else 0
        self.lost += self._data.count(b"\n", kept)
        del self._data[kept:]
        self._torn = bool(self._data)

    def lose_rest(self) -> None:
        """Lose the rest of a line that has begun to go out, if there is one."""
        if self._torn:
            self.lost += 1
            del self._data[: self._data.find(b"\n") + 1]
            self._torn = False


class _State:
    """What this process knows of all its logs."""

    def __init__(self) -> None:
        self.files: weakref.WeakSet[LogFile] = weakref.WeakSet()
        self.lost = 0  # lines, for good
        self.complain: Callable[[str], object] = lambda text: None
        self.waiting: Callable[[], object] | None = None
        self.opens_own = True
        self.needs_care = False


_state = _State()


class LogFile:
    """A file opened for appending, or a descriptor that was there (`path` None); the descriptor keeps its number.

    With an *owner* (uid and gid) a file that is made here becomes theirs. One that was there keeps its owner.
    """

    def __init__(self, descriptor: int, path: str | None = None, owner: files.Owner = None, name: str = "") -> None:
        self.descriptor = descriptor
        self.path = path
        self.owner = owner
        self.name = name  # in a line that says what was lost; empty for the error log, which cannot say it before it has room
        self._queue = LineQueue()
        self._lock = threading.RLock()
        self._flushing = False
        self._own: int | socket.socket | None = None  # opened or made for us alone
        self._send: Callable[[bytes], int] | None = None
        self._most = select.PIPE_BUF
        self._pause = 0.0
        self._retry_at = 0.0
        self._why = ""
        self._broken = False  # what is written now is lost
        self._said = False  # that lines are lost
        _state.files.add(self)

    @classmethod
    def open(cls, path: str, owner: files.Owner = None, name: str = "") -> LogFile:
        """Open what *path* leads to. Raises ConfigError where it cannot be written.

        `/dev/stdout`, `/dev/fd/N` and links to them mean the descriptor: a second opening of the same file would have a position
        of its own, and a socket has none.
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
        """Append *data*, which is whole lines: now, or when there is room. Never waits; no error leaves it. Any thread."""
        with self._lock:
            self._queue.put(data)
            if not self._flushing:  # else a signal came in the middle of it, and what it has interrupted goes on with this
                self._flush()
        self._tell()

    def flush(self) -> bool:
        """Write what waits, if it may go now; return whether nothing is left. Any thread."""
        with self._lock:
            if not self._flushing and self._queue:
                self._flush()
        self._tell()
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
            # The reader of a named pipe may come back, and finds what waits.
            if error.errno in FULL or (error.errno == errno.EPIPE and self.path is not None):
                self._wait(error.strerror or str(error))
            else:
                self._why, self._broken = error.strerror or str(error), True
                self._queue.lose(all_of_it=True)
                _state.needs_care = True
        finally:
            self._flushing = False

    def _wait(self, why: str) -> None:
        self._why, _state.needs_care = why, True
        self._pause = min(max(2 * self._pause, SHORTEST_PAUSE), LONGEST_PAUSE)
        self._retry_at = time.monotonic() + self._pause
        if _state.waiting is not None:
            _state.waiting()

    def _tell(self) -> None:
        """Say that lines are lost, and how many were when there is room again. Without our lock: it is a line in a log, too."""
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
        """Lose what waits."""
        with self._lock:
            self._queue.lose(all_of_it=True)

    @property
    def unsaid(self) -> int:
        """How many lines were lost that no line has told of."""
        return self._queue.lost

    # How a piece is written, by what it is written to.

    def send_from(self, queue: LineQueue) -> int:
        """Write as much of a piece of a queue as goes without waiting; return how many bytes that was. Raises OSError."""
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
        """Find out what the descriptor is, and how to write to it without waiting; while we have the rights for that."""
        self.let_go()
        self._most, self._send = select.PIPE_BUF, self._write_if_ready
        try:
            found = os.fstat(self.descriptor).st_mode
        except OSError:  # it is closed, as each write will find
            return
        if stat.S_ISREG(found) or (stat.S_ISCHR(found) and not os.isatty(self.descriptor)):
            self._most, self._send = MOST_WAITING, self._write_to_file
            if stat.S_ISREG(found):
                append(self.descriptor)
        elif not _state.opens_own:
            return
        elif stat.S_ISSOCK(found):
            self._own = sock = _as_socket(self.descriptor)
            self._send = lambda piece: sock.send(piece, socket.MSG_DONTWAIT)
        elif (own := _opened_again(self.descriptor)) is not None:
            self._own = own
            self._send = lambda piece: os.write(own, piece)

    def let_go(self) -> None:
        """Close what was opened for us alone, so that the descriptor is all there is. It is prepared again when it is needed."""
        own, self._own, self._send = self._own, None, None
        if isinstance(own, socket.socket):
            own.close()
        elif own is not None:
            os.close(own)

    def close(self) -> None:
        """Close it, descriptor and all."""
        self.let_go()
        os.close(self.descriptor)

    def _write_if_ready(self, piece: bytes) -> int:
        if not self.wait_until_ready(0):
            return 0
        if hasattr(os, "pwritev") and hasattr(os, "RWF_NOWAIT"):
            try:  # somebody else may have been faster; newer Linux can be told not to wait then
                return os.pwritev(self.descriptor, [piece], -1, os.RWF_NOWAIT)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ESPIPE):
                    raise
        return os.write(self.descriptor, piece)

    def wait_until_ready(self, timeout: float) -> bool:
        """Wait so many seconds for room; a file always seems to have some."""
        return wait_for_room(self.descriptor, timeout)

    def _write_to_file(self, piece: bytes) -> int:
        count = os.write(self.descriptor, piece)
        if count < len(piece):
            count -= self._taken_back(count - (piece.rfind(b"\n", 0, count) + 1))
        return count

    def _taken_back(self, torn: int) -> int:
        """Take back the part of a line that has just been written; return how many bytes that was, 0 if that cannot be."""
        with contextlib.suppress(OSError):
            size = os.fstat(self.descriptor).st_size
            if torn and os.lseek(self.descriptor, 0, os.SEEK_CUR) == size:  # nobody else has written since
                os.ftruncate(self.descriptor, size - torn)
                return torn
        return 0

    # Rotation.

    def reopen(self) -> None:
        """Open the path anew if the file was moved away.

        Raises OSError where the path cannot be opened; the old file is kept then.
        """
        if (new := self.opened_anew()) is not None:
            self.become(new)
            os.close(new)

    def opened_anew(self) -> int | None:
        """Open the path anew and return that descriptor; None if this is still what the path leads to. Raises OSError."""
        if self.path is None:
            return None
        with files.find(self.path) as place:
            if place.identity() == files.identity(os.fstat(self.descriptor)):
                return None
            return place.open(APPENDING, owner=self.owner)

    def is_current(self) -> bool:
        """Whether the path still leads to this file, as far as this process may look."""
        if self.path is None:
            return True
        try:
            with files.find(self.path) as place:
                return place.identity() == files.identity(os.fstat(self.descriptor))
        except OSError:
            return False

    def become(self, descriptor: int) -> None:
        """Go on in what another descriptor has open; the caller closes that. Lines that wait go there, but not half of one."""
        if os.path.samestat(os.fstat(descriptor), os.fstat(self.descriptor)):
            return
        self.flush()
        with self._lock:
            self._queue.lose_rest()
            os.dup2(descriptor, self.descriptor, inheritable=False)
            self.prepare()

    # Upgrades and forks.

    def waiting(self) -> bytes:
        """Return what waits to be written."""
        return self._queue.piece(sys.maxsize)

    def go_on_with(self, data: bytes, lost: int) -> None:
        """Go on with what waited in the program before an upgrade."""
        self._queue.put(data)
        self._queue.lost += lost

    def forget(self) -> None:
        """Let what waits be the parent's, in a child just forked; a lock may be held by a thread that is not there."""
        self._queue, self._lock, self._flushing, self._said = LineQueue(), threading.RLock(), False, False

    @property
    def retry_at(self) -> float | None:
        """When to `flush`, on the monotonic clock; None if nothing waits."""
        return self._retry_at if self._queue else None


def wait_for_room(descriptor: int, seconds: float) -> bool:
    """Wait until a descriptor takes more, at most so long; return whether it does."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(seconds * 1000))


def append(descriptor: int) -> None:
    """Have writes to a regular file go to its end, wherever that is by then: logrotate's copytruncate cuts it to nothing."""
    with contextlib.suppress(OSError):
        if stat.S_ISREG(os.fstat(descriptor).st_mode) and may_write(descriptor):
            flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
            fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_APPEND)


def may_write(descriptor: int) -> bool:
    """Whether a descriptor is open for writing. Raises OSError if it is not open."""
    return fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY


def _opened_again(descriptor: int) -> int | None:
    """Return another opening of the same pipe or terminal, which does not block; None if it is not for us to open."""
    if sys.platform == "linux":
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        with contextlib.suppress(OSError):
            return os.open(f"/proc/self/fd/{descriptor}", flags)
    return None


def _as_socket(descriptor: int) -> socket.socket:
    blocking = os.get_blocking(descriptor)
    sock = socket.socket(fileno=os.dup(descriptor))
    os.set_blocking(descriptor, blocking)  # a default timeout would have changed what others share
    return sock


# All logs of this process.


def complain_by(complain: Callable[[str], object]) -> None:
    """Have it called with a line that says what was lost."""
    _state.complain = complain


def when_waiting(call: Callable[[], object] | None) -> None:
    """Have it called whenever lines begin, or go on, to wait: in any thread, also in a signal handler."""
    _state.waiting = call


def flush() -> float | None:
    """Write what waits and is due; return in how many seconds to come again, None if nothing waits."""
    now = time.monotonic()
    for one in list(_state.files):
        if (at := one.retry_at) is not None and at <= now:
            one.flush()
    return None if (at := next_flush()) is None else max(0.0, at - time.monotonic())


def needs_care() -> bool:
    """Whether lines wait, or were lost, since `look_after` was called last."""
    return _state.needs_care


def look_after() -> int:
    """Flush, and return how many lines this process has lost so far."""
    _state.needs_care = False
    _state.needs_care |= flush() is not None
    return lost()


def next_flush() -> float | None:
    """Return when to call `flush`, on the monotonic clock; None if nothing waits."""
    return min((at for one in list(_state.files) if (at := one.retry_at) is not None), default=None)


def lost(*, unsaid: bool = True) -> int:
    """Return how many lines this process has lost so far; or only those that a line has told of."""
    return _state.lost + (sum(one.unsaid for one in list(_state.files)) if unsaid else 0)


def count_lost(lines: int) -> None:
    """Count lines that were lost elsewhere than in a `LogFile`."""
    _state.lost += lines


def finish(limit: float = LAST_WAIT) -> int:
    """Write the rest, and wait a little for that if need be; the process is about to end.

    Return how many lines were lost that no line has told of.
    """
    end = time.monotonic() + limit
    for one in list(_state.files):
        while not one.flush() and (left := end - time.monotonic()) > 0:
            one.wait_until_ready(left)
            time.sleep(min(_MOMENT, left))  # a full disk and a broken pipe always seem ready
        one.give_up()
    return sum(one.unsaid for one in list(_state.files))


def let_go() -> None:
    """Have nothing open but the descriptors themselves, from now on. In a process that the application has forked.

    It may outlive the server, and must not keep open what the server's stdout and stderr lead to.
    """
    _state.opens_own = False
    for one in list(_state.files):
        one.let_go()


def has_moved(descriptor: int) -> None:
    """A descriptor leads elsewhere now: whatever was opened to write to where it led before is closed."""
    for one in list(_state.files):
        if one.descriptor == descriptor:
            one.let_go()


def _after_fork() -> None:
    _state.lost, _state.waiting = 0, None
    for one in list(_state.files):
        one.forget()


os.register_at_fork(after_in_child=_after_fork)
