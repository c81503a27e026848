"""The writing half of a client connection. It keeps what the client has not taken, and notifies the exchange of new room."""

from __future__ import annotations

import asyncio
import tempfile
from typing import TYPE_CHECKING, Any

from forkserve.http.framing.outgoing import PIECE, Outgoing

if TYPE_CHECKING:
    from collections.abc import Callable

    from forkserve.http.framing.endpoints import Endpoints
    from forkserve.http.framing.sendfile import SendFile
    from forkserve.http.framing.state import ServerState
    from forkserve.http.framing.writer import RequestHandler

AT_ONCE = 16 * PIECE
"""Bytes after which other connections have their turn on the loop, even if the client takes more."""
LOW_WATER = 1 << 19
"""When fewer bytes wait for a client, an application that had to wait for it goes on."""


class Output(asyncio.Protocol):
    """The writing half of a client connection.

    Args:
        state: What all connections share.
        endpoints: The two ends.

    Attributes:
        exchange: The request that is being served.
        clogged: Whether the transport holds enough.
        write_paused: Whether the transport holds enough, or more waits behind it.
    """

    __slots__ = (
        "_on_drained", "_when_sent", "clogged", "endpoints", "exchange", "outgoing", "sending", "state", "transport",
        "write_paused",
    )  # fmt: skip

    def __init__(self, state: ServerState, endpoints: Endpoints) -> None:
        self.state = state
        self.transport: Any = None  # asyncio.Transport, or uvloop's, which is no subclass
        self.endpoints = endpoints
        self.outgoing: Outgoing | None = None  # what waits for the client, besides what the transport holds
        self.clogged = False
        self.write_paused = False
        self.sending: SendFile | None = None
        self.exchange: RequestHandler | None = None
        self._on_drained: Callable[[], None] | None = None
        self._when_sent: Callable[[], None] | None = None

    def send(self, data: bytes, *, spill: bool = True) -> None:
        """Write now, or as soon as the client takes more. All of a response but files and the smallest bodies is sent here.

        Args:
            data: The bytes; many of them are not copied.
            spill: Whether they may go to a temporary file, since nothing else keeps them.
        """
        outgoing, fresh = self.outgoing, False
        if outgoing is None:
            if len(data) <= PIECE and not self.clogged:
                self.transport.write(data)
                return
            if self.transport.is_closing():
                return
            # uvloop's transport keeps a reference to the bytes; others copy them.
            copies = self.endpoints.tls or isinstance(self.transport, asyncio.Transport)
            outgoing, fresh = Outgoing(self.state.buffered, PIECE if copies else AT_ONCE), True
            self.outgoing = outgoing
            self.write_paused = True
            # From here on the transport is given a piece when it has none. One byte: for TLS of asyncio 0 is always reached.
            self.transport.set_write_buffer_limits(high=int(self.endpoints.tls), low=0)
        try:
            outgoing.add(data, spill=spill)
        except OSError as error:
            self.cannot_store(error)
            return
        if fresh:
            self._pump(outgoing)  # the caller looks at write_paused next
        elif not self.clogged:
            self.go_on_sending()

    def go_on_sending(self) -> None:
        """Write more of what waits, and notify the exchange if there is room for more."""
        outgoing = self.outgoing
        if outgoing is None:
            return
        waited = outgoing.size
        self._pump(outgoing)
        if self.outgoing is None:
            self.state.loop.call_soon(self._caught_up)
        elif waited > LOW_WATER >= outgoing.size and self.exchange is not None:
            self.exchange.writable()

    def _pump(self, outgoing: Outgoing) -> None:
        """Write as much as the transport takes, and a bounded part of it in one turn of the loop."""
        left = AT_ONCE
        try:
            while left > 0 and not self.clogged and self.outgoing is outgoing:
                piece = outgoing.take()
                if not piece:
                    outgoing.discard()
                    self._all_given()
                    return
                self.transport.write(piece)
                left -= len(piece)
        except OSError as error:
            self.cannot_store(error)
            return
        if not self.clogged:
            self.state.loop.call_soon(self.go_on_sending)

    def _all_given(self) -> None:
        """Take note that the transport has everything."""
        self.outgoing = None
        self.write_paused = self.clogged
        if self._on_drained is None:
            self.limit_output()
        if self._when_sent is not None:
            self.state.loop.call_soon(self._everything_sent)

    def _everything_sent(self) -> None:
        call, self._when_sent = self._when_sent, None
        if call is not None:  # the client may have gone since
            call()

    def when_sent(self, call: Callable[[], None]) -> None:
        """Call back when the transport has everything; a later call replaces an earlier one."""
        if self.outgoing is None:
            call()
        else:
            self._when_sent = call

    def when_drained(self, call: Callable[[], None]) -> None:
        """Call back when the kernel has everything; until then write nothing more."""
        self._on_drained = call
        self.transport.set_write_buffer_limits(high=0)
        if not self.write_paused:
            self._caught_up()

    def limit_output(self) -> None:
        """Let the transport hold little: it copies what it holds."""
        self.transport.set_write_buffer_limits(high=PIECE)

    def cannot_store(self, error: OSError) -> None:
        """Abort the connection: the bytes that wait do not fit into a file, and must not stay in memory."""
        exchange = self.exchange
        self.state.log.error(
            "%s: what the client has not taken cannot be stored in %s: %s. Make room there, or raise --limit-buffered",
            "an answer" if exchange is None else exchange.describe(), tempfile.gettempdir(), error.strerror or error,
        )  # fmt: skip
        self.transport.abort()

    def discard_output(self) -> None:
        """Drop what waits: the client is gone."""
        self._on_drained = self._when_sent = None
        if self.outgoing is not None:
            self.outgoing.discard()
            self.outgoing = None

    @property
    def unsent(self) -> int:
        """The bytes that the kernel does not have yet."""
        waiting: int = self.transport.get_write_buffer_size()
        return waiting if self.outgoing is None else waiting + self.outgoing.size

    # Called by the transport

    def pause_writing(self) -> None:
        """Take note that the client reads slowly (asyncio)."""
        self.clogged = self.write_paused = True

    def resume_writing(self) -> None:
        """Write on: the client has caught up (asyncio)."""
        self.clogged = False
        if self.outgoing is not None:
            self.go_on_sending()
        else:
            self.write_paused = False
            self.state.loop.call_soon(self._caught_up)

    # Called by the loop: asyncio's transports call connection_lost twice if they are closed within resume_writing.
    def _caught_up(self) -> None:
        if self.write_paused:
            return
        if self._on_drained is not None:
            call, self._on_drained = self._on_drained, None
            self.limit_output()
            call()
        elif self.exchange is not None:
            self.exchange.writable()
        else:
            self.go_on()

    def go_on(self) -> None:
        """Continue with the next request: no response waits for the client any more."""
