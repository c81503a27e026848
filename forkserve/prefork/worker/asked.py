"""Asked: what a worker gets when it asks the others to run a command."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextvars import ContextVar
from typing import Any

from forkserve.base.errors import CommandError
from forkserve.prefork.ipc.hooks import call_hook
from forkserve.prefork.ipc.pending import Reply, WouldDeadlock

on_own_loop: ContextVar[bool] = ContextVar("on_own_loop", default=False)
"""Whether this runs in an async command for which the worker has made a loop, and waits: no reply is heard until it ends."""


class Asked:
    """The replies of other workers, when they have come. In a worker, from any of its threads.

    Await it on an event loop, or wait for `result` in a thread of the application; `then` works anywhere.
    """

    def __init__(self, main_thread: int) -> None:
        self._main_thread = main_thread
        self._replies: Future[list[Reply]] = Future()
        self._replies.set_running_or_notify_cancel()  # who stops awaiting it must not cancel it: the replies come all the same

    @property
    def done(self) -> bool:
        """Whether the replies are there, or never will be."""
        return self._replies.done()

    def result(self, timeout: float | None = None) -> list[Reply]:
        """Wait for the replies, in seconds.

        Raises:
            WouldDeadlock: This is the thread on which the worker answers commands, and they have not come yet.
            CommandError: The master refused the command, or is gone.
            TimeoutError: They did not come in time.
        """
        if threading.get_ident() == self._main_thread:
            self._must_be_done("this thread also runs the commands of others: await the replies, or use then()")
        self._check_loop()
        return self._replies.result(timeout)

    def _check_loop(self) -> None:
        if on_own_loop.get():
            self._must_be_done("this worker does nothing else while the command runs: use then()")

    def _must_be_done(self, why: str) -> None:
        if not self.done:
            raise WouldDeadlock(why)

    def __await__(self) -> Generator[Any, None, list[Reply]]:
        import asyncio  # noqa: PLC0415  # only where there is a loop

        self._check_loop()
        return asyncio.wrap_future(self._replies).__await__()

    def then(self, call: Callable[[list[Reply]], object]) -> Asked:
        """Call with the replies when they come, on the worker's main thread; not if the command was refused. Returns itself.

        If they are there already, it is called at once.
        """

        def ended(future: Future[list[Reply]]) -> None:
            if future.exception() is None:
                call_hook("callback of a command", call, future.result())

        self._replies.add_done_callback(ended)
        return self

    # For the worker.

    def resolve(self, replies: list[Reply]) -> None:
        """The replies have come."""
        self._replies.set_result(replies)

    def fail(self, message: str, code: str) -> None:
        """They never will."""
        self._replies.set_exception(CommandError(message, code))
