"""Shared memory that every process of a server can read: one row per process, written by that process alone.

A row is a few 64-bit numbers and the request lines in hand. Nothing is locked: each number is one aligned store, and
a request line that is read while it is written is only ever a line in a log. The master reads it also when a worker
is stuck, which is when no message could be answered.
"""

from __future__ import annotations

import mmap
import os
import sys
from time import monotonic_ns
from typing import Final

# Indexes into `Row.cells`.
BEAT: Final = 0  # time.monotonic_ns() of the last sign of life
REQUESTS: Final = 1  # begun since the process started
IN_FLIGHT: Final = 2  # being answered now
CONNECTIONS: Final = 3  # open now

DRAIN: Final = 4  # 1 when the master has ordered it to drain
ACCEPTING: Final = 5  # 1 from READY until it drains

LINES: Final = 8
LINE_SIZE: Final = 200
STARTED: Final = 8  # first of LINES cells: when the work began, 0 if the place is free; the first is that which holds the process
_LENGTHS: Final = STARTED + LINES  # first of LINES cells: bytes of the line
_CELLS: Final = _LENGTHS + LINES
_TEXT: Final = _CELLS * 8
_ROW_SIZE: Final = 2048


class Row:
    """One process's row. Its own process writes; any process of the server reads."""

    __slots__ = ("_last", "_text", "cells", "index")

    def __init__(self, index: int, memory: memoryview) -> None:
        self.index = index
        self.cells: memoryview[int] = memory[:_TEXT].cast("Q")
        self._text = memory[_TEXT : _TEXT + LINES * LINE_SIZE]
        self._last = b""

    def begin(self, line: bytes) -> None:
        """Note that work which holds the process begins, and beat. Its first LINE_SIZE bytes are kept; on the hot path."""
        now = monotonic_ns()
        if line is not self._last:  # the same object says the same
            self._last = line
            kept = line[:LINE_SIZE]
            self._text[: len(kept)] = kept
            self.cells[_LENGTHS] = len(kept)
        self.cells[BEAT] = self.cells[STARTED] = now

    def end(self) -> None:
        """Note that it has ended. No beat: what follows on the loop beats by itself."""
        self.cells[STARTED] = 0

    def connected(self, count: int) -> None:
        """Note how many connections are open."""
        self.cells[CONNECTIONS] = count

    def tell_to_drain(self) -> None:
        """Let a worker know that the order to drain is on its way, though it may be busy. For the master."""
        self.cells[DRAIN] = 1

    def told_to_drain(self) -> bool:
        """Return whether the master has ordered this worker to drain."""
        return self.cells[DRAIN] == 1

    def begin_line(self, place: int, now_ns: int, line: bytes) -> None:
        """Note a request in hand at a place from 1 to LINES - 1. Only the first LINE_SIZE bytes are kept."""
        kept = line[:LINE_SIZE]
        start = place * LINE_SIZE
        self._text[start : start + len(kept)] = kept
        self.cells[_LENGTHS + place] = len(kept)
        self.cells[STARTED + place] = now_ns

    def end_line(self, place: int) -> None:
        """Free the place."""
        self.cells[STARTED + place] = 0

    def lines(self) -> list[tuple[int, bytes]]:
        """Return (start in monotonic nanoseconds, line) of the requests in hand, oldest first. The bytes are the client's."""
        taken = [(self.cells[STARTED + place], place) for place in range(LINES) if self.cells[STARTED + place]]
        return [(started, self._line(place)) for started, place in sorted(taken)]

    def _line(self, place: int) -> bytes:
        start = place * LINE_SIZE
        return bytes(self._text[start : start + min(self.cells[_LENGTHS + place], LINE_SIZE)])

    def clear(self) -> None:
        """Make the row a free one. For the master, when its process is gone."""
        for index in range(_CELLS):
            self.cells[index] = 0


class Scoreboard:
    """All the rows. Made by the master before its first fork; its size is for good."""

    def __init__(self, rows: int) -> None:
        self.size = rows
        self._memory = memoryview(_shared_memory((rows + 1) * _ROW_SIZE))
        # A row's worth in front holds how many rows were ever used, so that nobody looks at all.
        self._used = self._memory[:8].cast("Q")
        self._rows: dict[int, Row] = {}

    def row(self, index: int) -> Row:
        """Return one row, the same object each time."""
        if index not in self._rows:
            start = (index + 1) * _ROW_SIZE
            self._rows[index] = Row(index, self._memory[start : start + _ROW_SIZE])
        return self._rows[index]

    def assign(self, index: int) -> Row:
        """Clear a row for the process that is about to be forked. For the master."""
        self._used[0] = max(self._used[0], index + 1)
        row = self.row(index)
        row.clear()
        return row

    def siblings(self, own: Row) -> list[Row]:
        """Return the rows of the other processes that accept connections now."""
        rows = [self.row(index) for index in range(self._used[0]) if index != own.index]
        return [row for row in rows if row.cells[ACCEPTING]]


def _shared_memory(size: int) -> mmap.mmap:
    if sys.platform != "linux":
        return mmap.mmap(-1, size)
    # A memfd and not an anonymous mapping, because a descriptor can be handed over an exec.
    descriptor = os.memfd_create("forkserve-scoreboard", os.MFD_CLOEXEC)
    try:
        os.ftruncate(descriptor, size)
        return mmap.mmap(descriptor, size)
    finally:
        os.close(descriptor)  # the mapping holds a duplicate
