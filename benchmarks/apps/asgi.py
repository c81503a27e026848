"""ASGI apps, one for each kind of work."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.apps.wsgi import BLOCK, CHUNK, CHUNKS, MEBIBYTE

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send


async def _start(send: Send, length: int | None) -> None:
    headers = [(b"content-type", b"text/plain")]
    if length is not None:
        headers.append((b"content-length", b"%d" % length))
    await send({"type": "http.response.start", "status": 200, "headers": headers})


def _must_be(kind: str, scope: Scope) -> None:
    if scope["type"] != kind:
        raise NotImplementedError(scope["type"])


async def count(scope: Scope, receive: Receive, send: Send) -> None:
    """Read the body and answer with its length."""
    _must_be("http", scope)
    length, more = 0, True
    while more:
        message = await receive()
        length += len(message.get("body", b""))
        more = message.get("more_body", False)
    body = b"%d" % length
    await _start(send, len(body))
    await send({"type": "http.response.body", "body": body})


async def mebibyte(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with 1 MiB from memory."""
    _must_be("http", scope)
    await _start(send, len(MEBIBYTE))
    await send({"type": "http.response.body", "body": MEBIBYTE})


async def file(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the file that BENCHMARK_FILE names, by the extension `http.response.pathsend` if the server has it."""
    _must_be("http", scope)
    path = Path(os.environ["BENCHMARK_FILE"])
    await _start(send, path.stat().st_size)  # noqa: ASYNC240 - it does not wait for a disk
    if "http.response.pathsend" in scope.get("extensions", {}):
        await send({"type": "http.response.pathsend", "path": str(path)})
        return
    with path.open("rb") as opened:  # noqa: ASYNC230 - it is in the page cache
        while block := opened.read(BLOCK):
            await send({"type": "http.response.body", "body": block, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def stream(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with 1,000 chunks of 64 bytes, without a Content-Length."""
    _must_be("http", scope)
    await _start(send, None)
    for _ in range(CHUNKS):
        await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Send each message of a WebSocket back."""
    _must_be("websocket", scope)
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})
