"""Pre-flight: runs the new command line beside the master until the app is loaded. In the master.

The new program can read the state, but gets none of the descriptors in it. So it cannot affect the running server. It must
confirm that it has reached `run` and loaded the app. An exit code proves nothing, as a program may end earlier for many reasons.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from forkserve.prefork.master.failures import describe_exit
from forkserve.prefork.master.upgrade.checked import CheckedProgram, read
from forkserve.prefork.master.upgrade.program import Program, checked_file, state_file
from forkserve.prefork.system.poller import READ

if TYPE_CHECKING:
    from forkserve.prefork.system.poller import Poller, Timer

KEPT_OUTPUT: Final = 64 * 1024  # bytes
LONGEST_CONFIRMATION: Final = 1024
FAULT: Final = re.compile(r"forkserve(\.errors\.\w+)?: ")  # printed by the command, or by Python for a user's own program


class Preflight:
    """One pre-flight.

    Attributes:
        confirmation: The versions of forkserve and Python, with which it has confirmed; None if it has not.
        checked: What it has checked; None if it has not written that.
        reason: Why it has failed.
        output: The end of its output.
        file: The descriptor of the file that `checked` is read from.
        pid: Its process.
    """

    def __init__(self, poller: Poller, program: Program, state: bytes, limit: float, ended: Callable[[], object]) -> None:
        """Start it; `ended` is called when it has ended. It is killed after `limit` seconds (0: never).

        Raises OSError if it cannot be run.
        """
        self.confirmation: str | None = None
        self.checked: CheckedProgram | None = None
        self.reason = ""
        self.output = ""
        self._poller = poller
        self._limit = limit
        self._notify = ended
        self._printed = bytearray()
        with contextlib.ExitStack() as undo:
            self._state = state_file(state)
            undo.callback(os.close, self._state)
            self.file = checked_file()
            undo.callback(os.close, self.file)
            self._pipe, theirs = os.pipe()
            undo.callback(os.close, self._pipe)
            os.set_blocking(self._pipe, False)
            try:
                process = subprocess.Popen(  # noqa: S603 - the command line of this process
                    program.arguments,
                    cwd=program.directory,
                    env=program.environment(self._state, self.file),
                    stdin=subprocess.DEVNULL,
                    stdout=theirs,
                    stderr=theirs,
                    pass_fds=(self._state, self.file),
                    process_group=0,  # to kill it together with the processes that it has started
                )
            finally:
                os.close(theirs)
            undo.pop_all()
        self._open = True
        self.pid = process.pid
        process.returncode = 0  # the master reaps it, not this object
        poller.watch(self._pipe, READ, self._read)
        self._timer: Timer | None = poller.at(time.monotonic() + limit, self._overdue) if limit else None

    def _read(self, _events: int = READ) -> None:
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._pipe, KEPT_OUTPUT)
            self._printed += data
            del self._printed[:-KEPT_OUTPUT]
            if not data:
                self._poller.unwatch(self._pipe)

    def _overdue(self) -> None:
        self.reason = f"it had not loaded the app after {self._limit:g} s (--boot-timeout)"
        self.kill()

    def kill(self) -> None:
        """Kill it and the processes that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def ended(self, status: int) -> None:
        """Take the end of its process, with its exit code, or its signal as a negative number."""
        self.kill()  # the processes that it has left behind
        self._read()
        confirmation = os.pread(self._state, LONGEST_CONFIRMATION, 0).decode("ascii", "replace")
        self._close()
        self.output = self._printed.decode("utf-8", "backslashreplace")
        *before, last = self.output.strip("\n").rstrip().split("\n")
        if status == 0 and confirmation.startswith("forkserve ") and not self.reason:  # it has replaced the state in the file
            self.confirmation, self.checked = confirmation, read(self.file)
        elif status == 0:
            self.reason = self.reason or "it exited with code 0 before it called run()"
        else:
            if said := FAULT.match(last):
                self.output = "\n".join(before)
            self.reason = self.reason or last[said.end() if said else 0 :] or f"it {describe_exit(status)}"
        self._notify()

    def _close(self) -> None:
        """Close the descriptors and the timer that its process needs."""
        if self._timer is not None:
            self._timer.cancel()
        if self._open:
            self._open = False
            self._poller.unwatch(self._pipe)
            os.close(self._pipe)
            os.close(self._state)

    def close(self) -> None:
        """Close everything, when it is not needed any more."""
        self._close()
        os.close(self.file)

    def close_in_child(self) -> None:
        """Close only the descriptors, in a child just forked."""
        for descriptor in (self.file, *((self._pipe, self._state) if self._open else ())):
            os.close(descriptor)
