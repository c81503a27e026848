"""The server that `forkserve top` shows: its status, once a second, and its answers to commands."""

from __future__ import annotations

import functools
import os
import queue
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from forkserve.base.errors import CommandError
from forkserve.ops.view import view
from forkserve.prefork.control.client import ask

if TYPE_CHECKING:
    from forkserve.cli.cells import Row

EVERY: Final = 1.0  # seconds between two requests for the status
PATIENCE: Final = 10.0  # seconds for its answer


def status(path: str) -> Row:
    """Return the status of the server at a control socket. Raises CommandError."""
    answer = ask(path, "status", timeout=PATIENCE)
    if answer["error"] is not None or not isinstance(answer["result"], dict):
        raise CommandError(str((answer["error"] or {}).get("message")))
    return answer["result"]


class Server:
    """A server that is asked for its status once a second, by a thread.

    Attributes:
        shown: The view of the latest status.
        rates: Requests per second, the latest last.
        error: Why there is no later status; None if the last request was answered.
    """

    def __init__(self, path: str, first: Row) -> None:
        self.shown = view(None, first)
        self.rates: list[float] = []
        self.error: str | None = None
        self._path, self._latest = path, first
        self._answered = time.monotonic()
        self._asked = self._answered
        self.news: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()  # to be called by the thread that shows it
        self._wakes: int | None = None
        threading.Thread(target=self._follow, daemon=True).start()

    def wake(self, descriptor: int) -> None:
        """Write a byte to this descriptor when there are news."""
        self._wakes = descriptor

    def take_news(self, timeout: float | None = None) -> None:
        """Take what has arrived; with a timeout, wait so many seconds for it."""
        try:
            self.news.get(timeout is not None, timeout)()
            while True:
                self.news.get_nowait()()
        except queue.Empty:
            pass

    def send(self, command: str, *args: Any, then: Callable[[Any], object]) -> None:
        """Have the server run a command, in a thread; call `then` with its answer, or with a CommandError."""

        def run() -> None:
            try:
                found: Any = ask(self._path, command, args, timeout=None)
            except CommandError as error:
                found = error
            self._tell(lambda: then(found))

        threading.Thread(target=run, daemon=True).start()

    @property
    def silent(self) -> float:
        """Seconds since the server last answered, if it is late; else 0."""
        passed = time.monotonic() - self._answered
        return passed if self.error is not None or passed > 3 * EVERY else 0.0

    def _follow(self) -> None:
        while True:
            time.sleep(max(0.0, self._asked + EVERY - time.monotonic()))
            self._asked = time.monotonic()
            try:
                found = status(self._path)
            except CommandError as error:
                self._tell(functools.partial(setattr, self, "error", str(error)))
            else:
                self._tell(functools.partial(self._update, found))

    def _update(self, found: Row) -> None:
        self.shown = view(self._latest, found)
        self._latest, self._answered, self.error = found, time.monotonic(), None
        self.rates = [*self.rates[-120:], self.shown["rate"] or 0.0]

    def _tell(self, news: Callable[[], object]) -> None:
        self.news.put(news)
        if self._wakes is not None:
            os.write(self._wakes, b"\0")
