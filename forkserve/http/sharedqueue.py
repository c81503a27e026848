"""Accepts connections from a queue that other processes share, so that no connection waits for one process while another is idle.

Each process decides by itself, and looks at the load of the others:

- A process that has more connections than the least busy one waits for a moment. Without that, persistent connections pile up on
  the process that wakes up first (16 connections, 4 processes: all 16 on one). But while many connections come that bring one
  request each, it would only cost time (1,700 in a second instead of 10,000, from 32 clients): then a few more are no reason.
- Where calls to the application hold the thread, and all other processes are in such a call, no connection is accepted before
  the call for the last one: from the queue it goes to the process that is free first, or that is started because of it; once
  accepted, it waits for this one. (A front end that opens a connection for each request, four workers, one slow request in ten:
  without this the 99th percentile of the others was 1.4 times as high.) Where no request comes soon, because clients are far away
  or hostile, more and more connections are accepted without waiting. None is accepted while a long response delays the next call.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from forkserve.http.acceptor import Acceptor

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from forkserve.http.app.turns import Turns
    from forkserve.http.framing.state import ServerState
    from forkserve.http.framing.writer import Framing

COURTESY = 0.002
"""Seconds that a less busy process has to accept a connection before this one does."""
WINDOW = 32
"""Connections after which it is judged whether they stay; and how many more a process may have than another if they do not."""
RUSH = 0.5
"""Seconds in which `WINDOW` connections must have come to be a rush, and for which the rush is taken to last."""
FIRST_REQUEST = 0.005
"""Seconds in which the request of a new connection is expected."""
LOOK_AGAIN = 0.1
"""Seconds between two looks whether any sibling is left, while a slow client's response holds the application."""
FEWEST, MOST = 2, 64
"""Connections in a row that are accepted without waiting for a request, after others brought none."""


class SharedAcceptor(Acceptor):
    """Accepts connections from a listening socket that other processes share. On the loop's thread.

    Args:
        server: What the connections share.
        sock: Listening and non-blocking; the caller closes it.
        framing: Makes the protocol of a connection.
        least_busy: Returns the smallest number of connections of another process that can take more; infinity if none can,
            None if there is no other process.
        turns: The queue in front of an application whose calls hold this thread.
    """

    def __init__(
        self,
        server: ServerState,
        sock: socket.socket,
        framing: Framing,
        least_busy: Callable[[], float | None],
        turns: Turns | None,
    ) -> None:
        super().__init__(server, sock, framing)
        self._least_busy = least_busy
        self._turns = turns
        # A worker that is always alone is spared the cost: 0.07 ms for each connection.
        self._may_have_siblings = max(server.settings.workers, server.settings.max_workers) > 1
        self._taken = 0  # of WINDOW
        self._before = 0, 0, 0.0  # connections, requests and time when the window began
        self._rush_until = 0.0
        self._expected_until = 0.0  # time until which the request of the last connection is expected
        self._requests_before = 0
        self._unchecked = 0  # connections that are still accepted without waiting for a request
        self._next_unchecked = FEWEST  # the number of them when the next wait has been in vain
        self._waiting = False

    def stop(self, *, leave: bool = False) -> None:
        """Accept what waits in the queue, or leave it to other processes that accept there; then accept no more."""
        super().stop(leave=leave)
        self._waiting = False

    def _ready(self) -> None:
        least, now = self._least_busy(), self._loop.time()
        turns = self._turns
        if least is None:
            if turns is None or not self._may_have_siblings:
                super()._ready()
                return
            least = inf  # a process may be started because connections wait in the queue, and gets only those
        expects = self._expects_request(now)
        if turns is not None and turns.held:
            self._wait(turns, LOOK_AGAIN, self._look_again)
        elif len(self._server.connections) + expects > least + (WINDOW if now < self._rush_until else 0):
            self._rest(COURTESY, self._come_back)
        elif turns is not None and expects and least == inf:
            self._wait(turns, self._expected_until - now, self._no_call)
        else:
            self._take(now)

    def _expects_request(self, now: float) -> bool:
        """Return whether an application call for the last connection is expected; it may not be among the connections yet."""
        return self._turns is not None and now < self._expected_until and self._server.requests == self._requests_before

    def _wait(self, turns: Turns, seconds: float, then: Callable[[], None]) -> None:
        """Accept nothing until a call of the application has ended, but no longer than that."""
        self._waiting = True
        self._rest(seconds, then)
        turns.when_one_has_ended(self._call_ended)

    def _look_again(self) -> None:
        self._waiting = False
        self.start()

    def _come_back(self) -> None:
        now = self._loop.time()
        if self._expects_request(now):
            self._waited_in_vain()
        self.start()
        self._take(now)

    def _waited_in_vain(self) -> None:
        self._unchecked, self._next_unchecked = self._next_unchecked, min(2 * self._next_unchecked, MOST)

    def _take(self, now: float) -> None:
        """Accept one connection, if there is one."""
        if not self._accept():
            return
        self._taken += 1
        if self._taken == WINDOW:
            self._judge(now)
        if self._server.requests != self._requests_before:
            self._next_unchecked = FEWEST
        if self._unchecked:
            self._unchecked -= 1
        else:
            self._expected_until, self._requests_before = now + FIRST_REQUEST, self._server.requests

    def _judge(self, now: float) -> None:
        """See whether this is a rush: connections come fast, few of them stay, and they bring hardly more than a request each."""
        after = len(self._server.connections), self._server.requests, now
        more, requests, seconds = (one - other for one, other in zip(after, self._before, strict=True))
        if more < WINDOW / 2 and requests < 2 * WINDOW and seconds < RUSH:
            self._rush_until = now + RUSH
        self._taken, self._before = 0, after

    def _call_ended(self) -> None:
        if self._waiting and self._timer is not None:
            self._waiting = False
            self._timer.cancel()
            self.start()

    def _no_call(self) -> None:
        self._waiting = False
        self._waited_in_vain()
        self.start()
