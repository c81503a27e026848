"""Server-sent events: what the live page shows, once a second. In the admin process.

All clients share one computation, which runs only while there is a client. A client that reads slowly misses events; nothing is
kept for it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any, Final

from forkserve.ops.link import MasterSilentError
from forkserve.ops.view import view

MOST_CLIENTS: Final = 32
"""At once. It is less than the admin process has requests in hand, so that open pages do not keep metrics from being read."""
KIND: Final = "text/event-stream; charset=utf-8"
RETRY: Final = b"retry: 1000\n\n"
"""Tells a browser to connect again after a second."""
EVERY: Final = 1.0
"""Seconds between two events."""


class Events:
    """Makes the events, and gives them to any number of clients.

    Args:
        status: Returns the status of the server, as `forkserve ctl status --json` has it. It raises MasterSilentError; then the
            event `silent` is sent, with the reason, so that a client can tell a silent master from a lost connection.
        every: Seconds between two events.
    """

    def __init__(self, status: Callable[[], Awaitable[Mapping[str, Any]]], every: float = EVERY) -> None:
        self._status, self._every = status, every
        self._clients = 0
        self._closed = False
        self._task: asyncio.Task[None] | None = None
        self._last: bytes | None = None
        self._next: asyncio.Future[bytes] | None = None

    @property
    def full(self) -> bool:
        """Whether no more clients are served."""
        return self._closed or self._clients >= MOST_CLIENTS

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Yield events for one client, the first at once, until `close` is called. The caller closes the generator."""
        self._clients += 1
        try:
            yield RETRY
            if self._last is not None:
                yield self._last
            while not self._closed:
                task, event = self._begun()
                await asyncio.wait((task, event), return_when=asyncio.FIRST_COMPLETED)
                if event.done():
                    yield event.result()
                elif not self._closed:
                    task.result()  # raises its error, which the server logs; the browser connects again
        finally:
            self._clients -= 1
            if not self._clients:
                self._stop()

    def close(self) -> None:
        """End all streams: the process stops."""
        self._closed = True
        self._stop()

    def _begun(self) -> tuple[asyncio.Task[None], asyncio.Future[bytes]]:
        """Return what makes the events, and the next of them."""
        if self._task is None or self._next is None:
            self._next = asyncio.get_running_loop().create_future()
            self._task = asyncio.create_task(self._make(self._next))
        return self._task, self._next

    def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self._task = self._next = self._last = None

    async def _make(self, event: asyncio.Future[bytes]) -> None:
        """Make events for as long as there are clients."""
        loop = asyncio.get_running_loop()
        before: Mapping[str, Any] | None = None
        while True:
            due = loop.time() + self._every
            try:
                now = await self._status()
                made, before = _event(view(before, now)), now
            except MasterSilentError as error:
                made = _event(str(error), "silent")
            self._last, self._next = made, loop.create_future()
            event.set_result(made)
            event = self._next
            await asyncio.sleep(due - loop.time())


def _event(data: object, name: str = "") -> bytes:
    """Return one event. JSON has no line breaks, which would end the field."""
    return (f"event: {name}\n" if name else "").encode() + b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"
