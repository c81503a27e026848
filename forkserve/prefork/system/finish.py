"""Finish: complete the work of an application's threads and executors before its process ends, within a time limit.

Python does this at the end of a program, without a limit. The server's processes end by `os._exit`, and the limit is the rest of
the graceful timeout. Executors are shut down first: an idle thread of an executor never ends by itself, and a busy one completes
its queue before it ends.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import FrameType

MOMENT: Final = 0.02  # seconds that threads of idle executors take to end
SLICE: Final = 0.1  # seconds between two heartbeats
# Modules with frames that do not show the work of a thread.
MACHINERY: Final = ("threading", "concurrent.futures.", "anyio.", "asyncio.", "contextvars")


def dismiss_executors() -> None:
    """Shut down every executor of `concurrent.futures`: it takes no more work, and ends when its queue is empty. Does not wait.

    The functions for this are those that Python calls before it joins threads. They wait, so each runs in a thread.
    """
    for call in reversed(getattr(threading, "_threading_atexits", ())):
        with contextlib.suppress(RuntimeError):  # no thread can be started: idle threads are cut off, and named
            threading.Thread(target=call, name="forkserve-finish", daemon=True).start()


def unfinished() -> list[threading.Thread]:
    """Return the threads that a program joins at its end: those that are no daemons, and those of executors."""
    here = (threading.current_thread(), threading.main_thread())
    executors = getattr(sys.modules.get("concurrent.futures.thread"), "_threads_queues", ())
    return [
        one
        for one in threading.enumerate()
        if (not one.daemon or one in executors) and one.is_alive() and one not in here and not hasattr(one, "is_servers")
    ]


def wait_for_threads(until: float, tick: Callable[[], object] = lambda: None) -> list[threading.Thread]:
    """Wait for the unfinished threads; return those that still run.

    Args:
        until: When to give up, on the monotonic clock; `math.inf` for never.
        tick: Called repeatedly meanwhile; not if there is nothing to wait for.
    """
    moment = min(time.monotonic() + MOMENT, until)
    while (left := unfinished()) and (now := time.monotonic()) < until:
        if now >= moment:
            tick()
        left[0].join(min(MOMENT if now < moment else SLICE, until - now))
    return left


def describe(thread: threading.Thread) -> str:
    """Return the thread's name and the function that it runs."""
    frame: FrameType | None = sys._current_frames().get(thread.ident or 0)  # noqa: SLF001 - documented for this purpose
    target = getattr(thread, "_target", None)
    found = f" (target {getattr(target, '__qualname__', None) or target!r:.100})" if target is not None else ""
    while frame is not None:
        if not f"{frame.f_globals.get('__name__', '')}.".startswith(tuple(f"{one.rstrip('.')}." for one in MACHINERY)):
            found = f" in {frame.f_code.co_qualname} ({frame.f_code.co_filename}:{frame.f_lineno})"
        frame = frame.f_back
    return f"thread {thread.name!r}{found}"
