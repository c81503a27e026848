"""Applications that record and set context variables (PEP 567) at each place where the server calls them."""

from __future__ import annotations

import contextvars
import itertools
import json
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

Message = MutableMapping[str, Any]

BASE: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar("base", default=())
"""The startup places that have set it, in order: all later code must see them."""
OWN: contextvars.ContextVar[str] = contextvars.ContextVar("own", default="")
"""The call that has set it: no other call may see it."""
SEEN: list[list[Any]] = []
NUMBERS = itertools.count(1)
LOCK = threading.Lock()


def attach(place: str) -> None:
    """Set the variable at startup, as an agent does."""
    BASE.set((*BASE.get(), place))


attach("import")


def see(place: str, work: str) -> None:
    """Record the values at a place, and set a value there."""
    with LOCK:
        SEEN.append([place, work, OWN.get(), list(BASE.get())])
    OWN.set(work)


class Probe:
    """A WSGI result: the server calls its iteration and its close separately. close must be able to reset the variable of the call."""

    def __init__(self, work: str, token: contextvars.Token[str], pieces: int, size: int) -> None:
        self.work, self.token, self.left, self.size = work, token, pieces, size

    def __iter__(self) -> Iterator[bytes]:
        """Called once."""
        see("iter", self.work)
        return self

    def __next__(self) -> bytes:
        """Called for each piece."""
        see("next", self.work)
        if not self.left:
            raise StopIteration
        self.left -= 1
        return b"x" * self.size

    def close(self) -> None:
        """Called at the end."""
        see("close", self.work)
        OWN.reset(self.token)
        SEEN.append(["reset", self.work, "", []])


class File:
    """A file-like object for the file wrapper."""

    def __init__(self, work: str) -> None:
        self.work, self.left = work, 3

    def read(self, size: int) -> bytes:
        """Called for each block."""
        see("read", self.work)
        self.left -= 1
        return b"f" * 10 if self.left >= 0 else b""

    def close(self) -> None:
        """Called at the end."""
        see("file close", self.work)


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
    """/seen returns the records; /file a file; /list a list; /wait waits until a file exists; /PIECES/SIZE an iterator."""
    path = environ["PATH_INFO"]
    if path == "/seen":
        body = json.dumps(SEEN).encode()
        SEEN.clear()
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]
    work = f"request {next(NUMBERS)}"
    see("call", work)
    environ["wsgi.input"].read()
    start_response("200 OK", [])
    if path == "/list":
        return [b"x"]
    if path == "/file":
        return environ["wsgi.file_wrapper"](File(work))
    if path == "/write":
        write = start_response("200 OK", [], (ValueError, ValueError(), None))
        write(b"written")
        see("after write", work)
        return []
    if path == "/wait":
        while not os.path.exists(environ["QUERY_STRING"]):
            time.sleep(0.005)
        return [b"waited"]
    pieces, size = map(int, path[1:].split("/"))
    return Probe(work, OWN.set(work), pieces, size)


async def asgi(scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]) -> None:
    """The same for ASGI, with lifespan and WebSocket."""
    if scope["type"] == "lifespan":
        await receive()
        see("lifespan startup", "lifespan")
        BASE.set((*BASE.get(), "lifespan"))
        await send({"type": "lifespan.startup.complete"})
        await receive()
        see("lifespan shutdown", "lifespan")
        Path(os.environ["NOTES"]).write_text(json.dumps(SEEN[-1]))
        await send({"type": "lifespan.shutdown.complete"})
        return
    if scope["type"] == "websocket":
        work = f"socket {next(NUMBERS)}"
        see("socket", work)
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            see("message", work)
            await send({"type": "websocket.send", "text": message["text"]})
        see("disconnect", work)
        return
    path = scope["path"]
    head: Message = {"type": "http.response.start", "status": 200, "headers": []}
    if path == "/seen":
        await send(head)
        await send({"type": "http.response.body", "body": json.dumps(SEEN).encode()})
        SEEN.clear()
        return
    work = f"request {next(NUMBERS)}"
    see("call", work)
    more = True
    while more:
        more = (await receive()).get("more_body", False)
    see("body", work)
    await send(head)
    pieces, size = map(int, path[1:].split("/"))
    for _ in range(pieces):
        await send({"type": "http.response.body", "body": b"x" * size, "more_body": True})
        see("sent", work)
    await send({"type": "http.response.body"})


class Mixin:
    """Commands and hooks of the worker."""

    def on_start(self) -> None:
        """Called at startup."""
        attach("on_start")

    def on_ready(self) -> None:
        """Called at the end of startup."""
        attach("on_ready")

    def on_stop(self) -> None:
        """Called at the stop."""
        see("on_stop", "stop")
        with open(os.environ["NOTES"] + ".stop", "w") as file:
            json.dump(SEEN[-1], file)

    def on_look(self, work: str) -> None:
        """Called before the command."""
        see("on_look", work)

    def child_look(self, work: str) -> list[Any]:
        """A command."""
        see("child_look", work)
        return SEEN[-2:]

    async def child_look_async(self, work: str) -> list[Any]:
        """An async command."""
        see("child_look_async", work)
        return SEEN[-1:]
