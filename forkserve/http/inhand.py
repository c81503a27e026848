"""Which requests are in hand and since when, for the log line of a process that is stuck.

Nothing is written per request, which would be too dear: all connections are looked at once a second, and once more when
somebody asks while the process is stuck.
"""

from __future__ import annotations

import sys
from time import monotonic_ns
from typing import TYPE_CHECKING

from forkserve.http.app.exchange import Exchange
from forkserve.http.app.websocket import WebSocket

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import FrameType

    from forkserve.http.framing.connection import Connection
    from forkserve.http.site import Site

RUNNING, WAITING, WEBSOCKET = range(3)


class InHand:
    """What a site has in hand.

    Args:
        site: Whose connections.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        # When each was seen first; a connection and how many requests it has had are one request.
        self._since: dict[tuple[Connection | WebSocket, int], int] = {}
        self._looked = monotonic_ns()

    def look(self, *, stuck: bool = False) -> tuple[list[tuple[int, bytes]], int]:
        """Look at all connections. It may interrupt anything on the loop's thread, even itself.

        Args:
            stuck: The loop may stand still, and this be a signal handler: what was not seen before has come soon after the last
                look, and what runs now matters most. It is found although its client may have gone, or have its answer.

        Returns:
            (since when in monotonic nanoseconds, to a second; request line) of each request, first those whose application is
            running now, then from the oldest on, then those that have become WebSockets and most of the time wait. And how many
            are being answered; a WebSocket has been.
        """
        now = monotonic_ns()
        unseen = self._looked + 1 if stuck else now
        running = _running() if stuck else []
        answering = {exchange.connection: exchange for exchange in running if not exchange.complete}
        since: dict[tuple[Connection | WebSocket, int], int] = {}
        found: list[tuple[int, int, bytes]] = []
        in_flight = 0
        for connection in tuple(self._site.connections):
            line = connection.in_hand
            if line is None:
                continue
            if isinstance(connection, WebSocket):
                origin, rank = connection.connection, WEBSOCKET
            else:
                origin, rank = connection, WAITING
                in_flight += 1
            key = connection, origin.requests
            if origin in answering:
                running.remove(answering[origin])
                rank = RUNNING
            since[key] = began = self._since.get(key, unseen + (rank == RUNNING))  # it runs, so it came last, for all we know
            found.append((rank, began, line.encode()))
        found += [(RUNNING, unseen + 1, exchange.describe().encode()) for exchange in running]
        self._since, self._looked = since, now
        return [(began, line) for _, began, line in sorted(found)], in_flight


def _running() -> list[Exchange]:
    """The exchanges whose application runs now, in this thread or another, read off the stacks.

    A task or thread of the application's own does not lead to one.
    """
    found: list[Exchange] = []
    stacks: Iterable[FrameType] = sys._current_frames().values()  # noqa: SLF001 - documented, for debugging
    for stack in stacks:
        frame: FrameType | None = stack
        while frame is not None:
            if isinstance(exchange := frame.f_locals.get("self"), Exchange):
                found.append(exchange)
                break
            frame = frame.f_back
    return found
