"""Apps that get stuck."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
import time
from collections import deque
from pathlib import Path


def _note(text: str) -> None:
    """Write a line where the test looks for it."""
    with Path(os.environ["NOTES"]).open("a") as file:
        file.write(text + "\n")


async def app(scope, receive, send):
    """ASGI: the path says how; a WebSocket is accepted and waits."""
    if scope["type"] == "lifespan":
        raise NotImplementedError
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await receive()
        return
    _note(scope["path"])
    match scope["path"].split("/")[1]:
        case "sleep":
            time.sleep(600)
        case "lock":
            threading.Event().wait()
        case "loop":
            while True:
                pass
        case "native":
            # Long enough to be noted: nothing of Python's runs from here on.
            await asyncio.sleep(2.5)
            deque(itertools.repeat(0), maxlen=0)
        case "wait":
            await asyncio.Event().wait()
        case "background":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body"})
            await asyncio.sleep(0)
            time.sleep(600)


def wsgi(environ, start_response):
    """WSGI: wait for ever."""
    _note(environ["PATH_INFO"])
    wait_for_ever()


def wait_for_ever():
    """Be found on the stack."""
    threading.Event().wait()
