"""How many requests a process answers before it is replaced (--max-requests), and what it still takes until then.

At N requests a successor is asked for; until that is ready, a few more are taken: max(2, N/10). So that it is never more,
each connection that may bring another request counts as one beside those that have come. When both together reach the most,
or N has been reached, every further answer is the last on its connection; and when they reach it even so, no connection is
accepted any more: the next ones wait in the listener's queue, for the successor.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from forkserve.http.framing.connection import Connection

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from forkserve.http.acceptor import Acceptor
    from forkserve.http.site import Site

LEAST_SURPLUS = 2
"""Requests that are taken at least while a successor boots."""


class Quota:
    """The requests that one process may answer. On the loop's thread.

    Args:
        site: Whose requests are counted, from now on.
        number: Requests after which a successor is asked for.
        acceptors: They stop when no connection may be taken any more.
        on_spent: Called when a successor is wanted, and again when no connection is taken any more (``full``), with the
            number of requests so far.
    """

    def __init__(self, site: Site, number: int, acceptors: Sequence[Acceptor], on_spent: Callable[[int, bool], None]) -> None:
        self._site = site
        self._acceptors = acceptors
        self._on_spent = on_spent
        self._number = site.requests + number
        self._most = self._number + max(LEAST_SURPLUS, number // 10)
        self._spent = self._full = False
        self.coming = 0  # connections that are accepted but not set up yet
        site.quota = self
        self._look(coming=0)

    def reached(self) -> None:
        """So many requests have come as `Site.spent_at` says."""
        if not self._spent:
            self._look(coming=0)

    def admit(self) -> bool:
        """Whether another connection may be accepted; if so, it counts from now on."""
        site = self._site
        if not self._spent:
            site.spent_at -= 1
            if site.requests >= site.spent_at:
                self._look(coming=1)
            if not self._spent:
                return True
        if not self._full and site.requests + self._may_come() >= self._most:
            self._full = True
            for acceptor in self._acceptors:
                acceptor.hold()
            self._on_spent(site.requests, True)
        return not self._full

    def lift(self) -> None:
        """Take whatever comes from now on."""
        site = self._site
        site.quota, site.spent_at = None, sys.maxsize
        if not site.draining:
            site.closing = not site.settings.keep_alive
        for acceptor in self._acceptors:
            acceptor.go_on()

    def _look(self, coming: int) -> None:
        """See how far it is to the end, with so many connections about to be accepted."""
        site = self._site
        left = self._most - site.requests - self._may_come() - coming
        if site.requests >= self._number or left < 0:
            self._spent = site.closing = True
            site.spent_at = sys.maxsize
            self._on_spent(site.requests, False)
        else:
            # Each request and each connection brings it one nearer, at most; and the one that goes beyond is the last on its
            # connection, so that it is not too many yet.
            site.spent_at = min(site.requests + left + 1, self._number)

    def _may_come(self) -> int:
        """How many requests may come over the connections that there are."""
        ours = (one for one in self._site.connections if isinstance(one, Connection))
        return sum(one.may_ask(last=self._spent) for one in ours) + self.coming
