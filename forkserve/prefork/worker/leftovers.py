"""Leftovers: threads, sockets and event loops that an app leaves behind when it is imported in a mold.

A forked process lacks the threads, but has the locks that they held. It shares the sockets and event loops with all other forked
processes. Linux only, as molds are.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from forkserve.base.errors import BootError
from forkserve.prefork.system import forks

if TYPE_CHECKING:
    from forkserve.config.settings import Settings

NAMED = 8  # the most in one message


@dataclass(frozen=True, slots=True)
class Before:
    """The state before the import."""

    threads: frozenset[threading.Thread]
    tasks: frozenset[int]
    descriptors: frozenset[tuple[int, str]]

    @classmethod
    def look(cls) -> Before:
        """Return the present state of this process."""
        return cls(frozenset(_threads()), frozenset(_tasks()), frozenset(_descriptors().items()))


def can_see() -> bool:
    """Return whether the system lists native threads and descriptors."""
    return os.path.isdir("/proc/self/task")


def agents(before: Before) -> list[str]:
    """Return the names of Python threads that were started before the import, such as those of tracers."""
    return [thread.name for thread in _threads() if thread in before.threads]


def refuse_threads(settings: Settings, before: Before) -> None:
    """Raise BootError if the import has started Python threads that still run, unless that is allowed."""
    names = [thread.name for thread in _threads() if thread not in before.threads]
    if names and not settings.preload_allow_threads:
        raise BootError(
            f"--preload: the app has started threads at import, which workers would not have: {enumerated(names)};"
            " start them in the start-up hook (lifespan, post_fork or on_start), or allow it with --preload-allow-threads"
        )


def stop_native_threads() -> None:
    """Fork once, so that libraries stop native threads: OpenBLAS (numpy), for one, stops its threads before any fork."""
    child = forks.fork(same_exits=True)
    if child == 0:
        os._exit(0)
    with contextlib.suppress(ChildProcessError):  # the app lets the system reap children
        os.waitpid(child, 0)


def others(before: Before) -> list[str]:
    """Return descriptions of the other leftovers: native threads, sockets, event loops."""
    python = {thread.native_id for thread in threading.enumerate()}
    if _tasks() - before.tasks - python:
        stop_native_threads()
    found = [f"native thread {_task_name(task)!r}" for task in sorted(_tasks() - before.tasks) if task not in python]
    new = sorted(set(_descriptors().items()) - before.descriptors)
    loops = [descriptor for descriptor, name in new if name == "anon_inode:[eventpoll]"]
    sockets = [text for descriptor, name in new if name.startswith("socket:") and (text := _socket(descriptor, loop=bool(loops)))]
    return [*found, *(f"event loop (descriptor {descriptor})" for descriptor in loops), *sockets]


def enumerated(names: list[str]) -> str:
    """Return the first names in one line."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _threads() -> list[threading.Thread]:
    """Return the other running Python threads."""
    own = threading.current_thread()
    return [thread for thread in threading.enumerate() if thread is not own and thread.is_alive()]


def _tasks() -> set[int]:
    with contextlib.suppress(OSError):  # there is no /proc
        return {int(name) for name in os.listdir("/proc/self/task")}
    return set()


def _task_name(task: int) -> str:
    with contextlib.suppress(OSError), open(f"/proc/self/task/{task}/comm", encoding="utf-8", errors="replace") as file:
        return file.read().strip()
    return str(task)


def _descriptors() -> dict[int, str]:
    found = {}
    for name in forks.open_descriptors():
        with contextlib.suppress(OSError):
            found[name] = os.readlink(f"/proc/self/fd/{name}")
    return found


def _socket(descriptor: int, *, loop: bool) -> str | None:
    """Describe a socket; None for a pair without names beside an event loop, which has such a pair to wake itself."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as copy:
        with contextlib.suppress(OSError):
            if peer := copy.getpeername():
                return f"connection to {_address(peer)} (descriptor {descriptor})"
        if own := copy.getsockname():
            return f"socket on {_address(own)} (descriptor {descriptor})"
    return None if loop else f"socket (descriptor {descriptor})"


def _address(name: object) -> str:
    return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else repr(name)
