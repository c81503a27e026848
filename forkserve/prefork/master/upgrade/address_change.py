"""Address change: after an upgrade, the slots move from the old addresses to those of the new program, one after another."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from forkserve.prefork.master import status
from forkserve.prefork.policy.drain_gate import LONGEST

if TYPE_CHECKING:
    from forkserve.prefork.master.context import MasterContext
    from forkserve.prefork.master.observers import FrontendObserver
    from forkserve.prefork.policy.pool import Pool
    from forkserve.prefork.system.listeners import Listener, Listeners
    from forkserve.prefork.system.poller import Poller


class AddressChange:
    """Follows a change of addresses. Most of the time none is under way. In the master.

    Args:
        state: Gives the scheme of the addresses.
        pool: The workers.
        listeners: The addresses, old and new.
        frontend: Knows where a front end may still send requests.
        poller: Calls when an old address must be checked again.
    """

    def __init__(
        self, state: MasterContext, pool: Pool, listeners: Listeners, frontend: FrontendObserver, poller: Poller
    ) -> None:
        self._state, self._pool, self._listeners, self._frontend, self._poller = state, pool, listeners, frontend, poller

    def follow(self) -> None:
        """Give the pool the slots that move, and close the addresses that no worker accepts from. Called before each plan."""
        pool = self._pool
        if not self._listeners.elsewhere(pool.generations.committed):
            pool.departures.moved = pool.departures.advertised_before = frozenset()
            return
        self.close_unused()
        old = self._listeners.elsewhere(pool.generations.committed)
        pool.departures.moved = self._slots(old)
        pool.departures.advertised_before = self._slots([one for one in old if self._may_get_requests(one)])

    def _may_get_requests(self, one: Listener) -> bool:
        """Whether a front end may send requests there."""
        return self._frontend.sends_to(status.listener(one, self._state.scheme))

    def _slots(self, listeners: list[Listener]) -> set[int]:
        return {
            one.slot
            for one in self._pool.members.workers()
            if any(old.accepted_by(one.slot, one.generation) for old in listeners)
        }

    def close_unused(self) -> None:
        """Close the addresses of other generations that no worker accepts from. Close none while the pool may go back to them.

        If the worker of such an address has died, the front end may still send requests there. The address stays open until the
        front end is reconfigured, at most as long as a drain may take.
        """
        pool = self._pool
        if pool.generations.fallback is None:
            workers = [(one.slot, one.generation) for one in pool.members.workers() if one.exists and not one.released]
            longest = pool.members.limits.graceful or LONGEST
            due = self._listeners.close_unused(
                pool.generations.committed, workers, self._may_get_requests, time.monotonic(), longest
            )
            if due is not None:
                self._poller.at(due, int)  # wakes the loop
