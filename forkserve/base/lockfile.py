"""A file that is locked for as long as its process lives, so that a stale one is known for sure.

A pid in a file proves nothing, as pids are used again; the lock goes when its process does. The file
is made under its own name and not renamed into place, because the lock belongs to the inode.
"""

from __future__ import annotations

import errno
import fcntl
import os
from typing import Self

from forkserve.base import files
from forkserve.base.handover import InheritedFd
from forkserve.base.records import record


class HeldError(Exception):
    """Another process holds the file; `pid` says which, if it is known."""

    def __init__(self, pid: int | None) -> None:
        super().__init__("another server holds this file" if pid is None else f"another server (pid {pid}) holds this file")
        self.pid = pid


@record
class LockState:
    """A lock in an upgrade: it goes with the descriptor, and the pid in the file stays right."""

    path: str
    lock: InheritedFd


class LockFile:
    """Holds the file, with our pid in it, from construction to `remove`. For the master."""

    def __init__(self, path: str, mode: int = 0o644, *, follow: bool = True) -> None:
        """Lock it and write our pid. Raises HeldError, or OSError for what cannot be such a file.

        Args:
            path: Of the file, which is made if it is not there.
            mode: The permissions of a file that is made.
            follow: Whether it may be a symbolic link to the file.
        """
        self.path = path
        for _ in range(files.TRIES):
            if self._take(files.open_file(path, os.O_RDWR | os.O_CREAT, mode, follow=follow)):
                return
        raise OSError(errno.EAGAIN, "another process makes and removes it all the time")

    def export(self) -> LockState:
        """Describe it, for an upgrade."""
        return LockState(self.path, InheritedFd(self._descriptor))

    @classmethod
    def adopt(cls, found: LockState) -> Self:
        """Go on holding it in the new program."""
        self = cls.__new__(cls)
        self.path, self._descriptor = found.path, found.lock
        return self

    def _take(self, descriptor: int) -> bool:
        """Lock the file and write to it; False if its holder removed it between our calls."""
        self._descriptor = descriptor
        try:
            self._lock()
            if self._ours():
                if os.pread(descriptor, 64, 0).strip(b" \n0123456789"):
                    raise OSError(0, f"{os.path.basename(self.path)} is no pid file, and would be overwritten")  # noqa: TRY301 - told as the others are
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
                return True
        except BaseException:
            self.close()
            raise
        self.close()
        return False

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._descriptor, 20, 0).strip()
            raise HeldError(int(holder) if holder.isdigit() else None) from None

    def _ours(self) -> bool:
        try:
            with files.find(self.path) as place:
                return place.identity() == files.identity(os.fstat(self._descriptor))
        except FileNotFoundError:
            return False

    def remove(self) -> None:
        """Remove the file, unless somebody put another one there, and let go of it."""
        files.remove(self.path, files.identity(os.fstat(self._descriptor)))
        self.close()

    def close(self) -> None:
        """Let go of the descriptor alone; a child closes its copy so, and the lock stays."""
        os.close(self._descriptor)
