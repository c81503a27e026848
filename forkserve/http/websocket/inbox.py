"""Messages that a WebSocket client has sent and the application has not received: bounded in number, memory and work.

A turn handles `STEPS_A_TURN` steps of one client's input. The rest is left for the next turn, and until then no more is read from
that client. While too many messages wait for the application, nothing is read, unmasked or inflated.
"""

from __future__ import annotations

from collections import deque
from sys import getsizeof
from typing import TYPE_CHECKING

from forkserve.http.websocket.frames import BINARY, TEXT

if TYPE_CHECKING:
    import asyncio
    import contextvars
    from collections.abc import Callable, Iterator

    from forkserve.http.framing.writer import RawConnection
    from forkserve.http.websocket.frames import Event, FrameReader

STEPS_A_TURN = 16
"""Steps of the frame reader that a client gets in one turn of the loop: a frame each, or a piece of a large one."""
READ_AHEAD = 200_000
"""Bytes; a client that has sent more at once is not read again in the same turn, as uvloop would with a full buffer."""
BYTES_AHEAD = 1 << 18
"""Memory of the messages that wait."""


class Inbox:
    """The input of one client, from the accept on.

    Methods that may have to continue in the loop's next turn take the function ``turn`` to be called then; it calls `work` and
    `go_on`. It is not kept here: owner and inbox would refer to each other, and wait for the collector when the connection ends.

    Args:
        connection: Its reading is paused and resumed.
        reader: Reads the frames.
        queue: The number of messages that may wait for the application.
        loop: The loop whose turns the work is divided into.
        context: The context for callbacks.

    Attributes:
        messages: The messages that wait.
        waits: Whether reading may be paused: `go_on` is due when the application has received.
    """

    __slots__ = (
        "_connection", "_context", "_ignore", "_loop", "_memory", "_queue", "_reader", "_turn_due", "messages", "waits",
    )  # fmt: skip

    def __init__(
        self,
        connection: RawConnection,
        reader: FrameReader,
        queue: int,
        loop: asyncio.AbstractEventLoop,
        context: contextvars.Context,
    ) -> None:
        self.messages: deque[bytes | str] = deque()
        self._connection = connection
        self._loop = loop
        self._context = context
        self._reader: FrameReader | None = reader
        self._queue = queue
        self._turn_due = False
        self._memory = 0
        self._ignore = False
        self.waits = True

    def feed(self, data: bytes, turn: Callable[[], None]) -> bool:
        """Take bytes from the client; return whether they were a message, which has been queued without a turn."""
        reader = self._reader
        if reader is None:
            return False
        if not (self.messages or self._ignore or self._turn_due) and (message := reader.whole_message(data)) is not None:
            self._memory = getsizeof(message)
            self.messages.append(message)
            if self._memory > BYTES_AHEAD or self._queue == 1:
                self._pause(None)
            return True
        reader.feed(data)
        if not self._turn_due:
            turn()
            if len(data) > READ_AHEAD:
                self._pause(turn)
        return False

    def work(self) -> Iterator[Event]:
        """Do a turn's share of the work: queue messages, and yield control frames.

        Raises:
            FrameError: No more can be read from this client.
        """
        self._turn_due = False
        for _ in range(STEPS_A_TURN):
            if self._reader is None or self._reader.hungry or self.full:
                return
            event = self._reader.step()
            if event is None:
                continue
            if event[0] in (TEXT, BINARY):
                if not self._ignore:
                    self._memory += getsizeof(event[1])
                    self.messages.append(event[1])
            else:
                yield event

    def take(self) -> bytes | str:
        """Return the oldest message; there must be one. Its place is free for another."""
        messages = self.messages
        data = messages.popleft()
        self._memory = self._memory - getsizeof(data) if messages else 0
        return data

    def close(self) -> None:
        """Ignore all further bytes (RFC 6455 7.1.7); messages that have come before may still be received."""
        self._reader = None

    def ignore_messages(self, turn: Callable[[], None]) -> None:
        """Read on to the client's Close, and drop the messages in front of it: the application receives no more."""
        self._ignore = True
        self.go_on(turn)

    @property
    def full(self) -> bool:
        """Whether the application must receive before more is taken from the client."""
        return (len(self.messages) >= self._queue or self._memory > BYTES_AHEAD) and not self._ignore

    @property
    def behind(self) -> bool:
        """Whether there is work to do before the client's next bytes are read."""
        return self._reader is not None and not self._reader.hungry

    @property
    def may_have_messages(self) -> bool:
        """Whether there may be messages in the bytes that are not read yet."""
        return self.behind and not self._ignore

    def go_on(self, turn: Callable[[], None]) -> None:
        """Read from the client, or continue with the bytes that are there, or wait for the application."""
        if self._reader is not None and self.full:
            self._pause(None)
        elif self.behind:
            self._pause(turn)
        elif not self._turn_due and not self._connection.transport.is_closing():
            self.waits = False
            self._connection.resume_reading()

    def _pause(self, turn: Callable[[], None] | None) -> None:
        """Read nothing from the client until ``turn`` is called or, if it is None, until the application has received."""
        self.waits = True
        connection = self._connection
        if not connection.transport.is_closing():
            connection.pause_reading()
        if turn is not None and not self._turn_due:
            self._turn_due = True
            self._loop.call_soon(turn, context=self._context)
