"""A load on a server: clients with fresh connections and with kept ones, and every request that was not answered."""

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
    """A request that was not answered with 200, and when."""

    kind: str  # of client
    began: float
    ended: float
    why: str
    port: int | None  # the client's, if it was connected by TCP
    opened: float  # when it began to connect
    server: int | None = None  # the server's port


NEW = 1.0
"""Seconds in which a client sends its first request: a worker that drains waits for it twice as long."""


class Connection(Client):
    """A connection that knows when and from where it was opened, and since when its client has sent nothing."""

    def __init__(self, where: Where) -> None:
        self.opened = self.silent_since = time.monotonic()
        super().__init__(where)
        name = self.sock.getsockname()
        self.port: int | None = name[1] if isinstance(name, tuple) else None  # a unix socket has none


class Load:
    """Clients that ask one request after the other, from `with` on to its end.

    A client that keeps its connection opens another only when an answer said that it is the last of this one: an end that
    was not announced is a failure. Some of them are idle for a while between two requests. One that did not get the processor
    in time, and was silent for much longer than it should be, sends its request on another connection.

    Args:
        ports: Where; each client goes through all of them.
        fresh: Clients that take a new connection for each request.
        kept: Clients that keep theirs; every other one is mostly idle.
        idle: Seconds that those are idle.
        pause: Seconds between two requests of the others, which leave the servers most of the machine.
        again: A kept connection may end without an announcement, and the request is then sent on another: nginx closes idle
            ones when it reloads. What it could not have answered by a worker is a 502.
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
        self._again, self._pause = again, pause
        self._longest_silence = 1.5 * max(idle, pause) + 0.1
        self.failures: list[Failure] = []
        self.seen: Counter[tuple[str, int]] = Counter()  # answers by generation and process
        self.versions: Counter[str] = Counter()
        self.longest = 0.0
        self._ports = list(ports)
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._fresh, args=(i,)) for i in range(fresh)]
        self._threads += [threading.Thread(target=self._kept, args=(i, idle if i % 2 else pause)) for i in range(kept)]

    @property
    def answered(self) -> int:
        """How many requests were answered."""
        return sum(self.seen.values())

    def __enter__(self) -> Self:
        """Begin."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def check(self) -> None:
        """Fail if a request was not answered."""
        assert self.failures == [], f"{len(self.failures)} of {self.answered + len(self.failures)}: {self.failures[:5]}"
        assert self.answered > 30

    def _fresh(self, first: int) -> None:
        for port in itertools.islice(itertools.cycle(self._ports), first, None):
            if self._over.wait(self._pause):
                return
            self._ask("fresh", port, None)

    def _kept(self, first: int, idle: float) -> None:
        for port in itertools.islice(itertools.cycle(self._ports), first, None):
            with contextlib.ExitStack() as stack:
                client: Connection | None = None
                while True:
                    if self._over.wait(idle):
                        return
                    client, last = self._ask("kept", port, client)
                    if client is None:
                        break
                    if last:
                        client.sock.close()
                        break
                    stack.callback(client.sock.close)

    def _ask(self, kind: str, port: int, client: Connection | None) -> tuple[Connection | None, bool]:
        """Ask once; return the client, None if that failed, and whether it has had its last answer."""
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
