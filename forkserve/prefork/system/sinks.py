"""Sinks: destinations of the lines that workers write: a file, syslog, or a function.

Nothing here blocks the master's loop. A sink keeps lines that it cannot write at once, and `flush` reports that it can take no
more; then the worker waits. If nothing can be written for PATIENCE seconds, the lines are dropped: a worker must not stop for
ever because a log does.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from forkserve.base import logfile, logs
from forkserve.base.linequeue import LineQueue

if TYPE_CHECKING:
    from forkserve.base.logfile import LogFile

PATIENCE: Final = 5.0  # seconds to wait for a sink before its lines are dropped
LAST_WAIT: Final = 1.0  # the same at the end of the master
COMPLAIN_EVERY: Final = 60.0
SHORTEST_PAUSE: Final = 0.001
LONGEST_PAUSE: Final = 0.05


class Sink:
    """The base of all sinks: what happens when lines cannot be written. The subclass holds the lines."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._lost = 0  # lines that the log has not reported yet
        self._stuck_since: float | None = None
        self._complained = -COMPLAIN_EVERY

    def put(self, lines: Iterable[bytes]) -> None:
        """Take lines, without their newlines."""
        raise NotImplementedError

    def send(self) -> bool:
        """Write a piece of the waiting lines if that is possible at once; return whether it was. Raises OSError."""
        raise NotImplementedError

    @property
    def waits(self) -> bool:
        """Whether lines wait."""
        return False

    def lose(self) -> int:
        """Drop the waiting lines; return their number."""
        return 0

    def export(self) -> list[bytes]:
        """Describe what waits, for an upgrade."""
        return []

    def adopt(self, pieces: Iterable[bytes]) -> None:
        """Go on with it in the new program."""

    def wait_until_ready(self, seconds: float) -> None:
        """Wait for room, at most `seconds`."""

    def flush(self) -> bool:
        """Write as much as possible now; return whether the sink takes more."""
        went = False
        try:
            while self.waits:
                if not self.send():
                    return self._stuck(time.monotonic())
                self._stuck_since, went = None, True
        except OSError as error:
            self._drop(error.strerror or str(error))
        else:
            if went and self._lost:
                lost, self._lost = self._lost, 0
                logs.logger.warning("lines of workers' output to %s were lost: %d", self.name, lost)
        return True

    def pause(self) -> float:
        """Return the seconds to wait after a failed `flush`: as long as it has been stuck, within limits."""
        stuck = 0.0 if self._stuck_since is None else time.monotonic() - self._stuck_since
        return min(max(stuck, SHORTEST_PAUSE), LONGEST_PAUSE)

    def finish(self) -> None:
        """Write the rest, waiting up to LAST_WAIT; the master is about to end."""
        end = time.monotonic() + LAST_WAIT
        while not self.flush() and (left := end - time.monotonic()) > 0:
            self.wait_until_ready(left)
        if self.waits:
            self._drop("nothing can be written")
        self.close()

    def close(self) -> None:
        """Close the sink's own descriptors."""

    def _stuck(self, now: float) -> bool:
        if self._stuck_since is None:
            self._stuck_since = now
        if now - self._stuck_since < PATIENCE:
            return False
        self._drop("nothing can be written")
        return True

    def _drop(self, why: str) -> None:
        lines = self.lose()
        self._lost += lines
        logfile.count_lost(lines)
        if self._may_complain():
            logs.logger.warning("output of workers to %s is lost: %s", self.name, why)

    def _may_complain(self) -> bool:
        now = time.monotonic()
        may = now >= self._complained + COMPLAIN_EVERY
        if may:
            self._complained = now
        return may


class FileSink(Sink):
    """Appends to a file, to any other descriptor, or to syslog."""

    def __init__(self, name: str, file: LogFile, *, owned: bool = False) -> None:
        """Append to a file, which is closed with the sink only if it is owned by it."""
        super().__init__(name)
        self._file, self._owned = file, owned
        self._queue = LineQueue(sys.maxsize)  # never more than was read from the workers at once

    def put(self, lines: Iterable[bytes]) -> None:
        """Take lines."""
        self._queue.put(b"".join(line + b"\n" for line in lines))

    def send(self) -> bool:
        """Write a piece, unless a pipe or terminal is full."""
        count = self._file.send_from(self._queue)
        return count > 0

    @property
    def waits(self) -> bool:
        """Whether lines wait."""
        return bool(self._queue)

    def lose(self) -> int:
        """Drop the waiting lines, except the rest of a line that is partly written."""
        before, self._queue.lost = self._queue.lost, 0
        self._queue.lose()
        return self._queue.lost - before

    def export(self) -> list[bytes]:
        """Describe what waits, for an upgrade."""
        return [self._queue.piece(sys.maxsize)]

    def adopt(self, pieces: Iterable[bytes]) -> None:
        """Go on with it in the new program."""
        self._queue.put(b"".join(pieces))

    def wait_until_ready(self, seconds: float) -> None:
        """Wait for room, at most `seconds`."""
        self._file.wait_until_ready(seconds)

    def close(self) -> None:
        """Close the descriptor that the file has opened for writing without blocking; the file belongs to its owner."""
        self._file.let_go()
        if self._owned:
            self._file.close()


class FunctionSink(Sink):
    """Calls a function of the user with each line as text. It runs in the master's loop and must not block."""

    def __init__(self, name: str, function: Callable[[str], object]) -> None:
        super().__init__(name)
        self._function = function

    def put(self, lines: Iterable[bytes]) -> None:
        """Call the function. If it raises, the line is lost; one such error per minute is logged."""
        for line in lines:
            try:
                self._function(line.decode("utf-8", "backslashreplace"))
            except Exception:  # noqa: BLE001 - it may raise anything, and is logged
                if self._may_complain():
                    logs.logger.exception("%s failed for a line of a worker's output", self.name)


def drain(descriptor: int, most: int) -> Iterable[bytes]:
    """Yield the data in a pipe now, at most `most` bytes."""
    with contextlib.suppress(OSError):
        while most > 0 and (data := os.read(descriptor, min(most, 1 << 16))):
            most -= len(data)
            yield data
