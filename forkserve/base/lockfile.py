"""A file that is locked as long as its process lives, so that a stale file is recognized for sure.

A pid in a file proves nothing, as pids are reused; a lock ends with its process. The file is made under its final name, not
renamed into place, because the lock belongs to the inode.
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
    """Another process holds the file; `pid` is that process, if it is known."""

    def __init__(self, pid: int | None) -> None:
        super().__init__("another server holds this file" if pid is None else f"another server (pid {pid}) holds this file")
        self.pid = pid


@record
class LockState:
    """A lock in an upgrade: it goes with the descriptor, and the pid in the file stays right."""

    path: str
    lock: InheritedFd


class LockFile:
    """Holds the file, with the pid of this process, from construction to `remove`. For the master."""

    def __init__(self, path: str, mode: int = 0o644, *, follow: bool = True) -> None:
        """Lock the file and write the pid. Raises HeldError, or OSError for a file that cannot be used.

        Args:
            path: The file, which is made if it does not exist.
            mode: The permissions of a new file.
            follow: Whether it may be a symbolic link to the file.
        """
        self.path = path
        for _ in range(files.TRIES):
            if self._take(files.open_file(path, os.O_RDWR | os.O_CREAT, mode, follow=follow)):
                return
        raise OSError(errno.EAGAIN, "another process keeps making and removing it")

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
        """Lock the file and write to it; return False if its holder has removed it meanwhile."""
        self._descriptor = descriptor
        try:
            self._lock()
            if self._is_current():
                if os.pread(descriptor, 64, 0).strip(b" \n0123456789"):
                    raise OSError(0, f"{os.path.basename(self.path)} is no pid file, and would be overwritten")  # noqa: TRY301 - handled as the others
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

    def _is_current(self) -> bool:
        try:
            with files.find(self.path) as place:
                return place.identity() == files.identity(os.fstat(self._descriptor))
        except FileNotFoundError:
            return False

    def remove(self) -> None:
        """Remove the file, unless another one is there now, and close it."""
        files.remove(self.path, files.identity(os.fstat(self._descriptor)))
        self.close()

    def close(self) -> None:
        """Close the descriptor only: a child closes its copy, and the lock stays."""
        os.close(self._descriptor)
