"""stdin, stdout and stderr of a process, where something is to be done to all programs alike."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


def flush() -> None:
    """Write out what was printed: before a fork, since both processes would write it, and before `os._exit`, which does not."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # closed, or never there, or the app's own and broken
            stream.flush()


def read_nothing() -> None:
    """Let stdin be /dev/null."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Let stdout and stderr be /dev/null meanwhile."""
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
    """Let stdout be /dev/null: its reader has gone (`| head`), and the interpreter would complain at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
