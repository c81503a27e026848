"""The signals of a worker: what each of them does.

A handler only queues the signal. The worker obeys the queued signals at certain points (`Worker.alive`, or a turn of the event
loop), never in the middle of its work. USR2 (dump the stacks) is not here: its handler is installed at the fork, and runs at
once (`boot`).
"""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from forkserve.prefork.ipc.hooks import run_hook
from forkserve.prefork.system.signals import SignalQueue
from forkserve.prefork.worker.debuggers import refusal, suspend

if TYPE_CHECKING:
    from collections.abc import Iterable

    from forkserve.prefork.worker.context import WorkerContext
    from forkserve.prefork.worker.leave import Leave
    from forkserve.prefork.worker.running import RunningWorker

# Signal to method. The signals that do nothing have a handler, too, and are not ignored: an ignored signal would stay ignored in
# the programs that the app starts.
WORKER_SIGNALS: Final[Mapping[signal.Signals, str]] = MappingProxyType(
    {
        signal.SIGTERM: "terminated",
        signal.SIGQUIT: "interrupted",
        signal.SIGUSR1: "reopen_logs",
        signal.SIGTSTP: "suspend",
        signal.SIGHUP: "nothing",
        signal.SIGINT: "nothing",
        signal.SIGWINCH: "nothing",
        signal.SIGTTIN: "nothing",
        signal.SIGTTOU: "nothing",
    }
)
ENDING: Final = frozenset(("terminated", "interrupted"))
"""The methods that end a worker. A worker that still boots ends at once."""
TERMINALS: Final = (signal.SIGTTIN, signal.SIGTTOU)
"""The signals that suspend a process which uses the terminal in the background. With a handler it would try again, endlessly."""
CHECK_EVERY: Final = 1.0  # seconds


def leave_terminals(context: WorkerContext) -> None:
    """Have the system suspend this process where that is right, if it reads the terminal."""
    for signum in TERMINALS if not refusal(context) else ():
        signal.signal(signum, signal.SIG_DFL)


class WorkerSignals:
    """The signals of one worker. In its process, on the main thread."""

    def __init__(self, worker: RunningWorker, leave: Leave) -> None:
        self._worker, self._leave = worker, leave
        self._checked = 0.0
        self.queue: SignalQueue | None = None  # readable when a signal was received; None before `install`

    def install(self, *, beside_loop: bool = False) -> SignalQueue:
        """Take over WORKER_SIGNALS, and return their queue.

        Args:
            beside_loop: Whether an event loop runs on this thread: it keeps its own wakeup descriptor.
        """
        handled = [one for one in WORKER_SIGNALS if one not in TERMINALS or refusal(self._worker.context)]
        self.queue = SignalQueue(handled, beside_loop=beside_loop)
        return self.queue

    def obey(self) -> None:
        """Run the methods of the queued signals."""
        worker = self._worker
        for signum in self.queue.take() if self.queue else ():
            if WORKER_SIGNALS[signum] in ENDING and not worker.draining and not self._leave.requested:
                worker.log.info("received %s: ending", signum.name)
            getattr(self, WORKER_SIGNALS[signum])()

    def obey_early(self, names: Iterable[str]) -> None:
        """Run the methods of signals that were received before `install`."""
        for name in names:
            getattr(self, name)()

    def check(self) -> None:
        """Reinstall the handlers, once a second: an event loop of the application may have replaced them."""
        now = time.monotonic()
        if self.queue is None or now < self._checked + CHECK_EVERY:
            return
        self._checked = now
        if threading.current_thread() is threading.main_thread() and (taken := self.queue.take_back(_matters)):
            names = ", ".join(sorted(signum.name for signum in taken))
            self._worker.log.warning("the app has replaced the server's handlers of signals: %s; they are reinstalled", names)

    def terminated(self) -> None:
        """Request leave from the master (`Leave`); or end, if the master has died."""
        if os.getppid() != self._worker.context.master_pid:
            self._leave.orphaned()
        elif not self._worker.draining:
            self._leave.request()

    def interrupted(self) -> None:
        """End as `terminated` does; gunicorn has a hook for QUIT."""
        run_hook(self._worker.hooks, "worker_int", self._worker)
        self.terminated()

    def reopen_logs(self) -> None:
        """Reopen log files that were moved away."""
        self._worker.child_reopen_logs()

    def suspend(self) -> None:
        """Suspend the process (Ctrl-Z), with the dead-man's switch off: its clock does not stop."""
        faulthandler.cancel_dump_traceback_later()
        self._worker.arm_again = 0
        suspend()
        self._worker.beat()

    def nothing(self) -> None:
        """Do nothing: the signal is for the master."""


def _matters(signum: signal.Signals, handler: object) -> bool:
    """Whether a handler must be reinstalled: for a signal that does nothing here, only if the app has restored the default."""
    return WORKER_SIGNALS[signum] != "nothing" or handler in (signal.SIG_DFL, signal.default_int_handler)
