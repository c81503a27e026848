"""``wsgi.file_wrapper`` (PEP 3333): which files the system can send, and how the others are read."""

from __future__ import annotations

import io
import os
import stat
import tempfile
from collections.abc import Iterator
from types import BuiltinMethodType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forkserve.http.app.exchange import Exchange

_BLOCK = 65536
"""Bytes per block of a file that has to be read, if the application does not say."""


class FileWrapper:
    """PEP 3333's ``wsgi.file_wrapper``: iterates over blocks; the server recognises it, and may have the system send the file.

    It is its own iterator and has ``seek``: frameworks that cut ranges out of files expect both.

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
        """Return whether `seek` works."""
        return bool(self._file.seekable()) if hasattr(self._file, "seekable") else hasattr(self._file, "seek")

    def seek(self, *where: int) -> int:
        """Continue reading elsewhere; the same as the file's own."""
        return int(self._file.seek(*where))

    def tell(self) -> int:
        """Return where reading continues."""
        return int(self._file.tell())

    def limit(self, count: int) -> None:
        """Read at most this number of bytes, even if the file is longer by then."""
        self._limit = count

    def regular(self) -> tuple[int, int, int] | None:
        """Return the file as the system can send it, if reading it would give the same bytes.

        Many objects have a ``fileno()`` but give other bytes when they are read: decompressed or decrypted ones, or text.
        So the method ``read`` decides: it must be the built-in one of a file object that gives the descriptor's bytes. The
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
            return None  # if something is wrong with it, reading it raises the error
        return descriptor, position, max(0, status.st_size - position)


def _reader(file: Any) -> Any:
    """Return the object whose built-in method the file's ``read`` is; None if it is written in Python."""
    read = file.read
    if type(file) is tempfile._TemporaryFileWrapper:  # noqa: SLF001 - what NamedTemporaryFile gives has no other name
        read = read.__wrapped__  # wrapped in a function that keeps the file open
    return _owner(read)


def _owner(method: Any) -> Any:
    # Nothing can subclass this type but Python itself: methods of `io` have such a type of their own from 3.13 on.
    return method.__self__ if isinstance(method, BuiltinMethodType) else None


def file_to_send(exchange: Exchange, wrapper: FileWrapper) -> tuple[int, int, int] | None:
    """Return a new descriptor, offset and length if the system can send the file; None if the wrapper has to be read.

    If it has to be read only because of TLS or ``--no-sendfile``, its length is announced, and no more than that is read.
    Runs where the application does, before anything of the response was sent.

    Raises:
        OSError: No descriptor is left.
    """
    if exchange.head is None or (found := wrapper.regular()) is None:
        return None
    descriptor, offset, rest = found
    if not (exchange.writer.sends_files and exchange.site.settings.sendfile):
        exchange.add_length(rest)
        length = exchange.head.content_length
        wrapper.limit(rest if length is None else min(rest, length))
        return None
    return os.dup(descriptor), offset, rest
