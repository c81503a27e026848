"""Apps that crash."""

from __future__ import annotations

import ctypes
import json
import os
import signal
from pathlib import Path

if Path(os.environ["BROKEN"]).exists():
    os._exit(7)


def crash(path: str) -> None:
    """End the process in the way that the path names."""
    match path:
        case "/segfault":
            ctypes.string_at(0)
        case "/exit":
            os._exit(5)
        case "/abort":
            os.abort()
        case "/memory":
            kept = []
            while True:
                kept.append(b"x" * (1 << 20))
        case "/kill":
            os.kill(os.getpid(), signal.SIGKILL)


def answer() -> bytes:
    """Return the JSON that the load of the tests expects."""
    return json.dumps({"generation": os.environ["FORKSERVE_GENERATION"], "pid": os.getpid(), "version": "1"}).encode()


def wsgi(environ, start_response):
    """WSGI."""
    crash(environ["PATH_INFO"])
    data = answer()
    start_response("200 OK", [("Content-Length", str(len(data)))])
    return [data]


async def asgi(scope, receive, send):
    """ASGI."""
    if scope["type"] != "http":
        raise NotImplementedError
    crash(scope["path"])
    data = answer()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(data))]})
    await send({"type": "http.response.body", "body": data})
