"""How to append to a descriptor of any kind without blocking: a file, a pipe, a terminal or a socket."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import stat
import sys


def wait_for_room(descriptor: int, seconds: float) -> bool:
    """Wait until a descriptor takes more, at most `seconds`; return whether it does."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(seconds * 1000))


def write_if_ready(descriptor: int, piece: bytes) -> int:
    """Write as much of a piece to a pipe or terminal as it takes now; return the number of bytes. Raises OSError."""
    if not wait_for_room(descriptor, 0):
        return 0
    if hasattr(os, "pwritev") and hasattr(os, "RWF_NOWAIT"):
        try:  # another process may have filled it; newer Linux can write without waiting
            return os.pwritev(descriptor, [piece], -1, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ESPIPE):
                raise
    return os.write(descriptor, piece)


def write_to_file(descriptor: int, piece: bytes) -> int:
    """Write a piece to a file; return the number of bytes. A full disk leaves no half line if possible. Raises OSError."""
    count = os.write(descriptor, piece)
    if count < len(piece):
        count -= _taken_back(descriptor, count - (piece.rfind(b"\n", 0, count) + 1))
    return count


def _taken_back(descriptor: int, torn: int) -> int:
    """Remove the part of a line that was just written; return its number of bytes, 0 if that is impossible."""
    with contextlib.suppress(OSError):
        size = os.fstat(descriptor).st_size
        if torn and os.lseek(descriptor, 0, os.SEEK_CUR) == size:  # no other process has written since
            os.ftruncate(descriptor, size - torn)
            return torn
    return 0


def append(descriptor: int) -> None:
    """Let writes to a regular file always go to its end, which logrotate's copytruncate moves."""
    with contextlib.suppress(OSError):
        if stat.S_ISREG(os.fstat(descriptor).st_mode) and may_write(descriptor):
            flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
            fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_APPEND)


def may_write(descriptor: int) -> bool:
    """Return whether a descriptor is open for writing. Raises OSError if it is not open."""
    return fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY


def opened_again(descriptor: int) -> int | None:
    """Open the same pipe or terminal again, without blocking; None if that is not allowed."""
    if sys.platform == "linux":
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        with contextlib.suppress(OSError):
            return os.open(f"/proc/self/fd/{descriptor}", flags)
    return None


def as_socket(descriptor: int) -> socket.socket:
    """Return a socket object for a copy of the descriptor; the flags of the socket stay. Raises OSError."""
    blocking = os.get_blocking(descriptor)
    sock = socket.socket(fileno=os.dup(descriptor))
    os.set_blocking(descriptor, blocking)  # a default timeout changes the flag, which is shared
    return sock
