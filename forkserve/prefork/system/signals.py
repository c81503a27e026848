"""Signals as events: a handler only queues the signal, and a byte on a socket wakes the loop.

The byte is written by the interpreter's own C handler (`set_wakeup_fd`), so that a signal just before the loop blocks wakes it
too; and again by the handler in Python, as other code may have replaced the wakeup descriptor. The signals are in the queue, not
in the bytes: a full socket loses bytes, and TERM must never be lost in a flood of others.
"""

from __future__ import annotations

import contextlib
import signal
import socket
from collections import deque
from collections.abc import Callable, Iterable


class SignalQueue:
    """Handles signals from construction to `close`, and unblocks them. On the main thread of any process.

    Args:
        signals: The signals to handle.
        beside_loop: An event loop on this thread keeps its own wakeup descriptor.
    """

    def __init__(self, signals: Iterable[signal.Signals], *, beside_loop: bool = False) -> None:
        self._queue: deque[int] = deque()
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._old_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        if beside_loop and self._old_fd != -1:
            signal.set_wakeup_fd(self._old_fd, warn_on_full_buffer=False)
        self._old = {signum: signal.signal(signum, self._note) for signum in signals}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._old)  # the parent process may have blocked them

    def _note(self, signum: int, _frame: object) -> None:
        self._queue.append(signum)
        with contextlib.suppress(OSError):  # full, so that the loop wakes anyway
            self._writer.send(b"\0")

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when a signal has arrived."""
        return self._reader.fileno()

    def inherited(self, signum: signal.Signals) -> object:
        """Return the previous handler of the signal."""
        return self._old[signum]

    def add(self, signum: signal.Signals) -> None:
        """Handle one more signal."""
        if signum not in self._old:
            self._old[signum] = signal.signal(signum, self._note)

    def take(self) -> list[signal.Signals]:
        """Return the signals that have arrived since the last call, in order."""
        with contextlib.suppress(BlockingIOError):
            self._reader.recv(4096)
        taken = []
        while self._queue:
            taken.append(signal.Signals(self._queue.popleft()))
        return taken

    def take_back(self, matters: Callable[[signal.Signals, object], bool]) -> list[signal.Signals]:
        """Handle signals again if other code has replaced their handler and that `matters`; return them.

        Also restore the wakeup descriptor, if there is none.
        """
        taken = []
        for signum in self._old:
            handler = signal.getsignal(signum)
            if handler != self._note and matters(signum, handler):
                signal.signal(signum, self._note)
                taken.append(signum)
        found = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        if found not in (-1, self._writer.fileno()):
            signal.set_wakeup_fd(found, warn_on_full_buffer=False)
        return taken

    def descriptors(self) -> tuple[int, int]:
        """Return the descriptors of the sockets."""
        return self._reader.fileno(), self._writer.fileno()

    def put(self, signals: Iterable[int]) -> None:
        """Add signals as if they had just arrived."""
        self._queue.extend(signals)
        with contextlib.suppress(BlockingIOError):
            self._writer.send(b"\0")

    def close(self) -> None:
        """Restore the previous handlers."""
        for signum, handler in self._old.items():
            signal.signal(signum, handler or signal.SIG_DFL)
        signal.set_wakeup_fd(self._old_fd)
        self.close_in_child()

    def close_in_child(self) -> None:
        """Close only the sockets, in a child, which has handlers of its own."""
        self._reader.close()
        self._writer.close()
