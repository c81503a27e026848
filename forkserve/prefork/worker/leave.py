"""Leave: what a worker does with a TERM or QUIT from outside. It asks the master, and works on until that answers.

A service manager, a terminal or a platform often sends TERM to all processes at once. The master then stops the server, but
keeps its ports open for `--drain-delay` seconds, and longer until a front end knows. Workers that drained at once would leave
connections in the queues that nobody answers. The master alone knows which it is:

- The server stops: the master says `stay`, and orders the drain when its time has come.
- This worker alone was meant: the master orders the drain, and a successor is forked.

A master that is frozen answers nothing: after `ANSWER_LIMIT` seconds the worker drains without its order.
"""

from __future__ import annotations

import time
from math import inf
from typing import TYPE_CHECKING, Final

from forkserve.prefork.ipc.messages import Draining, Terminated

if TYPE_CHECKING:
    from forkserve.prefork.worker.worker import Worker

ANSWER_LIMIT: Final = 1.0


class Leave:
    """The leave of one worker. In its process, on the main thread."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._due: float | None = None  # when to drain without the master's order

    @property
    def asked(self) -> bool:
        """Whether a TERM or QUIT has come."""
        return self._due is not None

    def ask(self) -> None:
        """Ask the master, unless it was asked before."""
        if self._due is None:
            self._due = time.monotonic() + ANSWER_LIMIT if self._worker.send(Terminated()) else -inf
            self.look()

    def stay(self, seconds: float) -> None:
        """The master has answered: it orders the drain in so many seconds at most."""
        self._due = time.monotonic() + seconds + ANSWER_LIMIT

    def time_left(self) -> float:
        """Return in how many seconds `look` must be called; infinity if it need not be."""
        return inf if self._due is None or self._worker.draining else max(0.0, self._due - time.monotonic())

    def look(self) -> None:
        """Drain if the master has not answered in time. Called about once a second."""
        if self._due is None or self._worker.draining or time.monotonic() < self._due:
            return
        self._worker.on_channel()  # the answer may be there already, as this process was busy
        if not self._worker.draining and time.monotonic() >= self._due:
            self._worker.send(Draining())
            self._worker.drain()
