"""Shared memory that every process of a server can read: one row per process, written by that process alone.

A row is a few 64-bit numbers and the request lines in hand. Nothing is locked: each number is one aligned store, and
a request line that is read while it is written is only ever a line in a log. The master reads it also when a worker
is stuck, which is when no message could be answered.

A line is written when its work is about to hold the whole process (`begin`): nothing could be written later. Of requests
that are answered side by side, those in hand are noted once a second, and when the master asks for the stacks, if Python
code can still run (`refresh`). So that one is named as well that begins just before native code keeps the interpreter's lock,
each writes its line when it enters the application, into one of a few places that are used in turn (`enter`): a single call of C.
"""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Callable, Sequence
from itertools import count
from struct import Struct
from time import monotonic_ns
from typing import Final

from forkserve.base.handover import InheritedFd
from forkserve.base.memory import nameless_file
from forkserve.base.records import record

# Indexes into `Row.cells`.
BEAT: Final = 0  # time.monotonic_ns() of the last sign of life
REQUESTS: Final = 1  # begun since the process started
IN_FLIGHT: Final = 2  # being answered when last noted; `Row.in_flight` knows better
CONNECTIONS: Final = 3  # open now

DRAIN: Final = 4  # 1 when the master has ordered it to drain
ACCEPTING: Final = 5  # 1 from READY until it drains
NOTED_AT: Final = 6  # time.monotonic_ns() of the last `note`
LAST_NOTED: Final = 7  # numbers above have entered since

LINES: Final = 8
"""So many lines are noted, and shown. A power of two."""
LINE_SIZE: Final = 200
_PLACES: Final = 1 + LINES  # the first is for the work that holds the process
STARTED: Final = 8  # first of _PLACES cells: when the work began, 0 if the place is free
_LENGTHS: Final = STARTED + _PLACES  # first of _PLACES cells: bytes of the line
HANDSHAKES_FAILED: Final = _LENGTHS + _PLACES  # with TLS, since the process started
_CELLS: Final = HANDSHAKES_FAILED + 1
_TEXT: Final = _CELLS * 8
_ENTERED: Final = 2048  # first of LINES places: a number, 0 if what has entered has left, and the line
_ENTRY: Final = Struct(f"=Q{LINE_SIZE + 1}p")
_ENTRY_SIZE: Final = 216  # in whole cells
LOST_LINES: Final = (_ENTERED + _ENTRY_SIZE * LINES) // 8  # of its logs, since the process started
UNSAID_LINES: Final = LOST_LINES + 1  # of those, what it has not told of at its end
_ROW_SIZE: Final = 4096

LAYOUT: Final = f"rows of {_ROW_SIZE} bytes, {_CELLS} cells, {_PLACES} lines of {LINE_SIZE}, {LINES} entered"
"""What all processes of a server must agree on; the meaning of a cell as well, so it changes with that."""


class Row:
    """One process's row. Its own process writes; any process of the server reads."""

    __slots__ = ("_last", "_memory", "_number", "_text", "cells", "enter", "index", "leave", "refresh")

    def __init__(self, index: int, memory: memoryview) -> None:
        self.index = index
        self.cells: memoryview[int] = memory.cast("Q")
        self._text = memory[_TEXT : _TEXT + _PLACES * LINE_SIZE]
        self._memory = memory
        self._number, self.enter, self.leave = _entries(memory)
        self._last = b""
        # What its own process calls before somebody looks; it may be called in a signal handler.
        self.refresh: Callable[[], None] = _nothing

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

    def note(self, requests: Sequence[tuple[int, bytes]], in_flight: int) -> None:
        """Note the requests in hand, instead of those noted before.

        Args:
            requests: (start in monotonic nanoseconds, line) of those that matter most; the first LINES are kept.
            in_flight: How many there are in all.
        """
        cells = self.cells
        cells[IN_FLIGHT] = in_flight
        cells[LAST_NOTED], cells[NOTED_AT] = self._number(), monotonic_ns()
        for place in range(1, _PLACES):
            cells[STARTED + place] = 0
        for place, (started, line) in enumerate(requests[:LINES], 1):
            kept = line[:LINE_SIZE]
            start = place * LINE_SIZE
            self._text[start : start + len(kept)] = kept
            cells[_LENGTHS + place] = len(kept)
            cells[STARTED + place] = started

    def in_flight(self) -> int:
        """Return how many requests are being answered."""
        return max(self.cells[IN_FLIGHT], int(self.cells[STARTED] != 0))

    def lines(self) -> list[tuple[int, bytes]]:
        """Return (start in monotonic nanoseconds, line) of at most LINES requests in hand, oldest first.

        The bytes are the client's. What holds the process is always among them.
        """
        found = [(self.cells[STARTED + place], self._line(place)) for place in range(_PLACES)]
        holds, noted = found[0], [one for one in found[1:] if one[0]]
        first = self._entered()
        if holds[0]:
            first = [holds]
            same = next((one for one in noted if one[1] == holds[1]), None)
            if same is not None:
                noted.remove(same)  # it was noted, too, while it waited for its turn
        return sorted([*first, *noted[: LINES - len(first)]])

    def _entered(self) -> list[tuple[int, bytes]]:
        """Return those that have entered since the last note, which does not have them; they began not long after that."""
        last, since = self.cells[LAST_NOTED], self.cells[NOTED_AT] or self.cells[BEAT]
        entries = (_ENTRY.unpack_from(self._memory, _ENTERED + _ENTRY_SIZE * place) for place in range(LINES))
        return [(since + number - last, line) for number, line in entries if number > last]

    def _line(self, place: int) -> bytes:
        start = place * LINE_SIZE
        return bytes(self._text[start : start + min(self.cells[_LENGTHS + place], LINE_SIZE)])

    def clear(self) -> None:
        """Make the row a free one. For the master, when its process is gone."""
        self._memory[:] = bytes(_ROW_SIZE)


def _entries(memory: memoryview) -> tuple[Callable[[], int], Callable[[bytes], int], Callable[[int], None]]:
    """Return what gives the next number, and a row's `enter` and `leave`: functions of local variables, for the hot path.

    `enter` notes that the application is called for a request, beside others, and returns a number for `leave`, which notes
    that the application has ended. From any thread.
    """
    next_number, pack, cells, last = count(1).__next__, _ENTRY.pack_into, memory.cast("Q"), LINES - 1
    places = tuple(_ENTERED + _ENTRY_SIZE * place for place in range(LINES))
    first = tuple(place // 8 for place in places)

    def enter(line: bytes) -> int:
        number = next_number()
        pack(memory, places[number & last], number, line)
        return number

    def leave(number: int) -> None:
        at = first[number & last]
        if cells[at] == number:
            cells[at] = 0

    return next_number, enter, leave


@record
class ScoreboardState:
    """A scoreboard in an upgrade."""

    layout: str
    rows: int
    memory: InheritedFd


class Scoreboard:
    """All the rows. Made by the master before its first fork; its size is for good, as each process maps it once."""

    def __init__(self, rows: int, descriptor: int | None = None) -> None:
        """Make it; or map one that is there, in the program that an upgrade has put in place of the master."""
        self.size = rows
        size = (rows + 1) * _ROW_SIZE
        self._descriptor = _memory_file(size) if descriptor is None else descriptor
        self._memory = memoryview(mmap.mmap(-1 if self._descriptor is None else self._descriptor, size))
        # A row's worth in front holds how many rows were ever used, so that nobody looks at all.
        self._used = self._memory[:8].cast("Q")
        self._rows: dict[int, Row] = {}

    def export(self) -> ScoreboardState:
        """Describe it, for an upgrade."""
        return ScoreboardState(LAYOUT, self.size, InheritedFd(-1 if self._descriptor is None else self._descriptor))

    def close(self) -> None:
        """Close the descriptor, which is for an upgrade; the memory stays. In a child just forked, and at the master's end."""
        if self._descriptor is not None:
            os.close(self._descriptor)

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


def unseen_row() -> Row:
    """Return a row of no scoreboard, for a process that nobody looks at."""
    return Row(0, memoryview(bytearray(_ROW_SIZE)))


def _nothing() -> None:
    """Have nothing to add to what is noted."""


def _memory_file(size: int) -> int | None:
    """Return a file: an anonymous mapping, all that is needed where there are no upgrades, could not be handed over an exec."""
    if sys.platform != "linux":
        return None
    descriptor = nameless_file("forkserve-scoreboard")
    os.ftruncate(descriptor, size)
    return descriptor
