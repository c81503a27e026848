"""Response bytes that a client has not taken yet: kept without a copy up to a bound, and beyond it in temporary files.

A transport copies what it cannot send at once, so it gets a response in small pieces, each when the one before is gone. The bytes
that wait are the application's own objects: clients that are sent the same object share it, and it counts once. The bound is for
bodies that differ: when the connections of a process hold ``--limit-buffered`` bytes, further bytes go to temporary files.
"""

from __future__ import annotations

import os
import tempfile
from collections import deque

PIECE = 65536
"""Bytes that a transport is given at a time; a body of at most this size is written together with its head."""


class Buffered:
    """Counts the memory of this process that is taken by bodies waiting for their clients.

    Args:
        limit: Bytes. One body may go beyond it, but then no further one is kept in memory.

    Attributes:
        total: The bytes that are taken.
        returned: Numbers of bytes that are free again; threads may append.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._shared: dict[int, int] = {}  # by identity: in how many places an object waits
        self.total = 0
        self.returned: deque[int] = deque()

    @property
    def full(self) -> bool:
        """Whether nothing more should be kept in memory."""
        while self.returned:
            self.total -= self.returned.popleft()
        return self.total >= self._limit

    def add(self, data: bytes | bytearray) -> None:
        """Count an object that waits for one more client."""
        count = self._shared.get(id(data), 0)
        self._shared[id(data)] = count + 1
        if not count:
            self.total += len(data)

    def remove(self, data: bytes | bytearray) -> None:
        """Count an object no more for one client."""
        count = self._shared.pop(id(data)) - 1
        if count:
            self._shared[id(data)] = count
        else:
            self.total -= len(data)


class Outgoing:
    """The bytes that wait for one client, in order. There is one only while something waits.

    Args:
        buffered: Counts what is kept in memory.
        most: The largest piece that `take` returns, in bytes.

    Attributes:
        size: The number of bytes that wait.
    """

    __slots__ = ("_at", "_buffered", "_end", "_file", "_last", "_most", "_pieces", "_small", "_start", "size")

    def __init__(self, buffered: Buffered, most: int) -> None:
        self.size = 0
        self._buffered = buffered
        self._most = most
        self._pieces: deque[bytes] = deque()
        self._last: bytes | None = None  # the transport may still have a part of it
        self._at = 0  # where the rest of the first piece begins
        self._small: list[bytes] = []  # the last piece, in parts
        self._file: int | None = None  # descriptor; behind the pieces
        self._start = self._end = 0  # of what waits in it

    def add(self, data: bytes, *, spill: bool) -> None:
        """Add ``data`` at the end.

        Args:
            data: Kept as it is, or written to a file.
            spill: Whether a file would free memory, since nothing else keeps ``data``.

        Raises:
            OSError: There is no room for the file.
        """
        self.size += len(data)
        if self._file is not None or (spill and self._buffered.full):
            self._join()
            self._store(data)
        elif len(data) > PIECE:
            self._join()
            self._keep(data)
        else:
            self._small.append(data)
            if sum(map(len, self._small)) > PIECE or len(self._small) > 64:
                self._join()

    def _keep(self, data: bytes) -> None:
        self._pieces.append(data)
        self._buffered.add(data)

    def _join(self) -> None:
        if self._small:
            small, self._small = b"".join(self._small), []
            self._keep(small)

    def _store(self, data: bytes) -> None:
        if self._file is None:
            with tempfile.TemporaryFile(buffering=0) as file:
                self._file = os.dup(file.fileno())
        view = memoryview(data)
        while view:
            count = os.pwrite(self._file, view, self._end)
            self._end += count
            view = view[count:]

    def take(self) -> bytes | memoryview:
        """Return the next piece; empty if nothing waits. The piece before must have been sent.

        Raises:
            OSError: The file cannot be read.
        """
        piece: bytes | memoryview
        if self._last is not None:
            self._buffered.remove(self._last)
            self._last = None
        if not self._pieces:
            self._join()
        if self._pieces:
            first = self._pieces[0]
            piece = memoryview(first)[self._at : self._at + self._most]
            self._at += len(piece)
            if self._at == len(first):
                self._at = 0
                self._last = self._pieces.popleft()
        elif self._file is not None:
            piece = os.pread(self._file, min(PIECE, self._end - self._start), self._start)
            if not piece and self._start < self._end:
                raise OSError("a temporary file is shorter than it was")
            self._start += len(piece)
            if self._start == self._end:
                os.ftruncate(self._file, 0)
                self._start = self._end = 0
        else:
            return b""
        self.size -= len(piece)
        return piece

    def discard(self) -> None:
        """Drop what waits."""
        if self._last is not None:
            self._buffered.remove(self._last)
            self._last = None
        while self._pieces:
            self._buffered.remove(self._pieces.popleft())
        self._small.clear()
        self.size = 0
        if self._file is not None:
            os.close(self._file)
            self._file = None
