"""Dispatch: runs a command in a worker: first `on_<name>`, then `child_<name>`, and sends the reply."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
import traceback
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from forkserve.base.errors import unknown_command
from forkserve.prefork.ipc.frames import FrameError
from forkserve.prefork.ipc.messages import Command, Free, Offer, Result
from forkserve.prefork.ipc.pending import LONGEST_TEXT, Failure
from forkserve.prefork.worker.call_future import RunningCommand, in_command, on_own_loop
from forkserve.prefork.worker.defined import commands_of

if TYPE_CHECKING:
    from forkserve.prefork.ipc.pending import JSON
    from forkserve.prefork.worker.running import RunningWorker


class SignatureError(Exception):
    """The arguments do not fit a command; the text has its signature."""


class Dispatcher:
    """Runs the commands of one worker, one at a time, in the order in which they were received. In the worker."""

    def __init__(self, worker: RunningWorker) -> None:
        self._worker = worker
        self._known = commands_of(type(worker))
        self._waiting: deque[Command] = deque()
        self._offered = False
        self._busy = False

    def take(self, message: Command | Offer) -> None:
        """Keep a command of the master, or an offer of one, until `run`."""
        if isinstance(message, Offer):
            self._offered = True
        else:
            self._waiting.append(message)

    def run(self) -> None:
        """Run the kept commands, then take up an offer. Called only between two requests."""
        while self._waiting and not self._busy:
            command = self._waiting.popleft()
            if command.deadline is not None and time.monotonic() >= command.deadline:
                self._worker.log.warning("command %s is dropped: its deadline has passed before it was started", command.name)
                continue
            self._busy = True
            self._worker.run_command(self._perform(command), is_async=self._is_async(command.name))
        if self._offered and not self._busy:
            self._offered = False
            self._worker.send(Free())

    def _is_async(self, name: str) -> bool:
        methods = (getattr(self._worker, prefix + name, None) for prefix in ("on_", "child_"))
        return any(inspect.iscoroutinefunction(method) for method in methods)

    async def _perform(self, command: Command) -> None:
        """Run one command and reply. No exception in it ends the worker."""
        running = RunningCommand()
        inside = in_command.set(running)
        try:
            await self._answer(command)
        finally:
            self._busy, running.ended = False, True
            in_command.reset(inside)

    async def _answer(self, command: Command) -> None:
        call, name = command.call, command.name
        if name not in self._known:
            failure = Failure("UnknownCommand", unknown_command(name, self._known))
            self._worker.send(Result(call, name, "unknown", error=failure))
            return
        try:
            result = Result(call, name, "ok", await self._run(name, command.args, command.kwargs))
        except SignatureError as error:
            self._worker.log.warning("command %s failed: %s", name, error)
            result = Result(call, name, "error", error=Failure("TypeError", str(error)[:LONGEST_TEXT]))
        except BaseException as error:  # not even SystemExit may end the worker
            if isinstance(error, asyncio.CancelledError) and _is_cancelled():
                raise  # the worker ends; it was not the command that cancelled a task of its own
            result = Result(call, name, "error", error=self._failure(name, error))
        try:
            self._worker.send(result)
        except FrameError as error:
            failure = self._failure(name, TypeError(f"what it returned cannot be sent: {error}"))
            self._worker.send(Result(call, name, "error", error=failure))

    async def _run(self, name: str, args: Sequence[JSON], kwargs: Mapping[str, JSON]) -> JSON:
        notify, implementation = getattr(self._worker, f"on_{name}", None), getattr(self._worker, f"child_{name}")
        # `on_<name>` may have other names for the parameters, so it gets an argument by name only if it must have one.
        args, kwargs = _fit(name, implementation, args, kwargs)
        if notify is not None:
            _fit(f"on_{name}", notify, args, kwargs)
        result: Any = None
        for method in filter(None, (notify, implementation)):
            result = method(*args, **kwargs)
            if inspect.isawaitable(result):
                result = await result
        return result

    def _failure(self, name: str, error: BaseException) -> Failure:
        try:
            message = str(error)[:LONGEST_TEXT]
        except Exception as fault:  # noqa: BLE001 - the user's exception
            message = f"its str() raised {type(fault).__name__}"
        self._worker.log.warning("command %s failed: %s: %s", name, type(error).__name__, message)
        frames = error.__traceback__
        while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
            frames = frames.tb_next
        text = "".join(traceback.format_exception(type(error), error, frames))[-LONGEST_TEXT:] if frames else None
        return Failure(type(error).__name__, message, text)


def _fit(
    name: str, method: Callable[..., object], args: Sequence[JSON], kwargs: Mapping[str, JSON]
) -> tuple[Sequence[JSON], Mapping[str, JSON]]:
    """Return the arguments for a method, by position where that is possible. Raises SignatureError if they do not fit."""
    try:
        signature = inspect.signature(method)
    except ValueError:  # a function in C without a signature
        return args, kwargs
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        plain = [one.replace(annotation=one.empty) for one in signature.parameters.values()]
        signature = signature.replace(parameters=plain, return_annotation=signature.empty)
        raise SignatureError(f"{name}{signature}: {error}") from None
    return bound.args, bound.kwargs


def run_to_end(command: Coroutine[Any, Any, None], *, is_async: bool) -> None:
    """Run a command to its end. In a worker without an event loop, or with one that is hidden from the application."""
    if is_async:
        inside = on_own_loop.set(True)
        try:
            asyncio.run(command)
        finally:
            on_own_loop.reset(inside)
        return
    with contextlib.suppress(StopIteration):
        command.send(None)
        # The method is no async def, but has returned an awaitable that waits.
        command.throw(RuntimeError("only an async def can wait"))
        command.close()


def _is_cancelled() -> bool:
    """Whether the task that this runs in was cancelled."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # there is no loop
        return False
    return task is not None and task.cancelling() > 0
