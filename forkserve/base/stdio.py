"""Operations on stdin, stdout and stderr of a process."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


def flush() -> None:
    """Flush Python's buffers: before a fork, or both processes would write them; before `os._exit`, which does not flush."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # closed, or missing, or a broken one of the app's own
            stream.flush()


def read_nothing() -> None:
    """Point stdin to /dev/null."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)


def read_terminal() -> None:
    """Have `sys.stdin` read what is at stdin: the program may have replaced or closed it."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        if sys.stdin.fileno() == 0:
            return
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - for as long as the process lives


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Point stdout and stderr to /dev/null within the context."""
    flush()
    kept = [os.dup(descriptor) for descriptor in (1, 2)]
    null = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(null, descriptor)
    os.close(null)
    try:
        yield
    finally:
        flush()
        for descriptor, copy in enumerate(kept, 1):
            os.dup2(copy, descriptor)
            os.close(copy)


def print_nowhere() -> None:
    """Point stdout to /dev/null: its reader is gone (`| head`), and the interpreter would report that at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
