"""An app whose responses can be checked against their requests, as WSGI and as ASGI.

A test copies the module to its own directory with another VERSION each time, and may break the copy.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl

VERSION = "0"
Fields = list[tuple[str, str]]
Event = dict[str, Any]


def pattern(ident: str, size: int) -> bytes:
    """Return a body of that size that repeats the name, so that any part of it shows its owner."""
    unit = f"<{ident}>".encode()
    return (unit * (size // len(unit) + 1))[:size]


def respond(method: str, path: str, query: str, ident: str, body: bytes) -> tuple[Fields, list[bytes], float]:
    """Return the fields, the parts of the body, and the pause in seconds before each part."""
    options = dict(parse_qsl(query))
    kind, number, size = path.split("/")[1], int(options.get("parts", "1")), int(options.get("size", "0"))
    parts = [pattern(f"{ident}.{part}", size) for part in range(number)] if kind == "stream" else [body or pattern(ident, size)]
    fields = [
        ("X-Ident", ident),
        ("X-Request", f"{method} {path}?{query} {len(body)}"),
        ("X-Version", VERSION),
        ("X-Pid", str(os.getpid())),
    ]
    if kind == "echo":
        fields.append(("Content-Length", str(len(parts[0]))))
    return fields, parts, float(options.get("pause", "0"))


def wsgi(environ: Mapping[str, Any], start_response: Callable[[str, Fields], object]) -> Iterable[bytes]:
    """The app as WSGI."""
    body, ident = environ["wsgi.input"].read(), environ.get("HTTP_X_IDENT", "")
    fields, parts, pause = respond(environ["REQUEST_METHOD"], environ["PATH_INFO"], environ["QUERY_STRING"], ident, body)
    start_response("200 OK", fields)

    def pieces() -> Iterator[bytes]:
        for part in parts:
            time.sleep(pause)
            yield part

    return pieces() if environ["PATH_INFO"].startswith("/stream") else list(pieces())


async def asgi(
    scope: Mapping[str, Any], receive: Callable[[], Awaitable[Event]], send: Callable[[Event], Awaitable[None]]
) -> None:
    """The app as ASGI; a WebSocket echoes each message with its name in front."""
    if scope["type"] == "lifespan":
        for event in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{event}.complete"})
        return
    ident = dict(scope["headers"]).get(b"x-ident", b"").decode()
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (event := await receive())["type"] != "websocket.disconnect":
            await send({"type": "websocket.send", "text": f"{ident}:{event['text']}"})
        return
    body = bytearray()
    while (event := await receive())["type"] == "http.request":
        body += event.get("body", b"")
        if not event.get("more_body"):
            break
    fields, parts, pause = respond(scope["method"], scope["path"], scope["query_string"].decode(), ident, bytes(body))
    headers = [(name.lower().encode(), value.encode()) for name, value in fields]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for part in parts:
        await asyncio.sleep(pause)
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body"})


class Commands:
    """A mixin for the workers."""

    def child_version(self) -> str:
        """Return the version."""
        return VERSION
