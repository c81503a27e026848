"""Program: the command line of this process, which an upgrade runs once more.

The pre-flight runs it as if it were typed again. A console script runs itself, so that its first line says which Python; else
the Python is looked for where it was. The working directory is the one that has its name now. So links that were switched to
another release, or to another virtual environment, are followed. What takes over is the same Python with what the pre-flight
has judged (judged.py), or the command line again, if that is not the command `forkserve` but a program of the user's own.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from forkserve.base import startup, stdio
from forkserve.base.handover import descriptors, encode
from forkserve.base.records import dump

if TYPE_CHECKING:
    from forkserve.prefork.master.upgrade.judged import Judged
    from forkserve.prefork.master.upgrade.state import MasterState


@dataclass(frozen=True, slots=True)
class Program:
    """A command line, with the directory and environment that it is run in."""

    arguments: list[str]
    directory: str | None
    environ: Mapping[str, str]

    @classmethod
    def of_this_process(cls) -> Program:
        """The one that this process runs. To be called early, while its files are those that it was started from."""
        python, *rest = sys.orig_argv or [sys.executable]
        if rest and (script := os.path.join(startup.directory or "", rest[0])) and _runs_itself(script, python):
            return cls([script, *rest[1:]], startup.directory, startup.environ)
        return cls([sys.executable or python, *rest], startup.directory, startup.environ)

    def environment(self, descriptor: int, judged: int | None = None) -> dict[str, str]:
        """Return its environment, with where it finds the state of this process; for a pre-flight, where it is to write, too."""
        check = "" if judged is None else f":check:{judged}"
        environ = {**self.environ, startup.VARIABLE: f"{os.getpid()}:{descriptor}{check}"}
        if os.environ.get("LISTEN_PID") == str(os.getpid()):
            environ["LISTEN_PID"] = os.environ["LISTEN_PID"]  # under --daemon not what it was
        return environ

    def replace_process(self, state: MasterState, judged: tuple[int, Judged] | None) -> NoReturn:
        """Become it, with the state and all descriptors in it. Raises OSError, with everything as it was, if that cannot be.

        `judged` is what its pre-flight has written, and where, if it can go on from that.
        """
        descriptor = state_file(encode(state))
        inherited = (descriptor, *descriptors(dump(state)), *((judged[0],) if judged else ()))
        arguments = judged[1].arguments(judged[0]) if judged else self.arguments
        stdio.flush()
        try:
            with self._there():
                for one in inherited:
                    os.set_inheritable(one, True)
                os.execve(arguments[0], arguments, self.environment(descriptor))  # noqa: S606 - what was run before
        finally:
            for one in inherited:
                os.set_inheritable(one, False)
            os.close(descriptor)

    @contextlib.contextmanager
    def _there(self) -> Iterator[None]:
        """Go to its directory, and come back from an error."""
        if self.directory is None:
            yield
            return
        here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.chdir(self.directory)
            yield
        finally:
            os.fchdir(here)
            os.close(here)


def _runs_itself(script: str, python: str) -> bool:
    """Whether a script's own first line names the Python that runs it, as with those that pip installs."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if os.access(script, os.X_OK):
            with open(script, "rb") as file:
                line = file.readline(256).decode()
            return line.startswith("#!") and line[2:].split() in ([python], ["/usr/bin/env", python])
    return False


def missing() -> str | None:
    """Return what this system has not that an upgrade needs; None if it has all."""
    if sys.platform != "linux":
        return "Linux"
    if not os.path.isdir("/proc/self/fd"):
        return "/proc"
    try:
        os.close(judged_file())
    except OSError as error:
        return f"memfd_create ({error.strerror})"
    return None


def judged_file() -> int:
    """Return the descriptor of a nameless file, which a pre-flight fills and seals. Linux. Raises OSError."""
    return os.memfd_create("forkserve-judged", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def state_file(data: bytes) -> int:
    """Return the descriptor of a file without a name that holds a state. Linux. Raises OSError."""
    descriptor = os.memfd_create(startup.FILE, os.MFD_CLOEXEC)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(data)
    return descriptor
