"""Small apps that show the process in which they run."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from pathlib import Path


def who(environ, start_response):
    """WSGI: the worker, its process, and the variable that the query names."""
    answer = json.dumps(
        {
            "worker": os.environ.get("FORKSERVE_WORKER_ID"),
            "generation": os.environ.get("FORKSERVE_GENERATION"),
            "pid": os.getpid(),
            "thread": threading.current_thread().name,
            "cwd": os.getcwd(),
            "loop": next((name for name in ("uvloop",) if name in sys.modules), "asyncio"),
            "value": os.environ.get(environ["QUERY_STRING"]),
            "environ": {key: value for key, value in environ.items() if isinstance(value, str)},
            "multithread": environ["wsgi.multithread"],
            "scheme": environ["wsgi.url_scheme"],
        }
    ).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(answer)))])
    return [answer]


def validated_django():
    """WSGI: the Django example; every violation of PEP 3333 on either side is an error."""
    from wsgiref.validate import validator

    from example_apps.django_app import wsgi

    return validator(wsgi)


async def who_asgi(scope, receive, send):
    """ASGI: the same."""
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    answer = json.dumps(
        {
            "worker": os.environ.get("FORKSERVE_WORKER_ID"),
            "generation": os.environ.get("FORKSERVE_GENERATION"),
            "pid": os.getpid(),
            "loop": type(asyncio.get_running_loop()).__module__.partition(".")[0],
            "value": os.environ.get(scope["query_string"].decode()),
            "scope": {
                key: value for key, value in scope.items() if isinstance(value, str | int | list | tuple) and key != "headers"
            },
            "scheme": scope["scheme"],
        },
        default=repr,
    ).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(answer))]})
    await send({"type": "http.response.body", "body": answer})


def _note(text: str) -> None:
    """Append a line to the notes."""
    with Path(os.environ["NOTES"]).open("a") as file:
        file.write(text + "\n")


def gated(environ, start_response):
    """WSGI: record the request, then wait until the file that the query names exists."""
    _note(f"came {environ['PATH_INFO']}")
    while not os.path.exists(environ["QUERY_STRING"]):
        time.sleep(0.01)
    start_response("200 OK", [("Content-Length", "5")])
    return [b"done\n"]


async def gated_asgi(scope, receive, send):
    """ASGI: the same; `/stream` streams until http.disconnect and records it; a WebSocket records its close code."""
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
    elif scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] != "websocket.disconnect":
            pass
        _note(f"websocket ended {message['code']}")
    elif scope["path"] == "/stream":
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        await send({"type": "http.response.body", "body": b"data: first\n\n", "more_body": True})
        _note((await receive())["type"])
        if scope["query_string"] == b"stubborn":
            await asyncio.sleep(3600)
    else:
        _note(f"came {scope['path']}")
        while not os.path.exists(scope["query_string"].decode()):
            await asyncio.sleep(0.01)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        await send({"type": "http.response.body", "body": b"done\n"})


async def _lifespan(receive, send):
    while True:
        message = await receive()
        _note(message["type"])
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return
