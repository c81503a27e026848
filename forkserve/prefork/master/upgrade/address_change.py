"""Moving: workers go from the addresses of before an upgrade to those of its program, one after the other. In the master."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from forkserve.prefork.master import status
from forkserve.prefork.policy.drain_gate import LONGEST

if TYPE_CHECKING:
    from forkserve.prefork.master.commands import Steering
    from forkserve.prefork.policy.pool import Pool
    from forkserve.prefork.system.listeners import Listener


def follow(master: Steering) -> None:
    """Tell the pool which slots move, and close what nobody accepts from any more; before each plan."""
    pool = master.pool
    if not master.listeners.elsewhere(pool.generations.committed):
        pool.departures.moved = pool.departures.advertised_before = frozenset()
        return
    close_left(master)
    left = master.listeners.elsewhere(pool.generations.committed)
    pool.departures.moved = _slots(pool, left)
    pool.departures.advertised_before = _slots(pool, [one for one in left if _sought(master, one)])


def _sought(master: Steering, one: Listener) -> bool:
    """Whether a front end may send requests there."""
    front = master.front
    return front is not None and front.sends_to(status.listener(one, master.worker_class.scheme(master.settings)))


def _slots(pool: Pool, listeners: list[Listener]) -> set[int]:
    return {one.slot for one in pool.members.workers() if any(there.accepted_by(one.slot, one.generation) for there in listeners)}


def close_left(master: Steering) -> None:
    """Close the addresses of other generations that no worker accepts from, unless the pool may go back to such a one.

    A worker may have died, and the front end not know yet: it is told first, at most as long as a drain may take.
    """
    pool = master.pool
    if pool.generations.fallback is None:
        workers = [(one.slot, one.generation) for one in pool.members.workers() if one.exists and not one.released]
        longest = pool.members.limits.graceful or LONGEST
        due = master.listeners.close_unused(
            pool.generations.committed, workers, partial(_sought, master), time.monotonic(), longest
        )
        if due is not None:
            master.poller.at(due, int)  # so that it is asked again
