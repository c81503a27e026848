"""Apps and mixins that record the order of events, and whether a command ran inside a request."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from pathlib import Path
from urllib.parse import parse_qs

from forkserve import CommandError, WouldDeadlock, current_worker

inside = 0  # requests that this worker is running
PIECE = b"x" * 65536
PIECES = 160  # more than any socket buffer and than the buffer for a slow client hold


def note(text: str) -> None:
    """Append a line to the notes."""
    with Path(os.environ["NOTES"]).open("a") as file:
        file.write(text + "\n")


class Probe:
    """The commands of most tests."""

    def on_note(self, text: str) -> None:
        note(f"on {text} {self.id}")

    def child_note(self, text: str) -> list[object]:
        note(f"child {text} {self.id}")
        return [self.id, text, inside, threading.current_thread() is threading.main_thread()]

    async def on_nap(self, seconds: float) -> None:
        note("on nap")

    async def child_nap(self, seconds: float) -> list[int]:
        await asyncio.sleep(seconds)
        note("child nap")
        return [self.id, inside]

    def child_fail(self) -> None:
        raise ValueError("no good")

    def child_leave(self) -> None:
        raise SystemExit(3)

    async def child_cancels(self) -> None:
        sleeper = asyncio.get_running_loop().create_task(asyncio.sleep(60))
        await asyncio.sleep(0)
        sleeper.cancel()
        await sleeper

    def child_waits(self) -> object:
        return asyncio.sleep(0)

    def child_set(self) -> object:
        return {1}

    def child_nested(self, levels: int) -> object:
        value: list[object] = []
        for _ in range(levels - 1):
            value = [value]
        return value

    def child_much(self, size: int) -> str:
        return "x" * size

    def child_die(self) -> None:
        os._exit(7)

    def child_hold(self, path: str) -> int:
        """Run until the file exists."""
        note(f"holds {self.id}")
        while not os.path.exists(path):
            time.sleep(0.002)
        return self.id

    async def child_hold_softly(self, path: str) -> int:
        note(f"holds {self.id}")
        while not os.path.exists(path):
            await asyncio.sleep(0.002)
        return self.id

    def child_count(self, number: int) -> None:
        self.__dict__.setdefault("counted", []).append(number)

    def child_counted(self) -> list[int]:
        return self.__dict__.get("counted", [])

    async def child_ask_others(self) -> object:
        try:
            replies = await self.call("note", "called", timeout=10)
        except WouldDeadlock as error:
            return str(error)
        return [reply.id for reply in replies]

    def child_ask_nonsense(self, which: int) -> object:
        name, to, timeout = [(5, "all", 1), ("note", "all", "soon"), ("note", [1], 1), ("note", "nobody", 1), ("", "all", 1)][
            which
        ]
        self.call(name, "x", to=to, timeout=timeout)
        return None


class Louder:
    """Overrides a command of Probe."""

    def child_note(self, text: str) -> list[object]:
        return super().child_note(text.upper())


class BadName:
    """Has a command with an invalid name."""

    def child_Flush(self) -> None:  # noqa: N802
        pass


class Hook:
    """Has a command with the name of a hook."""

    def child_start(self) -> None:
        pass


class SlowBoot(Probe):
    """The second worker is ready when a file exists."""

    def on_start(self) -> None:
        while self.id == 2 and not os.path.exists(os.environ["BOOT"]):
            time.sleep(0.005)


def no_class() -> None:
    """Not a class."""


def wsgi(environ, start_response):
    """WSGI: `/hold?FILE` waits for the file; `/large` yields much; `/ask` and others call the other workers."""
    global inside  # noqa: PLW0603
    inside += 1
    try:
        body = _answer(environ["PATH_INFO"], environ["QUERY_STRING"])
    finally:
        inside -= 1
    if body is None:
        start_response("200 OK", [("Content-Length", str(len(PIECE) * PIECES))])
        return Large()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


class Large:
    """A body that holds an inline worker until the client has read it."""

    def __iter__(self):
        global inside  # noqa: PLW0603
        inside += 1
        for _ in range(PIECES):
            yield PIECE

    def close(self):
        global inside  # noqa: PLW0603
        inside -= 1
        note("closed")


def _answer(path: str, query: str) -> bytes | None:
    note(f"came {path}")
    worker = current_worker()
    match path:
        case "/hold":
            while not os.path.exists(query):
                time.sleep(0.002)
            note("done")
        case "/large":
            return None
        case "/ask":
            try:
                replies = worker.call("note", "called", **_options(query)).result(10)
            except (WouldDeadlock, CommandError) as error:
                return f"{type(error).__name__}: {error}".encode()
            return json.dumps([[reply.id, reply.status] for reply in replies]).encode()
        case "/tell":
            worker.call("note", "tell").then(lambda replies: note(f"replied {[reply.id for reply in replies]}"))
    return str(worker.id).encode()


def _options(query: str) -> dict[str, object]:
    options = {key: values[0] for key, values in parse_qs(query).items()}
    return {key: float(value) if key == "timeout" else value for key, value in options.items()}


async def asgi(scope, receive, send):
    """ASGI: the same, and `/leave` stops waiting for a reply before it arrives."""
    global inside  # noqa: PLW0603
    if scope["type"] == "lifespan":
        raise NotImplementedError
    path, query, worker = scope["path"], scope["query_string"].decode(), current_worker()
    inside += 1
    note(f"came {path}")
    body = str(worker.id)
    match path:
        case "/hold":
            while not os.path.exists(query):
                await asyncio.sleep(0.002)
            note("done")
        case "/ask":
            try:
                body = json.dumps([[reply.id, reply.status] for reply in await worker.call("note", "called", **_options(query))])
            except CommandError as error:
                body = f"CommandError: {error}"
        case "/block":
            try:
                worker.call("note", "called").result(10)
            except WouldDeadlock as error:
                body = f"WouldDeadlock: {error}"
        case "/leave":
            try:
                await asyncio.wait_for(worker.call("hold", query), 0.01)
            except TimeoutError:
                body = "left"
        case "/thread":
            body = json.dumps([reply.id for reply in await asyncio.to_thread(worker.call("note", "called").result, 10)])
    inside -= 1
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body.encode()})
