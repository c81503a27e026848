"""A load on a server: clients with new and with kept connections, and a record of every failed request."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from tests.integration.client import Client, EndedError, Where


@dataclass(frozen=True)
class Failure:
    """A request without a 200 response, and its times."""

    kind: str  # of client
    began: float
    ended: float
    why: str
    port: int | None  # the client's port, if it was connected by TCP
    opened: float  # the start of the connect
    server: int | None = None  # the server's port


NEW = 1.0
"""Seconds within which a client sends its first request; a draining worker waits for it twice as long."""


class Connection(Client):
    """A connection that records its time of opening, its client port and the start of its client's silence."""

    def __init__(self, where: Where) -> None:
        self.opened = self.silent_since = time.monotonic()
        super().__init__(where)
        name = self.sock.getsockname()
        self.port: int | None = name[1] if isinstance(name, tuple) else None  # a unix socket has none


class Clients:
    """Threads of clients that run within a `with` block.

    Attributes:
        over: Set when they are to end; each waits for its last response.
    """

    def __init__(self) -> None:
        self.over = threading.Event()
        self.threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        """Start the clients."""
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop the clients."""
        self.over.set()
        for thread in self.threads:
            thread.join()


class Load(Clients):
    """Clients that send one request after the other within a `with` block.

    A client with a kept connection opens another one only after a response has announced the end of the connection: an
    unannounced end is a failure. Some of the clients are idle for a while between two requests. A client that got the CPU too
    late, and was silent for much longer than it should be, sends its request on another connection.

    Args:
        ports: The ports of the server; each client uses all of them in turn.
        fresh: The number of clients that open a new connection for each request.
        kept: The number of clients that keep their connection; every other one is mostly idle.
        idle: Seconds between two requests of the idle clients.
        pause: Seconds between two requests of the others, which leaves CPU time for the servers.
        again: Whether a kept connection may end unannounced, and the request is then repeated on another: nginx closes idle
            connections when it reloads. A request that no worker could answer is a 502.
    """

    def __init__(
        self,
        ports: Sequence[int],
        *,
        fresh: int = 3,
        kept: int = 4,
        idle: float = 0.3,
        pause: float = 0.006,
        again: bool = False,
    ) -> None:
        super().__init__()
        self._again, self._pause = again, pause
        self._longest_silence = 1.5 * max(idle, pause) + 0.1
        self.failures: list[Failure] = []
        self.seen: Counter[tuple[str, int]] = Counter()  # responses by generation and process
        self.versions: Counter[str] = Counter()
        self.longest = 0.0
        self._ports = list(ports)
        self._lock = threading.Lock()
        self.threads = [threading.Thread(target=self._fresh, args=(i,)) for i in range(fresh)]
        self.threads += [threading.Thread(target=self._kept, args=(i, idle if i % 2 else pause)) for i in range(kept)]

    @property
    def answered(self) -> int:
        """The number of requests with a response."""
        return sum(self.seen.values())

    def check(self) -> None:
        """Fail if a request had no response."""
        assert self.failures == [], f"{len(self.failures)} of {self.answered + len(self.failures)}: {self.failures[:5]}"
        assert self.answered > 30

    def _fresh(self, first: int) -> None:
        for port in itertools.islice(itertools.cycle(self._ports), first, None):
            if self.over.wait(self._pause):
                return
            self._ask("fresh", port, None)

    def _kept(self, first: int, idle: float) -> None:
        for port in itertools.islice(itertools.cycle(self._ports), first, None):
            with contextlib.ExitStack() as stack:
                client: Connection | None = None
                while True:
                    if self.over.wait(idle):
                        return
                    client, last = self._ask("kept", port, client)
                    if client is None:
                        break
                    if last:
                        client.sock.close()
                        break
                    stack.callback(client.sock.close)

    def _ask(self, kind: str, port: int, client: Connection | None) -> tuple[Connection | None, bool]:
        """Send one request; return the client, or None after a failure, and whether this was the last response of the connection."""
        began, fresh, used = time.monotonic(), kind == "fresh", client is not None
        silence = 0.0
        try:
            client = client or Connection(port)
            try:
                client.request("/", *["Connection: close"] * fresh)
            finally:
                silence = time.monotonic() - client.silent_since
            answer = client.answer()
            client.silent_since = time.monotonic()
            found: dict[str, Any] = answer.json if answer.status == 200 else {}
            last = "connection" in answer and answer["connection"] == "close"
            why = "" if found else f"{answer.status} {answer.text[:200]}"
        except (OSError, AssertionError, ValueError) as error:
            late = silence > (self._longest_silence if used else NEW) and isinstance(error, OSError | EndedError)
            if client is not None and (late or (self._again and used)):
                client.sock.close()
                return self._ask(kind, port, None)
            found, last, why = {}, True, repr(error)
        ended = time.monotonic()
        if client is not None and (fresh or not found):
            client.sock.close()
        with self._lock:
            self.longest = max(self.longest, ended - began)
            if not found:
                where = (None, began) if client is None else (client.port, client.opened)
                self.failures.append(Failure(kind, began, ended, why, *where))
                return None, True
            self.seen[found["generation"], found["pid"]] += 1
            self.versions[found["version"]] += 1
        return client, last
