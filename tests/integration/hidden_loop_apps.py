"""A WSGI application, and commands and hooks of its worker, that record whether asyncio shows a running loop on their thread."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

SEEN: dict[str, bool] = {}


def look(place: str) -> None:
    """Record whether asyncio shows a running loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        SEEN[place] = False
    else:
        SEEN[place] = True


def application(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """Look in the call and in the iterator."""
    look("call")
    start_response("200 OK", [("Content-Length", "3")])
    yield b"a"
    look("next")
    yield b"b"
    yield b"c"


class Mixin:
    """Commands and hooks of the worker."""

    def on_ready(self) -> None:
        """A hook that is called by the event loop."""
        look("on_ready")

    def child_look(self) -> dict[str, bool]:
        """A command."""
        look("command")
        return SEEN

    async def child_wait(self) -> str:
        """A command that needs its own event loop."""
        await asyncio.sleep(0.01)
        return "waited"
