"""Shared memory that every process of a server can read: one row per process, written by that process alone.

A row holds some 64-bit numbers (`TABLE`) and the request lines of the requests in hand. Nothing is locked. Each number is one
aligned store, and a request line that is read while it is written is at worst a wrong line in a log. The master reads a row also
when its worker is stuck, which is when the worker could not answer a message.

A line is written when its work is about to hold the whole process (`begin`), as nothing could be written later. Of requests that
run side by side, those in hand are noted once a second, and when the master asks for the stacks, if Python code can still run
(`refresh`). A request may begin just before native code keeps the interpreter's lock: so each request writes its line when it
enters the application, into one of a few places that are used in turn (`next_entry`).

Counters for metrics (`RESPONSES`, `LATENCIES`) are declared but not filled yet. They must not turn off the fast path of a
response: a worker counts in a list of its own (`counts[status // 100] += 1`), where status and start are known anyway, and copies
the list into the cells once a second, as it does with `REQUESTS`. So a response costs no store here, no hook and no object.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Callable, Sequence
from itertools import cycle
from time import monotonic_ns
from typing import Final, Literal

from forkserve.base.handover import InheritedFd
from forkserve.base.memory import nameless_file
from forkserve.base.records import record

Kind = Literal["counter", "gauge", "stamp"]
"""A counter grows from 0 at the start of the process. A gauge is a present value. A stamp is `time.monotonic_ns()`, or 0."""


@record
class Cells:
    """The declaration of one or several 64-bit numbers in a row; `index` is that of the first."""

    name: str
    index: int
    count: int
    kind: Kind
    unit: str
    meaning: str


TABLE: Final[list[Cells]] = []
"""Every number in a row, in order."""


def _cells(name: str, kind: Kind, unit: str, meaning: str, count: int = 1) -> int:
    """Declare numbers behind those declared so far. Return the index of the first in `Row.cells`."""
    index = TABLE[-1].index + TABLE[-1].count if TABLE else 0
    TABLE.append(Cells(name, index, count, kind, unit, meaning))
    return index


LINES: Final = 8
"""How many request lines are noted and shown."""
LINE_SIZE: Final = 200
_PLACES: Final = 1 + LINES  # the first is for the work that holds the process

BEAT: Final = _cells("beat", "stamp", "ns", "The last sign of life.")
REQUESTS: Final = _cells("requests", "counter", "requests", "Requests that have begun.")
IN_FLIGHT: Final = _cells("in_flight", "gauge", "requests", "Requests in hand at the last note; `Row.in_flight` is more recent.")
CONNECTIONS: Final = _cells("connections", "gauge", "connections", "Open connections.")
DRAIN: Final = _cells("drain", "gauge", "0 or 1", "Whether the master has ordered the worker to drain.")
ACCEPTING: Final = _cells("accepting", "gauge", "0 or 1", "Whether the worker accepts connections.")
NOTED_AT: Final = _cells("noted_at", "stamp", "ns", "The last note of the requests in hand.")
STARTED: Final = _cells("started", "stamp", "ns", "Starts of the work that holds the process, and of noted requests.", _PLACES)
HANDSHAKES_FAILED: Final = _cells("handshakes_failed", "counter", "handshakes", "TLS handshakes that failed.")
LOST_LINES: Final = _cells("lost_lines", "counter", "lines", "Lines of logs that were lost.")
UNREPORTED_LINES: Final = _cells("unreported_lines", "gauge", "lines", "Lost lines that the process had not reported at its end.")
RESPONSES: Final = _cells("responses", "counter", "responses", "Responses by status class, 1xx to 5xx. Not filled yet.", 5)
LATENCIES: Final = _cells(
    "latencies",
    "counter",
    "responses",
    "Responses by duration: below 0.1 ms, 0.2 ms, 0.4 ms and so on; the last counts all longer ones. Not filled yet.",
    20,
)
LATENCY_SUM: Final = _cells("latency_sum", "counter", "ns", "The sum of the durations of all responses. Not filled yet.")

_Text = ctypes.c_char * LINE_SIZE  # a shorter line ends with a zero; the cheapest way to write into the memory
_TEXTS: Final = (TABLE[-1].index + TABLE[-1].count) * 8  # _PLACES, then LINES of requests that have entered
_ROW_SIZE: Final = 4096
assert _TEXTS + ctypes.sizeof(_Text) * (_PLACES + LINES) <= _ROW_SIZE

LAYOUT: Final = (
    " ".join(f"{one.name}:{one.index}" for one in TABLE) + f" {_PLACES} and {LINES} lines of {LINE_SIZE}, rows of {_ROW_SIZE}"
)
"""What all processes of a server must agree on: a new program with another layout refuses the upgrade."""


class Entry:
    """A place for the line of a request that has entered the application since the last note. From any thread. Hot path.

    Attributes:
        owner: Stands for the request; others may need the place before it leaves.
        line: The place, whose ``value`` is the request line, or empty. To set more than LINE_SIZE bytes raises ValueError.
    """

    __slots__ = ("line", "owner")

    def __init__(self, line: ctypes.Array[ctypes.c_char]) -> None:
        self.owner: object = None
        self.line = line

    def enter(self, owner: object, line: bytes) -> None:
        """Note that the application is called for a request."""
        self.owner = owner
        self.line.value = line[:LINE_SIZE]

    def leave(self, owner: object) -> None:
        """Note that the application has returned."""
        if self.owner is owner:
            self.owner = None
            self.line.value = b""


class Row:
    """One process's row. Its own process writes; any process of the server reads.

    Attributes:
        next_entry: Returns the place for a request that enters the application.
    """

    __slots__ = ("_entries", "_last", "_lines", "_memory", "cells", "index", "next_entry", "refresh")

    def __init__(self, index: int, memory: memoryview) -> None:
        self.index = index
        self.cells: memoryview[int] = memory.cast("Q")
        self._memory = memory
        texts = [_Text.from_buffer(memory, _TEXTS + ctypes.sizeof(_Text) * number) for number in range(_PLACES + LINES)]
        self._lines = texts[:_PLACES]
        self._entries = [Entry(text) for text in texts[_PLACES:]]
        self.next_entry: Callable[[], Entry] = cycle(self._entries).__next__
        self._last = b""
        # Its own process calls it before the row is read. It may be called in a signal handler.
        self.refresh: Callable[[], None] = _nothing

    def begin(self, line: bytes) -> int:
        """Note that work begins that holds the process, and beat; return the time in monotonic nanoseconds. Hot path.

        Args:
            line: The name of the work; its first LINE_SIZE bytes are kept.
        """
        now = monotonic_ns()
        if line is not self._last:  # the same object has the same text
            self._last = line
            self._lines[0].value = line[:LINE_SIZE]
        self.cells[BEAT] = self.cells[STARTED] = now
        return now

    def end(self) -> None:
        """Note that this work has ended. It does not beat: the event loop beats by itself."""
        self.cells[STARTED] = 0

    def connected(self, count: int) -> None:
        """Note how many connections are open."""
        self.cells[CONNECTIONS] = count

    def order_drain(self) -> None:
        """Let a busy worker know that the order to drain is on its way. For the master."""
        self.cells[DRAIN] = 1

    def is_drain_ordered(self) -> bool:
        """Return whether the master has ordered this worker to drain."""
        return self.cells[DRAIN] == 1

    def note(self, requests: Sequence[tuple[int, bytes]], in_flight: int) -> None:
        """Note the requests in hand, in place of those noted before.

        Args:
            requests: (start in monotonic nanoseconds, line) of the most important ones; the first LINES are kept.
            in_flight: How many requests are in hand in all.
        """
        cells = self.cells
        cells[IN_FLIGHT] = in_flight
        cells[NOTED_AT] = monotonic_ns()
        for entry in self._entries:
            entry.line.value = b""  # the request is noted elsewhere
        for place in range(1, _PLACES):
            cells[STARTED + place] = 0
        for place, (started, line) in enumerate(requests[:LINES], 1):
            self._lines[place].value = line[:LINE_SIZE]
            cells[STARTED + place] = started

    def in_flight(self) -> int:
        """Return how many requests are being answered."""
        return max(self.cells[IN_FLIGHT], int(self.cells[STARTED] != 0))

    def lines(self) -> list[tuple[int, bytes]]:
        """Return (start in monotonic nanoseconds, line) of at most LINES requests in hand, oldest first.

        The bytes come from the client. The work that holds the process is always among them.
        """
        found = [(self.cells[STARTED + place], self._lines[place].value) for place in range(_PLACES)]
        holds, noted = found[0], [one for one in found[1:] if one[0]]
        first = self._entered()
        if holds[0]:
            first = [holds]
            same = next((one for one in noted if one[1] == holds[1]), None)
            if same is not None:
                noted.remove(same)  # it was also noted while it waited
        return sorted([*first, *noted[: LINES - len(first)]])

    def _entered(self) -> list[tuple[int, bytes]]:
        """Return the requests that have entered since the last note, with the time of the note as their start."""
        since = self.cells[NOTED_AT] or self.cells[BEAT]
        return [(since, line) for entry in self._entries if (line := entry.line.value)]

    def clear(self) -> None:
        """Clear the row. For the master, when its process is gone."""
        self._memory[:] = bytes(_ROW_SIZE)


@record
class ScoreboardState:
    """A scoreboard in an upgrade."""

    layout: str
    rows: int
    memory: InheritedFd


class Scoreboard:
    """All rows. The master makes it before its first fork. Its size never changes, as each process maps it once."""

    def __init__(self, rows: int, descriptor: int | None = None) -> None:
        """Make it, or map the one with this descriptor: in the new program of an upgrade."""
        self.size = rows
        size = (rows + 1) * _ROW_SIZE
        self._descriptor = _memory_file(size) if descriptor is None else descriptor
        self._memory = memoryview(mmap.mmap(-1 if self._descriptor is None else self._descriptor, size))
        # The space of one row in front holds how many rows were ever used, so that no process reads all of them.
        self._used = self._memory[:8].cast("Q")
        self._rows: dict[int, Row] = {}

    def export(self) -> ScoreboardState:
        """Describe it, for an upgrade."""
        return ScoreboardState(LAYOUT, self.size, InheritedFd(-1 if self._descriptor is None else self._descriptor))

    def close(self) -> None:
        """Close the descriptor, which only an upgrade needs. In a new child, and at the end of the master."""
        if self._descriptor is not None:
            os.close(self._descriptor)

    def row(self, index: int) -> Row:
        """Return one row, the same object each time."""
        if index not in self._rows:
            start = (index + 1) * _ROW_SIZE
            self._rows[index] = Row(index, self._memory[start : start + _ROW_SIZE])
        return self._rows[index]

    def assign(self, index: int) -> Row:
        """Return a row, cleared for the process that is about to be forked. For the master."""
        self._used[0] = max(self._used[0], index + 1)
        row = self.row(index)
        row.clear()
        return row

    def siblings(self, own: Row) -> list[Row]:
        """Return the rows of the other processes that accept connections now."""
        rows = [self.row(index) for index in range(self._used[0]) if index != own.index]
        return [row for row in rows if row.cells[ACCEPTING]]


def unseen_row() -> Row:
    """Return a row of no scoreboard, for a process that no other process reads about."""
    return Row(0, memoryview(bytearray(_ROW_SIZE)))


def _nothing() -> None:
    """Add nothing to the noted requests."""


def _memory_file(size: int) -> int | None:
    """Return the descriptor of the memory, which an upgrade hands over; None where there are no upgrades."""
    if sys.platform != "linux":
        return None
    descriptor = nameless_file("forkserve-scoreboard")
    os.ftruncate(descriptor, size)
    return descriptor
