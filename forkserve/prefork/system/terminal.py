"""The terminal: the controlling one, which sends signals, and the one at stdin, which a worker gets for debuggers (--debug).

The controlling terminal sends HUP when it disappears, WINCH when it is resized, and TTIN or TTOU to the whole server if a process
of it uses the terminal in the background. These signals mean something else when a user sends them; the master finds out here
which it was.
"""

from __future__ import annotations

import contextlib
import os
import signal
import termios
import threading
from typing import Any, Final

STDIN: Final = 0


class Terminal:
    """The controlling terminal of this process, if it has one. For the master.

    Attributes:
        lent: Whether a worker reads it.
    """

    def __init__(self) -> None:
        self._size = _size()
        self.lent = False

    def gone(self) -> bool:
        """Return whether there was a terminal, and it is gone."""
        return self._size is not None and _size() is None

    def resized(self) -> bool:
        """Return whether the size of the terminal has changed since the last call."""
        before, self._size = self._size, _size() or self._size
        return before != self._size

    def used_in_background(self, *, debugged: bool) -> bool:
        """Return whether TTIN or TTOU is the terminal's: a worker has read it in the background. Then suspend, as the worker is.

        Args:
            debugged: Whether a debugger reads it. Then the signal may be from before the server has become the foreground job.
        """
        if not self.lent:
            return False
        if in_foreground(STDIN):
            if debugged:  # the signal has suspended the worker, and a shell resumes only a job that it knows to be suspended
                os.killpg(os.getpgrp(), signal.SIGCONT)
            return debugged
        suspend()
        return True


class Modes:
    """The modes of the terminal at stdin, such as echo: debuggers change them while they wait for a key."""

    def __init__(self) -> None:
        self._saved = _modes()

    def restore(self) -> None:
        """Restore them; not in the background, where the terminal has the modes of another program. Does not block."""
        if self._saved is not None and _modes() != self._saved and in_foreground(STDIN):
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})  # if it is in the background a moment later
            self._set()
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def suspend(self) -> None:
        """Suspend this process, and afterwards set the modes again, in place of the shell's.

        In the background the system suspends the process once more for that, until it has the terminal.
        """
        known = in_foreground(STDIN)  # or the shell has set its own already
        suspend()
        if known:
            self._set()

    def _set(self) -> None:
        if self._saved is not None:
            with contextlib.suppress(termios.error, OSError):  # it is gone
                termios.tcsetattr(STDIN, termios.TCSANOW, self._saved)  # at once: it may be stopped (Ctrl-S)


def suspend() -> None:
    """Suspend this process as Ctrl-Z does, on the main thread: not if no shell could resume it, as in a container."""
    before = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
    signal.pthread_kill(threading.get_ident(), signal.SIGTSTP)
    signal.signal(signal.SIGTSTP, before)


def in_foreground(descriptor: int) -> bool:
    """Whether this is the controlling terminal, and its keys, such as Ctrl-C, reach this process."""
    try:
        return os.tcgetpgrp(descriptor) == os.getpgrp()
    except OSError:  # it is not the controlling terminal
        return False


def _modes() -> Any:
    try:
        return termios.tcgetattr(STDIN)
    except (termios.error, OSError):
        return None


def _size() -> os.terminal_size | None:
    try:
        descriptor = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.get_terminal_size(descriptor)
    except OSError:
        return None
    finally:
        os.close(descriptor)
