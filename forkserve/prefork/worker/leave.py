"""Leave: how a worker ends.

A service manager, a terminal or a platform often sends TERM to all processes at once. The master then stops the server, but
keeps its ports open for `--drain-delay` seconds, and longer until a front end knows. Workers that drained at once would leave
connections in the queues that no process accepts. Only the master knows which case it is. So a worker that gets TERM or QUIT
requests leave from the master, and keeps working until the answer arrives:

- The server stops: the master answers `Stay`, and sends `Drain` when this worker may go.
- Only this worker is meant: the master sends `Drain`, and a successor is forked.

A master that is frozen answers nothing: after `ANSWER_LIMIT` seconds the worker drains without an order.
"""

from __future__ import annotations

import time
from math import inf
from typing import TYPE_CHECKING, Final

from forkserve.prefork.ipc.messages import Draining, Terminated
from forkserve.prefork.system import deadman
from forkserve.prefork.worker import debuggers

if TYPE_CHECKING:
    from collections.abc import Callable

    from forkserve.prefork.worker.running import RunningWorker

ANSWER_LIMIT: Final = 1.0
ORPHAN_LIMIT: Final = 30.0
"""Seconds in which an orphan may end if `graceful_timeout` is off."""
DEBUGGED_LIMIT: Final = 1.0
"""The same if a debugger has stopped it: nobody can use its prompt any more."""


def orphan_limit(graceful_timeout: float) -> float:
    """Return the seconds in which an orphan may end."""
    return DEBUGGED_LIMIT if debuggers.stopped() else graceful_timeout or ORPHAN_LIMIT


class Leave:
    """The end of one worker. In its process, on the main thread.

    Args:
        worker: The worker.
        receive: Handles the messages that were received.
        fail_calls: Ends its calls for this reason, as the master will not answer.
    """

    def __init__(self, worker: RunningWorker, receive: Callable[[], None], fail_calls: Callable[[str], None]) -> None:
        self._worker, self._receive, self._fail_calls = worker, receive, fail_calls
        self._due: float | None = None  # when to drain without the master's order
        self.since: float | None = None  # when the drain began (monotonic seconds)

    @property
    def requested(self) -> bool:
        """Whether a TERM or QUIT was received."""
        return self._due is not None

    def request(self) -> None:
        """Request leave from the master, once."""
        if self._due is None:
            self._due = time.monotonic() + ANSWER_LIMIT if self._worker.send(Terminated()) else -inf
            self.look()

    def stay(self, seconds: float) -> None:
        """The master has answered: it sends `Drain` within this time."""
        self._due = time.monotonic() + seconds + ANSWER_LIMIT

    def time_left(self) -> float:
        """Return in how many seconds `look` must be called; infinity if it need not be."""
        return inf if self._due is None or self._worker.draining else max(0.0, self._due - time.monotonic())

    def look(self) -> None:
        """Drain if the master has not answered in time. Called about once a second."""
        if self._due is None or self._worker.draining or time.monotonic() < self._due:
            return
        self._receive()  # the answer may have arrived while this process was busy
        if not self._worker.draining and time.monotonic() >= self._due:
            self._worker.send(Draining())
            self._worker.drain()

    def orphaned(self) -> None:
        """End soon, because the master is gone: no process would replace or kill this worker."""
        worker = self._worker
        if worker.orphan:
            return
        worker.orphan = True
        worker.log.warning("the master is gone: ending")
        self._fail_calls("the master is gone")
        deadman.wind_up(orphan_limit(worker.settings.graceful_timeout))
        if not worker.draining:
            worker.drain()
