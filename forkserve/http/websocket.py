"""WebSocket (RFC 6455, RFC 7692) for ASGI.

The handshake comes from a head already read; the frames are the websockets library's sans-IO protocol, which knows neither
sockets nor loops.
"""

from __future__ import annotations

import asyncio
import logging
from codecs import getincrementaldecoder
from collections import deque
from math import inf
from typing import TYPE_CHECKING, Any

from websockets.datastructures import Headers
from websockets.exceptions import InvalidHandshake, InvalidState
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import OPEN, SEND_EOF
from websockets.server import ServerProtocol

from forkserve.http.asgi import REQUEST, VERSIONS, Message, Scope, root, scope_template
from forkserve.http.connection import CLOSING_TIME
from forkserve.http.errors import ClientGoneError, RequestError, ResponseError, is_departure
from forkserve.http.exchange import Exchange
from forkserve.http.response import ResponseHead, read_code
from forkserve.http.transports import half_close, look_at_peer

if TYPE_CHECKING:
    from forkserve.http.connection import Connection
    from forkserve.http.fields import Fields
    from forkserve.http.http1 import Target

_VERSIONS = VERSIONS | {"spec_version": "2.5"}
_log = logging.getLogger("forkserve.websocket")
_log.setLevel(logging.WARNING)  # the library reports each connection at INFO
_utf8 = getincrementaldecoder("utf-8")

MESSAGES_AHEAD = 16
"""Messages that are taken from the client before the application asks for them; there is a limit in bytes, too."""
BYTES_AHEAD = 1 << 18
DRAIN_TIME = 5.0
"""Seconds that a client has in a drain to answer a Close."""
_OWN_FIELDS = frozenset(
    (
        b"sec-websocket-accept",
        b"sec-websocket-extensions",
        b"sec-websocket-protocol",
        b"content-length",
        b"transfer-encoding",
    )
)


class _FrameProtocol(ServerProtocol):
    """The library's protocol, but for a Close between two fragments: RFC 6455 5.4 allows it, the library calls it an error."""

    def recv_frame(self, frame: Frame) -> None:
        if frame.opcode is Opcode.CLOSE:
            self.current_size = None
        super().recv_frame(frame)


class WebSocket(Exchange, asyncio.Protocol):
    """One WebSocket: first an HTTP exchange, answered by the application with accept or a denial, then the transport's protocol.

    Args:
        connection: Where the handshake came from.
        target: Its request line.
        fields: Its header section.

    Raises:
        RequestError: 400 or 426: the handshake is not one.
    """

    __slots__ = (
        "_accept", "_ahead", "_close_code", "_close_reason", "_closing_at", "_connected", "_denial", "_extensions", "_messages",
        "_news", "_pieces", "_pinged", "_protocol", "_task", "_text", "_writable",
    )  # fmt: skip

    def __init__(self, connection: Connection, target: Target, fields: Fields) -> None:
        super().__init__(connection, target, fields)
        settings = self.site.settings
        factories = [ServerPerMessageDeflateFactory()] if settings.ws_per_message_deflate else []
        self._protocol = _FrameProtocol(state=OPEN, extensions=factories, max_size=settings.ws_max_size or None, logger=_log)
        self._accept, self._extensions = self._negotiate()
        self.keep_alive = True  # what comes behind the handshake are frames, to be kept until the application has accepted
        self._messages: deque[Message] = deque(({"type": "websocket.connect"},))
        self._ahead = 0
        self._pieces: list[bytes | str] = []
        self._text: Any = None  # the incremental decoder of a text message under way
        self._connected = False
        self._denial = False
        self._close_code = 1006
        self._close_reason = ""
        self._closing_at = inf
        self._pinged: float | None = None
        self._news = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._task: asyncio.Task[None] | None = None

    # The handshake

    def _negotiate(self) -> tuple[str, str | None]:
        fields = self.fields
        if self.target.method != "GET" or fields.version != "1.1" or fields.has_body:
            raise RequestError(400, "a WebSocket handshake is a GET of HTTP/1.1 without a body")
        if [value for name, value in fields.headers if name == b"sec-websocket-version"] != [b"13"]:
            raise RequestError(
                426,
                "only WebSocket version 13 is spoken here",
                (("Sec-WebSocket-Version", "13"), ("Upgrade", "websocket")),
            )
        headers = Headers()
        for name, value in fields.headers:
            # RFC 7692 7: a value in quotes is legal, but few read it alike: such an offer is declined.
            if name != b"sec-websocket-protocol" and not (name == b"sec-websocket-extensions" and b'"' in value):
                headers[name.decode("ascii")] = value.decode("latin-1")
        try:
            accept, extensions, _ = self._protocol.process_request(Request(self.target.environ["RAW_URI"], headers))
        except InvalidHandshake as error:
            raise RequestError(400, "the WebSocket handshake is malformed") from error
        return accept, extensions

    def start(self) -> None:
        """Call the application."""
        self._task = asyncio.Task(self._run(), loop=self.site.loop, name=REQUEST, context=self.context)
        self.site.tasks.add(self._task)

    def _scope(self) -> Scope:
        scope = scope_template(self.connection, self.fields, "websocket")
        offers = b",".join(value for name, value in self.fields.headers if name == b"sec-websocket-protocol")
        scope |= self.target.scope
        del scope["method"]
        if scope["root_path"]:
            root(scope)
        scope["asgi"] = _VERSIONS.copy()
        scope["headers"] = self.fields.headers.copy()
        scope["subprotocols"] = [offer.strip(" \t") for offer in offers.decode("latin-1").split(",") if offer.strip(" \t")]
        scope["extensions"] = {"websocket.http.response": {}}
        scope["state"] = self.site.state.copy()
        self.given = scope
        return scope

    async def _run(self) -> None:
        number = self.site.observer.enter(self.target.line)
        try:
            await self.site.app(self._scope(), self.receive, self.send)
        except BaseException as error:  # noqa: BLE001 - sys.exit() in an app ends a request, not the worker
            if not self.gone or not (isinstance(error, asyncio.CancelledError) or is_departure(error)):
                self._end_with_error(error, "the application raised an exception")
            else:
                self.site.log.debug("%s: the client has left: %r", self.describe(), error)
        else:
            if not self._connected and not self.complete and not self.gone:
                self._end_with_error(None, "the application returned without answering the handshake")
            elif self._connected and self._protocol.state is OPEN:
                self._close(1000, "")
        finally:
            self.site.observer.leave(number)
            self.site.tasks.discard(self._task)

    def _end_with_error(self, error: BaseException | None, what: str) -> None:
        if not self._connected:
            self.fail(error, what)
            return
        self.site.log.error("%s: %s", self.describe(), what, exc_info=error)
        if self._protocol.state is OPEN:
            self._close(1011, "")

    # What the application uses

    async def receive(self) -> Message:
        """ASGI: ``websocket.connect``, then messages, then ``websocket.disconnect``."""
        while not self._messages:
            if self.gone:
                return {"type": "websocket.disconnect", "code": self._close_code, "reason": self._close_reason}
            self._news.clear()
            await self._news.wait()
        message = self._messages.popleft()
        self._ahead -= len(message.get("bytes") or message.get("text") or b"")
        if not self._full():
            self.connection.resume_reading()
        return message

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
            return
        if kind == "websocket.send":
            text, data = message.get("text"), message.get("bytes")
            if (text is None) == (data is None):
                raise ResponseError("websocket.send needs either bytes or text")
            try:
                if text is not None:
                    self._protocol.send_text(text.encode("utf-8"))
                else:
                    self._protocol.send_binary(data or b"")
            except InvalidState as error:
                raise ClientGoneError from error
            self._flush()
            await self._writable.wait()
        elif kind == "websocket.close":
            if self._protocol.state is OPEN:
                self._close(message.get("code", 1000), message.get("reason") or "")
        else:
            raise ResponseError(f"expected websocket.send or websocket.close, got {kind!r}")

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
        extra = [pair for pair in message.get("headers", ()) if pair[0].lower() not in _OWN_FIELDS]
        own = f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {self._accept}\r\n"
        if self._extensions is not None:
            own += f"Sec-WebSocket-Extensions: {self._extensions}\r\n"
        head = ResponseHead(101, b"HTTP/1.1 101 Switching Protocols\r\n", bytes)
        if (subprotocol := message.get("subprotocol")) is not None:
            head.add(((b"Sec-WebSocket-Protocol", subprotocol.encode("latin-1")),))
        head.add(extra)
        site = self.site
        data = head.finish(own.encode("ascii"), site.ending)
        self.head = head
        self.started = self._connected = True
        self.connection.transport.write(data)
        if site.on_answer is not None:
            site.on_answer(self)
        self._pinged = None
        self.connection.hand_over(self)

    def _close(self, code: int, reason: str) -> None:
        self._close_code, self._close_reason = code, reason
        try:
            self._protocol.send_close(code, reason)
        except Exception as error:
            raise ResponseError("the close code or reason is not valid") from error
        self._flush()

    # The transport's protocol, from the accept on (asyncio)

    def data_received(self, data: bytes) -> None:
        """Frames have come."""
        self._pinged = None
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if isinstance(event, Frame) and not self._take(event):
                break  # RFC 6455 7.1.7: after a failure no more is read
        self._flush()
        if self._full():
            self.connection.pause_reading()

    def eof_received(self) -> bool:
        """The client sends no more: without a Close frame the WebSocket is broken."""
        self._protocol.receive_eof()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self.site.connections.discard(self)
        self.site.observer.connected(len(self.site.connections))
        self.client_gone()

    def pause_writing(self) -> None:
        """The client is slow to read."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._writable.set()

    def _take(self, frame: Frame) -> bool:
        """Take a frame; whether those behind it count."""
        opcode = frame.opcode
        if opcode is Opcode.CLOSE:
            received = self._protocol.close_rcvd
            if received is not None and self._protocol.close_rcvd_then_sent:
                self._close_code, self._close_reason = received.code, received.reason
            self.client_gone()
        elif opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            if opcode is Opcode.TEXT:
                self._text = _utf8()
            try:
                self._pieces.append(bytes(frame.data) if self._text is None else self._text.decode(frame.data, frame.fin))
            except UnicodeDecodeError:
                self._protocol.fail(1007, "invalid UTF-8")
                return False
            if frame.fin:
                self._deliver()
        return True

    def _deliver(self) -> None:
        pieces, self._pieces = self._pieces, []
        message: Message = {"type": "websocket.receive"}
        if self._text is None:
            message["bytes"] = b"".join(pieces)  # type: ignore[arg-type]  # no decoder, so all of them are bytes
        else:
            message["text"] = "".join(pieces)  # type: ignore[arg-type]  # all of them came from the decoder
            self._text = None
        self._ahead += len(message.get("bytes") or message.get("text") or b"")
        self._messages.append(message)
        self._news.set()

    def _full(self) -> bool:
        return len(self._messages) > MESSAGES_AHEAD or self._ahead > BYTES_AHEAD

    def _flush(self) -> None:
        transport = self.connection.transport
        out = self._protocol.data_to_send()
        if out and not transport.is_closing():
            transport.write(b"".join(out))
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

    def writable(self) -> None:
        """During a denial that streams."""
        self._writable.set()

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
        settings, transport = self.site.settings, self.connection.transport
        self._closing_at += late
        if now >= self._closing_at:
            transport.abort()
        elif self._protocol.state is OPEN and settings.ws_ping_interval:
            if self._full():  # we do not read, so an answer to a ping could not be seen
                self._pinged = None
                if look_at_peer(transport)[0]:
                    transport.abort()
            elif self._pinged is None:
                self._pinged = now
            elif self._pinged > 0 and now - self._pinged - late >= settings.ws_ping_interval:
                self._protocol.send_ping(b"")
                self._flush()
                self._pinged = -now
            elif self._pinged < 0 and settings.ws_ping_timeout and now + self._pinged - late >= settings.ws_ping_timeout:
                self._close_code = 1006
                transport.abort()
