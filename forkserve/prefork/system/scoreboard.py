"""Shared memory that every process of a server can read: one row per process, written by that process alone.

A row holds some 64-bit numbers (`TABLE`) and the request lines of the requests in hand. Nothing is locked. Each number is one
aligned store, and a request line that is read while it is written is at worst a wrong line in a log. The master reads a row also
when its worker is stuck, which is when the worker could not answer a message.

A line is written when its work is about to hold the whole process (`begin`), as nothing could be written later. Of requests that
run side by side, those in hand are noted once a second, and when the master asks for the stacks, if Python code can still run
(`refresh`). A request may begin just before native code keeps the interpreter's lock: so each request writes its line when it
enters the application, into one of a few places that are used in turn (`next_entry`).

A worker counts in a `Tally` of plain Python objects and copies that into its row once a second (`count`), so that a response
costs no store here. When a process is gone, the master adds its counters to the totals of its slot (`fold`), which are in this
memory as well. So every process can read what the server has done since its start (`counted`).

An upgrade to a program with another `TABLE` makes a new scoreboard. The totals are copied by the names of the cells. The workers
of the previous program keep the memory that they know, and the new master reads it by the table that was handed over.
"""

from __future__ import annotations

import ctypes
import os
import sys
from array import array
from collections.abc import Callable, Sequence
from itertools import cycle
from mmap import PAGESIZE, mmap
from operator import add
from time import monotonic_ns, sleep
from typing import Final, Literal

from forkserve.base.handover import InheritedFd
from forkserve.base.memory import nameless_file
from forkserve.base.records import record
from forkserve.base.tally import CODES, FIRST_CODE, NAMES, Tally
from forkserve.prefork.system.layout import CellsPlace, Layout, Numbers, Translated

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
    labels: Sequence[str] = ()  # of the numbers, if they are several


TABLE: Final[list[Cells]] = []
"""Every number in a row, in order."""


def _cells(
    name: str,
    kind: Kind,
    unit: str,
    meaning: str,
    count: int = 1,
    *,
    labels: Sequence[object] = (),
    table: list[Cells] = TABLE,
) -> int:
    """Declare numbers behind those declared so far. Return the index of the first in `Row.cells`."""
    index = table[-1].index + table[-1].count if table else 0
    named = tuple(map(str, labels or range(count)))
    table.append(Cells(name, index, len(named), kind, unit, meaning, named))
    return index


LINES: Final = 8
"""How many request lines are noted and shown."""
LINE_SIZE: Final = 200
LONG_CALL: Final = 1_000_000_000
"""Nanoseconds after which a call counts as busy time before it has ended."""
PATIENCE: Final = 500_000_000
"""Nanoseconds for which a reader waits for the master to end a change of the totals."""
PAUSE: Final = 0.0005
"""Seconds between two looks at that."""
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
SLOT: Final = _cells("slot", "gauge", "slot", "The slot of the process, and 0 of a mold. Written by the master.")
LOOP_LAG: Final = _cells("loop_lag", "gauge", "ns", "The longest delay of the event loop in the last second or so.")
RESPONSES: Final = _cells(
    "responses", "counter", "responses", "Responses by status code.", labels=range(FIRST_CODE, FIRST_CODE + CODES)
)
LATENCIES: Final = _cells(
    "latencies",
    "counter",
    "responses",
    "Responses by the time from the head of the request to the last byte, in buckets with the bounds of `forkserve.base.tally`.",
    labels=NAMES,
)
LATENCY_SUM: Final = _cells("latency_sum", "counter", "ns", "The sum of these times.")
WAITS: Final = _cells(
    "waits", "counter", "requests", "Requests by the time from their arrival to the call of the application.", labels=NAMES
)
WAIT_SUM: Final = _cells("wait_sum", "counter", "ns", "The sum of these times.")
RECEIVED: Final = _cells("received", "counter", "bytes", "Bytes of request bodies.")
SENT: Final = _cells("sent", "counter", "bytes", "Bytes of response bodies.")
ACCEPTED: Final = _cells("accepted", "counter", "connections", "Connections that were accepted.")
BUSY: Final = _cells("busy", "counter", "ns", "Time in which the application was called; the page `status-json` says more.")

_CELLS: Final = TABLE[-1].index + TABLE[-1].count
_GAUGES: Final = [one for one in TABLE if one.kind != "counter"]

MASTERS: Final[list[Cells]] = []
"""Every number that the master alone writes, in order; they are in front of the rows."""

# The first is the first in every layout.
USED: Final = _cells(
    "used", "gauge", "rows", "How many rows were ever used, so that no process reads all of them.", table=MASTERS
)
SLOTS: Final = _cells("slots", "gauge", "slots", "The highest slot that was ever used.", table=MASTERS)
FOLDS: Final = _cells(
    "folds", "counter", "changes", "Odd while counters of a process that is gone move to the totals.", table=MASTERS
)
STOPPING: Final = _cells(
    "stopping", "gauge", "unix time in µs", "When the server has begun to stop; 0 if it has not.", table=MASTERS
)
READY: Final = _cells("ready", "gauge", "workers", "Ready workers.", table=MASTERS)
WANTED: Final = _cells(
    "wanted", "gauge", "workers", "Workers that should run; 0 also while the server is suspended.", table=MASTERS
)
GENERATION: Final = _cells("generation", "gauge", "generation", "The generation that workers are forked from.", table=MASTERS)

LAYOUT: Final = Layout(
    cells={one.name: CellsPlace(one.index, one.labels) for one in TABLE},
    places=_PLACES,
    entries=LINES,
    line_size=LINE_SIZE,
    texts=_CELLS * 8,
    row_size=-(-(_CELLS * 8 + LINE_SIZE * (_PLACES + LINES)) // PAGESIZE) * PAGESIZE,
)
"""The layout of this program. A process uses the memory of another layout only by the names of the cells."""


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
        cells: The numbers.
        layout: How the program has laid it out that has made it.
        next_entry: Returns the place for a request that enters the application.
    """

    __slots__ = ("_entries", "_last", "_lines", "_memory", "cells", "index", "layout", "next_entry", "refresh")

    def __init__(self, index: int, memory: memoryview, layout: Layout = LAYOUT) -> None:
        self.index = index
        self.layout = layout
        numbers = memory.cast("Q")
        self.cells: Numbers = numbers if layout is LAYOUT else Translated(numbers, LAYOUT.indexes(layout))
        self._memory = memory
        kind, size = ctypes.c_char * layout.line_size, layout.line_size
        # A shorter line ends with a zero. This is the cheapest way to write into the memory.
        texts = [kind.from_buffer(memory, layout.texts + size * number) for number in range(layout.places + layout.entries)]
        self._lines = texts[: min(layout.places, _PLACES)]
        self._entries = [Entry(text) for text in texts[layout.places :]]
        self.next_entry: Callable[[], Entry] = cycle(self._entries).__next__
        self._last = b""
        # Its own process calls it before the row is read. It may be called in a signal handler.
        self.refresh: Callable[[], None] = _nothing

    def begin(self, line: bytes, now: int | None = None) -> None:
        """Note that work begins that holds the process, and beat. Hot path.

        Args:
            line: The name of the work; its first LINE_SIZE bytes are kept.
            now: The time in monotonic nanoseconds, if it has been taken.
        """
        if now is None:
            now = monotonic_ns()
        if line is not self._last:  # the same object has the same text
            self._last = line
            self._lines[0].value = line[:LINE_SIZE]
        self.cells[BEAT] = self.cells[STARTED] = now

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
        """Return how many requests are being answered, also if the process is stuck."""
        return max(self.cells[IN_FLIGHT] + len(self._entered()), int(self.cells[STARTED] != 0))

    def lines(self) -> list[tuple[int, bytes]]:
        """Return (start in monotonic nanoseconds, line) of at most LINES requests in hand, oldest first.

        The bytes come from the client. The work that holds the process is always among them.
        """
        return self._in_hand(LINES)

    def requests(self) -> list[tuple[int, bytes]]:
        """Return the same without WebSockets, which wait most of the time."""
        return self._in_hand(self.cells[IN_FLIGHT])

    def _in_hand(self, most: int) -> list[tuple[int, bytes]]:
        """Return the lines of the requests in hand; of those that are noted, only the most important ones."""
        found = [(self.cells[STARTED + place], line.value) for place, line in enumerate(self._lines)]
        holds, noted = found[0], [one for one in found[1 : most + 1] if one[0]]
        first = self._entered()
        if holds[0]:
            first = [holds]
            same = next((one for one in noted if one[1] == holds[1]), None)
            if same is not None:
                noted.remove(same)  # it was also noted while it waited
        return sorted([*first, *noted[: LINES - len(first)]])

    def _entered(self) -> list[tuple[int, bytes]]:
        """Return the requests that have entered since the last note, with the time of the note as their start.

        A request may have been noted before it entered: one with the line of a noted one counts as that.
        """
        since = self.cells[NOTED_AT] or self.cells[BEAT]
        noted = [line.value for place, line in enumerate(self._lines) if place and self.cells[STARTED + place]]
        found = []
        for entry in self._entries:
            if line := entry.line.value:
                if line in noted:
                    noted.remove(line)
                else:
                    found.append((since, line))
        return found

    def count(self, tally: Tally, requests: int) -> None:
        """Copy what the process has counted. About once a second, as it takes some microseconds.

        Args:
            tally: The counters.
            requests: The requests that have begun.
        """
        cells = self.cells
        for first, numbers in (
            (RESPONSES, tally.codes[FIRST_CODE:]),
            (LATENCIES, tally.all_latencies()),
            (WAITS, tally.all_waits()),
            (LATENCY_SUM, (tally.latency_sum,)),
            (WAIT_SUM, (tally.wait_sum,)),
            (RECEIVED, (tally.received, tally.sent, tally.accepted, tally.busy)),
        ):
            cells[first : first + len(numbers)] = array("Q", numbers)  # type: ignore[assignment,index]  # a process has a row of its layout
        cells[REQUESTS] = requests
        cells[LOOP_LAG], tally.lag = tally.lag, 0

    def counted(self) -> list[int]:
        """Return all numbers in the row; those that are no counters as 0. A long call that is under way counts as busy."""
        cells = self.cells
        found: list[int] = (
            cells[:_CELLS].tolist() if isinstance(cells, memoryview) else list(map(cells.__getitem__, range(_CELLS)))
        )
        for one in _GAUGES:
            found[one.index : one.index + one.count] = [0] * one.count
        if started := self.cells[STARTED]:
            under_way = monotonic_ns() - started
            if under_way > LONG_CALL:
                found[BUSY] += under_way
        return found

    def clear(self) -> None:
        """Clear the row. For the master, when its process is gone."""
        self._memory[:] = bytes(len(self._memory))


@record
class ScoreboardState:
    """A scoreboard in an upgrade."""

    rows: int
    memory: InheritedFd
    layout: Layout


class Scoreboard:
    """All rows. The master makes it before its first fork. Its size never changes, as each process maps it once.

    In the memory are the numbers of the master, in the space of one row; the rows; and the totals of each slot, as rows. The
    first totals are those of all slots that have no row of totals.

    Args:
        rows: How many processes there may be.
        descriptor: That of the memory, in the new program of an upgrade; None to make it.
        layout: The layout of the program that has made it.

    Attributes:
        numbers: The numbers that the master alone writes, `MASTERS`.
        older: In the master, the scoreboards of previous programs that processes still use.
    """

    def __init__(self, rows: int, descriptor: int | None = None, layout: Layout = LAYOUT) -> None:
        self.size = rows
        self.layout = LAYOUT if layout.name == LAYOUT.name else layout
        size = (2 * rows + 2) * layout.row_size
        self._descriptor = _memory_file(size) if descriptor is None else descriptor
        self._memory = memoryview(mmap(-1 if self._descriptor is None else self._descriptor, size))
        self.numbers = self._memory[: len(MASTERS) * 8].cast("Q")
        self._rows: dict[int, Row] = {}
        self.older: list[Scoreboard] = []

    def export(self) -> ScoreboardState:
        """Describe it, for an upgrade."""
        return ScoreboardState(self.size, InheritedFd(-1 if self._descriptor is None else self._descriptor), self.layout)

    def close(self) -> None:
        """Close the descriptors, which only an upgrade needs. In a new child, and at the end of the master."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        for one in self.older:
            one.close()

    def find(self, index: int, layout: str) -> Row:
        """Return the row of a process that a previous program has forked, in the scoreboard with this name of its layout."""
        return next((one for one in self.older if one.layout.name == layout), self).row(index)

    def of(self, layout: Layout) -> Scoreboard:
        """Return the scoreboard of this layout: this one, or an older one."""
        return next((one for one in self.older if one.layout is layout), self)

    def row(self, index: int) -> Row:
        """Return one row, the same object each time."""
        if index not in self._rows:
            start = (index + 1) * self.layout.row_size
            self._rows[index] = Row(index, self._memory[start : start + self.layout.row_size], self.layout)
        return self._rows[index]

    def totals(self, slot: int) -> Row:
        """Return the totals of a slot: the counters of its processes that are gone."""
        return self.row(self.size + (slot if slot <= self.size else 0))

    def assign(self, index: int, slot: int) -> Row:
        """Return a row, cleared for the process that is about to be forked. For the master."""
        self.numbers[USED] = max(self.numbers[USED], index + 1)
        if self.layout is LAYOUT:
            self.numbers[SLOTS] = max(self.numbers[SLOTS], min(slot, self.size))
        row = self.row(index)
        row.clear()
        row.cells[SLOT] = slot
        return row

    def siblings(self, own: Row) -> list[Row]:
        """Return the rows of the other processes that accept connections now."""
        rows = [self.row(index) for index in range(self.numbers[USED]) if index != own.index]
        return [row for row in rows if row.cells[ACCEPTING]]

    # The totals

    def fold(self, row: Row, slot: int) -> None:
        """Add the counters of a process that is gone to the totals of its slot, and clear its row. For the master."""
        self.numbers[FOLDS] += 1
        try:
            self._add(row.counted(), slot)
            row.clear()
        finally:
            self.numbers[FOLDS] += 1

    def _add(self, counted: list[int], slot: int) -> None:
        if not any(counted):
            return  # readers look only at the totals of slots up to SLOTS
        cells = self.totals(slot).cells
        self.numbers[SLOTS] = max(self.numbers[SLOTS], min(slot, self.size))
        for index, number in enumerate(counted):
            if number:
                cells[index] += number

    def adopt(self, before: Scoreboard) -> None:
        """Take over the totals of the scoreboard of another program, by the names of its cells. For the master.

        Own totals are replaced: if this scoreboard is that of a still earlier program, the other one has taken them over.
        """
        for slot in range(min(self.numbers[SLOTS], self.size) + 1):
            self.totals(slot).clear()
        for slot in range(before.size + 1):
            self._add(before.totals(slot).counted(), slot)

    def counted(self) -> dict[int, list[int]]:
        """Return for each slot all counters since the start of the server, by their index; 0 for slots that have no totals.

        In the master with those of processes that use an older scoreboard; elsewhere these follow when such a process is gone.

        Counters that move to the totals meanwhile are waited for, but not for long: the master may have been stopped or killed.
        """
        end = monotonic_ns() + PATIENCE
        while True:
            folds = self.numbers[FOLDS]
            found = self._counted()
            if (folds == self.numbers[FOLDS] and folds % 2 == 0) or monotonic_ns() > end:
                return found
            sleep(PAUSE)

    def _counted(self) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        rows = [(slot, self.row(self.size + slot)) for slot in range(self.numbers[SLOTS] + 1)]
        for board in (self, *self.older):
            used = map(board.row, range(board.numbers[USED]))
            rows += [(slot if slot <= self.size else 0, row) for row in used if (slot := row.cells[SLOT])]
        for slot, row in rows:
            counted = row.counted()
            if any(counted):
                found[slot] = list(map(add, found[slot], counted)) if slot in found else counted
        return found


def unseen_row() -> Row:
    """Return a row of no scoreboard, for a process that no other process reads about."""
    return Row(0, memoryview(bytearray(LAYOUT.row_size)))


def _nothing() -> None:
    """Add nothing to the noted requests."""


def _memory_file(size: int) -> int | None:
    """Return the descriptor of the memory, which an upgrade hands over; None where there are no upgrades."""
    if sys.platform != "linux":
        return None
    descriptor = nameless_file("forkserve-scoreboard")
    os.ftruncate(descriptor, size)
    return descriptor
