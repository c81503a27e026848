"""Upstream: the file that nginx includes, kept up to date with the workers. In the master, which never waits for it.

Checking, writing and the reload command are done by one process at a time (refresh.py), started here, which reports its result
through a pipe. It is reaped with all other children.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import stat
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forkserve.base import files
from forkserve.base.errors import ConfigError
from forkserve.base.lockfile import HeldError, LockFile, LockState
from forkserve.base.logs import logger, printable
from forkserve.base.memory import nameless_file
from forkserve.frontend.backends import from_listeners
from forkserve.frontend.config import FrontendConfig
from forkserve.frontend.nginx import render_upstream
from forkserve.prefork.master.observers import FrontendObserver
from forkserve.prefork.system.poller import READ
from forkserve.prefork.worker.boot import MASTERS_VARIABLES
from forkserve.upstream.upkeep import Upkeep

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from forkserve.config.settings import Settings
    from forkserve.prefork.system.poller import Poller, Timer

# Seconds.
LONGEST = 30.0  # for one run
ENDING = 5.0  # for a run to end after TERM
# By -c, not -m, which looks in the working directory first; and forkserve may not be on Python's path at all.
PROGRAM = "import sys; sys.path.append(sys.argv[1]); from forkserve.upstream.refresh import main; main()"
ROOT = str(Path(__file__).parents[2])


def check_path(settings: Settings) -> None:
    """Check that the file can be written, before anything is started. Raises ConfigError."""
    path = settings.nginx_upstream
    if path is None:
        return
    try:
        with files.find(path) as place:
            found, directory = place.status(), os.path.dirname(os.path.abspath(place.path))
            may_write = os.access(".", os.W_OK | os.X_OK, dir_fd=place.directory)
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"--nginx-upstream: there is no directory {os.path.dirname(os.path.realpath(path))}") from None
    except OSError as error:
        raise ConfigError(f"--nginx-upstream: {path}: {error.strerror}") from None
    if place.opened or (found is not None and not stat.S_ISREG(found.st_mode)):
        kind = "a directory" if found is not None and stat.S_ISDIR(found.st_mode) else "no file"
        raise ConfigError(f"--nginx-upstream: {path} is {kind}: give the file that nginx includes")
    if not may_write:
        raise ConfigError(f"--nginx-upstream: cannot write to the directory {directory}, in which the file is replaced")
    if settings.base_port is None and settings.bind and all(one.startswith("unix:@") for one in settings.bind):
        raise ConfigError(f"--nginx-upstream: nginx has no abstract sockets ({', '.join(settings.bind)}): give --base-port")


def hold(path: str | None, before: LockState | None) -> LockFile | None:
    """Lock the file, so that no other server writes it as long as this one runs. Raises ConfigError.

    *before* is the lock of the previous program, which is released if it locks another file.
    """
    lock = None if path is None else _lock_of(path)
    if before is not None:
        held = LockFile.adopt(before)
        if held.path == lock:
            return held
        held.remove()
    return None if path is None else _take(path)


def rehearse(path: str | None, held: LockState | None) -> None:
    """Check that `hold` would succeed, while the old server has the lock *held*. In a pre-flight. Raises ConfigError."""
    if path is not None and (held is None or held.path != _lock_of(path)):
        _take(path).remove()


def _lock_of(path: str) -> str:
    """Return the path of a file's lock, which is beside it. Raises ConfigError."""
    try:
        with files.find(path) as place:
            directory, name = os.path.split(os.path.abspath(place.path))
    except OSError as error:
        raise ConfigError(f"--nginx-upstream: {path}: {error.strerror}") from None
    return os.path.join(directory, f".{name}.lock")


def _take(path: str) -> LockFile:
    lock = _lock_of(path)
    try:
        return LockFile(lock)
    except HeldError as error:
        holder = "another server" if error.pid is None else f"another server (pid {error.pid})"
        raise ConfigError(f"--nginx-upstream: {path} is kept by {holder}: give each server a file of its own") from None
    except OSError as error:
        raise ConfigError(f"--nginx-upstream: cannot make {lock}: {error.strerror}") from None


class Upstream(FrontendObserver):
    """Keeps one file.

    Args:
        poller: The master's.
        name: The name of the upstream, as in `forkserve nginx` with the same settings.
        path: The file.
        lock: Its lock against other servers.
    """

    def __init__(self, poller: Poller, name: str, path: str, lock: LockFile) -> None:
        self._poller, self._name, self._path, self._lock = poller, name, path, lock
        self._upkeep = Upkeep()
        self._timer: Timer | None = None
        self._pid: int | None = None  # of the present run
        self._pipe = -1
        self._said = b""
        self._silent = ""  # how it ended, if it does not report that itself
        self._complaint = ""
        self._prepared = False

    @property
    def advertised(self) -> AbstractSet[int | None]:
        """The slots that nginx may send requests to; None is the shared address."""
        return self._upkeep.advertised

    def sends_to(self, listener: Mapping[str, Any]) -> bool:
        """Whether nginx may send requests to this listener."""
        try:
            _, (backend,) = from_listeners([listener])
        except ValueError:
            return False
        return backend in self._upkeep.backends

    @property
    def prepared(self) -> bool:
        """Whether the file was written, or could not be."""
        return self._prepared

    def export(self) -> LockState:
        """Return the lock for an upgrade; the rest is determined again."""
        return self._lock.export()

    def describe(self) -> dict[str, Any]:
        """Describe the file: whether nginx uses what it should, and why not."""
        return {"path": self._path, "in_step": self._upkeep.in_step and not self._complaint, "error": self._complaint or None}

    @property
    def busy(self) -> bool:
        """Whether a run is active."""
        return self._pid is not None

    def listeners_changed(self, listeners: Sequence[Mapping[str, Any]], settings: Settings) -> None:
        """Write these listeners, which are as `status` lists them, and have nginx read them."""
        if not listeners:
            self._prepared = True
            return  # they were marked down before they were closed
        try:
            scheme, backends = from_listeners(listeners)
        except ValueError as error:
            self._prepared = True
            self._complain(f"--nginx-upstream: {self._name} {error}")
            return
        front = FrontendConfig(name=self._name, settings=settings, backends=backends, scheme=scheme, live=True)
        self._upkeep.changed(front, time.monotonic())
        self._go_on()

    def _go_on(self) -> None:
        """Start the run that is due, or set a timer for it."""
        due, now = self._upkeep.due, time.monotonic()
        if self._timer is not None and self._pid is None:
            self._timer.cancel()
        if due is not None and due <= now:
            self._begin(self._upkeep.begin())
        elif due is not None:
            self._timer = self._poller.at(due, self._go_on)

    def _begin(self, front: FrontendConfig) -> None:
        order = {"path": self._path, "reload": front.settings.nginx_reload, "limit": LONGEST, "master": os.getpid()}
        try:
            self._spawn(json.dumps({**order, "text": render_upstream(front)}).encode())
        except (OSError, ValueError) as error:
            why = f"cannot start writing {self._path}: {error.strerror}" if isinstance(error, OSError) else error
            self._ended(f"--nginx-upstream: {why}")
            return
        self._poller.watch(self._pipe, READ, self._receive)
        self._timer = self._poller.at(time.monotonic() + LONGEST, self._end_run)

    def _spawn(self, order: bytes) -> None:
        environ = {name: value for name, value in os.environ.items() if name not in MASTERS_VARIABLES}
        with contextlib.ExitStack() as ours:
            file = nameless_file("forkserve-upstream")
            ours.callback(os.close, file)
            with open(file, "wb", closefd=False) as writer:
                writer.write(order)
            os.lseek(file, 0, os.SEEK_SET)
            pipe, theirs = os.pipe()
            ours.callback(os.close, theirs)
            os.set_blocking(pipe, False)
            try:
                # In its own process group, which can be ended with all that it has started, and gets no Ctrl-C.
                self._pid = os.posix_spawn(
                    sys.executable,
                    [sys.executable, "-P", "-c", PROGRAM, ROOT],
                    environ,
                    file_actions=[(os.POSIX_SPAWN_DUP2, file, 0), (os.POSIX_SPAWN_DUP2, theirs, 1)],
                    setpgroup=0,
                )
            except OSError:
                os.close(pipe)
                raise
        self._pipe, self._said, self._silent = pipe, b"", "ended without a result"

    def _over(self) -> bool:
        """Read the reports of the run; return whether it has ended. The first report is a newline, when the file is written."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._pipe, 65536):
                self._said += data
                self._prepared = self._prepared or self._said.isspace()
            return True
        return False

    def _receive(self, _events: int) -> None:
        """Handle the result of the run, if it has ended."""
        if not self._over():
            return
        self._forget_run()
        try:
            complaint = json.loads(self._said)
        except ValueError:
            complaint = f"--nginx-upstream: the process that writes {self._path} {self._silent}"
        self._ended(complaint)

    def _forget_run(self) -> None:
        self._poller.unwatch(self._pipe)
        os.close(self._pipe)
        self._pid, self._pipe = None, -1
        if self._timer is not None:
            self._timer.cancel()

    def _ended(self, complaint: str | None) -> None:
        self._prepared = True
        self._upkeep.ended(time.monotonic(), failed=complaint is not None)
        if complaint is None:
            logger.log(logging.INFO if self._complaint else logging.DEBUG, "%s is written, and nginx is reloaded", self._path)
            self._complaint = ""
        else:
            self._complain(complaint)
        self._go_on()

    def _complain(self, complaint: str) -> None:
        if complaint != self._complaint:  # the run is repeated until it succeeds
            self._complaint = complaint
            logger.error("%s", printable(complaint))

    def _end_run(self) -> None:
        """End the run, and everything that it has started."""
        if self._pid is not None and not self._over():  # until the pipe ends, the pid is still that of the run
            self._silent = f"was ended before it was done ({LONGEST:g} s are allowed)"
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGTERM)
            self._timer = self._poller.at(time.monotonic() + ENDING, self._give_up_run)

    def _give_up_run(self) -> None:
        """Give up a run that does not end by TERM."""
        if self._pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        self._forget_run()
        self._ended(f"--nginx-upstream: the process that writes {self._path} {self._silent}")

    def close_in_child(self) -> None:
        """Close the master's descriptors, in a child just forked."""
        self._lock.close()
        if self._pipe != -1:
            os.close(self._pipe)

    def close(self) -> None:
        """End the present run, as the master ends."""
        if self._pid is not None:
            if not self._over():
                logger.warning("--nginx-upstream: the last run was not done in time and is ended")
            self._end_run()
            self._forget_run()
        self._lock.remove()
