"""A second framing behind `ResponseWriter`: a line protocol, defined here, serves WSGI and ASGI apps through the usual exchanges.

A request is one line, ``METHOD TARGET LENGTH``, and LENGTH bytes of body. A response is ``STATUS code``, ``FIELD name value`` for
each field, ``DATA size`` and SIZE bytes for each piece, and ``END``. A response without ``END`` was aborted.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pytest

from forkserve.config import load as config
from forkserve.http.app.wsgi import OUTPUT_IN_MEMORY
from forkserve.http.framing.endpoints import Endpoints
from forkserve.http.message.fields import Fields
from forkserve.http.message.http1 import read_target
from forkserve.http.service import Service
from forkserve.prefork.system.scoreboard import unseen_row

if TYPE_CHECKING:
    from forkserve.http.framing.writer import RequestHandler, ResponseWriter
    from forkserve.http.message.response import Field, ResponseHead

PATIENCE = 10.0
PIECE = b"x" * 65536


class LineWriter:
    """Write responses in the line protocol; implements `ResponseWriter`."""

    def __init__(self, connection: LineConnection) -> None:
        self.connection = connection

    def respond(self, head: ResponseHead, data: bytes) -> None:
        self.start(head, bodiless=False)
        self.end(data)

    def start(self, head: ResponseHead, *, bodiless: bool) -> None:
        lines = [b"STATUS %d\n" % head.code, *(b"FIELD %b %b\n" % field for field in head.fields)]
        self.connection.transport.write(b"".join(lines))

    def data(self, data: bytes, *, spill: bool = True) -> None:
        if data:
            self.connection.transport.write(b"DATA %d\n%b" % (len(data), data))

    def end(self, data: bytes = b"") -> None:
        self.data(data)
        self.connection.transport.write(b"END\n")
        self.connection.exchange = None
        self.resume_body()

    def abort(self) -> None:
        self.connection.transport.close()

    def close_after(self) -> None:
        """Do nothing: connections stay open, since each response has an end."""

    def added_fields(self, head: ResponseHead) -> Sequence[Field]:
        return ()

    sends_files = False

    def send_file(self, file: int, offset: int, count: int, done: Callable[[int, bool], None]) -> None:
        raise NotImplementedError

    @property
    def paused(self) -> bool:
        return self.connection.paused

    @property
    def unsent(self) -> int:
        return self.connection.transport.get_write_buffer_size()

    def want_body(self) -> None:
        """Do nothing: clients send the body at once."""

    def pause_body(self) -> None:
        self.connection.transport.pause_reading()

    def resume_body(self) -> None:
        self.connection.transport.resume_reading()


class LineConnection(asyncio.Protocol):
    """The connection of one client; implements `ClientConnection`."""

    transport: asyncio.Transport

    def __init__(self, service: Service) -> None:
        self._new_exchange: Callable[..., RequestHandler] = service.server.new_exchange
        self.endpoints = Endpoints()
        self.template: Any = None
        self.last: tuple[Fields | None, dict[str, Any] | None] = (None, None)
        self.exchange: RequestHandler | None = None
        self.lost = asyncio.Event()
        self.paused = False
        self._left = 0  # bytes of the request body still to come

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.endpoints.read(transport)

    def data_received(self, data: bytes) -> None:
        if not self._left:
            line, _, data = data.partition(b"\n")
            method, target, length = line.split(b" ")
            self._left = int(length)
            lines = [(b"host", b"lines"), (b"content-length", length)]
            writer: ResponseWriter = LineWriter(self)
            self.exchange = self._new_exchange(writer, read_target(method, target), Fields("1.1", lines))
            self.exchange.start()
        if self._left and data:
            assert self.exchange is not None
            self._left -= len(data)
            self.exchange.body_data(data)
            if not self._left:
                self.exchange.body_end()

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        if self.exchange is not None:
            self.exchange.writable()

    def connection_lost(self, exc: Exception | None) -> None:
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.client_gone()
        self.lost.set()


class Reply(NamedTuple):
    """A response as the client received it."""

    status: int
    fields: dict[bytes, bytes]
    pieces: list[bytes]
    whole: bool


class Client:
    """A client of the line protocol."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self, path: str, body: bytes = b"") -> Reply:
        self.writer.write(b"POST %b %d\n%b" % (path.encode(), len(body), body))
        return await self.read()

    async def read(self) -> Reply:
        reply = Reply(0, {}, [], whole=False)
        while line := await self.reader.readline():
            word, _, rest = line.rstrip(b"\n").partition(b" ")
            if word == b"STATUS":
                reply = reply._replace(status=int(rest))
            elif word == b"FIELD":
                name, _, value = rest.partition(b" ")
                reply.fields[name.lower()] = value
            elif word == b"DATA":
                reply.pieces.append(await self.reader.readexactly(int(rest)))
            else:
                return reply._replace(whole=True)
        return reply


class Apps:
    """The same application as WSGI and as ASGI; ``ended`` is set when a stream ends."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.ended = asyncio.Event()

    def wsgi(self, environ: dict[str, Any], start_response: Callable[..., object]) -> Any:
        path, body = environ["PATH_INFO"], environ["wsgi.input"].read()
        if path == "/error":
            raise LookupError("an error of the app")
        length = [("Content-Length", str(len(body)))] if path == "/echo" else []
        start_response("200 OK", [("X-Path", path), *length])
        return [body] if path == "/echo" else self._stream(path)

    def _stream(self, path: str) -> Iterator[bytes]:
        try:
            yield b"one"
            yield b"two"
            if path == "/broken":
                raise LookupError("an error of the app")
            while path == "/endless":
                yield PIECE
        finally:
            self.loop.call_soon_threadsafe(self.ended.set)

    async def asgi(self, scope: dict[str, Any], receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        path, body, more = scope["path"], b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        if path == "/error":
            raise LookupError("an error of the app")
        length = [(b"content-length", b"%d" % len(body))] if path == "/echo" else []
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-path", path.encode()), *length]})
        if path == "/echo":
            await send({"type": "http.response.body", "body": body})
            return
        try:
            for piece in (b"one", b"two"):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            if path == "/broken":
                raise LookupError("an error of the app")
            while path == "/endless":
                await send({"type": "http.response.body", "body": PIECE, "more_body": True})
            await send({"type": "http.response.body"})
        finally:
            self.ended.set()


Mode = Literal["asgi", "inline", "threads"]
MODES: list[Mode] = ["asgi", "inline", "threads"]


@asynccontextmanager
async def serving(mode: Mode) -> AsyncIterator[tuple[Client, Apps]]:
    loop, apps = asyncio.get_running_loop(), Apps()
    settings = config.from_keywords(app="none:app", threads=2 if mode == "threads" else 0).settings
    interface: Literal["asgi", "wsgi"] = "asgi" if mode == "asgi" else "wsgi"
    service = Service(settings, getattr(apps, interface), interface, loop, unseen_row())
    connection = LineConnection(service)
    server = await loop.create_server(lambda: connection, "127.0.0.1", 0)
    async with server:
        client = Client(*await asyncio.open_connection(*server.sockets[0].getsockname()))
        try:
            yield client, apps
        finally:
            client.writer.close()
            await connection.lost.wait()


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, PATIENCE))


@pytest.mark.parametrize("mode", MODES)
def test_whole_and_streamed_responses_arrive_complete(mode: Mode) -> None:
    async def test() -> None:
        async with serving(mode) as (client, _):
            body = b"y" * 100_000  # arrives in several pieces
            reply = await client.ask("/echo", body)
            assert (reply.status, b"".join(reply.pieces), reply.whole) == (200, body, True)
            assert reply.fields == {b"x-path": b"/echo", b"content-length": b"100000"}  # no field of HTTP/1.1's framing
            reply = await client.ask("/stream")
            assert reply == (200, {b"x-path": b"/stream"}, [b"one", b"two"], True)

    run(test())


@pytest.mark.parametrize("mode", MODES)
def test_an_app_error_is_a_500_before_the_response_and_an_abort_within_it(mode: Mode) -> None:
    """The client gets a 500 if the response has not begun; otherwise the response is aborted."""

    async def test() -> None:
        async with serving(mode) as (client, _):
            reply = await client.ask("/error")
            assert (reply.status, reply.whole) == (500, True)
            reply = await client.ask("/broken")
            assert (reply.status, reply.pieces, reply.whole) == (200, [b"one", b"two"], False)

    run(test())


@pytest.mark.parametrize("mode", MODES)
def test_an_endless_stream_waits_for_a_slow_client_and_ends_when_it_disconnects(mode: Mode) -> None:
    """The stream is suspended while the client does not read; it ends when the client disconnects."""

    async def test() -> None:
        async with serving(mode) as (client, apps):
            client.writer.write(b"GET /endless 0\n")
            await client.reader.readexactly(2 * OUTPUT_IN_MEMORY)
            assert not apps.ended.is_set()
            client.writer.transport.abort()
            await apps.ended.wait()

    run(test())
