"""ASGI lifespan: the application's own start-up and shutdown in each worker (asgiref.readthedocs.io, Lifespan Protocol 2.0)."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from math import inf
from typing import TYPE_CHECKING, Any

from forkserve.http.app.asgi import VERSIONS

if TYPE_CHECKING:
    from forkserve.http.app.site import Site


class LifespanError(Exception):
    """The application's start-up failed; the text is the application's own."""


class Lifespan:
    """Runs an application's lifespan in a task of its own.

    Args:
        site: The application; its ``state`` is filled by the start-up.
        mode: ``on`` (an application without lifespan is an error), ``auto`` (it is accepted) or ``off``.
    """

    def __init__(self, site: Site, mode: str) -> None:
        self._site = site
        self._mode = mode
        self._task: asyncio.Task[None] | None = None
        self._orders: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        self._started: asyncio.Future[None] = site.loop.create_future()
        self._stopped: asyncio.Future[None] = site.loop.create_future()
        self._received = False  # the application has called receive
        self._stopping = False

    async def startup(self) -> None:
        """Run the application's start-up to its end.

        Raises:
            LifespanError: The application said that it failed, or (mode ``on``) it raised an exception, which is the cause.
        """
        if self._mode == "off":
            return
        self._orders.put_nowait({"type": "lifespan.startup"})
        self._task = self._site.loop.create_task(self._run())
        await asyncio.wait((self._task, self._started), return_when=asyncio.FIRST_COMPLETED)
        if self._started.done():
            self._started.result()
            self._task.add_done_callback(self._ended)
        elif (error := self._task.exception()) is not None:
            if self._mode == "on":
                raise LifespanError(f"lifespan start-up raised {type(error).__name__}: {error}") from error
            self._refused(error)
        elif self._mode == "on":
            raise LifespanError("the application returned without answering lifespan.startup")

    def _refused(self, error: BaseException) -> None:
        """Log an exception in place of a start-up: the application does not support lifespan, or its start-up is broken."""
        if not self._received and _is_refusal(error):
            self._site.log.debug("the application does without lifespan: it raised %s", type(error).__name__)
            return
        self._site.log.warning(
            "the application runs without its start-up and shutdown (lifespan), which raised %s: %s; --lifespan on makes this an"
            " error with a traceback, --lifespan off is for an application that has neither",
            type(error).__name__,
            error,
        )

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Log that the task has ended after the start-up: nothing else looks at its exception."""
        if self._stopping or task.cancelled():
            return
        if (error := task.exception()) is None:
            self._site.log.debug("the application's lifespan has ended: it does without shutdown")
        else:
            self._site.log.error("the application's lifespan has died after start-up: it will not be shut down", exc_info=error)

    async def shutdown(self, limit: float = inf) -> None:
        """Run the application's shutdown to its end, or for ``limit`` seconds; its exceptions are logged."""
        if self._task is None or self._task.done():
            return
        self._stopping = True
        self._orders.put_nowait({"type": "lifespan.shutdown"})
        timeout = None if limit == inf else limit
        ended, _ = await asyncio.wait((self._task, self._stopped), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if not ended:
            self._site.log.warning("lifespan shutdown is cut short after %.1f s: the graceful timeout is over", limit)
        elif self._task.done() and (error := self._task.exception()) is not None:
            self._site.log.error("lifespan shutdown raised an exception", exc_info=error)
        self._task.cancel()

    def abort(self) -> asyncio.Task[None] | None:
        """Cancel the task, whatever the application does in it; return it if it has not ended."""
        self._stopping = True
        if self._task is None:
            return None
        if self._task.done():
            if not self._task.cancelled():
                self._task.exception()  # what has failed is known: asyncio need not log it once more
            return None
        self._task.add_done_callback(lambda task: task.cancelled() or task.exception())
        self._task.cancel()
        return self._task

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": VERSIONS | {"spec_version": "2.0"}, "state": self._site.state}
        await self._site.app(scope, self._receive, self._send)

    async def _receive(self) -> dict[str, str]:
        self._received = True
        return await self._orders.get()

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        kind, text = message["type"], message.get("message", "")
        if kind == "lifespan.startup.complete" and not self._started.done():
            self._started.set_result(None)
        elif kind == "lifespan.startup.failed" and not self._started.done():
            self._started.set_exception(LifespanError(text or "lifespan start-up failed"))
        elif kind == "lifespan.shutdown.complete" and not self._stopped.done():
            self._stopped.set_result(None)
        elif kind == "lifespan.shutdown.failed" and not self._stopped.done():
            self._site.log.error("lifespan shutdown failed: %s", text)
            self._stopped.set_result(None)
        else:
            raise RuntimeError(f"unexpected lifespan message {kind!r}")


def _is_refusal(error: BaseException) -> bool:
    """Return whether the exception means that the application serves HTTP only: it checks the scope's type, or names it."""
    return isinstance(error, (NotImplementedError, AssertionError)) or "lifespan" in str(error).lower()
