"""Sleep for the seconds that the query gives (`/?seconds=0.5`; default 1), then answer.

    forkserve example_apps.slow:application --workers 4 --base-port 9000    WSGI: the worker serves no other request meanwhile
    forkserve example_apps.slow:app --base-port 9000                        ASGI: it serves others meanwhile

One attribute for each interface: `application` is WSGI and `app` is ASGI, so name the one you want.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

if TYPE_CHECKING:
    from collections.abc import Iterable
    from wsgiref.types import StartResponse, WSGIEnvironment

    from starlette.types import Receive, Scope, Send

BODY = b"At last.\n"


def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Hold the thread."""
    time.sleep(_seconds(environ["QUERY_STRING"]))
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(BODY)))])
    return [BODY]


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Wait on the loop."""
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    await asyncio.sleep(_seconds(scope["query_string"].decode("latin-1")))
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(BODY))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": BODY})


def _seconds(query: str) -> float:
    return float(parse_qs(query).get("seconds", ["1"])[0])
