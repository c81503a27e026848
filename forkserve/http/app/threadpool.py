"""The threads that call a WSGI application beside the loop."""

from __future__ import annotations

import threading
from queue import SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

    from forkserve.http.app.calls import Call, Observer


class _Thread(threading.Thread):
    """A thread that the end of the process does not wait for."""

    is_servers = True

    def run(self) -> None:
        """Do the work. Threads that are started here inherit `daemon`, which it is too late to change in public."""
        self._daemonic = False
        super().run()


class ThreadPool:
    """Threads that call the application; first come, first served.

    Args:
        observer: Is notified of each call.
        log: Where a shortage of threads is logged.
        count: The number of threads. One that hangs cannot keep a worker from ending, but threads that the application starts in
            them are no daemons, as in a main thread.

    Raises:
        RuntimeError: Not even one thread can be started.
    """

    def __init__(self, observer: Observer, log: logging.Logger, count: int) -> None:
        self._observer = observer
        self._queue: SimpleQueue[Call] = SimpleQueue()
        self._own = threading.local()  # the number of this thread
        self._began: list[float | None] = []  # when each thread called the application it is in
        self._busy: list[bool] = []
        for number in range(count):
            self._began.append(None)
            self._busy.append(False)
            try:
                _Thread(target=self._work, args=(number,), name=f"wsgi-{number + 1}", daemon=True).start()
            except RuntimeError:  # the limit of processes is reached
                del self._began[number], self._busy[number]
                if not number:
                    raise
                log.warning("only %d of %d threads can be started (see `ulimit -u`)", number, count)
                break

    def take(self, call: Call) -> None:
        """Have a thread call the application."""
        self._queue.put(call)

    @property
    def in_progress(self) -> int:
        """The number of calls under way or waiting."""
        return sum(self._busy) + self._queue.qsize()

    def stuck(self, seconds: float) -> bool:
        """Return whether every thread has been in one call of the application for longer than ``seconds``."""
        limit = monotonic() - seconds
        return all(began is not None and began < limit for began in tuple(self._began))

    def waiting(self, wait: Callable[[], object]) -> None:
        """Wait for a client, which is no sign that the application is stuck. Called in a thread of the pool."""
        number = self._own.number
        self._began[number] = None
        wait()
        self._began[number] = monotonic()

    def _work(self, number: int) -> None:
        self._own.number = number
        while True:
            call = self._queue.get()
            self._busy[number] = True
            self._began[number] = monotonic()
            if not call.gone:
                entry = self._observer.next_entry()
                entry.enter(call, call.target.line)
                call.context.run(call.call)
                entry.leave(call)
            call.discard_input()
            self._began[number] = None
            self._busy[number] = False
