"""A program with its own handlers in the master: `python -m tests.integration.handler_program FIFO`; it records their calls."""

from __future__ import annotations

import os
import signal
import sys

from forkserve import Server
from tests.integration.command_apps import note
from tests.integration.custom_workers import Idle


class Shouts:
    """A mixin that overrides a command of the worker."""

    def child_hello(self, who: str) -> str:
        return super().child_hello(who.upper())  # type: ignore[misc]


def main() -> int:
    _, path = sys.argv
    server = Server(worker=Idle, mixins=[Shouts], workers=2)
    seconds = 0

    def tick() -> None:
        nonlocal seconds
        seconds += 1
        if seconds == 3:
            timer.cancel()
            note("enough ticks")

    def fail() -> None:
        failing.cancel()
        raise ValueError("the timer does not work")

    timer = server.every(0.01, tick)
    failing = server.every(0.01, fail)
    fifo = os.open(path, os.O_RDWR | os.O_NONBLOCK)

    def read(fileobj: object, event: int) -> None:
        assert fileobj is fifo
        word = os.read(fifo, 100).decode().strip()
        note(f"read {word} {event}")
        if word == "raise":
            raise ValueError("the handler does not work")
        if word == "remove":
            server.remove_io_handler(fifo)
            server.remove_io_handler(fifo)
        if word == "call":
            server.call("hello", "you").then(lambda replies: note(f"called {[reply.value for reply in replies]}"))
        if word == "callback":
            server.call("hello", "you").then(lambda replies: 1 // 0)

    server.add_io_handler(fifo, read)

    def raising() -> None:
        note("usr1")
        raise ValueError("the signal handler does not work")

    server.on_signal(signal.SIGUSR1, raising)
    server.on_signal(signal.SIGUSR2, lambda: server.call("hello", "you").then(lambda replies: note(f"usr2 {len(replies)}")))

    def late() -> None:
        server.on_signal(signal.SIGCONT, lambda: note("cont"))
        note("late handler is there")

    server.poller.at(0.0, late)
    return server.run()


if __name__ == "__main__":
    sys.exit(main())
