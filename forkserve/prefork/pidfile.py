"""The pid file: exactly the name that was given, and locked, so that a stale one is known for sure.

A pid in a file proves nothing, as pids are used again; the lock goes when its process does. The file
is made under its own name and not renamed into place, because the lock belongs to the inode.
"""

from __future__ import annotations

import contextlib
import fcntl
import os

from forkserve.errors import ConfigError


class PidFile:
    """Holds the file from construction to `remove`. For the master."""

    def __init__(self, path: str) -> None:
        """Write our pid. Raises ConfigError if another server holds the file, or on any OSError."""
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ConfigError(f"--pid {path}: {error.strerror}") from None
        try:
            free = self._lock()
            if free:
                if os.pread(self._descriptor, 64, 0).strip(b" \n0123456789"):
                    raise OSError(0, "this is no pid file, and would be overwritten")  # noqa: TRY301 - told as the others are
                os.ftruncate(self._descriptor, 0)
                os.pwrite(self._descriptor, b"%d\n" % os.getpid(), 0)
        except OSError as error:
            self.close()
            raise ConfigError(f"--pid {path}: {error.strerror}") from None
        if not free:
            holder = os.pread(self._descriptor, 20, 0).decode("ascii", "replace").strip()
            self.close()
            who = f" (pid {holder})" if holder.isdigit() else ""
            raise ConfigError(f"--pid {path}: another server{who} holds this file")

    def _lock(self) -> bool:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return self._ours()  # or its holder removed it between our two calls

    def _ours(self) -> bool:
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False

    def remove(self) -> None:
        """Remove the file, unless somebody put another one there, and let go of it."""
        with contextlib.suppress(OSError):
            if self._ours():
                os.unlink(self.path)
        self.close()

    def close(self) -> None:
        """Let go of the descriptor alone; a child closes its copy so, and the lock stays."""
        os.close(self._descriptor)
