"""``wsgi.file_wrapper`` and sendfile: a file goes from the page cache to the socket without passing through Python.

uvloop has no ``loop.sendfile``, and asyncio's takes the transport away. So: wait until the transport has nothing to
write, then send on a duplicate of its descriptor whenever it is writable. That works on both loops.
"""

from __future__ import annotations

import io
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from types import BuiltinMethodType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forkserve.http.app.wsgi import WSGICall
    from forkserve.http.framing.connection import Connection

_BLOCK = 65536
"""Bytes per block of a file that has to be read, if the application does not say."""

_MOST_AT_ONCE = 1 << 20
"""Bytes per call, so that one fast client does not hold the loop."""


class FileWrapper:
    """PEP 3333's ``wsgi.file_wrapper``: iterates over blocks; the server recognises it, and may have the system send the file.

    It is its own iterator and has ``seek``, as frameworks expect that cut ranges out of files.

    Args:
        filelike: Has ``read(size)``; closed with the wrapper if it can be.
        block_size: Bytes per block where it has to be read.
    """

    def __init__(self, filelike: Any, block_size: int = _BLOCK) -> None:
        self._file = filelike
        self._block_size = block_size if block_size > 0 else _BLOCK
        self._limit: int | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        size = self._block_size if self._limit is None else min(self._block_size, self._limit)
        block: bytes = self._file.read(size) if size else b""
        if not block:
            raise StopIteration
        if self._limit is not None:
            self._limit -= len(block)
        return block

    def close(self) -> None:
        """Close the file."""
        if hasattr(self._file, "close"):
            self._file.close()

    def seekable(self) -> bool:
        """Whether reading can go on elsewhere."""
        return bool(self._file.seekable()) if hasattr(self._file, "seekable") else hasattr(self._file, "seek")

    def seek(self, *where: int) -> int:
        """Go on reading elsewhere; as the file's own."""
        return int(self._file.seek(*where))

    def tell(self) -> int:
        """Where reading goes on."""
        return int(self._file.tell())

    def limit(self, count: int) -> None:
        """Read no more than so many bytes, even if there are more by then."""
        self._limit = count

    def regular(self) -> tuple[int, int, int] | None:
        """The file as the system can send it, if that is what reading it would give.

        Many objects have a ``fileno()`` and give something else when they are read: what was compressed or encrypted, or text.
        So the method ``read`` decides: it must be the built-in one of a file object that gives what the descriptor gives. The
        object may be that file, or pass its method on, as Django's ``File`` does.

        Returns:
            Descriptor, position and the number of bytes from there to the end; None if the file has to be read: it is no regular
            file, it is empty, it is shorter than it says (as files in ``/sys`` are), or it cannot be read at all.
        """
        try:
            source = _reader(self._file)
            raw = source.raw if type(source) in (io.BufferedReader, io.BufferedRandom) else source
            if type(raw) is not io.FileIO or _owner(raw.readinto) is not raw:
                return None
            descriptor, position = raw.fileno(), source.tell()
            status = os.fstat(descriptor)
            if not (stat.S_ISREG(status.st_mode) and status.st_size and os.pread(descriptor, 1, status.st_size - 1)):
                return None
        except (AttributeError, OSError, ValueError):
            return None  # if something is wrong with it, reading says what
        return descriptor, position, max(0, status.st_size - position)


def _reader(file: Any) -> Any:
    """The object whose built-in method the file's ``read`` is; None if it is written in Python."""
    read = file.read
    if type(file) is tempfile._TemporaryFileWrapper:  # noqa: SLF001 - what NamedTemporaryFile gives has no other name
        read = read.__wrapped__  # within a function that keeps the file from being closed
    return _owner(read)


def _owner(method: Any) -> Any:
    return method.__self__ if type(method) is BuiltinMethodType else None


def file_to_send(call: WSGICall, wrapper: FileWrapper) -> tuple[int, int, int] | None:
    """What `WSGICall.start_file` takes, if the system can send the file; None if the wrapper has to be read.

    If it has to be read only because of TLS or ``--no-sendfile``, its length is announced, and no more than that is read.
    Runs where the application does, before anything of the answer was sent.

    Raises:
        OSError: No descriptor is left.
    """
    if call.head is None or (found := wrapper.regular()) is None:
        return None
    descriptor, offset, rest = found
    if call.connection.endpoints.tls or not call.site.settings.sendfile:
        call.add_length(rest)
        wrapper.limit(rest if call.head.content_length is None else min(rest, call.head.content_length))
        return None
    return os.dup(descriptor), offset, rest


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
