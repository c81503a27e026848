"""ASGI 3, HTTP: the scope, ``receive`` and ``send`` of one request (asgi.readthedocs.io, HTTP, version 2.3)."""

from __future__ import annotations

import asyncio
from asyncio import Task
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

from forkserve.base.tally import SHORT
from forkserve.http.app.exchange import Exchange
from forkserve.http.message.errors import ClientGoneError, ResponseError, is_departure
from forkserve.http.message.response import read_head

if TYPE_CHECKING:
    from forkserve.http.app.site import Site
    from forkserve.http.framing.endpoints import Endpoints

Message = MutableMapping[str, Any]
Scope = dict[str, Any]

VERSIONS = {"version": "3.0", "spec_version": "2.3"}
"""Of HTTP scopes. From 2.4 on Starlette does not wait for ``http.disconnect`` but relies on an error of ``send``, which an idle
stream never calls: it would never end."""
REQUEST = "request"
"""Name of the tasks in which applications run."""
TURNS_TO_LEAVE = 16
"""Turns of the loop in which an application that waits for ``http.disconnect`` may act on it; then ``send`` raises."""
PIECE_COSTS = 64
"""Bytes of memory that a piece of a body takes besides its content."""
BODY_AHEAD = 65536
"""Bytes of a request body that are taken from the client before the application asks for them."""


class _Dialogue:
    """What has to be known of an application that receives, or waits for the client. Most only answer, and pay for none of it.

    Attributes:
        body_complete: All of the request body has come.
        body_received: The application has received all of it.
        pieces: What has come of it and was not received; None if it is nothing.
        ahead: Bytes that the pieces take.
        half_closed: The client counts as gone for `receive`.
        disconnect_received: The application has received http.disconnect.
        receiving: The application waits in `receive`.
        changed: Set when `receive` has to look again.
        writable: Set when `send` has to.
        unsent: Messages that were sent since the client left.
    """

    __slots__ = (
        "ahead", "body_complete", "body_received", "changed", "disconnect_received", "half_closed", "pieces", "receiving",
        "unsent", "writable",
    )  # fmt: skip

    def __init__(self, *, body_complete: bool) -> None:
        self.body_complete = body_complete
        self.body_received = self.half_closed = self.disconnect_received = self.receiving = False
        self.pieces: list[bytes] | None = None
        self.ahead = self.unsent = 0
        self.changed: asyncio.Event | None = None
        self.writable: asyncio.Event | None = None

    def notify(self) -> None:
        """Let `receive` look again."""
        if self.changed is not None:
            self.changed.set()


class ASGIExchange(Exchange):
    """One request answered by an ASGI application, in a task of its own."""

    __slots__ = ("_dialogue", "_task")

    keeps_pieces = True  # it waits in `send`, where it holds the message

    # Called by the framing

    def start(self, body: bytes | None = None) -> None:
        """Call the application."""
        site = self.site
        self._dialogue: _Dialogue | None = None
        if body is not None:
            self._dialogue = dialogue = _Dialogue(body_complete=True)
            dialogue.pieces = [body]
        # Not loop.create_task: with a name given, asyncio does not make one up. This is done for every request.
        self._task = task = Task(self._run(), loop=site.loop, name=REQUEST, context=self.context)
        site.tasks.add(task)

    def _begin_dialogue(self) -> _Dialogue:
        if self._dialogue is None:
            self._dialogue = _Dialogue(body_complete=not self.fields.has_body)
        return self._dialogue

    def body_data(self, data: bytes) -> None:
        """Keep the bytes for ``receive``."""
        if self.complete:
            return
        dialogue = self._begin_dialogue()
        if dialogue.pieces is None:
            dialogue.pieces = []
            dialogue.ahead = 0
        dialogue.pieces.append(data)
        dialogue.ahead += len(data) + PIECE_COSTS
        if dialogue.ahead > BODY_AHEAD:
            self.writer.pause_body()
        dialogue.notify()

    @property
    def takes_more(self) -> bool:
        """Whether the application has kept up with the client."""
        dialogue = self._dialogue
        return dialogue is None or dialogue.pieces is None or dialogue.ahead <= BODY_AHEAD

    def body_end(self) -> None:
        """Let ``receive`` return the last piece."""
        dialogue = self._begin_dialogue()
        dialogue.body_complete = True
        dialogue.notify()

    def client_half_closed(self) -> None:
        """Decide by ``--half-close`` whether the client counts as gone or waits for the response."""
        if self.site.settings.half_close == "disconnect":
            dialogue = self._begin_dialogue()
            dialogue.half_closed = True
            dialogue.notify()

    def client_gone(self) -> None:
        """Let ``receive`` return ``http.disconnect`` and ``send`` raise."""
        self.gone = True
        self._notify()
        self.writable()

    def writable(self) -> None:
        """Let ``send`` return."""
        if self._dialogue is not None and self._dialogue.writable is not None:
            self._dialogue.writable.set()

    def end_stream(self) -> None:
        """Let ``receive`` return ``http.disconnect``."""
        self._notify()

    def flush_head(self) -> None:
        """Send the head: a client of server-sent events waits for it before there is an event."""
        if self.head is not None and not (self.started or self.gone or self.complete):
            self.write(b"", more=True)

    def _notify(self) -> None:
        if self._dialogue is not None:
            self._dialogue.notify()

    @property
    def _disconnect_received(self) -> bool:
        return self._dialogue is not None and self._dialogue.disconnect_received

    # Called by the application

    async def _run(self) -> None:
        site = self.site
        # Callables that are attributes: to load them is faster than to look for methods, which Python cannot specialize.
        app, next_entry = site.app, site.observer.next_entry
        entry = next_entry()
        # Here and at the end, what `Entry.enter` and `Entry.leave` do: every request would pay for the calls.
        entry.owner = self
        waited = site.tally.now - self.queued  # a clock for each request would cost more than the rest of this
        if waited > SHORT:
            self.has_waited(waited)
        try:
            entry.line.value = self.target.line
        except ValueError:  # it is too long
            entry.enter(self, self.target.line)
        try:
            await app(self._scope(), self.receive, self.send)
            if not self.complete and not self.gone:
                self._ended_early()
        except BaseException as error:  # noqa: BLE001 - sys.exit() in an app ends a request, not the worker
            if (self.gone or self._disconnect_received) and is_departure(error):
                site.log.debug("%s: the client has left: %r", self.describe(), error)
                if not self.gone and not self.complete:
                    self.abort()
            elif not isinstance(error, asyncio.CancelledError):
                self.fail(error, "the application raised an exception")
            elif not self.gone and not self.complete:
                self.fail(None, "the application was cancelled")
        finally:
            if entry.owner is self:
                entry.owner = None
                entry.line.value = b""
            site.tasks.discard(self._task)

    def _ended_early(self) -> None:
        if self._disconnect_received:  # it knows that the client is gone, and has ended its stream
            self.abort()
        else:
            self.fail(None, "the application returned without completing its response")

    def _scope(self) -> Scope:
        site, connection = self.site, self.writer.connection
        endpoints = connection.endpoints
        template = connection.template
        if template is None:
            version = self.fields.version
            key = version, endpoints.scheme, endpoints.server
            template = connection.template = site.template(key, lambda: scope_template(site, endpoints, version))
        scope: Scope = template.copy()
        scope["client"] = endpoints.client
        if self.fields.forwarded:
            scope["client"], scope["scheme"] = endpoints.seen_through(self.fields, site.trusted)
        self.scope_or_environ = scope
        self.target.put_scope(scope)
        if scope["root_path"]:
            add_root_path(scope)
        scope["asgi"] = VERSIONS.copy()
        scope["headers"] = self.fields.headers.copy()
        scope["extensions"] = {}
        scope["state"] = site.state.copy()
        return scope

    async def receive(self) -> Message:
        """Return the next piece of the request body, or ``http.disconnect`` (ASGI)."""
        dialogue = self._begin_dialogue()
        while not self.gone and not self.complete:
            if dialogue.pieces or (dialogue.body_complete and not dialogue.body_received):
                body = b"".join(dialogue.pieces or ())
                dialogue.pieces = None
                dialogue.body_received = dialogue.body_complete
                if not dialogue.body_complete:
                    self.writer.resume_body()
                return {"type": "http.request", "body": body, "more_body": not dialogue.body_complete}
            if dialogue.half_closed or (self.site.ending_streams and self.is_stream):
                break
            self.writer.want_body()
            self.flush_head()
            if dialogue.changed is None:
                dialogue.changed = asyncio.Event()
            dialogue.changed.clear()
            dialogue.receiving = True
            try:
                await dialogue.changed.wait()
            finally:
                dialogue.receiving = False
        dialogue.disconnect_received = True
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Take the start of the response, then its body (ASGI).

        When the client has left, nothing is sent. The end of a response raises no error then, so that work behind it continues,
        such as a background task; a piece that is not the last does, so that a stream without end ends.

        Raises:
            ResponseError: The message breaks the specification or HTTP.
            ClientGoneError: The client has closed the connection, and the application would send more.
        """
        kind = message["type"]
        if self.gone:
            await self._send_in_vain(more=message.get("more_body", False))
            return
        if self.head is None:
            if kind != "http.response.start":
                raise ResponseError(f"expected http.response.start, got {kind!r}")
            self.head = read_head(message["status"], message.get("headers", ()), bytes)
            if self._dialogue is not None and self._dialogue.receiving:
                self.site.loop.call_soon(self.flush_head)
                if self.site.ending_streams:
                    self._notify()
            return
        if kind != "http.response.body":
            raise ResponseError(f"expected http.response.body, got {kind!r}")
        if self.complete:
            raise ResponseError("the response is complete already")
        more = message.get("more_body", False)
        if more or self.started:
            self._send_piece(message.get("body", b""), more=more)
        else:
            self.answer(message.get("body", b""))
        if not more:
            if self._dialogue is not None:
                self._dialogue.notify()
        elif self.writer.paused:
            await self._until_writable()

    def _send_piece(self, data: bytes, *, more: bool) -> None:
        # An application that knows of the disconnect may have left something out: the response must not look whole.
        cut = self._disconnect_received and not more and self.left is None and not self.bodiless
        self.write(data, more=more or cut)
        if cut:
            self.abort()

    async def _send_in_vain(self, *, more: bool) -> None:
        dialogue = self._begin_dialogue()
        dialogue.unsent += 1
        await asyncio.sleep(0)
        # An application that waits for http.disconnect ends the stream then, and cleans up: it needs no error.
        if more and (dialogue.unsent > TURNS_TO_LEAVE or not (dialogue.receiving or dialogue.disconnect_received)):
            raise ClientGoneError

    async def _until_writable(self) -> None:
        dialogue = self._begin_dialogue()
        if dialogue.writable is None:
            dialogue.writable = asyncio.Event()
        while self.writer.paused and not self.gone:
            dialogue.writable.clear()
            await dialogue.writable.wait()


def scope_template(site: Site, endpoints: Endpoints, version: str) -> Scope:
    """Return the part of an HTTP scope that follows from the connection and the HTTP version.

    Connections with the same address of ours share it, and put their clients into copies: see `shared_environ`.
    """
    return {
        "type": "http",
        # Keys that `Target.put_scope` and the exchange fill in: to copy a dict is cheap, to let it grow is not.
        **dict.fromkeys(("method", "path", "raw_path", "query_string", "headers", "extensions", "state")),
        "asgi": VERSIONS,
        "http_version": version,
        "scheme": endpoints.scheme,
        "root_path": site.settings.root_path,
        "client": endpoints.client,
        "server": endpoints.server,
    }


def add_root_path(scope: Scope) -> None:
    """Put the prefix under which the application is mounted in front of the path, unless the proxy left it there."""
    prefix = scope["root_path"]
    if not (scope["path"] == prefix or scope["path"].startswith(prefix + "/")):
        scope["path"] = prefix + scope["path"]
        scope["raw_path"] = prefix.encode("utf-8") + scope["raw_path"]
