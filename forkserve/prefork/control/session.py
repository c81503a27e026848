"""Session: one client of the control endpoint: its bytes, its running requests, and how far it has got. Never blocks."""

from __future__ import annotations

import contextlib
import enum
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass

from forkserve.base.handover import InheritedFd
from forkserve.base.records import record
from forkserve.prefork.control.wire import MAX_LINE, LineDecoder, LineError, Request
from forkserve.prefork.system.poller import READ, WRITE

READ_SIZE = 65536


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """How much a client may ask for, and how long it may take.

    Past `unsent` bytes nothing is read from it until it has read; if yet another answer is due then, it is closed. One answer
    alone may have any size.
    """

    clients: int = 128
    open: int = 16  # running requests of one client; at this number, or at a quarter of `line`, nothing is read from it
    line: int = MAX_LINE
    unsent: int = 8 << 20
    patience: float = 10.0  # seconds without a whole request, or in which nothing is read of what we send
    crowded: float = 1.0  # the same without a request, while no more clients are let in
    grace: float = 0.5  # seconds after a request's deadline in which its workers may still answer


class SessionPhase(enum.Enum):
    """How far a client has got. OPEN → ENDED → LAST → CLOSED, and it may leave out any of them."""

    OPEN = enum.auto()
    ENDED = enum.auto()  # it will send no more, but may read
    LAST = enum.auto()  # the reason for the end was sent; nothing is read any more
    CLOSED = enum.auto()


@dataclass(eq=False, slots=True)
class RunningRequest:
    """A request that runs. `progress` is the progress that its client knows of."""

    request: Request
    deadline: float | None
    progress: str = ""
    size: int = 0  # of its line; a line may take 25 times as much memory when it is read


@record
class SessionState:
    """A client in an upgrade: with what was read in part, what is still to be sent, and its requests under way."""

    socket: InheritedFd
    phase: SessionPhase
    rest: bytes
    unsent: bytes
    open: Sequence[RunningRequest]


class Session:
    """One client. `descriptor` stays the same after the end, so that it can still be taken out of a table."""

    def __init__(self, sock: socket.socket, limits: ClientLimits) -> None:
        sock.setblocking(False)
        self.descriptor = sock.fileno()
        self.open: set[RunningRequest] = set()
        self.phase = SessionPhase.OPEN
        self.since = time.monotonic()  # of the last thing that it did as it should, or that was done for it
        self._moved = self.since  # of the last byte that it took
        self._socket = sock
        self._limits = limits
        self._decoder = LineDecoder(limits.line)
        self._unsent = bytearray()

    def export(self) -> SessionState:
        """Describe it, for an upgrade."""
        unsent = bytes(self._unsent)
        return SessionState(InheritedFd(self.descriptor), self.phase, self._decoder.rest, unsent, list(self.open))

    @classmethod
    def adopt(cls, found: SessionState, limits: ClientLimits) -> Session:
        """Make it again in the new program."""
        session = cls(socket.socket(fileno=found.socket), limits)
        session.phase = found.phase
        session._decoder.feed(found.rest)
        session._unsent += found.unsent
        session.open = set(found.open)
        return session

    @property
    def waiting(self) -> bool:
        """Whether it has a line that can be taken now: a request, or bytes that are an error."""
        if (
            self.phase not in (SessionPhase.OPEN, SessionPhase.ENDED)
            or len(self.open) >= self._limits.open
            or len(self._unsent) > READ_SIZE
        ):
            return False
        if sum(running.size for running in self.open) > self._limits.line // 4:
            return False
        return self._decoder.waiting or (self.phase is SessionPhase.ENDED and self._decoder.partial)

    @property
    def over(self) -> bool:
        """Whether nothing can come of it any more."""
        if self.phase is SessionPhase.OPEN:
            return False
        return self.phase is SessionPhase.CLOSED or not (self.open or self._unsent or self.waiting)

    def events(self) -> int:
        """What to wait for; 0 for nothing."""
        reads = self.phase is SessionPhase.OPEN and not self._decoder.waiting
        return (READ if reads else 0) | (WRITE if self._unsent else 0)

    def late(self, now: float, patience: float) -> str | None:
        """Return why a client that keeps the server waiting is closed; empty if it does not even read."""
        if self._unsent:
            return "" if now - self._moved > self._limits.patience else None
        if self.phase is SessionPhase.OPEN and not self.open and not self.waiting and now - self.since > patience:
            return f"no complete request within {patience:g} s"
        return None

    def receive(self) -> None:
        """Take what has come, or a part of it."""
        try:
            data = self._socket.recv(READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.phase = SessionPhase.CLOSED
            return
        self._decoder.feed(data)
        if not data and self.phase is SessionPhase.OPEN:
            self.phase = SessionPhase.ENDED

    def next_line(self) -> bytes | None:
        """Return the next line. Raises LineError for what is not ours to read any further."""
        line = self._decoder.next_line()
        if line is None and self.phase is SessionPhase.ENDED and self._decoder.partial:
            raise LineError("the end came in the middle of a line")
        return line

    def send(self, line: bytes) -> None:
        """Send a line, or as much of it as fits now."""
        if self.phase is SessionPhase.CLOSED:
            return
        if len(self._unsent) > self._limits.unsent:
            self.phase = SessionPhase.CLOSED
            return
        if not self._unsent:
            self._moved = time.monotonic()
        self._unsent += line
        self.flush()

    def send_last(self, line: bytes) -> None:
        """Send the last line; its running requests get no other answer."""
        self.open.clear()
        self.send(line)
        if self.phase is not SessionPhase.CLOSED:
            self.phase = SessionPhase.LAST

    def flush(self) -> None:
        """Send what waits, as far as the client reads it."""
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
                self._moved = self.since = time.monotonic()
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self.phase = SessionPhase.CLOSED

    @property
    def unsent(self) -> bool:
        """Whether bytes wait for the client to read."""
        return bool(self._unsent) and self.phase is not SessionPhase.CLOSED

    def left(self) -> bool:
        """Whether it neither sends nor reads any more; one that only sends no more is not gone."""
        poll = select.poll()
        poll.register(self.descriptor, 0)
        return any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))

    def close(self) -> None:
        """Close it; in a child, this process's copy. Twice does no harm."""
        self.phase = SessionPhase.CLOSED
        self.open.clear()
        self._unsent.clear()
        self._socket.close()


def turn_away(sock: socket.socket, line: bytes) -> None:
    """Close a client that is not let in, with a line that says why."""
    with sock, contextlib.suppress(OSError):
        sock.setblocking(False)
        sock.send(line)
        sock.recv(READ_SIZE)  # what is left unread would reach it as an error, maybe before our line
