"""Forks: the server's own, and those of the application, which must have nothing of the server's.

What an application forks (`os.fork`, `multiprocessing`, `pty.fork`) is a copy of a worker, of a mold or of the master. It
would have that process's signal handlers, which keep TERM from ending it; its listening sockets, which keep the port taken
when the server has gone; its clients' connections, which then do not close; and its channel. Each process of the server says
with `release_by` how to let go of all that, and this is done in the copy before any other code runs there.

A copy may also come back: out of the view, the hook or the import that forked it. It is no worker, so the server's code calls
`end_returned` where it can come back to, and it ends there.

Programs that are executed (`subprocess`, multiprocessing's spawn and forkserver) come by no hook. They get nothing because
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
from forkserve.prefork.system import finish

if TYPE_CHECKING:
    from forkserve.base.exits import Function


MANY = 4096  # descriptors that are tried one by one, where the system does not list them


class _Own(threading.local):
    """What this thread is doing."""

    forking = False  # for the server
    mask: set[signal.Signals] | set[int] | None = None  # that was there before the application forked


class _State:
    """What this process knows."""

    def __init__(self) -> None:
        self.release: Callable[[], None] | None = None
        self.inherited: list[Function] | None = None  # atexit functions; not None in a process that the application forked


_own = _Own()
_state = _State()
end_returned = copies.end_returned


def fork(*, same_exits: bool = False) -> int:
    """Fork for the server itself; what `os.fork` returns. Raises OSError.

    In the child, atexit functions that are not for it are dropped; with `same_exits` it has those of this process, as what was
    forked from a mold has.
    """
    inherited = exits.registered()
    _own.forking = True
    try:
        pid = os.fork()
    finally:
        _own.forking = False
    if pid == 0:
        _state.release = None
        if same_exits:
            exits.drop_finalizers()
        else:
            exits.drop_inherited(inherited)
    return pid


def release_by(release: Callable[[], None] | None) -> None:
    """Have it called in what the application forks from now on, before anything else; None if there is nothing to let go of."""
    _state.release = release


def _before() -> None:
    # A signal that comes to the child before it has let go would be lost: the handler in C belongs to the server.
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
    """End a process that the application has forked, as Python ends one, but for what its parent has registered with atexit.

    Args:
        error: What it came back with: SystemExit, or another exception, which is printed.
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
    """Let nothing that the application has forked go on behind the `with`."""
    try:
        yield
    except BaseException as error:
        end_returned(error)
        raise
    end_returned()


# What a copy does with the descriptors that it has. It puts something harmless in their place instead of closing them: objects
# that know the numbers are still there, and when the collector comes to them they would close what has the number by then.


def blank(descriptors: Iterable[int]) -> None:
    """Let these be /dev/null."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        for descriptor in descriptors:
            if descriptor >= 0:
                os.dup2(null, descriptor, inheritable=False)
    finally:
        os.close(null)


def separate_epoll(descriptor: int) -> None:
    """Let an epoll set be an empty one. The parent's is shared by all copies: what is taken out in one is out for all."""
    if hasattr(select, "epoll"):  # a kqueue is not inherited
        with select.epoll() as empty:
            os.dup2(empty.fileno(), descriptor, inheritable=False)


def open_descriptors() -> list[int]:
    """Return the descriptors of this process; one of them was for looking, and is closed."""
    for directory in ("/proc/self/fd", "/dev/fd"):
        with contextlib.suppress(OSError):
            return [int(name) for name in os.listdir(directory)]
    found = []
    for descriptor in range(min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], MANY)):
        with contextlib.suppress(OSError):
            os.fstat(descriptor)
            found.append(descriptor)
    return found
