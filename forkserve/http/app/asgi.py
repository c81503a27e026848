"""ASGI 3, HTTP: the scope, ``receive`` and ``send`` of one request (asgi.readthedocs.io, HTTP, version 2.3)."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

from forkserve.http.app.exchange import Exchange
from forkserve.http.message.errors import ClientGoneError, ResponseError, is_departure
from forkserve.http.message.response import read_head

if TYPE_CHECKING:
    from forkserve.http.framing.connection import Connection
    from forkserve.http.message.fields import Fields

Message = MutableMapping[str, Any]
Scope = dict[str, Any]

VERSIONS = {"version": "3.0", "spec_version": "2.3"}
"""Of HTTP scopes. From 2.4 on Starlette does not wait for ``http.disconnect`` but relies on an error of ``send``, which an idle
stream never calls: it would never end."""
REQUEST = "request"
"""Name of the tasks in which applications run."""
LEAVING = 16
"""Turns of the loop in which an application that waits for ``http.disconnect`` may act on it; then ``send`` raises."""
PIECE_COSTS = 64
"""Bytes that a piece of a body takes besides what is in it."""
BODY_AHEAD = 65536
"""Bytes of a request body that are taken from the client before the application asks for them."""


class ASGIExchange(Exchange):
    """One request answered by an ASGI application, in a task of its own."""

    __slots__ = (
        "_ahead", "_body_done", "_body_told", "_half_closed", "_listening", "_news", "_pieces", "_task", "_told", "_unsent",
        "_writable",
    )  # fmt: skip

    keeps_pieces = True  # it waits in `send`, with the message in its hands

    # What the connection tells

    def start(self) -> None:
        """Call the application."""
        fields = self.fields
        self._body_done = not (fields.chunked or fields.content_length)
        self._body_told = False
        self._pieces: list[bytes] | None = None
        self._ahead = 0  # bytes that they take
        self._half_closed = False
        self._told = False  # http.disconnect
        self._listening = False  # the application waits in `receive`
        self._unsent = 0  # messages that were sent to nobody
        self._news: asyncio.Event | None = None
        self._writable: asyncio.Event | None = None
        # Not loop.create_task: a name given spares asyncio making one up, and this is done for every request.
        self._task = asyncio.Task(self._run(), loop=self.site.loop, name=REQUEST, context=self.context)
        self.site.tasks.add(self._task)

    def body_data(self, data: bytes) -> None:
        """Keep it for ``receive``."""
        if self.complete:
            return
        if self._pieces is None:
            self._pieces = []
        self._pieces.append(data)
        self._ahead += len(data) + PIECE_COSTS
        if self._ahead > BODY_AHEAD:
            self.connection.pause_reading()
        self._tell()

    @property
    def takes_more(self) -> bool:
        """Whether the application has kept up with what has come."""
        return self._ahead <= BODY_AHEAD

    def body_end(self) -> None:
        """``receive`` can give the last piece."""
        self._body_done = True
        self._tell()

    def client_half_closed(self) -> None:
        """The client has left, or sends no more and waits for the answer: ``--half-close`` says which."""
        if self.site.settings.half_close == "disconnect":
            self._half_closed = True
            self._tell()

    def client_gone(self) -> None:
        """``receive`` gives ``http.disconnect``, ``send`` raises."""
        self.gone = True
        self._tell()
        self.writable()

    def writable(self) -> None:
        """Let ``send`` return."""
        if self._writable is not None:
            self._writable.set()

    def end_stream(self) -> None:
        """``receive`` gives ``http.disconnect``."""
        self._tell()

    def flush_head(self) -> None:
        """A client of server-sent events waits for the head before there is an event."""
        if self.head is not None and not (self.started or self.gone or self.complete):
            self.write(b"", more=True)

    def _tell(self) -> None:
        if self._news is not None:
            self._news.set()

    # What the application uses

    async def _run(self) -> None:
        observer = self.site.observer
        number = observer.enter(self.target.line)
        try:
            await self.site.app(self._scope(), self.receive, self.send)
            if not self.complete and not self.gone:
                self._ended_early()
        except BaseException as error:  # noqa: BLE001 - sys.exit() in an app ends a request, not the worker
            if (self.gone or self._told) and is_departure(error):
                self.site.log.debug("%s: the client has left: %r", self.describe(), error)
                if not self.gone and not self.complete:
                    self.break_off()
            elif not isinstance(error, asyncio.CancelledError):
                self.fail(error, "the application raised an exception")
            elif not self.gone and not self.complete:
                self.fail(None, "the application was cancelled")
        finally:
            observer.leave(number)
            self.site.tasks.discard(self._task)

    def _ended_early(self) -> None:
        if self._told:  # it heard that nobody will listen, and ended its stream
            self.break_off()
        else:
            self.fail(None, "the application returned without completing its response")

    def _scope(self) -> Scope:
        connection, target = self.connection, self.target
        if connection.template is None:
            connection.template = scope_template(connection, self.fields, "http")
        scope: Scope = connection.template.copy()
        scope.update(target.scope)
        if scope["root_path"]:
            root(scope)
        scope["asgi"] = VERSIONS.copy()
        scope["headers"] = self.fields.headers.copy()
        scope["extensions"] = {}
        scope["state"] = self.site.state.copy()
        self.given = scope
        return scope

    async def receive(self) -> Message:
        """ASGI: the next piece of the request body, or ``http.disconnect``."""
        while not self.gone and not self.complete:
            if self._pieces or (self._body_done and not self._body_told):
                body = b"".join(self._pieces or ())
                self._pieces = None
                self._ahead = 0
                self._body_told = self._body_done
                if not self._body_done:
                    self.connection.resume_reading()
                return {"type": "http.request", "body": body, "more_body": not self._body_done}
            if self._half_closed or (self.site.ending_streams and self.is_stream):
                break
            self.connection.send_continue()
            self.flush_head()
            if self._news is None:
                self._news = asyncio.Event()
            self._news.clear()
            self._listening = True
            try:
                await self._news.wait()
            finally:
                self._listening = False
        self._told = True
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """ASGI: the start of the answer, then its body.

        To a client that has left nothing is sent, and what follows the answer goes on, such as a background task; but pieces
        raise an error, so that a stream without end ends.

        Raises:
            ResponseError: The message breaks the specification or HTTP.
            ClientGoneError: The client has closed the connection, and there would be more to send.
        """
        kind = message["type"]
        if self.gone:
            await self._send_to_nobody(more=bool(message.get("more_body", False)))
            return
        if self.head is None:
            if kind != "http.response.start":
                raise ResponseError(f"expected http.response.start, got {kind!r}")
            self.head = read_head(message["status"], message.get("headers", ()), bytes)
            if self._listening:
                self.site.loop.call_soon(self.flush_head)
                if self.site.ending_streams:
                    self._tell()
            return
        if kind != "http.response.body":
            raise ResponseError(f"expected http.response.body, got {kind!r}")
        if self.complete:
            raise ResponseError("the response is complete already")
        more = bool(message.get("more_body", False))
        if more or self.started:
            self._send_piece(message.get("body", b""), more=more)
        else:
            self.answer(message.get("body", b""))
        if not more:
            if self._listening:
                self._tell()
        elif self.connection.write_paused:
            await self._until_writable()

    def _send_piece(self, data: bytes, *, more: bool) -> None:
        # If the application knows of a disconnect it may have left something out: that must not look whole.
        cut = self._told and not more and self.left is None and not self.bodiless
        self.write(data, more=more or cut)
        if cut:
            self.break_off()

    async def _send_to_nobody(self, *, more: bool) -> None:
        self._unsent += 1
        await asyncio.sleep(0)
        # Who waits for http.disconnect ends the stream when it comes, and cleans up: it needs no error.
        if more and (self._unsent > LEAVING or not (self._listening or self._told)):
            raise ClientGoneError

    async def _until_writable(self) -> None:
        if self._writable is None:
            self._writable = asyncio.Event()
        while self.connection.write_paused and not self.gone:
            self._writable.clear()
            await self._writable.wait()


def scope_template(connection: Connection, fields: Fields, kind: str) -> Scope:
    """The part of a scope that follows from connection and field section; copied for each request.

    Args:
        connection: The client's.
        fields: The header section.
        kind: ``http`` or ``websocket``.
    """
    client, scheme = connection.endpoints.seen_through(fields, connection.site.trusted)
    return {
        "type": kind,
        # The places of what `Target.scope` and the exchange fill in: a copy of a dict is cheap, but its growing is not.
        **dict.fromkeys(("method", "path", "raw_path", "query_string", "headers", "extensions", "state")),
        "asgi": VERSIONS,
        "http_version": fields.version,
        "scheme": scheme if kind == "http" else {"http": "ws", "https": "wss"}[scheme],
        "root_path": connection.site.settings.root_path,
        "client": client,
        "server": connection.endpoints.server,
    }


def root(scope: Scope) -> None:
    """Put the prefix under which the application is mounted in front of the path, unless the proxy left it there."""
    prefix = scope["root_path"]
    if not (scope["path"] == prefix or scope["path"].startswith(prefix + "/")):
        scope["path"] = prefix + scope["path"]
        scope["raw_path"] = prefix.encode("utf-8") + scope["raw_path"]
