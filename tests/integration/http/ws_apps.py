"""WebSocket applications for the tests, chosen by the path.

Over HTTP, ``/-/events`` returns the recorded events and clears them; ``/-/inboxes`` returns, for each WebSocket, the number
and the memory of the messages that wait for the application.
"""

import asyncio
import contextlib
import gc
import json
from sys import getsizeof
from typing import Any
from urllib.parse import parse_qs

from forkserve.http.websocket.inbox import Inbox
from tests.integration.http import asgi_apps
from tests.integration.http.asgi_apps import COUNT, EVENTS, RELEASE, IntendedError, Receive, Scope, Send


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Call the application that the path names."""
    if scope["type"] == "lifespan":
        raise NotImplementedError
    if scope["type"] == "http" and not scope["path"].startswith("/-/"):
        EVENTS.append(f"http {scope['method']} {scope['path']}")
        await asgi_apps.answer(send, b"plain")
        return
    if scope["path"] == "/-/inboxes":
        inboxes = [thing for thing in gc.get_objects() if isinstance(thing, Inbox)]
        counts = [(len(inbox.messages), sum(map(getsizeof, inbox.messages))) for inbox in inboxes]
        await asgi_apps.answer(send, json.dumps(counts).encode())
        return
    if scope["type"] == "http":
        await asgi_apps.app(scope, receive, send)
        return
    query = {key: values[0] for key, values in parse_qs(scope["query_string"].decode()).items()}
    assert (await receive()) == {"type": "websocket.connect"}
    try:
        await globals()["on_" + scope["path"].split("/")[1].replace("-", "_")](scope, receive, send, query)
    except OSError:
        EVENTS.append("OSError")
        raise


async def messages(receive: Receive) -> Any:
    """Yield the messages until the disconnect, and record the disconnect."""
    while (message := await receive())["type"] == "websocket.receive":
        assert (message.get("text") is None) != (message.get("bytes") is None)
        yield message.get("text") if message.get("bytes") is None else message["bytes"]
    assert message["type"] == "websocket.disconnect"
    EVENTS.append(f"{message['code']} {message.get('reason')!r}")


async def on_echo(scope: Scope, receive: Receive, send: Send, query: dict[str, str]) -> None:
    """Echo every message."""
    await send({"type": "websocket.accept", "subprotocol": query.get("sub"), "headers": [(b"x-mine", b"1")]})
    async for data in messages(receive):
        await send({"type": "websocket.send", "text" if isinstance(data, str) else "bytes": data})


async def on_impatient(_: Scope, receive: Receive, send: Send, __: Any) -> None:
    """Echo every message; cancel each ``receive`` that has none after a turn of the loop."""
    await send({"type": "websocket.accept"})
    while True:
        task = asyncio.ensure_future(receive())
        await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            if (message := await task)["type"] == "websocket.disconnect":
                return
            await send({"type": "websocket.send", "text": message["text"]})


async def on_pair(_: Scope, receive: Receive, send: Send, __: Any) -> None:
    """Receive in two tasks at once and in two that are cancelled; send what the two have received."""
    await send({"type": "websocket.accept"})
    tasks = [asyncio.ensure_future(receive()) for _ in range(4)]
    await asyncio.sleep(0)
    for task in tasks[::3]:
        task.cancel()
    await send({"type": "websocket.send", "text": "receiving"})
    for message in await asyncio.gather(*tasks[1:3]):
        await send({"type": "websocket.send", "text": message["text"]})


async def on_scope(scope: Scope, receive: Receive, send: Send, _: Any) -> None:
    """Send the scope as the first message."""
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", "text": repr({key: value for key, value in scope.items() if key != "app"})})
    async for _ in messages(receive):
        pass


async def on_deny(_: Scope, receive: Receive, send: Send, __: Any) -> None:
    """Send a denial response in pieces."""
    await send({"type": "websocket.http.response.start", "status": 401, "headers": [(b"x-why", b"because")]})
    await send({"type": "websocket.http.response.body", "body": b"not ", "more_body": True})
    await send({"type": "websocket.http.response.body", "body": b"you"})
    EVENTS.append((await receive())["type"])


async def on_close_first(_: Scope, receive: Receive, send: Send, __: Any) -> None:
    """Close before accept."""
    await send({"type": "websocket.close"})
    EVENTS.append((await receive())["type"])


async def on_close(_: Scope, receive: Receive, send: Send, query: dict[str, str]) -> None:
    """Close with a code and a reason."""
    await send({"type": "websocket.accept"})
    close: dict[str, Any] = {"type": "websocket.close"}
    if "code" in query:
        close["code"] = int(query["code"])
    if "reason" in query:
        close["reason"] = query["reason"]
    await send(close)
    EVENTS.append((await receive())["type"])


async def on_raise_first(_: Scope, __: Receive, ___: Send, ____: Any) -> None:
    """Fail before accept."""
    raise IntendedError


async def on_return_first(_: Scope, __: Receive, ___: Send, ____: Any) -> None:
    """Return before accept."""


async def on_raise(_: Scope, __: Receive, send: Send, ___: Any) -> None:
    """Fail after accept."""
    await send({"type": "websocket.accept"})
    raise IntendedError


async def on_exit(_: Scope, __: Receive, send: Send, ___: Any) -> None:
    """Exit after accept."""
    await send({"type": "websocket.accept"})
    raise SystemExit(3)


async def on_return(_: Scope, __: Receive, send: Send, ___: Any) -> None:
    """Return after accept."""
    await send({"type": "websocket.accept"})


async def on_hesitate(_: Scope, receive: Receive, send: Send, query: dict[str, str]) -> None:
    """Before accept, receive once or wait until released."""
    EVENTS.append("hesitating")
    if "receive" in query:
        EVENTS.append((await receive())["type"])
        return
    await RELEASE.wait()
    RELEASE.clear()
    try:
        await send({"type": "websocket.accept"})
    finally:
        EVENTS.append((await receive())["type"])


async def on_wrong(_: Scope, receive: Receive, send: Send, query: dict[str, str]) -> None:
    """Send the messages of the test; record the error."""
    for message in eval(query["it"]):  # the test sends this expression
        try:
            await send(message)
        except Exception as error:  # the test checks the error
            EVENTS.append(type(error).__name__)
            raise
    async for _ in messages(receive):
        pass


async def on_pour(_: Scope, receive: Receive, send: Send, query: dict[str, str]) -> None:
    """Send many messages; ``/-/count`` shows how many calls of ``send`` have returned."""
    await send({"type": "websocket.accept"})
    COUNT[0] = 0
    for number in range(int(query["count"])):
        await send({"type": "websocket.send", "bytes": bytes([number % 256]) * 65536})
        COUNT[0] = number + 1
    async for _ in messages(receive):
        pass


async def on_drip(_: Scope, receive: Receive, send: Send, query: dict[str, str]) -> None:
    """Send many small messages; ``/-/count`` shows how many calls of ``send`` have returned."""
    await send({"type": "websocket.accept"})
    for number in range(int(query["count"])):
        await send({"type": "websocket.send", "text": str(number)})
        COUNT[0] = number + 1
    async for _ in messages(receive):
        pass


async def on_wait(_: Scope, receive: Receive, send: Send, __: Any) -> None:
    """Receive only when released; for every empty message send the number of bytes received."""
    await send({"type": "websocket.accept"})
    await RELEASE.wait()
    RELEASE.clear()
    size = 0
    async for data in messages(receive):
        size += len(data)
        if not data:
            await send({"type": "websocket.send", "text": str(size)})


async def on_send_after(_: Scope, receive: Receive, send: Send, __: Any) -> None:
    """Send after the disconnect."""
    await send({"type": "websocket.accept"})
    async for _ in messages(receive):
        pass
    await asyncio.sleep(0)
    await send({"type": "websocket.send", "text": "x"})


async def on_turns(_: Scope, receive: Receive, send: Send, __: Any) -> None:
    """Between two empty messages: count the turns of the loop and the most messages received in one turn."""
    await send({"type": "websocket.accept"})
    loop = asyncio.get_running_loop()
    turns, most, here, ends = 0, 0, 0, 0

    def turn() -> None:
        nonlocal turns, here
        turns += 1
        here = 0
        if ends == 1:
            loop.call_soon(turn)

    async for data in messages(receive):
        here += 1
        most = max(most, here)
        if not data:
            ends += 1
            turn()
            if ends == 2:
                await send({"type": "websocket.send", "text": f"{turns} {most}"})


async def on_crowd(_: Scope, receive: Receive, send: Send, query: dict[str, str]) -> None:
    """Send from many tasks at once; ``/-/count`` shows how many have returned."""
    await send({"type": "websocket.accept"})
    COUNT[0] = 1
    data = bytes(65536)

    async def one() -> None:
        await send({"type": "websocket.send", "bytes": data})
        COUNT[0] += 1

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(int(query["count"])):
                group.create_task(one())
    except* OSError:
        EVENTS.append("crowd gone")
        raise
    async for _ in messages(receive):
        pass


async def on_deny_much(_: Scope, __: Receive, send: Send, query: dict[str, str]) -> None:
    """Send a long denial response; ``/-/count`` shows how many calls of ``send`` have returned."""
    await send({"type": "websocket.http.response.start", "status": 401, "headers": []})
    for number in range(int(query["count"])):
        await send({"type": "websocket.http.response.body", "body": bytes(65536), "more_body": True})
        COUNT[0] = number + 1
    await send({"type": "websocket.http.response.body"})


async def on_late_close(_: Scope, __: Receive, send: Send, ___: Any) -> None:
    """Receive nothing, and close when released."""
    await send({"type": "websocket.accept"})
    await RELEASE.wait()
    RELEASE.clear()
    await send({"type": "websocket.close", "code": 4000})
