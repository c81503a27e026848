"""What workers on the same address do for each other: which of them accepts, and which empties the queue. In a worker."""

from __future__ import annotations

import time
from math import inf
from time import monotonic_ns
from typing import TYPE_CHECKING

from forkserve.prefork.system import acceptqueue
from forkserve.prefork.system.scoreboard import BEAT, CONNECTIONS, STARTED

if TYPE_CHECKING:
    from forkserve.http.service import Service
    from forkserve.prefork.worker.worker import Worker

PULSE = 0.11
"""Seconds between two heartbeats on a shared address, where siblings look which worker can take a connection."""
HANDSHAKE = 1.0
"""Seconds to wait for TCP handshakes that have begun when a listener is closed; longer than most of them take."""
SILENT = 130_000_000
"""Nanoseconds without a heartbeat after which a worker counts as busy: a pulse, and the delay of a timer."""


def least_busy(worker: Worker) -> float | None:
    """Return the smallest number of connections of a sibling that can take more; None if there is no sibling."""
    siblings = worker.scoreboard.siblings(worker.row)
    if not siblings:
        return None
    since = monotonic_ns() - SILENT
    free = (row.cells[CONNECTIONS] for row in siblings if not row.cells[STARTED] and row.cells[BEAT] > since)
    return min(free, default=inf)


async def close_queues(worker: Worker, service: Service) -> None:
    """Refuse new connections to listeners that are closed with this worker, so that nothing is left in their queues.

    If other workers accept there, the last of them does this.
    """
    alone = not worker.scoreboard.siblings(worker.row)
    mine = [one.sock for one in worker.listeners if one.slot is not None or alone]
    closing = [sock for sock in mine if acceptqueue.identity(sock) in worker.closing]
    for sock in closing:
        acceptqueue.refuse(sock)
    until = time.monotonic() + HANDSHAKE
    while any(map(acceptqueue.has_handshakes, closing)) and time.monotonic() < until:
        await service.pause(HANDSHAKE / 100)
