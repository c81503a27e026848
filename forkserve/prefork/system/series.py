"""The shared memory of the app's metrics: a region for each process, and one for the totals of processes that are gone.

It lies beside the scoreboard, and a process has the same row there. What a region holds is described in `forkserve.base.series`.
When a process is gone, the master adds its counters to the totals and empties its region; a reader that meets this half done
tries again.
"""

from __future__ import annotations

import mmap
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from forkserve.base import series
from forkserve.base.handover import InheritedFd
from forkserve.base.memory import nameless_file
from forkserve.base.records import record
from forkserve.base.series import Contents, Region, Totals

TOTALS: Final = 8
"""How many regions the totals have room for: an app may have had other labels and metrics before."""
_FRONT: Final = 4096  # holds the next two words
CHANGES, USED_ROWS = range(2)
"""A number that is odd while counters move from a region to the totals; and how many rows were ever used: no others are read."""
_TRIES: Final = 100
_MOMENT: Final = 0.001  # seconds


@record
class SeriesState:
    """The metrics of the app in an upgrade.

    Attributes:
        counts: All counters (`series.write_counts`), for a program that reads no such memory.
    """

    layout: int
    rows: int
    space: int
    memory: InheritedFd | None
    counts: Sequence[Any]


class SeriesMemory:
    """All regions. The master makes it before its first fork. Its size never changes, as each process maps it once.

    Args:
        rows: How many processes there may be beside the master.
        space: Bytes for each; 0: metrics are not shared.
        before: What the previous program has handed over, in an upgrade. Its space stays. If its memory cannot be read,
            its counters are kept, but not what its workers will count until they are replaced.
    """

    def __init__(self, rows: int, space: int, before: SeriesState | None = None) -> None:
        known = before is not None and before.layout == series.LAYOUT
        if before is not None and known:
            rows, space = max(rows, before.rows), before.space
        self.rows, self.space = rows, -(-space // _FRONT) * _FRONT
        self._descriptor: int | None = None
        self._memory: memoryview | None = None
        self._front: memoryview[int] = memoryview(bytearray(_FRONT)).cast("Q")
        self._totals: Totals | None = None
        if self.space:
            self._map(before.memory if before is not None and known else None)
        if before is not None and known:
            self.settle(None)  # the previous program itself is gone
        elif before is not None:
            if before.memory is not None:
                os.close(before.memory)
            if self._totals is not None:
                self._totals.add(series.read_counts(before.counts))

    def _map(self, descriptor: int | None) -> None:
        size = _FRONT + (TOTALS + 1 + self.rows) * self.space
        if descriptor is None and sys.platform == "linux":
            descriptor = nameless_file("forkserve-metrics")
        if descriptor is not None:
            os.ftruncate(descriptor, size)  # it only grows; processes of the previous program go on with the part that they know
        self._descriptor = descriptor
        self._memory = memoryview(mmap.mmap(-1 if self._descriptor is None else self._descriptor, size))
        self._front = self._memory[:_FRONT].cast("Q")
        with self._change():
            self._totals = Totals(self._memory[_FRONT : _FRONT + TOTALS * self.space])

    def export(self) -> SeriesState:
        """Describe it, for an upgrade."""
        descriptor = None if self._descriptor is None else InheritedFd(self._descriptor)
        counts = series.write_counts(self.read())
        return SeriesState(series.LAYOUT, self.rows, self.space, descriptor, counts)

    def close(self) -> None:
        """Close the descriptor, which only an upgrade needs. In a new child, and at the end of the master."""
        if self._descriptor is not None:
            os.close(self._descriptor)

    def _slice(self, index: int | None) -> memoryview | None:
        """Return the memory of a row; of the master for None. There is none for a row that was added by an upgrade."""
        if self._memory is None or (index is not None and index >= self.rows):
            return None
        begin = _FRONT + (TOTALS + (0 if index is None else 1 + index)) * self.space
        return self._memory[begin : begin + self.space]

    def region(self, index: int | None) -> Region | None:
        """Return the region for the process of a row, or of the master (None), to write into; None: there is no room."""
        memory = self._slice(index)
        return None if memory is None else Region(memory)

    def assign(self, index: int | None, owner: int, age: int) -> None:
        """Empty a region for the process that is about to be forked. In the master.

        Args:
            index: The row; None: that of the master.
            owner: As in `series.OWNER`.
            age: Greater the later the process is started.
        """
        if (memory := self._slice(index)) is not None:
            series.clear(memory, owner, age)
            self._front[USED_ROWS] = max(self._front[USED_ROWS], 0 if index is None else index + 1)

    def settle(self, index: int | None) -> None:
        """Add what a process has counted to the totals, once it is gone. In the master."""
        memory = self._slice(index)
        if memory is None or self._totals is None:
            return
        with self._change():
            self._totals.add(series.read(memory))
            series.clear(memory)

    @contextmanager
    def _change(self) -> Iterator[None]:
        self._front[CHANGES] |= 1
        try:
            yield
        finally:
            self._front[CHANGES] += 1

    def read(self) -> list[Contents]:
        """Read all regions, each process's counters exactly once. In any process of the server."""
        for _ in range(_TRIES):
            before = self._front[CHANGES]
            found = list(self._all())
            if before % 2 == 0 and self._front[CHANGES] == before:
                break
            time.sleep(_MOMENT)  # the master moves counters; nothing tells when it is done
        return found

    def _all(self) -> Iterator[Contents]:
        if self._memory is None:
            return
        yield series.read(self._memory[_FRONT : _FRONT + TOTALS * self.space])
        for index in (None, *range(min(self._front[USED_ROWS], self.rows))):
            memory = self._slice(index)
            assert memory is not None
            if memory[: series.HEADER].cast("Q")[series.OWNER] != series.NOBODY:
                yield series.read(memory)
