"""Git: whether git is changing many files. Those are one change. In the watcher."""

from __future__ import annotations

import contextlib
import os
import time
from typing import Final

STALE: Final = 30.0  # seconds; an older lock was probably left behind by a killed git


def lock_of(folder: str) -> str | None:
    """Return the lock that git holds while it checks out, merges or stashes files of a real directory; None without git.

    `.git` may be in a parent directory. In a worktree or submodule it is a file: gitrepository-layout(5).
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
    """Whether git holds a fresh lock, or has replaced its index since this clock time, which released the lock."""
    with contextlib.suppress(OSError):
        if time.time() - os.stat(lock).st_mtime < STALE:
            return True
    with contextlib.suppress(OSError):
        return since <= os.stat(lock.removesuffix(".lock")).st_mtime <= time.time()
    return False
