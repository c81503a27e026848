"""WebSocket for ASGI: the handshake as a request and its response, then messages (ASGI WebSocket 2.5)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from forkserve.http.app.asgi import REQUEST, VERSIONS, Message, add_root_path, scope_template
from forkserve.http.app.exchange import Exchange
from forkserve.http.message.errors import ClientGoneError, ResponseError, is_departure
from forkserve.http.message.response import ResponseHead, read_code
from forkserve.http.websocket.connection import WebSocketConnection
from forkserve.http.websocket.handshake import Handshake

if TYPE_CHECKING:
    from forkserve.http.app.asgi import Scope
    from forkserve.http.app.site import Site
    from forkserve.http.framing.writer import UpgradeWriter
    from forkserve.http.message.fields import Fields
    from forkserve.http.message.http1 import Target

_VERSIONS = VERSIONS | {"spec_version": "2.5"}


class WebSocketExchange(Exchange):
    """The handshake of a WebSocket, answered by an ASGI application with accept or a denial, and then the messages.

    Args:
        site: What all requests share.
        writer: Sends the response to the handshake, or hands the connection over.
        target: The request line.
        fields: The header section.

    Raises:
        RequestError: As `Handshake`.
    """

    __slots__ = (
        "_changed", "_close_code", "_connect_received", "_denial", "_handshake", "_socket", "_task", "_upgrade", "_writable",
    )  # fmt: skip

    def __init__(self, site: Site, writer: UpgradeWriter, target: Target, fields: Fields) -> None:
        super().__init__(site, writer, target, fields)
        self._upgrade = writer
        self._handshake = Handshake(site.settings, target, fields)
        writer.expect_upgrade()
        self._connect_received = False  # the application has received websocket.connect
        self._denial = False  # the application answers with an HTTP response
        self._socket: WebSocketConnection | None = None  # from the accept on
        self._close_code = 1006
        # During the handshake; then `WebSocketConnection.waiters` and `drained` serve for the same.
        self._changed = asyncio.Event()
        self._writable = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self, body: bytes | None = None) -> None:
        """Call the application; there is no request body, which `Handshake` refuses."""
        self._task = asyncio.Task(self._run(), loop=self.site.loop, name=REQUEST, context=self.context)
        self.site.tasks.add(self._task)

    async def _run(self) -> None:
        entry = self.site.observer.next_entry()
        entry.enter(self, self.target.line)
        try:
            self.scope_or_environ = self._scope()
            await self.site.app(self.scope_or_environ, self.receive, self.send)
        except BaseException as error:  # noqa: BLE001 - sys.exit() in an app ends a request, not the worker
            if not self.gone or not (isinstance(error, asyncio.CancelledError) or is_departure(error)):
                self._end_with_error(error, "the application raised an exception")
            else:
                self.site.log.debug("%s: the client has left: %r", self.describe(), error)
        else:
            if self._socket is None and not self.complete and not self.gone:
                self._end_with_error(None, "the application returned without answering the handshake")
            elif self._socket is not None and self._socket.is_open:
                self._socket.close(1000, "")
        finally:
            entry.leave(self)
            self.site.tasks.discard(self._task)

    def _end_with_error(self, error: BaseException | None, what: str) -> None:
        if self._socket is None:
            self.fail(error, what)
            return
        self.site.log.error("%s: %s", self.describe(), what, exc_info=error)
        if self._socket.is_open:
            self._socket.close(1011, "")

    def _scope(self) -> Scope:
        connection = self.writer.connection
        scope = scope_template(self.site, connection.endpoints, self.fields.version)
        scope["type"] = "websocket"
        scope["client"], scheme = connection.endpoints.seen_through(self.fields, self.site.trusted)
        scope["scheme"] = {"http": "ws", "https": "wss"}[scheme]
        self.target.put_scope(scope)
        del scope["method"]
        if scope["root_path"]:
            add_root_path(scope)
        scope["asgi"] = _VERSIONS.copy()
        scope["headers"] = self.fields.headers.copy()
        scope["subprotocols"] = self._handshake.subprotocols
        scope["extensions"] = {"websocket.http.response": {}}
        scope["state"] = self.site.state.copy()
        return scope

    # Called by the application

    async def receive(self) -> Message:
        """Return ``websocket.connect``, then messages, then ``websocket.disconnect`` (ASGI)."""
        if not self._connect_received:
            self._connect_received = True
            return {"type": "websocket.connect"}
        while (ws := self._socket) is None:
            if self.gone:
                return {"type": "websocket.disconnect", "code": self._close_code, "reason": ""}
            self._changed.clear()
            await self._changed.wait()
        messages, waiters = ws.inbox.messages, ws.waiters
        while not messages:
            # Messages that came before the connection broke are received; behind a Close there are none.
            if self.gone and not ws.inbox.may_have_messages:
                return {"type": "websocket.disconnect", "code": ws.close_code, "reason": ws.close_reason}
            waiter = self.site.loop.create_future()
            waiters.append(waiter)
            try:
                await waiter
            finally:
                waiters.remove(waiter)
        data = ws.take_message()
        return {"type": "websocket.receive", "bytes" if isinstance(data, bytes) else "text": data}

    async def send(self, message: Message) -> None:
        """Take accept or a denial, then messages, then close (ASGI).

        Raises:
            ResponseError: The message breaks the specification.
            ClientGoneError: The client has closed the WebSocket.
        """
        kind, ws = message["type"], self._socket
        if self.gone:
            raise ClientGoneError
        if ws is None:
            self._answer_handshake(kind, message)
            if self._denial and self.writer.paused and not self.gone:
                self._writable.clear()
                await self._writable.wait()
        elif kind == "websocket.send":
            while ws.drained is not None:  # of many tasks that send at once, only one adds to what waits for a slow client
                await ws.drained.wait()
                if self.gone:
                    raise ClientGoneError
            ws.send(message.get("text"), message.get("bytes"))
            if ws.drained is not None:
                await ws.drained.wait()
        elif kind == "websocket.close":
            if ws.is_open:
                ws.close(message.get("code", 1000), message.get("reason") or "")
        else:
            raise ResponseError(f"expected websocket.send or websocket.close, got {kind!r}")

    def _answer_handshake(self, kind: str, message: Message) -> None:
        if kind == "websocket.accept" and not self._denial:
            self._accept(message)
            return
        self.writer.close_after()
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

    def _accept(self, message: Message) -> None:
        site, handshake = self.site, self._handshake
        self.head = handshake.accept(message.get("subprotocol"), message.get("headers", ()))
        self.started = True
        site.tally.untimed_response(101)  # its duration is no latency
        self._socket = ws = WebSocketConnection(
            site.server,
            self._upgrade.connection,
            self,
            site.context,
            handshake.protocol,
            handshake.reader(site.settings.ws_max_size),
        )
        self._upgrade.upgrade(self.head, b"websocket", ws)
        self._changed.set()
        if site.on_answer is not None:
            site.on_answer(self)

    # Called by the framing

    def client_gone(self) -> None:
        """Let ``receive`` return ``websocket.disconnect`` and ``send`` raise."""
        self.gone = True
        self._changed.set()
        self._writable.set()

    def client_half_closed(self) -> None:
        """End: the client is gone before the handshake has been answered."""
        self.client_gone()
        self.writer.abort()

    def writable(self) -> None:
        """Let ``send`` return, during a denial that streams."""
        self._writable.set()

    @property
    def is_stream(self) -> bool:
        """Whether it is open, or about to be closed, or a denial that streams."""
        return self._socket is not None or super().is_stream
