"""Run `forkserve.http` alone as a process, and wait for events of its application."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from tests.integration.client import Answer, Client
from tests.integration.command import ROOT, Process, eventually, sockets

_TROUBLE = re.compile(
    r"Exception ignored|never retrieved|Exception in callback|never awaited|Fatal error|Fatal Python|ResourceWarning|destroyed"
)


class Server(Process):
    """A running server; as a context manager it stops the server and then checks the exit code and the log.

    Args:
        app: ``module:attr``.
        bind: ``unix:PATH`` or ``HOST:PORT``.
        faults: Whether applications fail on purpose, so that the log may contain tracebacks.
        settings: The settings by name.
    """

    def __init__(self, app: str, bind: str, *, faults: bool = False, **settings: object) -> None:
        self._faults = faults
        arguments = [app, bind, *(f"{name}={value}" for name, value in settings.items())]
        # Warnings are errors in the server as well: a file that is left open shows in the log.
        environ = {"PYTHONWARNINGS": "error::ResourceWarning", "PYTHONPATH": str(ROOT)}
        super().__init__([sys.executable, "-m", "tests.integration.http.serve", *arguments], env=environ)
        try:
            self.ready()
        except BaseException:
            self.close()
            raise
        self.address: str | tuple[str, int]
        if bind.startswith("unix:"):
            self.address = bind.removeprefix("unix:")
        else:
            host, port = self.find(r"^Listening on \w+://(.*):(\d+)$")[0].groups()
            self.address = (host, int(port))
        self._sockets = sockets(self.pid)  # without a client

    @property
    def log(self) -> str:
        """Everything that the server has written to stderr."""
        return self.stderr

    def wait_for_log(self, text: str) -> None:
        """Wait until a line of the log contains ``text``."""
        self.find(re.escape(text))

    def connect(self, **options: Any) -> Client:
        """A new client; it accepts truncated responses, but requires the Date field."""
        return Client(self.address, whole=False, dated=True, **options)

    def get(self, path: str = "/", **options: Any) -> Answer:
        """The response to a plain GET on its own connection."""
        with self.connect(**options) as client:
            client.send(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
            answer = client.answer()
            assert client.rest() == b""
            return answer

    def json(self, path: str) -> Any:
        """The JSON value that a plain GET returns."""
        answer = self.get(path)
        assert answer.status == 200, answer
        return answer.json

    def memory(self) -> int:
        """The proportional memory of the process, in bytes."""
        for line in Path(f"/proc/{self.pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no Pss")

    def descriptors(self) -> int:
        """The number of open descriptors of the process."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def quiet(self) -> None:
        """Wait until no client is connected, and clear the events so far."""
        eventually(lambda: sockets(self.pid) <= self._sockets, "the clients of the previous test are gone")
        self.json("/-/events")

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop the server for the block: it reads what clients send there at once afterwards."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self.kill(signal.SIGTERM)
            code = self.end()
            if kind is None:
                assert code == 0, self.log
                assert not _TROUBLE.search(self.log), self.log
                assert self._faults or "Traceback" not in self.log, self.log
        finally:
            self.close()


@contextlib.contextmanager
def serving(app: str, directory: Path, **settings: Any) -> Iterator[Server]:
    """A server on a unix socket in ``directory``."""
    with Server(app, f"unix:{directory / 's'}", **settings) as server:
        yield server


def happened(server: Server, count: int) -> list[str]:
    """Wait until the application has recorded at least ``count`` events; return them."""
    seen: list[str] = []

    def enough() -> bool:
        seen.extend(server.json("/-/events"))
        return len(seen) >= count

    eventually(enough, f"too few events: {seen}")
    return seen


def events(server: Server, *expected: str) -> None:
    """Wait until exactly these events have been recorded."""
    assert happened(server, len(expected)) == list(expected)


def settled(number: Callable[[], int]) -> int:
    """Wait until a growing number stops growing; return it."""
    last, since = 0, 0

    def still() -> bool:
        nonlocal last, since
        now = number()
        since = since + 1 if now == last and now else 0
        last = now
        return since > 30

    eventually(still, "the number does not stop growing")
    return last
