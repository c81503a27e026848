"""Stacks: what every thread of a worker is doing. In the worker.

A worker answers USR2 with its own Python handler, which reads the stacks while it holds the interpreter's lock. That is
safe at any time. But the main thread must run Python code, or be in a system call that a signal interrupts. A second
signal, NATIVE, is answered by faulthandler, in C, whatever the process does. It reads frames that other threads change at
the same time and can crash the process (measured: 5 of 583 times under load), so it is sent only to a process that is about
to be killed.
"""

from __future__ import annotations

import faulthandler
import itertools
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Final

from forkserve.base import greenlets
from forkserve.prefork.worker import suspended

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

# Processes that the app forks, and programs that it starts, do not have the handler. No other use of this number is known.
NATIVE: Final[int] = getattr(signal, "SIGRTMIN", 0) + 11 if sys.platform == "linux" else signal.SIGSYS
MAX_STACKS: Final = 256 * 1024
END: Final = b"\0"  # ends a complete answer of the Python handler
ABORT: Final = b"\1"  # the master's request to call the hook worker_abort first
ABORTING: Final = b"\2"  # in its place: the hook runs
MARKS: Final = END + ABORT + ABORTING
_MANY_FRAMES: Final = 100  # of one thread, as in faulthandler


def begin_abort(descriptor: int) -> bool:
    """Return whether the hook worker_abort is to be called, and note that it is. For a signal handler."""
    requested = os.pread(descriptor, 1, 0) == ABORT
    if requested:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, ABORTING)
    return requested


def write(descriptor: int, interrupted: FrameType | None) -> None:
    """Write the stacks of all threads in place of the file's contents. For a signal handler; `interrupted` is its frame."""
    text = "\n".join(_lines(interrupted)).encode("utf-8", "backslashreplace")
    os.ftruncate(descriptor, 0)
    os.write(descriptor, text[: MAX_STACKS - len(END)] + END)


def _lines(interrupted: FrameType | None) -> Iterator[str]:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    here, own = threading.get_ident(), sys._getframe()  # noqa: SLF001 - documented
    frames: dict[int, FrameType | None] = {here: interrupted}
    # By frame as well: where greenlets are threads, `here` is one of them.
    frames |= {ident: frame for ident, frame in sys._current_frames().items() if ident != here and frame is not own}  # noqa: SLF001
    frames |= greenlets.suspended()
    for ident, frame in frames.items():
        yield f"Thread 0x{ident:x} ({names.get(ident, 'not started by threading')}, most recent call first):"
        for known in itertools.islice(_outwards(frame), _MANY_FRAMES):
            yield f'  File "{known.f_code.co_filename}", line {known.f_lineno} in {known.f_code.co_qualname}'
    try:
        yield from suspended.chains()
    except Exception as error:  # noqa: BLE001 - the app may have tasks of its own kind; the threads are shown in any case
        yield f"the suspended tasks cannot be read: {error!r}"


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def answer_natively(descriptor: int) -> None:
    """Have NATIVE append the stacks to the file, in C. It replaces what was registered before the fork, such as a mold's file."""
    faulthandler.unregister(NATIVE)
    faulthandler.register(NATIVE, file=descriptor, all_threads=True, chain=False)


# A process that the app forks also has this file, but must not write to it.
os.register_at_fork(after_in_child=lambda: faulthandler.unregister(NATIVE))
