"""Server-sent events, one a second: `curl -N http://127.0.0.1:9000/?count=5&interval=0.2`.

    forkserve example_apps.stream:app --base-port 9000                          ASGI: until the client disconnects
    forkserve example_apps.stream:application --threads 8 --base-port 9000      WSGI: each stream holds a thread

One attribute for each interface: `application` is WSGI and `app` is ASGI, so name the one you want.
The default of `count` is 10 for WSGI and unlimited for ASGI.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from wsgiref.types import StartResponse, WSGIEnvironment

    from starlette.types import Receive, Scope, Send


def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Stream from a generator: each item is sent when it is made."""
    interval, numbers = _wanted(environ["QUERY_STRING"], "10")
    start_response("200 OK", [("Content-Type", "text/event-stream"), ("Cache-Control", "no-store")])
    for number in numbers:
        yield _event(number)
        time.sleep(interval)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Stream until the count is reached or the client disconnects."""
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    interval, numbers = _wanted(scope["query_string"].decode("latin-1"), None)
    headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    gone = asyncio.create_task(_gone(receive))
    try:
        for number in numbers:
            await send({"type": "http.response.body", "body": _event(number), "more_body": True})
            await asyncio.wait([gone], timeout=interval)
            if gone.done():
                return
        await send({"type": "http.response.body", "body": b""})
    finally:
        gone.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _wanted(query: str, default_count: str | None) -> tuple[float, Iterator[int]]:
    fields = parse_qs(query)
    count = fields.get("count", [default_count])[0]
    return float(fields.get("interval", ["1"])[0]), itertools.count() if count is None else iter(range(int(count)))


def _event(number: int) -> bytes:
    return b"id: %d\ndata: %s\n\n" % (number, time.strftime("%H:%M:%S").encode())
