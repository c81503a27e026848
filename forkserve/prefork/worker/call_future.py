"""CallFuture: the replies to a worker's call of other workers, and the table of the calls that wait for them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from forkserve.base.errors import CommandError
from forkserve.prefork.ipc.frames import FrameError
from forkserve.prefork.ipc.hooks import call_hook
from forkserve.prefork.ipc.messages import Call
from forkserve.prefork.ipc.pending import Reply, WouldDeadlock

if TYPE_CHECKING:
    from forkserve.prefork.ipc.messages import Answer
    from forkserve.prefork.ipc.pending import JSON
    from forkserve.prefork.worker.running import RunningWorker


@dataclass(slots=True)
class RunningCommand:
    """A command of this worker. A task that it has started may outlive it."""

    ended: bool = False


on_own_loop: ContextVar[bool] = ContextVar("on_own_loop", default=False)
"""Whether this runs in an async command, on a loop that the worker has made for it. No reply is received until it ends."""
in_command: ContextVar[RunningCommand | None] = ContextVar("in_command", default=None)
"""The command that this runs in, or that has started this. This worker starts no other one until it ends."""


class CallFuture:
    """The replies of other workers to a call. In the calling worker, from any of its threads.

    Await it on an event loop, or wait for `result` in a thread of the application; `then` works anywhere.
    """

    def __init__(self, *, needs_this_worker: bool = False) -> None:
        self._needs_this_worker = needs_this_worker
        self._replies: Future[list[Reply]] = Future()
        self._replies.set_running_or_notify_cancel()  # it cannot be cancelled: the replies arrive in any case

    @property
    def done(self) -> bool:
        """Whether the replies have arrived, or will never arrive."""
        return self._replies.done()

    def result(self, timeout: float | None = None) -> list[Reply]:
        """Wait for the replies, at most `timeout` seconds.

        Raises:
            WouldDeadlock: The replies have not arrived yet, and this thread runs the worker's commands, or this is a command
                and the call includes this worker, which runs one command at a time.
            CommandError: The master has refused the command, or is gone.
            TimeoutError: The replies have not arrived in time.
        """
        if threading.current_thread() is threading.main_thread():
            self._must_be_done("this thread also runs the commands of others: await the replies, or use then()")
        self._check_command()
        return self._replies.result(timeout)

    def _check_command(self) -> None:
        command = in_command.get()
        if self._needs_this_worker and command is not None and not command.ended:
            self._must_be_done("this worker runs one command at a time, and this is one: use then()")
        if on_own_loop.get():
            self._must_be_done("this worker does nothing else while the command runs: use then()")

    def _must_be_done(self, why: str) -> None:
        if not self.done:
            raise WouldDeadlock(why)

    def __await__(self) -> Generator[Any, None, list[Reply]]:
        import asyncio  # noqa: PLC0415  # only where there is a loop

        self._check_command()
        return asyncio.wrap_future(self._replies).__await__()

    def then(self, call: Callable[[list[Reply]], object]) -> CallFuture:
        """Call `call` with the replies when they arrive, on the worker's main thread; not if the call fails. Returns itself.

        If they have arrived already, it is called at once.
        """

        def ended(future: Future[list[Reply]]) -> None:
            if future.exception() is None:
                call_hook("callback of a command", call, future.result())

        self._replies.add_done_callback(ended)
        return self

    # For the worker.

    def resolve(self, replies: list[Reply]) -> None:
        """End with the replies."""
        self._replies.set_result(replies)

    def fail(self, message: str, code: str) -> None:
        """End without replies. Code is one of `CommandError.CODES`."""
        self._replies.set_exception(CommandError(message, code))


class OpenCalls:
    """The calls of one worker that the master has not answered yet. From any thread of the worker."""

    def __init__(self, worker: RunningWorker) -> None:
        self._worker = worker
        self._futures: dict[int, CallFuture] = {}

    def call(
        self,
        name: str,
        args: Sequence[JSON],
        to: str | int,
        timeout: float | None,
        kwargs: Mapping[str, JSON],
        *,
        include_self: bool,
    ) -> CallFuture:
        """Call as `Worker.call` does. Raises CommandError for arguments that cannot be sent."""
        future = CallFuture(needs_this_worker=include_self)
        number = id(future)
        self._futures[number] = future
        try:
            sent = not self._worker.orphan and self._worker.send(Call(number, name, args, to, timeout, kwargs, include_self))
        except FrameError as error:
            self._futures.pop(number)
            raise CommandError(f"the arguments of {name} cannot be sent: {error}", "usage") from error
        if not sent:
            self._futures.pop(number).fail("the master cannot be reached", "failed")
        return future

    def answered(self, answer: Answer) -> None:
        """End the call that the master has answered."""
        future = self._futures.pop(answer.number, None)
        if future is None:
            return
        if answer.error is None:
            future.resolve(list(answer.replies))
        else:
            future.fail(answer.error.message, answer.error.code)

    def fail_all(self, why: str) -> None:
        """End every call: the master will not answer."""
        while self._futures:
            self._futures.popitem()[1].fail(why, "failed")
