"""The writing half of a client connection. It keeps what the client has not taken, and tells the exchange when it has."""

from __future__ import annotations

import asyncio
import tempfile
from typing import TYPE_CHECKING, Any

from forkserve.http.framing.outgoing import PIECE, Outgoing
from forkserve.http.proxy import Endpoints

if TYPE_CHECKING:
    from collections.abc import Callable

    from forkserve.http.app.exchange import Exchange
    from forkserve.http.app.sendfile import SendFile
    from forkserve.http.site import Site

GO_ON = 1 << 19
"""Bytes that wait for a client at which an application that was held back is told that it may go on."""


class Output(asyncio.Protocol):
    """One client, as it is written to.

    Args:
        site: What all connections share.
    """

    __slots__ = (
        "_exchange", "_on_drained", "_when_sent", "clogged", "endpoints", "outgoing", "sending", "site", "transport",
        "write_paused",
    )  # fmt: skip

    def __init__(self, site: Site) -> None:
        self.site = site
        self.transport: Any = None  # asyncio.Transport, or uvloop's, which is no subclass
        self.endpoints = Endpoints()
        self.outgoing: Outgoing | None = None  # what waits for the client, besides what the transport holds
        self.clogged = False  # the transport holds enough
        self.write_paused = False  # one of the two
        self.sending: SendFile | None = None
        self._exchange: Exchange | None = None
        self._on_drained: Callable[[], None] | None = None
        self._when_sent: Callable[[], None] | None = None

    def send(self, data: bytes, *, spill: bool = True) -> None:
        """Write now, or as soon as the client takes more. All of an answer comes this way but files and the smallest bodies.

        Args:
            data: The bytes; many of them are not copied.
            spill: Whether they may go to a temporary file, since nobody else keeps them.
        """
        outgoing, fresh = self.outgoing, False
        if outgoing is None:
            if len(data) <= PIECE and not self.clogged:
                self.transport.write(data)
                return
            if self.transport.is_closing():
                return
            outgoing, fresh = Outgoing(self), True
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
            outgoing.pump()  # whoever has to wait will see so
        elif not self.clogged:
            self.go_on_sending()

    def go_on_sending(self) -> None:
        """Write more of what waits, and tell the exchange if there is room for more."""
        outgoing = self.outgoing
        if outgoing is None:
            return
        waited = outgoing.size
        outgoing.pump()
        if self.outgoing is None:
            self.site.loop.call_soon(self._caught_up)
        elif waited > GO_ON >= outgoing.size and self._exchange is not None:
            self._exchange.writable()

    def all_sent(self) -> None:
        """Nothing waits any more besides what the transport holds."""
        self.outgoing = None
        self.write_paused = self.clogged
        if self._on_drained is None:
            self.limit_output()
        if self._when_sent is not None:
            self.site.loop.call_soon(self._everything_sent)

    def _everything_sent(self) -> None:
        call, self._when_sent = self._when_sent, None
        if call is not None:  # the client may have gone since
            call()

    def when_sent(self, call: Callable[[], None]) -> None:
        """Call it when the transport has got everything; only the last that was asked for."""
        if self.outgoing is None:
            call()
        else:
            self._when_sent = call

    def when_drained(self, call: Callable[[], None]) -> None:
        """Call back when nothing that was written is left to send; until then write nothing more."""
        self._on_drained = call
        self.transport.set_write_buffer_limits(high=0)
        if not self.write_paused:
            self._caught_up()

    def limit_output(self) -> None:
        """Let the transport hold little: it copies what it holds."""
        self.transport.set_write_buffer_limits(high=PIECE)

    def cannot_store(self, error: OSError) -> None:
        """What waits does not fit into a file, and should not be in memory: the client loses its answer."""
        exchange = self._exchange
        self.site.log.error(
            "%s: what the client has not taken cannot be stored in %s: %s. Make room there, or raise --limit-buffered",
            "an answer" if exchange is None else exchange.describe(), tempfile.gettempdir(), error.strerror or error,
        )  # fmt: skip
        self.transport.abort()

    def discard_output(self) -> None:
        """The client has gone."""
        self._on_drained = self._when_sent = None
        if self.outgoing is not None:
            self.outgoing.discard()
            self.outgoing = None

    @property
    def unsent(self) -> int:
        """Bytes that the kernel has not got yet."""
        waiting: int = self.transport.get_write_buffer_size()
        return waiting if self.outgoing is None else waiting + self.outgoing.size

    # What the transport tells

    def pause_writing(self) -> None:
        """The client is slow to read (asyncio)."""
        self.clogged = self.write_paused = True

    def resume_writing(self) -> None:
        """The client has caught up (asyncio)."""
        self.clogged = False
        if self.outgoing is not None:
            self.go_on_sending()
        else:
            self.write_paused = False
            self.site.loop.call_soon(self._caught_up)

    # Called by the loop: asyncio's transports call connection_lost twice if they are closed within resume_writing.
    def _caught_up(self) -> None:
        if self.write_paused:
            return
        if self._on_drained is not None:
            call, self._on_drained = self._on_drained, None
            self.limit_output()
            call()
        elif self._exchange is not None:
            self._exchange.writable()
        else:
            self.go_on()

    def go_on(self) -> None:
        """Nothing that was answered waits for the client any more."""
