"""Takes connections from a queue that other processes take from, too: so that none waits for one of them while another is idle.

Each decides by itself, with a look at what the others have in hand:

- Who has more connections than the least busy one steps back for a moment. Without that, kept ones pile up on whoever wakes up
  first (16 of them, 4 processes: all 16 on one). But while many come that bring one request each and are gone, it would only cost
  time (1,700 in a second instead of 10,000, from 32 clients): then some more are no reason.
- Where calls to the application hold the thread, and all others are in one, no connection is taken before the call for the last
  one: in the queue it is had by whoever is free first, or is started because of it; taken, it waits for us. (A front end that
  opens a connection for each request, four workers, one slow request in ten: the 99th percentile of the others was 1.4 times as
  high without.) Where no request comes soon, as clients are far away or mean no good, more and more are taken without waiting.
  None is taken while a long answer keeps the application from the next call.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from forkserve.http.acceptor import Acceptor

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from forkserve.http.app.wsgi import Turns
    from forkserve.http.site import Site

COURTESY = 0.002
"""Seconds that a less busy process has to take a connection before we do."""
WINDOW = 32
"""Connections after which it is judged whether they stay; and how many more one may have than another while they do not."""
RUSH = 0.5
"""Seconds in which so many must have come for that; and for which it then holds."""
FIRST_REQUEST = 0.005
"""Seconds in which the request of a new connection is expected."""
LOOK_AGAIN = 0.1
"""Seconds between two looks whether any sibling is left, while an answer that its client takes slowly holds the application."""
FEWEST, MOST = 2, 64
"""Connections in a row whose request is not waited for, after others brought none."""


class SharedAcceptor(Acceptor):
    """Takes connections from a listening socket that other processes listen on, too. On the loop's thread.

    Args:
        site: What the connections share.
        sock: Listening and non-blocking; stays the caller's.
        least_busy: How many connections the other process has that has the fewest, and time for more; infinity if none has
            time, None if there is no other.
        turns: For an application whose calls hold this thread.
    """

    def __init__(self, site: Site, sock: socket.socket, least_busy: Callable[[], float | None], turns: Turns | None) -> None:
        super().__init__(site, sock)
        self._least_busy = least_busy
        self._turns = turns
        # Alone for good, it need not pay for that: 0.07 ms for each connection.
        self._may_get_company = max(site.settings.workers, site.settings.max_workers) > 1
        self._taken = 0  # of WINDOW
        self._before = 0, 0, 0.0  # connections, requests and time when it began
        self._rush_until = 0.0
        self._expected_until = 0.0  # the request of the last connection
        self._requests_before = 0
        self._spared = 0  # connections whose request is not waited for
        self._to_spare = FEWEST  # when the next one was waited for in vain
        self._waiting = False

    def stop(self, *, leave: bool = False) -> None:
        """Take what waits in the queue, or leave it to others who accept there; then accept no more."""
        super().stop(leave=leave)
        self._waiting = False

    def _ready(self) -> None:
        least, now = self._least_busy(), self._loop.time()
        turns = self._turns
        if least is None:
            if turns is None or not self._may_get_company:
                super()._ready()
                return
            least = inf  # others may be started because of what waits in the queue, and can only have that
        expects = self._expects_request(now)
        if turns is not None and turns.held:
            self._wait(turns, LOOK_AGAIN, self._look_again)
        elif len(self._site.connections) + expects > least + (WINDOW if now < self._rush_until else 0):
            self._rest(COURTESY, self._come_back)
        elif turns is not None and expects and least == inf:
            self._wait(turns, self._expected_until - now, self._not_called)
        else:
            self._take(now)

    def _expects_request(self, now: float) -> bool:
        """Whether an application call for the last connection is to come: it may not be among the connections yet."""
        return self._turns is not None and now < self._expected_until and self._site.requests == self._requests_before

    def _wait(self, turns: Turns, seconds: float, then: Callable[[], None]) -> None:
        """Accept nothing until a call of the application has ended, but no longer than that."""
        self._waiting = True
        self._rest(seconds, then)
        turns.when_one_has_ended(self._called)

    def _look_again(self) -> None:
        self._waiting = False
        self.start()

    def _come_back(self) -> None:
        now = self._loop.time()
        if self._expects_request(now):
            self._disappointed()
        self.start()
        self._take(now)

    def _disappointed(self) -> None:
        self._spared, self._to_spare = self._to_spare, min(2 * self._to_spare, MOST)

    def _take(self, now: float) -> None:
        """Take one connection, if there is one."""
        if not self._accept():
            return
        self._taken += 1
        if self._taken == WINDOW:
            self._judge(now)
        if self._site.requests != self._requests_before:
            self._to_spare = FEWEST
        if self._spared:
            self._spared -= 1
        else:
            self._expected_until, self._requests_before = now + FIRST_REQUEST, self._site.requests

    def _judge(self, now: float) -> None:
        """See whether they came fast and do not stay: few are still there, and they brought hardly more than a request each."""
        after = len(self._site.connections), self._site.requests, now
        more, requests, seconds = (one - other for one, other in zip(after, self._before, strict=True))
        if more < WINDOW / 2 and requests < 2 * WINDOW and seconds < RUSH:
            self._rush_until = now + RUSH
        self._taken, self._before = 0, after

    def _called(self) -> None:
        if self._waiting and self._timer is not None:
            self._waiting = False
            self._timer.cancel()
            self.start()

    def _not_called(self) -> None:
        self._waiting = False
        self._disappointed()
        self.start()
