"""ASGI applications for the tests, chosen by the path; ``GET /-/events`` returns the recorded events and clears them."""

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any
from urllib.parse import parse_qs

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Coroutine[Any, Any, Message]]
Send = Callable[[Message], Awaitable[None]]

EVENTS: list[str] = []
COUNT = [0]
RELEASE = asyncio.Event()


class IntendedError(Exception):
    """Raised by an application on purpose."""


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Call the application that the path names."""
    if scope["type"] == "lifespan":
        await lifespan(scope, receive, send)
        return
    path = scope["path"]
    if path == "/-/events":
        text = json.dumps(EVENTS).encode()
        EVENTS.clear()
        await answer(send, text)
        return
    if path == "/-/count":
        await answer(send, b"%d" % COUNT[0])
        return
    if path == "/-/release":
        RELEASE.set()
        await answer(send, b"")
        return
    query = {key: values[0] for key, values in parse_qs(scope["query_string"].decode()).items()}
    await globals()["on_" + path.split("/")[1].replace("-", "_")](scope, receive, send, query)


async def lifespan(scope: Scope, receive: Receive, send: Send) -> None:
    """Fill the state at startup, and print a line at shutdown."""
    assert (await receive())["type"] == "lifespan.startup"
    scope["state"]["shared"] = {"count": 0}
    scope["state"]["number"] = 7
    scope["state"]["lifespan"] = {key: repr(value) for key, value in scope.items()}
    await send({"type": "lifespan.startup.complete"})
    assert (await receive())["type"] == "lifespan.shutdown"
    print("lifespan.shutdown was received", flush=True, file=sys.stderr)
    await send({"type": "lifespan.shutdown.complete"})


async def answer(send: Send, body: bytes, status: int = 200, headers: Any = ()) -> None:
    """Send a complete response."""
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"%d" % len(body)), *headers]})
    await send({"type": "http.response.body", "body": body})


async def on_scope(scope: Scope, receive: Receive, send: Send, _: Any) -> None:
    """Return the scope with the types of its values; then change all that may be changed."""
    state = scope["state"]
    state["shared"]["count"] += 1
    state["number"] += 1
    shown = {key: [type(value).__name__, repr(value)] for key, value in scope.items()}
    scope["headers"].append((b"mine", b"x")) if isinstance(scope["headers"], list) else None
    state["mine"] = 1
    await answer(send, json.dumps(shown).encode())


async def on_do(_: Scope, receive: Receive, send: Send, query: dict[str, str]) -> None:
    """Execute the steps of the test: a list of messages to send, ``"receive"``, ``"raise"``, ``"exit"``, ``"release"``."""
    try:
        for step in eval(query["it"]):  # the test sends this expression
            if step == "receive":
                EVENTS.append(repr(await receive()))
            elif step == "raise":
                raise IntendedError
            elif step == "exit":
                raise SystemExit(3)
            elif step == "cancel":
                raise asyncio.CancelledError
            elif step == "release":
                await RELEASE.wait()
                RELEASE.clear()
            else:
                try:
                    await send(step)
                except Exception as error:  # the test checks the error
                    EVENTS.append(f"{type(error).__name__} {isinstance(error, OSError)}")
                    if "again" in query:
                        raise
    finally:
        EVENTS.append("end")


async def on_body(_: Scope, receive: Receive, send: Send, __: Any) -> None:
    """Return the size of the body and the sum of its bytes."""
    size = total = count = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            EVENTS.append(f"disconnect after {size}")
            return
        size += len(message["body"])
        total += sum(message["body"])
        more = message["more_body"]
        count += 1
    await answer(send, b"%d %d" % (size, total))


async def on_busy(_: Scope, receive: Receive, send: Send, query: dict[str, str]) -> None:
    """Receive ``after`` pieces of the body, wait until released, then receive the rest and return the size."""
    size, more = 0, True
    for count in range(1_000_000):
        if count == int(query["after"]):
            EVENTS.append("working")
            await RELEASE.wait()
            RELEASE.clear()
        if not more:
            break
        message = await receive()
        if message["type"] == "http.disconnect":
            EVENTS.append(f"disconnect after {size}")
            return
        size += len(message["body"])
        more = message["more_body"]
    await answer(send, b"%d" % size)


async def on_background(_: Scope, receive: Receive, send: Send, query: dict[str, str]) -> None:
    """Keep running after the response, like Starlette's BackgroundTask, until the file that the query names exists."""
    await answer(send, b"answered")
    while not os.path.exists(query["gate"]):
        await asyncio.sleep(0.01)
    print("the work is done", flush=True, file=sys.stderr)


async def until_gone(receive: Receive) -> None:
    """Receive until the client disconnects, and record it."""
    while (await receive())["type"] != "http.disconnect":
        pass
    EVENTS.append("disconnected")
    print("http.disconnect was received", flush=True, file=sys.stderr)


async def on_quiet(_: Scope, receive: Receive, send: Send, __: Any) -> None:
    """Start a response without a body, and wait for the disconnect."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    EVENTS.append("started")
    await until_gone(receive)


async def on_quiet_late(_: Scope, receive: Receive, send: Send, __: Any) -> None:
    """Wait for the disconnect, and start a response when released."""
    listening = asyncio.create_task(until_gone(receive))
    EVENTS.append("listening")
    await RELEASE.wait()
    RELEASE.clear()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    EVENTS.append("started")
    await listening


async def on_late_end(_: Scope, receive: Receive, send: Send, query: dict[str, str]) -> None:
    """Send the last byte, then block the thread until a file exists, and only then end the response."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok", "more_body": True})
    for _ in range(3):
        await asyncio.sleep(0)  # uvloop writes in the next turn of the loop
    while not os.path.exists(query["gate"]):
        time.sleep(0.001)
    await send({"type": "http.response.body"})


async def on_early(_: Scope, receive: Receive, send: Send, query: dict[str, str]) -> None:
    """Respond before the body has been received."""
    await answer(send, b"early", 413)
    if "read" in query:
        while (await receive())["type"] != "http.disconnect":
            pass
        EVENTS.append("disconnect")


async def on_after(_: Scope, receive: Receive, send: Send, __: Any) -> None:
    """Record what ``receive`` returns when the response is complete."""
    await answer(send, b"done")
    EVENTS.append(repr(await receive()))
    EVENTS.append(repr(await receive()))


async def on_listen(_: Scope, receive: Receive, send: Send, __: Any) -> None:
    """Wait for the disconnect, then send until ``send`` raises."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"first", "more_body": True})
    while (message := await receive())["type"] != "http.disconnect":
        EVENTS.append(f"{message['type']} {message['more_body']}")
    EVENTS.append("disconnect")
    try:
        while True:
            await send({"type": "http.response.body", "body": b"more", "more_body": True})
            await asyncio.sleep(0)
    except OSError:
        EVENTS.append("OSError")
        raise


async def on_leave(_: Scope, receive: Receive, send: Send, __: Any) -> None:
    """Wait for the disconnect, and return."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"first", "more_body": True})
    while (await receive())["type"] != "http.disconnect":
        pass
    EVENTS.append("left")


async def on_pour(_: Scope, receive: Receive, send: Send, query: dict[str, str]) -> None:
    """Send many pieces; ``/-/count`` shows how many calls of ``send`` have returned."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    COUNT[0] = 0
    try:
        for number in range(int(query["count"])):
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
            COUNT[0] = number + 1
        await send({"type": "http.response.body", "body": b""})
    except OSError:
        EVENTS.append("OSError")


async def on_wait(_: Scope, receive: Receive, send: Send, __: Any) -> None:
    """Read the body only when released."""
    await RELEASE.wait()
    RELEASE.clear()
    await on_body(_, receive, send, __)


async def on_two_tasks(_: Scope, receive: Receive, send: Send, __: Any) -> None:
    """Receive in one task and send in another, as frameworks do."""
    gone = asyncio.create_task(receive())
    await answer(send, b"two")
    EVENTS.append((await gone)["type"])
    EVENTS.append((await receive())["type"])


async def failing(scope: Scope, receive: Receive, send: Send) -> None:
    """The startup fails."""
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "the database is away"})


async def raising(scope: Scope, receive: Receive, send: Send) -> None:
    """The lifespan raises at once."""
    if scope["type"] == "lifespan":
        raise IntendedError("no lifespan here")
    await answer(send, json.dumps(sorted(scope.get("state", {}))).encode())


async def returning(scope: Scope, receive: Receive, send: Send) -> None:
    """The lifespan returns at once."""
    if scope["type"] != "lifespan":
        await answer(send, b"fine")


async def bad_end(scope: Scope, receive: Receive, send: Send) -> None:
    """The shutdown fails."""
    if scope["type"] != "lifespan":
        await answer(send, b"fine")
        return
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.failed", "message": "could not save"})


async def raising_end(scope: Scope, receive: Receive, send: Send) -> None:
    """The shutdown raises."""
    if scope["type"] != "lifespan":
        await answer(send, b"fine")
        return
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    raise IntendedError("could not save")


async def endless_end(scope: Scope, receive: Receive, send: Send) -> None:
    """The shutdown does not end; nor does a response to `/endless`."""
    if scope["type"] != "lifespan":
        if scope["path"] == "/endless":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"first", "more_body": True})
            await asyncio.Event().wait()
        await answer(send, b"fine")
        return
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await asyncio.Event().wait()
