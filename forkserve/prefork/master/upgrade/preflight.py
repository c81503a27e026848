"""Pre-flight: the new command line runs beside the master, up to the loaded app, and says so. In the master.

It gets the state to read, but none of the descriptors in it, so that nothing it does can touch what is live. An exit
code proves nothing, as a program may end for many reasons before it comes to `run`: it must confirm.
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
from forkserve.prefork.master.upgrade.judged import Judged, read
from forkserve.prefork.master.upgrade.program import Program, judged_file, state_file
from forkserve.prefork.system.poller import READ

if TYPE_CHECKING:
    from forkserve.prefork.system.poller import Poller, Timer

KEPT_OUTPUT: Final = 64 * 1024  # bytes
LONGEST_WORD: Final = 1024
FAULT: Final = re.compile(r"forkserve(\.errors\.\w+)?: ")  # as the command says it, or Python where a program of the user's ran


class Preflight:
    """One pre-flight.

    `word` is what it has confirmed with, `judged` what it has judged, if it says, `file` where it has written that down,
    `output` the end of what it has printed.
    """

    def __init__(self, poller: Poller, program: Program, state: bytes, limit: float, ended: Callable[[], object]) -> None:
        """Start it; `ended` is called when it is over. It is killed after `limit` seconds, if that is not 0.

        Raises OSError if it cannot be run.
        """
        self.word: str | None = None
        self.judged: Judged | None = None
        self.reason = ""  # why it has failed
        self.output = ""
        self._poller = poller
        self._limit = limit
        self._tell = ended
        self._printed = bytearray()
        with contextlib.ExitStack() as undo:
            self._state = state_file(state)
            undo.callback(os.close, self._state)
            self.file = judged_file()
            undo.callback(os.close, self.file)
            self._pipe, theirs = os.pipe()
            undo.callback(os.close, self._pipe)
            os.set_blocking(self._pipe, False)
            try:
                process = subprocess.Popen(  # noqa: S603 - what was run before
                    program.arguments,
                    cwd=program.directory,
                    env=program.environment(self._state, self.file),
                    stdin=subprocess.DEVNULL,
                    stdout=theirs,
                    stderr=theirs,
                    pass_fds=(self._state, self.file),
                    process_group=0,  # it goes with whatever it has started
                )
            finally:
                os.close(theirs)
            undo.pop_all()
        self._open = True
        self.pid = process.pid
        process.returncode = 0  # it is not this object that waits for it
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
        """Have it end."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def ended(self, status: int) -> None:
        """Its process has ended, with this exit code, or with a signal as a negative one."""
        self.kill()  # what it has started, and left behind
        self._read()
        word = os.pread(self._state, LONGEST_WORD, 0).decode("ascii", "replace")
        self._close()
        self.output = self._printed.decode("utf-8", "backslashreplace")
        *before, last = self.output.strip("\n").rstrip().split("\n")
        if status == 0 and word.startswith("forkserve ") and not self.reason:  # it stands where the state was
            self.word, self.judged = word, read(self.file)
        elif status == 0:
            self.reason = self.reason or "it ended with code 0, and has never come to run()"
        else:
            if said := FAULT.match(last):
                self.output = "\n".join(before)
            self.reason = self.reason or last[said.end() if said else 0 :] or f"it {describe_exit(status)}"
        self._tell()

    def _close(self) -> None:
        """Close what belongs to its process."""
        if self._timer is not None:
            self._timer.cancel()
        if self._open:
            self._open = False
            self._poller.unwatch(self._pipe)
            os.close(self._pipe)
            os.close(self._state)

    def close(self) -> None:
        """Close what belongs to it, when it has served its purpose."""
        self._close()
        os.close(self.file)

    def close_in_child(self) -> None:
        """Close the descriptors alone, in a child just forked."""
        for descriptor in (self.file, *((self._pipe, self._state) if self._open else ())):
            os.close(descriptor)
