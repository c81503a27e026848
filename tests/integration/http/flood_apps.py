"""Applications that count the turns of the event loop in which they are called, and applications with large responses."""

import asyncio
import hashlib
import json
import resource
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from time import monotonic
from typing import Any
from wsgiref.validate import validator

from forkserve.http.app.turns import BATCH

Environ = dict[str, Any]
SHARED = b"s" * 5_000_000
LARGE = 2_000_000
SEEN: list[Any] = []
LOOP = asyncio._get_running_loop()  # the one that serves, if it runs already; it may be hidden from calls
THREAD = threading.get_ident()


class Turns:
    """Count the turns of the event loop for a while after each look; each gap in the counting adds a large number."""

    def __init__(self) -> None:
        self._count = self._left = 0

    def _turn(self) -> None:
        self._count += 1
        self._left -= 1
        if self._left and LOOP is not None:
            LOOP.call_soon(self._turn)

    def now(self) -> int:
        """The number of the current turn."""
        if not self._left and LOOP is not None:
            self._count += 1 << 20
            LOOP.call_soon(self._turn)
        self._left = 1000
        return self._count


TURNS = Turns()


def large(path: str) -> bytes:
    """A body that is unique for each path."""
    return hashlib.shake_128(path.encode()).digest(LARGE)


def taken() -> bytes:
    """The recorded events as JSON; they are cleared."""
    text = json.dumps(SEEN).encode()
    SEEN.clear()
    return text


def application(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
    """WSGI."""
    path = environ["PATH_INFO"]
    kind = path.split("/")[1]
    write = start_response("200 OK", [("Content-Length", str(len(SHARED)))] if kind == "shared" else [])
    if kind == "written":
        write(large(path))
        return [b"end"]
    if kind == "generated":
        return _pieces()
    answers: dict[str, Callable[[], list[bytes]]] = {
        "shared": lambda: [SHARED],
        "shared-in-pieces": lambda: [b"<", SHARED, b">"],
        "large": lambda: [large(path)],
        "limit-files": lambda: _limit_files(int(path.rpartition("/")[2])),
        "digest": lambda: [hashlib.sha256(environ["wsgi.input"].read()).hexdigest().encode()],
        "seen": lambda: [taken()],
    }
    if kind in answers:
        return answers[kind]()
    if kind == "longer-than-a-batch":
        end = monotonic() + 2 * BATCH
        while monotonic() < end:
            pass
    if threading.get_ident() == THREAD:
        SEEN.append((path, TURNS.now()))
    return [b"ok"]


def _limit_files(size: int) -> list[bytes]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    return [b"limited"]


def _pieces() -> Iterator[bytes]:
    for _ in range(48):
        yield bytes(65536)


async def asgi(scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
    """ASGI."""
    if scope["type"] == "lifespan":
        raise NotImplementedError
    kind = scope["path"].split("/")[1]
    body = b"ok"
    headers = []
    if kind == "shared":
        body, headers = SHARED, [(b"content-length", b"%d" % len(SHARED))]
    elif kind == "large":
        body = large(scope["path"])
    elif kind == "chunks":
        message, last = await receive(), TURNS.now()
        while message.get("more_body"):
            message = await receive()
            now = TURNS.now()
            SEEN.append((len(message["body"]), now - last))
            last = now
    elif kind == "early":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first ", "more_body": True})
        await receive()
        body = b"last"
    elif kind == "seen":
        body = taken()
    if kind != "early":
        await send({"type": "http.response.start", "status": 200, "headers": headers})
    if kind == "shared-in-pieces":
        await send({"type": "http.response.body", "body": b"<", "more_body": True})
        await send({"type": "http.response.body", "body": SHARED, "more_body": True})
        body = b">"
    await send({"type": "http.response.body", "body": body})


def _options(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
    text = repr((environ["PATH_INFO"], environ["RAW_URI"])).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(text)))])
    return [text]


valid = validator(_options)
