"""Git: whether it is in the middle of changing many files, which are one change then. In the watcher."""

from __future__ import annotations

import contextlib
import os
import time
from typing import Final

STALE: Final = 30.0  # seconds, after which a lock was probably left behind by a git that was killed


def index_of(folder: str) -> str | None:
    """Return the lock that git holds while it checks out, merges or stashes files of a real directory; None without git.

    `.git` may be above that directory, and a file in a worktree or submodule: gitrepository-layout(5).
    """
    while True:
        found = os.path.join(folder, ".git")
        if os.path.isfile(found):
            with contextlib.suppress(OSError, ValueError), open(found, encoding="utf-8") as file:
                found = os.path.join(folder, file.read(4096).removeprefix("gitdir:").strip())
        if os.path.isdir(found):
            return os.path.join(found, "index.lock")
        if folder == os.path.dirname(folder):
            return None
        folder = os.path.dirname(folder)


def is_at_work(lock: str, since: float) -> bool:
    """Whether git holds a lock that was not left behind, or has let go of it, by a new index, since a time of the clock."""
    with contextlib.suppress(OSError):
        if time.time() - os.stat(lock).st_mtime < STALE:
            return True
    with contextlib.suppress(OSError):
        return since <= os.stat(lock.removesuffix(".lock")).st_mtime <= time.time()
    return False
