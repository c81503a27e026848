"""Service manager: an observer that sends the server's state to systemd (sd_notify)."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from forkserve.prefork.master.observers import Observer
from forkserve.prefork.master.status import workers_ready
from forkserve.prefork.system.notify import Notifier

if TYPE_CHECKING:
    from collections.abc import Mapping

    from forkserve.prefork.policy.pool import Pool
    from forkserve.prefork.system.poller import Poller


def ready_status(pool: Pool) -> str:
    """Return the number of workers, in words, when all are ready."""
    return f"Ready: {pool.wanted} worker{'s' * (pool.wanted != 1)}"


class ServiceManager(Observer):
    """Notifies systemd, if the environment names its socket, and answers its watchdog. In the master."""

    def __init__(self, environ: Mapping[str, str], poller: Poller, pool: Pool) -> None:
        self._notifier = Notifier(environ, poller)
        self._pool = pool
        if (period := self._notifier.watchdog(environ)) is not None:
            self._notifier.send(WATCHDOG=1)  # an upgrade may have delayed the last one
            poller.every(period, lambda: self._notifier.send(WATCHDOG=1))

    def announced(self) -> None:
        """Report that the server is ready."""
        self._notifier.send(READY=1, MAINPID=os.getpid(), STATUS=ready_status(self._pool))

    def reload_began(self, generation: int) -> None:
        """Report that a reload runs."""
        self._notifier.send(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000, STATUS="reloading")

    def reload_ended(self, fault: str | None) -> None:
        """Report that the server is ready again, whether or not the reload has failed."""
        self._notifier.send(READY=1, STATUS=f"Ready: {workers_ready(self._pool)}")

    def stopping(self) -> None:
        """Report that the server stops."""
        self._notifier.send(STOPPING=1, STATUS="stopping")
