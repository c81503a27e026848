"""``wsgi.file_wrapper`` and sendfile: a file goes from the page cache to the socket without passing through Python.

uvloop has no ``loop.sendfile``, and asyncio's takes the transport away. So: wait until the transport has nothing to
write, then send on a duplicate of its descriptor whenever it is writable. That works on both loops.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forkserve.http.connection import Connection

_MOST_AT_ONCE = 1 << 20
"""Bytes per call, so that one fast client does not hold the loop."""


class FileWrapper:
    """PEP 3333's ``wsgi.file_wrapper``: iterates over blocks, and is recognised by the server as a file that it can send.

    Args:
        filelike: Has ``read(size)``; closed with the wrapper if it can be.
        block_size: Bytes per block where it has to be read.
    """

    def __init__(self, filelike: Any, block_size: int = 65536) -> None:
        self._file = filelike
        self._block_size = block_size

    def __iter__(self) -> Iterator[bytes]:
        while block := self._file.read(self._block_size):
            yield block

    def close(self) -> None:
        """Close the file."""
        if hasattr(self._file, "close"):
            self._file.close()

    def fileno(self) -> int:
        """The descriptor."""
        return int(self._file.fileno())

    def tell(self) -> int:
        """Where reading would go on."""
        return int(self._file.tell())

    def remaining(self) -> int | None:
        """Bytes from here to the end of a regular file; None for anything else, which has to be read."""
        try:
            status = os.fstat(self.fileno())
            position = self.tell()
        except (AttributeError, OSError, ValueError):
            return None
        return max(0, status.st_size - position) if stat.S_ISREG(status.st_mode) else None


class SendFile:
    """One file on its way to one client.

    Args:
        connection: The client; nothing else may be written to it meanwhile.
        file: Descriptor of a regular file; closed when done.
        offset: First byte to send.
        count: How many bytes to send.
        done: Called with the number of bytes that were sent, also when the client has gone or the file was shorter.
    """

    def __init__(self, connection: Connection, file: int, offset: int, count: int, done: Callable[[int], None]) -> None:
        self._connection = connection
        self._loop = connection.site.loop
        self._file = file  # ours to close
        self._offset = offset
        self._end = offset + count
        self._count = count
        self._done = done
        self._socket = -1

    def start(self) -> None:
        """Begin as soon as the head is out."""
        self._connection.sending = self
        self._connection.when_drained(self._begin)

    def _begin(self) -> None:
        transport = self._connection.transport
        if transport.is_closing() or not self._count:
            self._finish()
            return
        try:
            self._socket = os.dup(transport.get_extra_info("socket").fileno())
        except OSError:  # no descriptor is left
            transport.abort()
            self._finish()
            return
        self._loop.add_writer(self._socket, self._send)

    def _send(self) -> None:
        try:
            sent = os.sendfile(self._socket, self._file, self._offset, min(self._end - self._offset, _MOST_AT_ONCE))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._connection.transport.abort()
            self._finish()
            return
        self._offset += sent
        if not sent or self._offset >= self._end:
            self._finish()

    @property
    def sent(self) -> int:
        """Bytes that have been sent."""
        return self._count - (self._end - self._offset)

    def cancel(self) -> None:
        """The client has gone."""
        self._finish()

    def _finish(self) -> None:
        if self._file < 0:
            return
        if self._socket >= 0:
            self._loop.remove_writer(self._socket)
            os.close(self._socket)
            self._socket = -1
        os.close(self._file)
        self._file = -1
        self._connection.sending = None
        self._done(self.sent)
