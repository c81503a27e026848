"""Forks: those of the server, and those of the application, which must not keep anything of the server's.

A process that an application forks (`os.fork`, `multiprocessing`, `pty.fork`) is a copy of a worker, of a mold or of the master.
It would inherit that process's signal handlers, so that TERM would not end it; its listening sockets, so that the port would stay
taken after the server; its clients' connections, which would not close; and its channel. Each process of the server sets with
`release_by` how a copy releases all of that, which happens before any other code runs in the copy.

A copy may also return from the view, the hook or the import that forked it. It is no worker, so the server's code calls
`end_returned` wherever it may return to, and the copy ends there.

Programs that are executed (`subprocess`, multiprocessing's spawn and forkserver) run no such hook. They inherit nothing because
every descriptor closes on exec, and because no signal is blocked or ignored here.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from math import inf
from typing import TYPE_CHECKING, NoReturn

from forkserve.base import copies, exits, logfile, stdio
from forkserve.base.registry import registry
from forkserve.prefork.system import finish

if TYPE_CHECKING:
    from forkserve.base.exits import Function


MANY = 4096  # descriptors to try one by one, if the system does not list them


class _Own(threading.local):
    """The state of this thread."""

    forking = False  # the server forks, not the application
    mask: set[signal.Signals] | set[int] | None = None  # the signal mask before the application forked


class _State:
    """The state of this process."""

    def __init__(self) -> None:
        self.release: Callable[[], None] | None = None
        self.inherited: list[Function] | None = None  # the parent's atexit functions, after a fork by the application


_own = _Own()
_state = _State()


def fork(*, same_exits: bool = False) -> int:
    """Fork a process of the server; return what `os.fork` returns. Raises OSError.

    The child drops this process's atexit functions; with `same_exits` it keeps them, as a worker keeps those of its mold.
    """
    inherited = exits.registered()
    _own.forking = True
    try:
        pid = os.fork()
    finally:
        _own.forking = False
    if pid == 0:
        _state.release = None
        registry.attach(None, keep_gauges=True)  # until the process gets a region of its own
        if same_exits:
            exits.drop_finalizers()
        else:
            exits.drop_inherited(inherited)
    return pid


def release_by(release: Callable[[], None] | None) -> None:
    """Set what a process that the application forks calls before anything else; None: nothing is to be released."""
    _state.release = release


def _before() -> None:
    # A signal that reaches the child before the release would be lost: the handler in C belongs to the server.
    if _state.release is not None and not _own.forking:
        _own.mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def _after_in_parent() -> None:
    if _own.mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _own.mask)
        _own.mask = None


def _after_in_child() -> None:
    if _own.mask is None:
        return
    release, _state.release = _state.release, None
    _state.inherited = exits.registered()
    copies.end_by(end)
    try:
        if release is not None:
            release()
    finally:
        _after_in_parent()


os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)


def end(error: BaseException | None = None) -> NoReturn:
    """End a process that the application has forked, as Python does, but without the atexit functions of its parent.

    Args:
        error: The exception that it returned with: SystemExit, or another one, which is printed.
    """
    code = 0
    try:
        if isinstance(error, SystemExit):
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
            if isinstance(error.code, str):
                sys.stderr.write(error.code + "\n")
        elif error is not None:
            code = 1
            traceback.print_exception(error)
        finish.dismiss_executors()
        finish.wait_for_threads(inf)
        exits.run(since=_state.inherited or [])
    finally:
        stdio.flush()
        logfile.finish()
        os._exit(code)


@contextlib.contextmanager
def boundary() -> Iterator[None]:
    """End any process that the application forked within the `with`, where it leaves it."""
    try:
        yield
    except BaseException as error:
        copies.end_returned(error)
        raise
    copies.end_returned()


# A copy replaces the descriptors that it inherits by harmless ones instead of closing them: objects that hold the numbers still
# exist, and when they are collected they would close whatever has the number by then.


def blank(descriptors: Iterable[int]) -> None:
    """Replace these descriptors by /dev/null."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        for descriptor in descriptors:
            if descriptor >= 0:
                os.dup2(null, descriptor, inheritable=False)
    finally:
        os.close(null)


def separate_epoll(descriptor: int) -> None:
    """Replace an epoll set by an empty one. Copies share the parent's: removing a descriptor in one removes it in all."""
    if hasattr(select, "epoll"):  # a kqueue is not inherited
        with select.epoll() as empty:
            os.dup2(empty.fileno(), descriptor, inheritable=False)


def open_descriptors() -> list[int]:
    """Return the descriptors of this process; one of them was used for listing, and is closed."""
    for directory in ("/proc/self/fd", "/dev/fd"):
        with contextlib.suppress(OSError):
            return [int(name) for name in os.listdir(directory)]
    found = []
    for descriptor in range(min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], MANY)):
        with contextlib.suppress(OSError):
            os.fstat(descriptor)
            found.append(descriptor)
    return found
