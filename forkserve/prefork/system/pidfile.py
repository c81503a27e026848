"""The pid file: locked, under exactly the given name."""

from __future__ import annotations

from forkserve.base.errors import ConfigError
from forkserve.base.lockfile import HeldError, LockFile


class PidFile(LockFile):
    """Holds the file from construction to `remove`. For the master."""

    def __init__(self, path: str) -> None:
        """Write the pid of this process. Raises ConfigError if another server holds the file, or on any OSError."""
        try:
            super().__init__(path)
        except HeldError as error:
            raise ConfigError(f"--pid {path}: {error}") from None
        except OSError as error:
            raise ConfigError(f"--pid {path}: {error.strerror}") from None
