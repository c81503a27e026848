"""WebSocket (RFC 6455, RFC 7692) for ASGI.

The handshake comes from a head already read. Handshake, closing and what is sent are the websockets library's sans-IO protocol,
which knows neither sockets nor loops; what is received is read by `frames`.

What one client can do to the others is bounded. A turn of the loop handles `STEPS_A_TURN` steps of a client's input; the rest is
left for the next turn, and until then no more is read from it. Messages wait for the application in a queue that is bounded in
number and memory; while it is full, nothing is read or inflated. Of the pongs for a client that does not read, the last is kept.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from math import inf
from sys import getsizeof
from typing import TYPE_CHECKING, Any

from websockets.datastructures import Headers
from websockets.exceptions import InvalidHandshake, InvalidState
from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory
from websockets.http11 import Request
from websockets.protocol import OPEN, SEND_EOF
from websockets.server import ServerProtocol

from forkserve.http.asgi import REQUEST, VERSIONS, Message, Scope, root, scope_template
from forkserve.http.connection import CLOSING_TIME
from forkserve.http.errors import ClientGoneError, RequestError, ResponseError, is_departure
from forkserve.http.exchange import Exchange
from forkserve.http.frames import BINARY, CLOSE, PING, TEXT, FrameError, FrameReader
from forkserve.http.response import ResponseHead, read_code
from forkserve.http.stall import Stall, waiting_in_kernel
from forkserve.http.transports import half_close, look_at_peer

if TYPE_CHECKING:
    from forkserve.http.connection import Connection
    from forkserve.http.fields import Fields
    from forkserve.http.http1 import Target

_VERSIONS = VERSIONS | {"spec_version": "2.5"}
_log = logging.getLogger("forkserve.websocket")
_log.setLevel(logging.WARNING)  # the library reports each connection at INFO

STEPS_A_TURN = 32
"""Steps of the frame reader that a client gets in one turn of the loop: a frame each, or a piece of a large one."""
READ_AHEAD = 1 << 16
"""Bytes; a client that has sent more at once is not read again in the same turn, as uvloop would."""
BYTES_AHEAD = 1 << 18
"""Memory of the messages that are taken before the application asks for them; ``ws_max_queue`` is their number."""
OFFERS, OFFERED_BYTES = 100, 2048
"""Subprotocols, and bytes of extensions, that a handshake may offer: each costs time, and the first stay in memory."""
NOTICED = 2.0
"""Seconds within which the sweep has seen that a client takes something."""
DRAIN_TIME = 5.0
"""Seconds that a client has in a drain to answer a Close."""
# Small windows, as websockets' own servers have them: a quarter of the memory for little worse a ratio. One handshake claims it.
_DEFLATE = ServerPerMessageDeflateFactory(server_max_window_bits=12, client_max_window_bits=12, compress_settings={"memLevel": 5})
_OWN_FIELDS = frozenset(
    (
        b"sec-websocket-accept",
        b"sec-websocket-extensions",
        b"sec-websocket-protocol",
        b"content-length",
        b"transfer-encoding",
    )
)


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
        "_accept", "_ahead", "_close_code", "_close_reason", "_closing_at", "_connected", "_denial", "_extensions", "_greeted",
        "_messages", "_news", "_pinged", "_pong", "_protocol", "_reader", "_stall", "_task", "_turn_due", "_writable",
    )  # fmt: skip

    def __init__(self, connection: Connection, target: Target, fields: Fields) -> None:
        super().__init__(connection, target, fields)
        settings = self.site.settings
        factories = [_DEFLATE] if settings.ws_per_message_deflate else []
        self._protocol = ServerProtocol(state=OPEN, extensions=factories, logger=_log)
        self._accept, self._extensions = self._negotiate()
        self.keep_alive = True  # what comes behind the handshake are frames, to be kept until the application has accepted
        self._greeted = False  # websocket.connect has been received
        self._messages: deque[bytes | str] = deque()
        self._ahead = 0  # memory of them
        self._reader: FrameReader | None = None  # from the accept on, until nothing more counts
        self._turn_due = False  # another turn of the loop will go on with what has come
        self._pong: bytes | None = None  # waits until the client reads
        self._stall = Stall()
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
        if self._values(b"sec-websocket-version") != ["13"]:
            raise RequestError(
                426,
                "only WebSocket version 13 is spoken here",
                (("Sec-WebSocket-Version", "13"), ("Upgrade", "websocket")),
            )
        if len(self._subprotocols()) > OFFERS:
            raise RequestError(431, "too many subprotocols are offered")
        headers = Headers([("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Version", "13")])  # as seen above
        for key in self._values(b"sec-websocket-key"):
            headers["Sec-WebSocket-Key"] = key
        offers = ",".join(self._values(b"sec-websocket-extensions"))
        # RFC 7692 7: a value in quotes is legal, but few read it alike: such an offer is declined.
        if offers and '"' not in offers and len(offers) <= OFFERED_BYTES:
            headers["Sec-WebSocket-Extensions"] = offers
        try:
            accept, extensions, _ = self._protocol.process_request(Request(self.target.environ["RAW_URI"], headers))
        except InvalidHandshake as error:
            raise RequestError(400, "the WebSocket handshake is malformed") from error
        return accept, extensions

    def _values(self, name: bytes) -> list[str]:
        return [value.decode("latin-1") for other, value in self.fields.headers if other == name]

    def _subprotocols(self) -> list[str]:
        offers = ",".join(self._values(b"sec-websocket-protocol")).split(",")
        return [offer.strip(" \t") for offer in offers if offer.strip(" \t")]

    def start(self) -> None:
        """Call the application."""
        self._task = asyncio.Task(self._run(), loop=self.site.loop, name=REQUEST, context=self.context)
        self.site.tasks.add(self._task)

    def _scope(self) -> Scope:
        scope = scope_template(self.connection, self.fields, "websocket")
        scope |= self.target.scope
        del scope["method"]
        if scope["root_path"]:
            root(scope)
        scope["asgi"] = _VERSIONS.copy()
        scope["headers"] = self.fields.headers.copy()
        scope["subprotocols"] = self._subprotocols()
        scope["extensions"] = {"websocket.http.response": {}}
        scope["state"] = self.site.state.copy()
        self.given = scope
        return scope

    async def _run(self) -> None:
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
            elif self._connected and self._protocol.state is OPEN and not self.gone:
                self._close(1000, "")
        finally:
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
        while not self._messages:
            if self.gone and not self._behind():
                return {"type": "websocket.disconnect", "code": self._close_code, "reason": self._close_reason}
            self._news.clear()
            await self._news.wait()
        data = self._messages.popleft()
        self._ahead -= getsizeof(data)
        self._go_on()
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
        deflate: Any = self._protocol.extensions[0] if self._protocol.extensions else None
        self._reader = FrameReader(site.settings.ws_max_size, deflate)
        self.connection.transport.write(data)
        if self.connection.write_paused:
            self._writable.clear()
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
        self._go_on()  # to the client's Close, though messages may be in front of it that nobody will receive

    # The transport's protocol, from the accept on (asyncio)

    def data_received(self, data: bytes) -> None:
        """Frames have come."""
        self._pinged = None
        if self._reader is None:  # RFC 6455 7.1.7: after a Close or a failure no more is read
            return
        self._reader.feed(data)
        if self._turn_due:
            return
        self._take_turn()
        if len(data) > READ_AHEAD and not self._turn_due:
            self._pause()

    def _take_turn(self) -> None:
        """Do so much of what the client has sent, and see whether to read on."""
        self._turn_due = False
        try:
            for _ in range(STEPS_A_TURN):
                if self._reader is None or self._reader.hungry or self._full():
                    break
                event = self._reader.step()
                if event is not None:
                    self._take(*event)
        except FrameError as error:
            self._reader = None
            self._protocol.fail(error.code, error.reason)
        self._flush()
        if self.gone:
            self._news.set()
        self._go_on()

    def _go_on(self) -> None:
        """Read from the client, or go on with what has been read, unless the application must receive first."""
        if self._full():
            self._pause(again=False)
        elif self._reader is not None and not self._reader.hungry:
            self._pause()
        elif self._connected and not self._turn_due and not self.connection.transport.is_closing():
            self.connection.resume_reading()

    def _pause(self, *, again: bool = True) -> None:
        """Read nothing from the client until the next turn or, without ``again``, until the application has received."""
        if not self.connection.transport.is_closing():
            self.connection.pause_reading()
        if again and not self._turn_due:
            self._turn_due = True
            self.site.loop.call_soon(self._take_turn, context=self.site.context)

    def eof_received(self) -> bool:
        """The client sends no more: without a Close frame the WebSocket is broken."""
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
        if self._pong is not None:
            self._send_pong()
            self._flush()

    def _take(self, opcode: int, data: Any) -> None:
        if opcode in (TEXT, BINARY):
            if self._protocol.state is OPEN:  # else the application has been told that it is over
                self._ahead += getsizeof(data)
                self._messages.append(data)
                self._news.set()
        elif opcode == PING:
            self._pong = data  # RFC 6455 5.5.3: instead of one that could not be sent yet
            if self._writable.is_set():
                self._send_pong()
        elif opcode == CLOSE:
            self._reader = None
            self._protocol.receive_data(data)
            received = self._protocol.close_rcvd
            if received is not None and self._protocol.close_rcvd_then_sent:
                self._close_code, self._close_reason = received.code, received.reason
            self.client_gone()

    def _send_pong(self) -> None:
        if self._pong is not None and self._reader is not None:
            self._protocol.send_pong(self._pong)
        self._pong = None

    def _full(self) -> bool:
        """Whether the application must receive before more is taken from the client."""
        queued = len(self._messages) >= self.site.settings.ws_max_queue or self._ahead > BYTES_AHEAD
        return queued and self._protocol.state is OPEN

    def _behind(self) -> bool:
        """Whether there are frames that came before the end of the connection and have not been read."""
        return self._reader is not None and not self._reader.hungry and self._protocol.state is OPEN

    def _flush(self) -> None:
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
        transport, site = self.connection.transport, self.site
        self._closing_at += late
        held = unsent = transport.get_write_buffer_size()
        # What a TCP peer's kernel has not confirmed tells of a peer that is lost; a unix socket's waits for the program.
        if held or transport.get_extra_info("socket").family != socket.AF_UNIX:
            unsent += waiting_in_kernel(transport)
        stalled = self._stall.seconds(now, self, self.sent, unsent) - late if unsent else 0.0
        if not unsent:
            self._stall.clear()
        if held and stalled > site.write_timeout:
            site.log.info("%s: the client has read nothing for too long", self.describe())
            transport.abort()
        elif now >= self._closing_at:
            transport.abort()
        elif self._protocol.state is OPEN and site.settings.ws_ping_interval:
            self._look_after(now, late, unsent, stalled)

    def _look_after(self, now: float, late: float, unsent: int, stalled: float) -> None:
        """Ping, and end a connection that shows no life: it takes nothing and, where we would see it, answers no ping."""
        interval, patience = self.site.settings.ws_ping_interval, self.site.settings.ws_ping_timeout or inf
        transport, deaf = self.connection.transport, self._full()  # deaf: we do not read, so no answer could be seen
        if self._pinged is None:
            self._pinged = now
        waited = now - abs(self._pinged) - late
        if deaf and look_at_peer(transport)[0]:
            transport.abort()
        elif self._pinged > 0 and waited >= interval:
            if self._writable.is_set():
                self._protocol.send_ping(b"")
                self._flush()
                self._pinged = -now
            elif stalled >= patience:  # not even a ping can be sent
                transport.abort()
        elif self._pinged < 0 and waited >= patience:
            if unsent and stalled + NOTICED < waited:
                self._pinged = -now  # it takes what was sent, and the ping may still be on its way
            elif deaf and not unsent:
                self._pinged = None  # its kernel at least has got the ping
            else:
                transport.abort()
