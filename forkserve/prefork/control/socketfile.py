"""The file of the control socket: made, proved to be ours, removed.

Whether a socket is live is proved by a lock on a file beside it, since a socket that refuses
connections may belong to a server that is just starting. The socket is tried as well, since the file with the lock may have been
removed.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import stat
import sys
from typing import TYPE_CHECKING, ClassVar

from forkserve.base import files
from forkserve.base.errors import ConfigError, ListenError
from forkserve.base.handover import InheritedFd
from forkserve.base.lockfile import HeldError, LockFile, LockState
from forkserve.base.logs import logger
from forkserve.base.records import record
from forkserve.config import values
from forkserve.prefork.control import runtime_dir

if TYPE_CHECKING:
    from collections.abc import Mapping

LONGEST_PATH = 107 if sys.platform == "linux" else 103  # bytes in sun_path, without the NUL at its end
BACKLOG = 128


@record
class SocketFileState:
    """The control socket in an upgrade. `identity` is device and inode of its file."""

    path: str
    socket: InheritedFd
    lock: LockState
    identity: tuple[int, int]


class SocketFile:
    """A listening socket in the file system, with its lock; implements `Endpoint`. For the master."""

    STATE: ClassVar[type] = SocketFileState

    def __init__(self, path: str) -> None:
        """Make it; a stale one is replaced.

        Raises ConfigError if the path cannot be a socket's, HeldError if the socket is another
        server's, and OSError.
        """
        size = len(os.fsencode(path))
        if size > LONGEST_PATH:
            raise ConfigError(f"{path}: a path of {size} bytes is too long for a unix socket: use at most {LONGEST_PATH}")
        self.path = path
        self._lock = LockFile(path.removesuffix(runtime_dir.SUFFIX) + runtime_dir.LOCK_SUFFIX, 0o600, follow=False)
        self.sock = socket.socket(socket.AF_UNIX)
        try:
            self.sock.setblocking(False)
            with files.find(path, follow=False) as place:
                _remove_stale(path, place)
                self._identity = place.bind(self.sock, path, 0o700)
            self.sock.listen(BACKLOG)
        except BaseException:
            self.sock.close()
            self._lock.remove()
            raise

    def export(self) -> SocketFileState:
        """Describe it, for an upgrade."""
        return SocketFileState(self.path, InheritedFd(self.sock.fileno()), self._lock.export(), self._identity)

    @classmethod
    def open(cls, setting: str | None, name: str, environ: Mapping[str, str]) -> tuple[str, SocketFile | None]:
        """Listen where `--control-socket` says; return the server's name, which has a number if that name is taken.

        Raises ConfigError and ListenError for a path that the user gave and that cannot be used.
        """
        if setting == values.NONE:
            return name, None
        if setting is not None:
            return name, open_path(setting)
        try:
            return open_named(name, environ)
        except ListenError as error:
            logger.info("no control socket: %s", error)
            return name, None

    @classmethod
    def adopt(cls, found: SocketFileState) -> SocketFile:
        """Go on listening in the new program."""
        self = cls.__new__(cls)
        self.path, self._lock, self._identity = found.path, LockFile.adopt(found.lock), found.identity
        self.sock = socket.socket(fileno=found.socket)
        self.sock.setblocking(False)
        return self

    def refusal(self, client: socket.socket) -> str | None:
        """Let in only root and our own user: their commands run with our rights."""
        try:
            _, uid = runtime_dir.peer(client)
        except OSError:
            uid = -1
        return None if uid in (0, os.geteuid()) else f"only root and the user {os.geteuid()} may steer this server"

    def remove(self) -> None:
        """Stop listening; remove the file, unless another one is there by now."""
        files.remove(self.path, self._identity, follow=False)
        self.sock.close()
        self._lock.remove()

    def close(self) -> None:
        """Close this process's copies alone; for a child."""
        self.sock.close()
        self._lock.close()


def _remove_stale(path: str, place: files.Place) -> None:
    """Remove the socket of a server that has died. Raises HeldError or OSError if it is something else."""
    found = place.status()
    if found is None:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise OSError(0, "there is a file that is no socket")
    if runtime_dir.is_live(path):
        raise HeldError(None)
    if found.st_uid != os.geteuid():
        raise OSError(0, "there is a socket of another user")
    place.unlink()


def open_path(path: str) -> SocketFile:
    """Make the socket at the path that the user gave.

    Raises ConfigError for one that is too long, ListenError if it is in use or cannot be made.
    """
    where = f"--control-socket {path}"
    try:
        return SocketFile(os.path.abspath(path))
    except ConfigError as error:
        raise ConfigError(f"--control-socket {error}") from None
    except HeldError as error:
        who = "another server" if error.pid is None else f"another server (pid {error.pid})"
        raise ListenError(f"{where}: {who} is listening there") from None
    except OSError as error:
        raise ListenError(f"{where}: {error.strerror or error}") from None


def open_named(name: str, environ: Mapping[str, str]) -> tuple[str, SocketFile]:
    """Make NAME.sock in the first directory that can be used; return the name that it got: `-2`, `-3` if NAME is live.

    Raises ListenError, with the reasons, if there is no such directory.
    """
    reasons = []
    for directory in runtime_dir.candidates(environ):
        try:
            runtime_dir.make(directory)
            return _first_free(directory, name, environ)
        except OSError as error:
            reasons.append(f"{directory}: {error.strerror or error}")
        except ConfigError as error:
            reasons.append(str(error))
    raise ListenError("; ".join(reasons))


def _first_free(directory: str, name: str, environ: Mapping[str, str]) -> tuple[str, SocketFile]:
    taken = {other for other, _ in runtime_dir.running(environ)}  # in any of the directories, or `ctl` could not distinguish them
    for number in itertools.count(1):
        final = name if number == 1 else f"{name}-{number}"
        if final not in taken:
            with contextlib.suppress(HeldError):
                return final, SocketFile(os.path.join(directory, final + runtime_dir.SUFFIX))
    raise AssertionError
