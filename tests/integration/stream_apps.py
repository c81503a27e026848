"""Streams in common frameworks; `make(NAME)` is the app in one of them.

/finite?GATE streams "first", waits for the file GATE, then streams five more pieces; /idle streams only "first"; /busy
streams without end; /late?GATE responds when the file exists. Events are lines in the file $NOTES.
"""

import asyncio
import gc
import os
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def note(text: str) -> None:
    """Add a line to the notes."""
    with open(os.environ["NOTES"], "a", encoding="utf-8") as file:
        file.write(text + "\n")


async def opened(gate: str) -> None:
    """Wait until the file exists."""
    while not os.path.exists(gate):
        await asyncio.sleep(0.01)


async def finite(gate: str) -> AsyncIterator[str]:
    """Six pieces; the last five when the file exists."""
    try:
        yield "first;"
        await opened(gate)
        for number in range(5):
            yield f"piece {number};"
            await asyncio.sleep(0.01)
        note("complete")
    except BaseException as error:
        note(f"cut by {type(error).__name__}")
        raise


async def idle() -> AsyncIterator[str]:
    """One piece, and no end."""
    try:
        yield "first;"
        note("idle")
        await asyncio.get_running_loop().create_future()
    finally:
        note("idle ended")


async def busy() -> AsyncIterator[str]:
    """Pieces without end."""
    try:
        while True:
            yield "x" * 1000
            await asyncio.sleep(0.005)
    finally:
        note("busy ended")


PIECES = {"/finite": finite, "/idle": lambda _: idle(), "/busy": lambda _: busy()}


def make(name: str) -> Any:
    """The app in the framework of this name."""
    return globals()[f"_{name}"]()


WAITING: "weakref.WeakSet[asyncio.Future[None]]" = weakref.WeakSet()


async def _weak(*, note_at_end: bool) -> None:
    """Wait for a future that only this task refers to."""
    future = asyncio.get_running_loop().create_future()
    WAITING.add(future)
    note("weak")
    await future
    if note_at_end:
        note("went on")


HEAD: Message = {"type": "http.response.start", "status": 200, "headers": []}


async def _raw_stream(pieces: AsyncIterator[str], receive: Receive, send: Send) -> None:
    """Stream until the end, or until http.disconnect."""
    await send(HEAD)

    async def listen() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        note("http.disconnect")
        task.cancel()

    async def stream() -> None:
        async for piece in pieces:
            await send({"type": "http.response.body", "body": piece.encode(), "more_body": True})

    task, listening = asyncio.create_task(stream()), asyncio.create_task(listen())
    await asyncio.wait([task])
    listening.cancel()
    if not task.cancelled():
        task.result()
        await send({"type": "http.response.body"})


async def _raw_late(gate: str, receive: Receive) -> None:
    """Wait for the file or for http.disconnect."""
    await receive()
    note("waits")
    waits, gone = asyncio.create_task(opened(gate)), asyncio.create_task(receive())
    done, _ = await asyncio.wait([waits, gone], return_when=asyncio.FIRST_COMPLETED)
    note("reported" if gone in done else "answered")
    waits.cancel()
    gone.cancel()


async def _raw_app(scope: Message, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        return
    path, query = scope["path"], scope["query_string"].decode()
    if path in PIECES:
        await _raw_stream(PIECES[path](query), receive, send)
        return
    if path == "/ignore":
        await send(HEAD)
        await send({"type": "http.response.body", "body": b"first;", "more_body": True})
        await asyncio.get_running_loop().create_future()
    if path == "/late":
        await _raw_late(query, receive)
    elif path == "/weak":
        await _weak(note_at_end=bool(query))
    elif path == "/collect":
        gc.collect()
        for future in list(WAITING):
            if not future.done():
                future.set_result(None)
    await send(HEAD)
    await send({"type": "http.response.body", "body": b"done"})


def _raw() -> Any:
    return _raw_app


def _starlette(*, middleware: bool = False) -> Any:
    from starlette.applications import Starlette
    from starlette.background import BackgroundTask
    from starlette.middleware import Middleware
    from starlette.middleware.base import BaseHTTPMiddleware
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse, Response, StreamingResponse
    from starlette.routing import Route, WebSocketRoute
    from starlette.websockets import WebSocket

    async def stream(request: Request) -> Response:
        return StreamingResponse(PIECES[request.url.path](request.url.query))

    async def background(gate: str) -> None:
        await opened(gate)
        note("background done")

    async def late(request: Request) -> Response:
        note("waits")
        while not (gone := await request.is_disconnected()) and not os.path.exists(request.url.query):
            await asyncio.sleep(0.01)
        note("reported" if gone else "answered")
        return PlainTextResponse("done", background=BackgroundTask(background, request.url.query))

    async def work(request: Request) -> Response:
        return PlainTextResponse("done", background=BackgroundTask(background, request.url.query))

    async def upload(request: Request) -> Response:
        note("waits")
        return PlainTextResponse(str(len(await request.body())))

    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        if websocket.url.path == "/receive":
            while True:
                await websocket.send_text(await websocket.receive_text())
        while True:
            await websocket.send_text("x" * 1000)
            await asyncio.sleep(0.005)

    return Starlette(
        routes=[
            *(Route(path, stream) for path in PIECES),
            Route("/late", late),
            Route("/background", work),
            Route("/upload", upload, methods=["POST"]),
            WebSocketRoute("/receive", socket),
            WebSocketRoute("/send", socket),
        ],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=lambda request, call_next: call_next(request))] if middleware else [],
    )


def _base_http_middleware() -> Any:
    return _starlette(middleware=True)


def _fastapi() -> Any:
    from fastapi import FastAPI, Request, Response, WebSocket
    from fastapi.responses import StreamingResponse

    app = FastAPI()

    async def stream(request: Request) -> Response:
        return StreamingResponse(PIECES[request.url.path](request.url.query))

    for path in PIECES:
        app.add_api_route(path, stream)

    @app.websocket("/receive")
    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        while True:
            await websocket.send_text(await websocket.receive_text())

    return app


def _litestar() -> Any:
    from litestar import Litestar, get
    from litestar.connection import Request
    from litestar.response import Stream

    @get(list(PIECES))
    async def stream(request: Request[Any, Any, Any]) -> Stream:
        return Stream(PIECES[request.url.path](request.url.query))

    return Litestar([stream])


def _quart() -> Any:
    from quart import Quart, request

    app = Quart(__name__)

    def view() -> Any:
        return PIECES[request.path](request.query_string.decode()), 200

    for path in PIECES:
        app.add_url_rule(path, path, view)
    return app


def _sse() -> Any:
    from sse_starlette.sse import EventSourceResponse
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.routing import Route

    async def stream(request: Request) -> Any:
        return EventSourceResponse(PIECES[request.url.path](request.url.query))

    return Starlette(routes=[Route(path, stream) for path in PIECES])


def _django() -> Any:
    import django
    from django.conf import settings
    from django.core.asgi import get_asgi_application
    from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
    from django.urls import path as route

    async def stream(request: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(PIECES[request.path](request.META["QUERY_STRING"]))

    async def late(request: HttpRequest) -> HttpResponse:
        note("waits")
        try:
            await opened(request.META["QUERY_STRING"])
        except asyncio.CancelledError:
            note("reported")
            raise
        note("answered")
        return HttpResponse("done")

    settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="test", DEBUG=False)
    globals()["urlpatterns"] = [*(route(one[1:], stream) for one in PIECES), route("late", late)]
    django.setup()
    return get_asgi_application()


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
    """The same for WSGI: /finite and /busy."""
    import time

    path, gate = environ["PATH_INFO"], environ["QUERY_STRING"]
    start_response("200 OK", [])

    def pieces() -> Any:
        try:
            yield b"first;"
            while path == "/busy":
                yield b"x" * 1000
                time.sleep(0.005)
            while not os.path.exists(gate):
                time.sleep(0.01)
                yield b"waits;"
            for number in range(5):
                yield b"piece %d;" % number
            note("complete")
        finally:
            note(f"{path[1:]} ended")

    return pieces()
