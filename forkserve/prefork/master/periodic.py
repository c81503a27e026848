"""Periodic checks of the master, once a second: workers to recycle, lost socket files, the number of workers."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

from forkserve.base.errors import CommandError
from forkserve.base.logs import logger
from forkserve.prefork.master.status import served
from forkserve.prefork.policy import history
from forkserve.prefork.policy.autoscale import Autoscaler
from forkserve.prefork.policy.pool import Phase, Pool
from forkserve.prefork.policy.recycling import Recycler
from forkserve.prefork.policy.states import State
from forkserve.prefork.system import acceptqueue

if TYPE_CHECKING:
    from collections.abc import Callable

    from forkserve.prefork.ipc.pending import Pending
    from forkserve.prefork.master.children import Children
    from forkserve.prefork.master.context import MasterContext
    from forkserve.prefork.master.reloading import Reloading
    from forkserve.prefork.system.listeners import Listeners
    from forkserve.prefork.system.poller import Poller

PERIOD = 1.0  # seconds


class PeriodicChecks:
    """The checks of one master.

    Args:
        state: The settings in force.
        pool: The workers.
        listeners: The addresses.
        children: The processes.
        reloading: Knows whether a reload runs.
        scale: The command; may raise CommandError.
    """

    def __init__(
        self,
        state: MasterContext,
        pool: Pool,
        listeners: Listeners,
        children: Children,
        reloading: Reloading,
        scale: Callable[[int | str], Pending],
    ) -> None:
        self._state, self._pool, self._listeners = state, pool, listeners
        self._children, self._reloading, self._scale = children, reloading, scale
        self._recycler = Recycler(random.random)
        self._warned = ""

    def start(self, poller: Poller) -> None:
        """Start the checks."""
        settings = self._state.settings
        poller.every(PERIOD, self._recycle)
        poller.every(PERIOD, self._check_socket_files)
        if settings.max_workers:
            bounds = max(1, settings.min_workers), settings.max_workers
            scaler = Autoscaler(*bounds, settings.min_spare, settings.max_spare)
            poller.every(PERIOD, lambda: self._autoscale(scaler))

    def _recycle(self) -> None:
        """Replace workers that are too old or too large, as few at a time as a reload does."""
        settings, pool = self._state.settings, self._pool
        if not (settings.max_lifetime or settings.max_memory) or pool.phase is not Phase.SERVING:
            return
        ready = [child for child in self._children if child.member.state is State.READY and not child.member.outdated]
        room = 0 if self._reloading.under_way else pool.capacity.room(pool.wanted).replacements - (pool.wanted - len(ready))
        for slot, why in self._recycler.pick([served(one, settings) for one in ready], settings, room):
            logger.info("worker %d is replaced: %s", slot, why)
            history.Replaced(slot).happen(pool)

    def _check_socket_files(self) -> None:
        """Warn if the file of a unix socket was removed, or replaced by another server."""
        for one in self._listeners.look() if self._pool.phase is Phase.SERVING else ():
            logger.warning(
                "%s: the file of this socket is gone, so no client can connect: reload to create it again", one.address("unix")
            )

    def _autoscale(self, scaler: Autoscaler) -> None:
        pool = self._pool
        if pool.phase is not Phase.SERVING:
            return
        ready = (one for one in self._children if one.member.state is State.READY)
        # All others are about to end, or wait for a successor and accept nothing.
        rows = [one.row for one in ready if one.id <= pool.wanted and not one.member.full]
        idle = sum(not row.in_flight() for row in rows)
        waiting = sum(acceptqueue.length(listener.sock) for listener in self._listeners)
        wanted = scaler.advise(time.monotonic(), pool.wanted, len(rows), idle, waiting)
        if wanted == pool.wanted:
            return
        try:
            self._scale(wanted)
            self._warned = ""
        except CommandError as error:
            if str(error) != self._warned:  # the scaler repeats its advice every second
                self._warned = str(error)
                logger.warning("%s", error)
