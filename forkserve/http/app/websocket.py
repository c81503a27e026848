"""WebSocket (RFC 6455, RFC 7692) for ASGI.

The handshake comes from a head already read. Closing and what is sent are the websockets library's sans-IO protocol, which knows
neither sockets nor loops; what is received is read by `frames` and kept, within bounds, by `inbox`. Of the pongs for a client
that does not read, the last is kept.
"""

from __future__ import annotations

import asyncio
import socket
from math import inf
from typing import TYPE_CHECKING

from websockets.exceptions import InvalidState
from websockets.protocol import OPEN, SEND_EOF

from forkserve.http.app.asgi import REQUEST, Message
from forkserve.http.app.exchange import Exchange
from forkserve.http.app.frames import CLOSE, PING, FrameError
from forkserve.http.app.handshake import Handshake
from forkserve.http.app.inbox import Inbox
from forkserve.http.app.pulse import Pulse
from forkserve.http.framing.connection import CLOSING_TIME
from forkserve.http.framing.stall import Stall, waiting_in_kernel
from forkserve.http.framing.transports import half_close, look_at_peer
from forkserve.http.message.errors import ClientGoneError, ResponseError, is_departure
from forkserve.http.message.response import ResponseHead, read_code

if TYPE_CHECKING:
    from forkserve.http.framing.connection import Connection
    from forkserve.http.message.fields import Fields
    from forkserve.http.message.http1 import Target

JOINED, SMALL = 64, 1024
"""Messages that are written together to a slow client, and the bytes of one that is."""
DRAIN_TIME = 5.0
"""Seconds that a client has in a drain to answer a Close."""


class WebSocket(Exchange, asyncio.Protocol):
    """One WebSocket: first an HTTP exchange, answered by the application with accept or a denial, then the transport's protocol.

    Args:
        connection: Where the handshake came from.
        target: Its request line.
        fields: Its header section.

    Raises:
        RequestError: As `Handshake`.
    """

    __slots__ = (
        "_close_code", "_close_reason", "_closing_at", "_connected", "_denial", "_flush_due", "_greeted", "_handshake", "_inbox",
        "_news", "_pong", "_protocol", "_pulse", "_stall", "_task", "_writable",
    )  # fmt: skip

    def __init__(self, connection: Connection, target: Target, fields: Fields) -> None:
        super().__init__(connection, target, fields)
        settings = self.site.settings
        self._handshake = Handshake(settings, target, fields)
        self._protocol = self._handshake.protocol
        self.keep_alive = True  # what comes behind the handshake are frames, to be kept until the application has accepted
        self._greeted = False  # websocket.connect has been received
        self._inbox: Inbox | None = None  # from the accept on
        self._flush_due = False
        self._pong: bytes | None = None  # waits until the client reads
        self._pulse = Pulse(settings.ws_ping_interval or inf, settings.ws_ping_timeout or inf)
        self._stall = Stall()
        self._connected = False
        self._denial = False
        self._close_code = 1006
        self._close_reason = ""
        self._closing_at = inf
        self._news = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Call the application."""
        self._task = asyncio.Task(self._run(), loop=self.site.loop, name=REQUEST, context=self.context)
        self.site.tasks.add(self._task)

    async def _run(self) -> None:
        number = self.site.observer.enter(self.target.line)
        try:
            self.given = self._handshake.scope(self.connection, self.target, self.fields)
            await self.site.app(self.given, self.receive, self.send)
        except BaseException as error:  # noqa: BLE001 - sys.exit() in an app ends a request, not the worker
            if not self.gone or not (isinstance(error, asyncio.CancelledError) or is_departure(error)):
                self._end_with_error(error, "the application raised an exception")
            else:
                self.site.log.debug("%s: the client has left: %r", self.describe(), error)
        else:
            if not self._connected and not self.complete and not self.gone:
                self._end_with_error(None, "the application returned without answering the handshake")
            elif self._connected and self._protocol.state is OPEN and not self.gone:
                self._close(1000, "")
        finally:
            self.site.observer.leave(number)
            self.site.tasks.discard(self._task)

    def _end_with_error(self, error: BaseException | None, what: str) -> None:
        if not self._connected:
            self.fail(error, what)
            return
        self.site.log.error("%s: %s", self.describe(), what, exc_info=error)
        if self._protocol.state is OPEN and not self.gone:
            self._close(1011, "")

    # What the application uses

    async def receive(self) -> Message:
        """ASGI: ``websocket.connect``, then messages, then ``websocket.disconnect``."""
        if not self._greeted:
            self._greeted = True
            return {"type": "websocket.connect"}
        inbox = self._inbox
        while inbox is None or not inbox.messages:
            # What came before the connection broke is received; behind a Close nothing is.
            if self.gone and not (inbox and inbox.has_news):
                return {"type": "websocket.disconnect", "code": self._close_code, "reason": self._close_reason}
            self._news.clear()
            await self._news.wait()
            inbox = self._inbox
        data = inbox.take(self._turn)
        return {"type": "websocket.receive", "bytes" if isinstance(data, bytes) else "text": data}

    async def send(self, message: Message) -> None:
        """ASGI: accept or deny, then messages, then close.

        Raises:
            ResponseError: The message breaks the specification.
            ClientGoneError: The client has closed the WebSocket.
        """
        kind = message["type"]
        if self.gone:
            raise ClientGoneError
        if not self._connected:
            self._answer_handshake(kind, message)
            if self._denial and self.connection.write_paused and not self.gone:
                self._writable.clear()
                await self._writable.wait()
            return
        if kind == "websocket.send":
            while not self._writable.is_set():  # of many tasks that send at once, only one adds to what waits for a slow client
                await self._writable.wait()
                if self.gone:
                    raise ClientGoneError
            self._write_message(message.get("text"), message.get("bytes"))
            await self._writable.wait()
        elif kind == "websocket.close":
            if self._protocol.state is OPEN:
                self._close(message.get("code", 1000), message.get("reason") or "")
        else:
            raise ResponseError(f"expected websocket.send or websocket.close, got {kind!r}")

    def _write_message(self, text: str | None, data: bytes | None) -> None:
        if (text is None) == (data is None):
            raise ResponseError("websocket.send needs either bytes or text")
        try:
            if text is not None:
                self._protocol.send_text(text.encode("utf-8"))
            else:
                self._protocol.send_binary(data or b"")
        except InvalidState as error:
            raise ClientGoneError from error
        # From Python 3.12 on a transport keeps each write that waits, and counts them all at each: small ones are joined.
        waiting = self._protocol.writes
        if len(waiting) < JOINED and len(waiting[-1]) < SMALL and self.connection.transport.get_write_buffer_size():
            if not self._flush_due:
                self._flush_due = True
                self.site.loop.call_soon(self._flush, context=self.site.context)
        else:
            self._flush()

    def _answer_handshake(self, kind: str, message: Message) -> None:
        if kind == "websocket.accept" and not self._denial:
            self._accept_client(message)
            return
        self.keep_alive = False
        if kind == "websocket.close" and not self._denial:
            self.head = ResponseHead(*read_code(403), bytes)
            self.write(b"", more=False)
            self._close_code = message.get("code", 1000)
            self.client_gone()
        elif kind == "websocket.http.response.start" and not self._denial:
            self._denial = True
            self.head = ResponseHead(*read_code(message["status"]), bytes)
            self.head.add(message.get("headers", ()))
        elif kind == "websocket.http.response.body" and self._denial:
            self.write(message.get("body", b""), more=bool(message.get("more_body", False)))
            if self.complete:
                self.client_gone()
        else:
            raise ResponseError(f"{kind!r} does not fit here")

    def _accept_client(self, message: Message) -> None:
        site = self.site
        head, data = self._handshake.answer(message, site.ending)
        self.head = head
        self.started = self._connected = True
        reader = self._handshake.reader(site.settings.ws_max_size)
        self._inbox = Inbox(self.connection, reader, site.settings.ws_max_queue)
        self.connection.transport.write(data)
        if self.connection.write_paused:
            self._writable.clear()
        if site.on_answer is not None:
            site.on_answer(self)
        self.connection.hand_over(self)

    def _close(self, code: int, reason: str) -> None:
        self._close_code, self._close_reason = code, reason
        try:
            self._protocol.send_close(code, reason)
        except Exception as error:
            raise ResponseError("the close code or reason is not valid") from error
        self._flush()
        if self._inbox is not None:
            self._inbox.ignore_messages(self._turn)

    # The transport's protocol, from the accept on (asyncio); without a Close frame the client's end breaks the WebSocket

    def data_received(self, data: bytes) -> None:
        """Frames have come."""
        self._pulse.heard()
        assert self._inbox is not None
        self._inbox.feed(data, self._turn)

    def _turn(self) -> None:
        """Do so much of what the client has sent as a turn of the loop may."""
        inbox, protocol = self._inbox, self._protocol
        assert inbox is not None
        try:
            for opcode, data in inbox.work():
                assert isinstance(data, bytes)
                if opcode == PING:
                    if self._writable.is_set():
                        protocol.send_pong(data)
                    else:
                        self._pong = data  # RFC 6455 5.5.3: instead of one that could not be sent
                elif opcode == CLOSE:
                    inbox.close()
                    protocol.receive_data(data)
                    received = protocol.close_rcvd
                    if received is not None and protocol.close_rcvd_then_sent:
                        self._close_code, self._close_reason = received.code, received.reason
                    self.client_gone()
        except FrameError as error:
            inbox.close()
            protocol.fail(error.code, error.reason)
        if inbox.messages or self.gone:
            self._news.set()
        self._flush()
        inbox.go_on(self._turn)
        self._end_protocol()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self.site.connections.discard(self)
        self.site.observer.connected(len(self.site.connections))
        self.client_gone()
        self._end_protocol()

    def _end_protocol(self) -> None:
        """Let the protocol's parser end with the connection: they refer to each other, and to the compressor's memory."""
        if self.connection.transport.is_closing() and self._inbox is not None and not self._inbox.behind:
            self._inbox.close()
            self._protocol.parser.close()

    def pause_writing(self) -> None:
        """The client is slow to read."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._writable.set()
        pong, self._pong = self._pong, None
        if pong is not None and not self._protocol.eof_sent:
            self._protocol.send_pong(pong)
            self._flush()

    writable = resume_writing  # of the exchange, during a denial that streams

    def _flush(self) -> None:
        self._flush_due = False
        transport = self.connection.transport
        out = self._protocol.data_to_send()
        if out and not transport.is_closing():
            data = b"".join(out)
            self.sent += len(data)
            transport.write(data)
            if SEND_EOF in out and not half_close(transport):
                transport.close()
        if SEND_EOF in out:
            self._close_within(CLOSING_TIME)  # the client may leave it to us to close the connection (RFC 6455 7.1.1)
        if self._closing_at == inf and self._protocol.close_expected():
            self._close_within(self.site.settings.ws_ping_timeout or 20.0)
        if self._closing_at < inf and not self.gone:
            if self._protocol.close_sent is not None and not self._protocol.close_rcvd:
                self._close_code, self._close_reason = self._protocol.close_sent.code, self._protocol.close_sent.reason
            self.client_gone()

    def _close_within(self, seconds: float) -> None:
        """Wait for the client's end no longer than that, nor than was decided before."""
        self._closing_at = min(self._closing_at, self.site.loop.time() + seconds)

    # What connection and site tell

    def client_gone(self) -> None:
        """``receive`` gives ``websocket.disconnect``, ``send`` raises."""
        self.gone = True
        self._news.set()
        self._writable.set()

    def client_half_closed(self) -> None:
        """A client that is gone before the handshake has been answered."""
        self.client_gone()
        self.connection.break_off(reset=False)

    @property
    def in_hand(self) -> str | None:
        """The request line, for the log of what was still open."""
        return self.describe()

    def abandon(self) -> None:
        """The process ends now."""
        self.client_gone()
        self.connection.transport.abort()

    @property
    def is_stream(self) -> bool:
        """Whether it is open, or about to be closed."""
        return self._connected or super().is_stream

    def drain(self, now: float, linger: float) -> None:
        """The process is about to end (1012, service restart)."""
        if self._connected:
            if self._protocol.state is OPEN:
                self._close(1012, "")
            self._close_within(DRAIN_TIME)

    def sweep(self, now: float, late: float) -> None:
        """Ping, and act on what is overdue; called once a second."""
        transport, site = self.connection.transport, self.site
        self._closing_at += late
        held = unsent = transport.get_write_buffer_size()
        # What a TCP peer's kernel has not confirmed tells of a peer that is lost; a unix socket's waits for the program.
        sock = transport.get_extra_info("socket")
        if held or (sock is not None and sock.family != socket.AF_UNIX):
            unsent += waiting_in_kernel(transport)
        stalled = self._stall.seconds(now, self, self.sent, unsent) - late if unsent else 0.0
        if not unsent:
            self._stall.clear()
        if held and stalled > site.write_timeout:
            site.log.info("%s: the client has read nothing for too long", self.describe())
            transport.abort()
        elif now >= self._closing_at:
            transport.abort()
        elif self._protocol.state is OPEN and self._inbox is not None:
            deaf, writable = self._inbox.full, self._writable.is_set()
            due = self._pulse.due(now - late, unsent=unsent, stalled=stalled, writable=writable, deaf=deaf)
            if due == "ping":
                self._protocol.send_ping(b"")
                self._flush()
            elif due == "end" or (deaf and look_at_peer(transport)[0]):
                transport.abort()
