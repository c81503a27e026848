"""The event loop of a worker: its kind, its default executor, and the flush of messages and log lines that wait."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from forkserve.base import greenlets, logfile
from forkserve.base.errors import BootError
from forkserve.prefork.system import finish

if TYPE_CHECKING:
    import logging
    from collections.abc import Awaitable, Callable

    from forkserve.prefork.ipc.channel import Channel
    from forkserve.prefork.worker.worker import Worker

try:
    import uvloop
except Exception:  # noqa: BLE001 - not CPython, or not Unix; or half installed, as an upgrade takes place
    uvloop = None  # type: ignore[assignment, unused-ignore]  # the name must exist


def new_loop(choice: str) -> asyncio.AbstractEventLoop:
    """Make the loop of the setting `loop`. Raises BootError if it is not installed.

    Where threads are greenlets it is asyncio's, with the selector that gevent has put in place: other greenlets run while that
    waits. While uvloop waits, none would run, and threads of executors would never do their work.
    """
    if greenlets.library() is not None:
        separate_running_loops()
        return asyncio.new_event_loop()
    if choice == "asyncio" or (choice == "auto" and uvloop is None):
        return asyncio.new_event_loop()
    if uvloop is None:
        raise BootError("uvloop is not installed: pip install uvloop, or use --loop asyncio")
    return uvloop.new_event_loop()


def greenlets_in_use(interface: str, threads: int) -> str | None:
    """Return a line that says what gevent or eventlet means for the server; None if neither has replaced anything."""
    library = greenlets.library()
    if library is None:
        return None
    pool = f", and the {threads} threads are greenlets" if interface == "wsgi" and threads else ""
    return f"the app uses {library}: the event loop is asyncio's{pool}"


def separate_running_loops() -> None:
    """Let each greenlet of this thread see only the event loop that itself runs, as each thread does.

    For asyncio they are one thread. So Django's ORM, for one, would refuse to work in a greenlet while another runs a loop.
    """
    module: Any = sys.modules["greenlet"]
    loops: WeakKeyDictionary[object, asyncio.AbstractEventLoop] = WeakKeyDictionary()
    before = module.gettrace()
    if getattr(before, "__qualname__", "").startswith(separate_running_loops.__qualname__):
        return  # an earlier loop of this thread has done it

    def switched(event: str, pair: tuple[object, object]) -> None:
        origin, target = pair
        running = asyncio._get_running_loop()  # noqa: SLF001 - the public function raises where there is none
        if running is not None:
            loops[origin] = running
        else:
            loops.pop(origin, None)
        if (found := loops.get(target)) is not running:
            asyncio._set_running_loop(found)  # noqa: SLF001 - made for those that run a loop
        if before is not None:
            before(event, pair)

    module.settrace(switched)


def log_loop_error(log: logging.Logger, _: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
    """Log an error that the loop has caught."""
    error = context.get("exception")
    log.error("%s", context.get("message"), exc_info=error if isinstance(error, BaseException) else None)


class DefaultExecutor:
    """The loop's default executor, also one that the application has set: uvloop has no way to read it.

    Args:
        loop: The loop. From now on it notifies this object of a new executor.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._set = loop.set_default_executor
        loop.set_default_executor = self._follow  # type: ignore[method-assign, assignment]  # of this loop
        self._follow(ThreadPoolExecutor(thread_name_prefix="asyncio"))

    def _follow(self, executor: ThreadPoolExecutor) -> None:
        self._executor = executor
        self._set(executor)

    async def finish(self, worker: Worker, pause: Callable[[float], Awaitable[None]]) -> None:
        """Wait, with the loop running and while the worker has time left, for work that the application has given to it.

        Args:
            worker: Knows how much time is left.
            pause: Sleeps for a number of seconds.
        """
        self._executor.shutdown(wait=False)
        threads = self._executor._threads  # noqa: SLF001 - no public name shows whether they have ended
        moment = time.monotonic() + finish.MOMENT
        while any(thread.is_alive() for thread in tuple(threads)) and worker.time_left():
            if time.monotonic() > moment:
                worker.wait_for_threads()
            await pause(finish.MOMENT / 2)


class LogFlusher:
    """Writes log lines that had to wait for room in a pipe, by the loop.

    Args:
        loop: The loop of this process.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due = False
        logfile.when_waiting(self._flush_soon)

    def _flush_soon(self) -> None:
        """Have the loop write what waits; called in any thread."""
        if not self._due and not self._loop.is_closed():
            self._due = True
            with contextlib.suppress(RuntimeError):  # it is just being closed
                self._loop.call_soon_threadsafe(self._flush)

    def _flush(self) -> None:
        pause = logfile.flush()
        self._due = pause is not None
        if pause is not None:
            self._loop.call_later(pause, self._flush)
        elif logfile.next_flush() is not None:  # a thread has added a line and seen that a flush was due
            self._flush_soon()


def flush_soon(channel: Channel, loop: asyncio.AbstractEventLoop) -> None:
    """Have the loop send the messages that the channel did not take at once; called in any thread."""
    loop.call_soon_threadsafe(loop.add_writer, channel.fileno(), _flush, channel, loop)


def _flush(channel: Channel, loop: asyncio.AbstractEventLoop) -> None:
    channel.flush()
    if not channel.unsent:
        loop.remove_writer(channel.fileno())
