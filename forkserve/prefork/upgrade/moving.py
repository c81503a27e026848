"""Moving: workers go from the addresses of before an upgrade to those of its program, one after the other. In the master."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forkserve.prefork import status

if TYPE_CHECKING:
    from forkserve.prefork.listeners import Listener
    from forkserve.prefork.policy.pool import Pool
    from forkserve.prefork.steering import Steering


def follow(master: Steering) -> None:
    """Tell the pool which slots move, and close what nobody accepts from any more; before each plan."""
    pool = master.pool
    if not master.listeners.elsewhere(pool.generation):
        pool.moved = pool.sought = frozenset()
        return
    close_left(master)
    left = master.listeners.elsewhere(pool.generation)
    front, scheme = master.front, master.worker_class.scheme(master.settings)
    pool.moved = _slots(pool, left)
    pool.sought = _slots(pool, [one for one in left if front is not None and front.sends_to(status.listener(one, scheme))])


def _slots(pool: Pool, listeners: list[Listener]) -> set[int]:
    return {one.slot for one in pool.members() if any(there.accepted_by(one.slot, one.generation) for there in listeners)}


def close_left(master: Steering) -> None:
    """Close the addresses of other generations that no worker accepts from, unless the pool may go back to such a one."""
    pool = master.pool
    if pool.fallback is None:
        workers = [(one.slot, one.generation) for one in pool.members() if one.exists and not one.released]
        master.listeners.close_unused(pool.generation, workers)
