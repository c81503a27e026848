"""The command `forkserve top`: a running server, live. On a terminal it takes keys; else it prints a line each second.

The server is asked for its status once a second, by a thread of its own, so that keys work while it does not answer. It may be
upgraded or restarted meanwhile.
"""

from __future__ import annotations

import functools
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from forkserve.base import stdio
from forkserve.base.errors import CommandError, ConfigError, ExitCode
from forkserve.base.logs import printable
from forkserve.cli import top_lines
from forkserve.cli.options import parse
from forkserve.ops.view import view
from forkserve.prefork.control.client import ask, find

if TYPE_CHECKING:
    from forkserve.cli.cells import Row

ABOUT: Final = """Show a running server live: requests, latency, errors and each worker.

Keys: r reload; + and - scale; the arrows select a worker, k restarts it and s shows its stacks; q quits. Without a terminal, a
line is printed each second, until Ctrl-C.
"""
EVERY: Final = 1.0  # seconds between two requests for the status
PATIENCE: Final = 10.0  # seconds for its answer
NO_SERVER: Final = 3
MISSING: Final = "forkserve top needs the package rich on a terminal: pip install 'forkserve[ops]'"


def make() -> click.Command:
    """Make the click command."""
    return click.Command(
        "forkserve top",
        params=[
            click.Option(["--name"], metavar="NAME", help="Name of the server; needed only if several of this user run."),
            click.Option(["--socket"], metavar="PATH", help="Path of the server's control socket."),
        ],
        help=ABOUT,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def main(arguments: Sequence[str]) -> int:
    """Run `forkserve top` with its arguments; return the exit code. Raises ConfigError."""
    line = parse(arguments, make())
    show = _screen() if sys.stdout.isatty() and sys.stdin.isatty() else _print_lines
    try:
        path = find(line.get("name"), line.get("socket"))
        first = _status(path)
    except CommandError as error:
        print(f"forkserve top: {printable(str(error))}", file=sys.stderr)  # noqa: T201 - it talks to the user
        return {"usage": ExitCode.USAGE, "no_server": NO_SERVER}.get(error.code, ExitCode.UNEXPECTED)
    try:
        show(Server(path, first))
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:  # `forkserve top | head`
        stdio.print_nowhere()
    return ExitCode.OK


def _screen() -> Callable[[Server], None]:
    """Return what shows a server on the terminal. Raises ConfigError without rich."""
    try:
        from forkserve.cli.top_screen import run  # noqa: PLC0415 - it needs rich
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "rich":
            raise
        raise ConfigError(MISSING) from None
    return run


def _status(path: str) -> Row:
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
                found = _status(self._path)
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


def _print_lines(server: Server) -> None:
    """Print a line each second."""
    next_line = time.monotonic()
    while True:
        next_line += EVERY
        while (left := next_line - time.monotonic()) > 0:
            server.take_news(left)
        at = time.strftime("%H:%M:%S")
        text = f"{at} not reachable for {server.silent:.0f} s: {server.error or 'no answer'}" if server.silent else None
        text = printable(text) if text else top_lines.plain(server.shown, at)
        encoding = sys.stdout.encoding or "ascii"
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        sys.stdout.flush()
