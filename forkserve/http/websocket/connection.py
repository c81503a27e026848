"""A WebSocket from the accept on: frames in and out, pings, and closing (RFC 6455). The application's side is in `app.websocket`.

Control frames and compressed messages are written, and the closing handshake is decided, by the websockets library's sans-IO
protocol, which knows neither sockets nor loops. Other messages are written, and all frames are read, by `frames`; messages are
kept, within bounds, by `inbox`. Of the pongs for a client that does not read, the last is kept.
"""

from __future__ import annotations

import asyncio
import socket
from math import inf
from typing import TYPE_CHECKING

from websockets.protocol import OPEN, SEND_EOF

from forkserve.http.framing.stall import Stall, waiting_in_kernel
from forkserve.http.framing.transports import half_close, look_at_peer
from forkserve.http.message.errors import ClientGoneError, ResponseError
from forkserve.http.websocket.frames import BINARY, CLOSE, PING, TEXT, FrameError, message_frame
from forkserve.http.websocket.inbox import Inbox
from forkserve.http.websocket.pulse import Pulse

if TYPE_CHECKING:
    import contextvars

    from websockets.server import ServerProtocol

    from forkserve.http.framing.state import ServerState
    from forkserve.http.framing.writer import RawConnection, RequestHandler
    from forkserve.http.websocket.frames import FrameReader

JOINED, SMALL = 64, 1024
"""Messages that are written together to a slow client, and the bytes up to which a message is joined with others."""
DRAIN_TIME = 5.0
"""Seconds that a client has in a drain to answer a Close."""
CLOSING_TIME = 1.0
"""Seconds that a client has to close the connection after the closing handshake (RFC 6455 7.1.1)."""


class WebSocketConnection(asyncio.Protocol):
    """One open WebSocket; implements `Successor`. On the loop's thread.

    Args:
        state: What all connections share.
        connection: The connection that was handed over.
        exchange: Its `client_gone` is called when the WebSocket has ended; the reference is dropped with the connection.
        context: The context for callbacks.
        protocol: The protocol that the handshake has agreed on.
        reader: Reads the client's frames.

    Attributes:
        inbox: The messages that the application has not received.
        waiters: One for each task that waits in `receive`; all are done when a message has come or the client is gone.
        drained: None while the client takes what is sent; else an event that is set when it has caught up or is gone.
        close_code: The code for ``websocket.disconnect``.
        close_reason: The reason for ``websocket.disconnect``.
    """

    __slots__ = (
        "_closing_at", "_context", "_flush_due", "_gone", "_pong", "_protocol", "_pulse", "_sent", "_stall", "_state",
        "close_code", "close_reason", "connection", "drained", "exchange", "inbox", "requests", "waiters",
    )  # fmt: skip

    def __init__(
        self,
        state: ServerState,
        connection: RawConnection,
        exchange: RequestHandler,
        context: contextvars.Context,
        protocol: ServerProtocol,
        reader: FrameReader,
    ) -> None:
        settings = state.settings
        self._state = state
        self.connection = connection
        self.requests = connection.requests
        self.exchange: RequestHandler | None = exchange
        self._context = context
        self._protocol = protocol
        self.inbox = Inbox(connection, reader, settings.ws_max_queue, state.loop, context)
        self._pulse = Pulse(settings.ws_ping_interval or inf, settings.ws_ping_timeout or inf)
        self._stall = Stall()
        self._flush_due = False
        self._pong: bytes | None = None  # waits until the client reads
        self._sent = 0
        self._gone = False
        self.close_code = 1006
        self.close_reason = ""
        self._closing_at = inf
        self.waiters: list[asyncio.Future[None]] = []
        self.drained: asyncio.Event | None = None

    # Called by the application's side

    @property
    def is_open(self) -> bool:
        """Whether messages can be sent."""
        return self._protocol.state is OPEN and not self._gone

    def take_message(self) -> bytes | str:
        """Return the oldest message; there must be one."""
        inbox = self.inbox
        data = inbox.take()
        if inbox.waits:
            inbox.go_on(self._turn)
        return data

    def send(self, text: str | None, data: bytes | None) -> None:
        """Send a message: either text or bytes.

        Raises:
            ResponseError: Both or neither are given.
            ClientGoneError: The WebSocket is closed.
        """
        if (text is None) == (data is None):
            raise ResponseError("websocket.send needs either bytes or text")
        protocol, transport = self._protocol, self.connection.transport
        payload = (data or b"") if text is None else text.encode()
        if self._gone:
            raise ClientGoneError
        waiting = protocol.writes
        if protocol.extensions:  # their state depends on every message
            (protocol.send_binary if text is None else protocol.send_text)(payload)
            frame = waiting.pop()
        else:
            frame = message_frame(BINARY if text is None else TEXT, payload)
        # From Python 3.12 on a transport keeps each write that waits, and counts them all at each: small ones are joined.
        if waiting or transport.get_write_buffer_size():
            waiting.append(frame)
            if len(waiting) >= JOINED or len(frame) >= SMALL:
                self._flush()
            elif not self._flush_due:
                self._flush_due = True
                self._state.loop.call_soon(self._flush, context=self._context)
        elif not transport.is_closing():
            self._sent += len(frame)
            transport.write(frame)

    def close(self, code: int, reason: str) -> None:
        """Send a Close.

        Raises:
            ResponseError: The code or the reason is not valid.
        """
        self.close_code, self.close_reason = code, reason
        try:
            self._protocol.send_close(code, reason)
        except Exception as error:
            raise ResponseError("the close code or reason is not valid") from error
        self._flush()
        self.inbox.ignore_messages(self._turn)

    # Called by the transport (asyncio); without a Close frame the end of the client's bytes breaks the WebSocket

    def data_received(self, data: bytes) -> None:
        """Take bytes of frames."""
        self._pulse.received()
        if self.inbox.feed(data, self._turn):
            self._wake()

    def _turn(self) -> None:
        """Do as much of the work that the client's frames make as a turn of the loop may."""
        inbox, protocol = self.inbox, self._protocol
        try:
            for opcode, data in inbox.work():
                assert isinstance(data, bytes)
                if opcode == PING:
                    if self.drained is None:
                        protocol.send_pong(data)
                    else:
                        self._pong = data  # RFC 6455 5.5.3: instead of one that could not be sent
                elif opcode == CLOSE:
                    inbox.close()
                    protocol.receive_data(data)
                    received = protocol.close_rcvd
                    if received is not None and protocol.close_rcvd_then_sent:
                        self.close_code, self.close_reason = received.code, received.reason
                    self._client_gone()
        except FrameError as error:
            inbox.close()
            protocol.fail(error.code, error.reason)
        if inbox.messages or self._gone:
            self._wake()
        self._flush()
        inbox.go_on(self._turn)
        self._end_protocol()

    def connection_lost(self, exc: Exception | None) -> None:
        """End: the connection is gone."""
        self._state.disconnected(self)
        self._client_gone()
        self.exchange = None  # it refers to this object
        self._end_protocol()

    def _client_gone(self) -> None:
        self._gone = True
        self._wake()
        self._end_pause()
        if self.exchange is not None:
            self.exchange.client_gone()

    def _wake(self) -> None:
        """Let the application's tasks look at the inbox, and at `exchange.gone`."""
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _end_protocol(self) -> None:
        """End the protocol's parser with the connection: they refer to each other, and to the compressor's memory."""
        if self.connection.transport.is_closing() and not self.inbox.behind:
            self.inbox.close()
            self._protocol.parser.close()

    def pause_writing(self) -> None:
        """Take note that the client reads slowly."""
        self.drained = asyncio.Event()

    def resume_writing(self) -> None:
        """Write on: the client has caught up."""
        self._end_pause()
        pong, self._pong = self._pong, None
        if pong is not None and not self._protocol.eof_sent:
            self._protocol.send_pong(pong)
            self._flush()

    def _end_pause(self) -> None:
        if self.drained is not None:
            self.drained.set()
            self.drained = None

    def _flush(self) -> None:
        self._flush_due = False
        transport = self.connection.transport
        out = self._protocol.data_to_send()
        if out and not transport.is_closing():
            data = b"".join(out)
            self._sent += len(data)
            transport.write(data)
            if SEND_EOF in out and not half_close(transport):
                transport.close()
        if SEND_EOF in out:
            self._close_within(CLOSING_TIME)  # the client may leave it to us to close the connection (RFC 6455 7.1.1)
        if self._closing_at == inf and self._protocol.close_expected():
            self._close_within(self._state.settings.ws_ping_timeout or 20.0)
        if self._closing_at < inf and not self._gone:
            if self._protocol.close_sent is not None and not self._protocol.close_rcvd:
                self.close_code, self.close_reason = self._protocol.close_sent.code, self._protocol.close_sent.reason
            self._client_gone()

    def _close_within(self, seconds: float) -> None:
        """Wait for the client's end no longer than that, nor than was decided before."""
        self._closing_at = min(self._closing_at, self._state.loop.time() + seconds)

    # Called by those that look after all connections

    def may_bring_request(self, *, last: bool) -> bool:
        """Return whether another request may come: none does."""
        return False

    def abandon(self) -> None:
        """Close the connection: the process ends now."""
        self._client_gone()
        self.connection.transport.abort()

    def drain(self, now: float, linger: float) -> None:
        """Close the WebSocket: the process is about to end (1012, service restart)."""
        if self._protocol.state is OPEN:
            self.close(1012, "")
        self._close_within(DRAIN_TIME)

    def sweep(self, now: float, late: float) -> None:
        """Ping, and act on what is overdue; called once a second."""
        transport, state = self.connection.transport, self._state
        self._closing_at += late
        held = unsent = transport.get_write_buffer_size()
        # Bytes that a TCP peer's kernel has not confirmed show that the peer is lost; a unix socket's wait for the program.
        sock = transport.get_extra_info("socket")
        if held or (sock is not None and sock.family != socket.AF_UNIX):
            unsent += waiting_in_kernel(transport)
        stalled = self._stall.seconds(now, self, self._sent, unsent) - late
        if held and stalled > state.write_timeout:
            self._stall.give_up(state.log, transport, "a WebSocket" if self.exchange is None else self.exchange.describe())
        elif now >= self._closing_at:
            transport.abort()
        elif self._protocol.state is OPEN:
            deaf, writable = self.inbox.full, self.drained is None
            due = self._pulse.due(now - late, unsent=unsent, stalled=stalled, writable=writable, deaf=deaf)
            if due == "ping":
                self._protocol.send_ping(b"")
                self._flush()
            elif due == "end" or (deaf and look_at_peer(transport)[0]):
                transport.abort()
