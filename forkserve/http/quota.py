"""How many requests a process answers before it is replaced (--max-requests), and how many more until its successor is ready.

At N requests the process asks for a successor; until that is ready it takes max(2, N/10) more. To stay below that number, each
connection that may bring another request counts as a request. When requests and such connections together reach the maximum, or
the requests reach N, every further response is the last on its connection. When they reach the maximum nevertheless, no
connection is accepted any more: the next ones wait in the listener's queue for the successor.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from forkserve.http.acceptor import Acceptor
    from forkserve.http.framing.state import ServerState

LEAST_SURPLUS = 2
"""Requests that are answered at least while a successor boots."""


class Quota:
    """The requests that one process may answer. On the loop's thread.

    Args:
        server: Counts the requests.
        number: The requests from now on after which a successor is needed.
        acceptors: They stop when no connection may be accepted any more.
        on_spent: Called when a successor is needed, and again when no connection is accepted any more (``full``), with the
            number of requests so far.
    """

    def __init__(
        self, server: ServerState, number: int, acceptors: Sequence[Acceptor], on_spent: Callable[[int, bool], None]
    ) -> None:
        self._server = server
        self._acceptors = acceptors
        self._on_spent = on_spent
        self._number = server.requests + number
        self._most = self._number + max(LEAST_SURPLUS, number // 10)
        self._spent = self._full = False
        server.on_spent = self._reached
        for acceptor in acceptors:
            acceptor.admit = self.admit
        self._look(coming=0)

    def _reached(self) -> None:
        """Look again: `ServerState.spent_at` requests have come."""
        if not self._spent:
            self._look(coming=0)

    def admit(self) -> bool:
        """Return whether another connection may be accepted; if so, it counts from now on."""
        server = self._server
        if not self._spent:
            server.spent_at -= 1
            if server.requests >= server.spent_at:
                self._look(coming=1)
            if not self._spent:
                return True
        if not self._full and server.requests + self._may_come() >= self._most:
            self._full = True
            for acceptor in self._acceptors:
                acceptor.hold()
            self._on_spent(server.requests, True)
        return not self._full

    def lift(self) -> None:
        """Accept and answer without a limit from now on."""
        server = self._server
        server.spent_at = sys.maxsize
        if not server.draining:
            server.closing = not server.settings.keep_alive
        for acceptor in self._acceptors:
            acceptor.admit = None
            acceptor.go_on()

    def _look(self, coming: int) -> None:
        """See how many requests are left when ``coming`` more connections are accepted."""
        server = self._server
        left = self._most - server.requests - self._may_come() - coming
        if server.requests >= self._number or left < 0:
            self._spent = server.closing = True
            server.spent_at = sys.maxsize
            self._on_spent(server.requests, False)
        else:
            # Each request and each connection reduces the number by at most one; and the response that goes beyond it is the
            # last on its connection, so that it is not too many yet.
            server.spent_at = min(server.requests + left + 1, self._number)

    def _may_come(self) -> int:
        """Return the number of requests that may come over the present connections."""
        server = self._server
        return sum(client.may_bring_request(last=self._spent) for client in server.connections) + server.coming
