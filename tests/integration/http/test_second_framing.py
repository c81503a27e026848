"""A second framing: a line protocol, defined here, serves WSGI and ASGI apps through the acceptor and the usual exchanges.

A request is one line, ``METHOD TARGET LENGTH``, and LENGTH bytes of body. A response is ``STATUS code``, ``FIELD name value`` for
each field, ``DATA size`` and SIZE bytes for each piece, and ``END``. A response without ``END`` was aborted. A client sends a
request when it has the response to the one before.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from math import inf
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pytest

from forkserve.config import load as config
from forkserve.http.app.wsgi import OUTPUT_IN_MEMORY
from forkserve.http.message.fields import Fields
from forkserve.http.message.http1 import LastHead, read_target
from forkserve.http.service import SWEEP, Service
from forkserve.prefork.system.scoreboard import unseen_row

if TYPE_CHECKING:
    from forkserve.http.framing.endpoints import Endpoints
    from forkserve.http.framing.state import ServerState
    from forkserve.http.framing.writer import RequestHandler, ResponseWriter
    from forkserve.http.message.response import Field, ResponseHead

PATIENCE = 30.0
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
        self.connection.finished()

    def abort(self) -> None:
        self.connection.transport.close()

    def close_after(self) -> None:
        """Do nothing: the client finds the end of each response, so the connection can stay open."""

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
        if self.connection.transport.is_reading():
            self.connection.transport.pause_reading()

    def resume_body(self) -> None:
        if not self.connection.transport.is_reading():
            self.connection.transport.resume_reading()


class LineConnection(asyncio.Protocol):
    """The connection of one client; implements `ClientConnection` and `Client`, and as a class `Framing`."""

    transport: asyncio.Transport

    def __init__(self, state: ServerState, endpoints: Endpoints) -> None:
        self.state = state
        self.endpoints = endpoints
        self.template: Any = None
        self.reader = LastHead()
        self.requests = 0
        self.exchange: RequestHandler | None = None
        self.paused = False
        self._left = 0  # bytes of the request body still to come
        self._deadline = inf  # the loop's time by which the next request must have come

    # Called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.state.coming -= 1
        self.state.connected(self)
        self.endpoints.read(transport)
        self._deadline = self.state.loop.time() + self.state.header_timeout

    def data_received(self, data: bytes) -> None:
        if not self._left:
            line, _, data = data.partition(b"\n")
            method, target, length = line.split(b" ")
            self._left = int(length)
            self._deadline = inf
            self.requests += 1
            self.state.requests += 1
            lines = [(b"host", b"lines"), (b"content-length", length)]
            writer: ResponseWriter = LineWriter(self)
            self.exchange = self.state.new_exchange(writer, read_target(method, target), Fields("1.1", lines))
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
        self.state.disconnected(self)
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.client_gone()

    # Called by the writer

    def finished(self) -> None:
        self.exchange = None
        if self.state.closing:
            self.transport.close()
        else:
            self._deadline = self.state.now + self.state.keep_alive
            if not self.transport.is_reading():
                self.transport.resume_reading()

    # Called for all connections; see `Client`

    def drain(self, now: float, linger: float) -> None:
        if self.exchange is None:
            self._deadline = min(self._deadline, now + linger)

    def may_bring_request(self, *, last: bool) -> bool:
        return not self.transport.is_closing() and (self.exchange is None or not last)

    def sweep(self, now: float, late: float) -> None:
        self._deadline += late
        if self.exchange is not None:
            self.exchange.flush_head()
        elif now >= self._deadline:
            self.transport.close()

    def abandon(self) -> None:
        if self.exchange is not None:
            self.exchange.client_gone()
        self.transport.abort()


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

    @classmethod
    async def connect(cls, address: tuple[str, int]) -> Client:
        return cls(*await asyncio.open_connection(*address))

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


class Serving:
    """An app that is served in the line protocol on a port of its own."""

    def __init__(self, mode: Mode) -> None:
        loop, self.apps, self.log = asyncio.get_running_loop(), Apps(), bytearray()
        chosen = {"threads": 2 if mode == "threads" else 0, "access_logformat": "%(r)s %(s)s %(B)s", "linger": 0.01}
        settings = config.from_keywords(app="none:app", **chosen).settings
        interface: Literal["asgi", "wsgi"] = "asgi" if mode == "asgi" else "wsgi"
        self.service = Service(settings, getattr(self.apps, interface), interface, loop, unseen_row(), self.log.extend)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.address = self._listener.getsockname()
        self.service.accept([(self._listener, None)], lambda: None, SWEEP, framing=LineConnection)

    async def stop(self) -> None:
        """Stop as a worker does."""
        self.service.stop_accepting()
        self._listener.close()
        await self.service.drain(PATIENCE)


@asynccontextmanager
async def serving(mode: Mode) -> AsyncIterator[tuple[Client, Serving]]:
    serving = Serving(mode)
    client = await Client.connect(serving.address)
    try:
        yield client, serving
    finally:
        client.writer.close()
        await serving.stop()


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
        async with serving(mode) as (client, server):
            client.writer.write(b"GET /endless 0\n")
            await client.reader.readexactly(2 * OUTPUT_IN_MEMORY)
            assert not server.apps.ended.is_set()
            client.writer.transport.abort()
            await server.apps.ended.wait()

    run(test())


@pytest.mark.parametrize("mode", MODES)
def test_a_drain_answers_the_running_request_and_closes_idle_connections(mode: Mode) -> None:
    async def test() -> None:
        async with serving(mode) as (client, server):
            idle = await Client.connect(server.address)
            assert (await idle.ask("/echo", b"before")).pieces == [b"before"]
            client.writer.write(b"POST /echo 10\nfirst")
            while server.service.server.requests < 2:
                await asyncio.sleep(0)
            stop = asyncio.create_task(server.stop())
            assert await idle.reader.read() == b""
            assert not stop.done()
            client.writer.write(b"-then")
            reply = await client.read()
            assert (reply.status, b"".join(reply.pieces), reply.whole) == (200, b"first-then", True)
            assert await client.reader.read() == b""
            await stop
            assert server.log == b"POST /echo HTTP/1.1 200 6\nPOST /echo HTTP/1.1 200 10\n"
            idle.writer.close()

    run(test())
