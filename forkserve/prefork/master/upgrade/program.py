"""Program: the command line of this process, which an upgrade runs again.

The pre-flight runs it as if a user typed it again. A console script is executed itself, so that its first line selects the
Python; otherwise Python is executed by its path. The working directory is found by its name. So links that were switched to
another release, or to another virtual environment, are followed.

The program that takes over is the same Python with what the pre-flight has checked (checked.py). A user's own program, one that
is not the command `forkserve`, is run by its command line again.
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
    from forkserve.prefork.master.upgrade.checked import CheckedProgram
    from forkserve.prefork.master.upgrade.state import MasterState


@dataclass(frozen=True, slots=True)
class Program:
    """A command line, with its directory and environment."""

    arguments: list[str]
    directory: str | None
    environ: Mapping[str, str]

    @classmethod
    def of_this_process(cls) -> Program:
        """Return the program of this process. Call it early, before its files can change."""
        python, *rest = sys.orig_argv or [sys.executable]
        if rest and (script := os.path.join(startup.directory or "", rest[0])) and _runs_itself(script, python):
            return cls([script, *rest[1:]], startup.directory, startup.environ)
        return cls([sys.executable or python, *rest], startup.directory, startup.environ)

    def environment(self, descriptor: int, checked: int | None = None) -> dict[str, str]:
        """Return its environment, which names the descriptor of the state.

        For a pre-flight it also names the descriptor of the file for what is checked.
        """
        mode = "" if checked is None else f":check:{checked}"
        environ = {**self.environ, startup.VARIABLE: f"{os.getpid()}:{descriptor}{mode}"}
        if os.environ.get("LISTEN_PID") == str(os.getpid()):
            environ["LISTEN_PID"] = os.environ["LISTEN_PID"]  # --daemon has changed it
        return environ

    def replace_process(self, state: MasterState, checked: tuple[int, CheckedProgram] | None) -> NoReturn:
        """Execute it in this process, with the state and the descriptors in the state.

        Args:
            state: The state of the master.
            checked: The descriptor and the contents of what its pre-flight has checked, to start from there; None to run the
                command line.

        Raises:
            OSError: It cannot be executed. Everything is as before.
        """
        descriptor = state_file(encode(state))
        inherited = (descriptor, *descriptors(dump(state)), *((checked[0],) if checked else ()))
        arguments = checked[1].arguments(checked[0]) if checked else self.arguments
        stdio.flush()
        try:
            with self._there():
                for one in inherited:
                    os.set_inheritable(one, True)
                os.execve(arguments[0], arguments, self.environment(descriptor))  # noqa: S606 - the command line of this process
        finally:
            for one in inherited:
                os.set_inheritable(one, False)
            os.close(descriptor)

    @contextlib.contextmanager
    def _there(self) -> Iterator[None]:
        """Change to its directory, and back after an error."""
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
    """Whether a script's first line names the Python that runs it, as in the scripts that pip installs."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if os.access(script, os.X_OK):
            with open(script, "rb") as file:
                line = file.readline(256).decode()
            return line.startswith("#!") and line[2:].split() in ([python], ["/usr/bin/env", python])
    return False


def missing() -> str | None:
    """Return a feature that an upgrade needs and this system lacks; None if it has them all."""
    if sys.platform != "linux":
        return "Linux"
    if not os.path.isdir("/proc/self/fd"):
        return "/proc"
    try:
        os.close(checked_file())
    except OSError as error:
        return f"memfd_create ({error.strerror})"
    return None


def checked_file() -> int:
    """Return the descriptor of a nameless file, which a pre-flight fills and seals. Linux. Raises OSError."""
    return os.memfd_create("forkserve-checked", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def state_file(data: bytes) -> int:
    """Return the descriptor of a nameless file that holds a state. Linux. Raises OSError."""
    descriptor = os.memfd_create(startup.FILE, os.MFD_CLOEXEC)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(data)
    return descriptor
