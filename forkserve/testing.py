"""Serve an application for as long as a `with` lasts: for tests, notebooks and demonstrations."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Final

from forkserve.server import Server
from forkserve.web.loop import new_loop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from forkserve.config.settings import Settings

DEFAULTS: Final = {"graceful_timeout": 5, "linger": 0}
ADDRESSES: Final = frozenset(("bind", "port", "uds", "fd"))
MOMENT: Final = 5.0
"""Seconds more than the graceful timeout after which the end of the thread is not waited for."""


@contextlib.contextmanager
def serve(app: str | Callable[..., Any], **settings: Any) -> Iterator[str]:
    """Serve an application in a thread with an event loop of its own, until the `with` ends; the value is its URL.

    There is no fork, no signal handler and no `ctl`; several can run at once, also beside a running loop. At the end requests
    in hand are answered.

    Args:
        app: The application, or its name, ``module:attr``.
        settings: Settings by name. Without an address it is a free port of 127.0.0.1. `graceful_timeout` is 5 seconds.

    Raises:
        ConfigError: A setting is wrong, or needs processes: `workers`, `reload` and others are for `forkserve.run`.
        AppLoadError: The application cannot be loaded.
        BootError: Its start-up failed.
        ListenError: An address cannot be listened on.
        TimeoutError: At the end, when the application does not return from a call.
    """
    address = {} if ADDRESSES & settings.keys() else {"port": 0}
    server = Server(app, **{**DEFAULTS, **address, **settings})
    thread = _Thread(server)
    url = thread.begin()
    try:
        yield url
    finally:
        thread.end(server.settings)


class _Thread(threading.Thread):
    """The thread; it does not keep the process from ending."""

    def __init__(self, server: Server) -> None:
        super().__init__(name=f"forkserve {server.name}", daemon=True)
        self._server = server
        self._url: Future[str] = Future()
        self._started = threading.Event()  # the next two are set, or never will be
        self._loop: asyncio.AbstractEventLoop | None = None
        self._cancel: Callable[[], object]

    def begin(self) -> str:
        """Start; return the URL. Raises the exceptions of the start-up."""
        self.start()
        try:
            return self._url.result()
        except BaseException:
            self.end(self._server.settings)
            raise

    def run(self) -> None:
        """Serve, in this thread."""
        try:
            with asyncio.Runner(loop_factory=partial(new_loop, self._server.settings.loop)) as runner:
                runner.run(self._serve())
        except asyncio.CancelledError:
            pass
        except BaseException as error:
            if self._url.done():
                raise
            self._url.set_exception(error)
        finally:
            self._started.set()
            self._server.poller.close()

    async def _serve(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._loop, self._cancel = asyncio.get_running_loop(), task.cancel
        self._started.set()
        await self._server.serve(ready=self._url.set_result)

    def end(self, settings: Settings) -> None:
        """Stop, and wait for the end. In another thread, or in a process that has been forked meanwhile."""
        if not self.is_alive():
            return
        self._started.wait()
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has just been closed
                self._loop.call_soon_threadsafe(self._cancel)
        limit = settings.graceful_timeout + MOMENT if settings.graceful_timeout else None
        self.join(limit)
        if self.is_alive():
            raise TimeoutError(f"{self.name} has not ended after {limit:g} s: the application does not return from a call")
