"""Small apps, in both interfaces."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any


def hello(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """Answer with the path, and say whether a loop seems to run."""
    with contextlib.suppress(RuntimeError):
        asyncio.get_running_loop()
        raise AssertionError("a loop seems to run")
    start_response("200 OK", [])
    return [f"wsgi {environ['PATH_INFO']}".encode()]


class ASGI:
    """An app whose start-up and requests can be held; it notes its lifespan."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.entered = threading.Event()
        self.starts: Callable[[], Any] = self.nothing
        self.works: Callable[[], Any] = self.nothing

    async def nothing(self) -> None:
        """Do nothing."""

    async def __call__(self, scope: dict[str, Any], receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        """Serve a lifespan, a request or a WebSocket."""
        if scope["type"] == "lifespan":
            for event in ("startup", "shutdown"):
                await receive()
                self.events.append(event)
                if event == "startup":
                    self.entered.set()
                    await self.starts()
                await send({"type": f"lifespan.{event}.complete"})
            return
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.send", "text": f"echo {(await receive())['text']}"})
            await send({"type": "websocket.close"})
            return
        self.entered.set()
        await self.works()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": f"asgi {scope['path']}".encode()})
