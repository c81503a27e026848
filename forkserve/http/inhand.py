"""Which requests are running and since when, for the log line of a process that is stuck.

Nothing is recorded per request, which would cost too much: all connections are looked at once a second, and once more when the
master asks while the process is stuck.
"""

from __future__ import annotations

import sys
from heapq import nsmallest
from operator import itemgetter
from time import monotonic_ns
from typing import TYPE_CHECKING

from forkserve.http.app.exchange import Exchange
from forkserve.http.websocket.connection import WebSocketConnection

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import FrameType

    from forkserve.http.framing.state import ServerState
    from forkserve.http.framing.writer import RequestHandler

RUNNING, WAITING, WEBSOCKET = range(3)


class RunningRequests:
    """Finds the requests that are running on the connections of this process.

    Args:
        server: Knows the connections.
    """

    def __init__(self, server: ServerState) -> None:
        self._server = server
        # When each was seen first; a connection and the number of its requests identify a request.
        self._since: dict[tuple[object, int], int] = {}
        self._looked = monotonic_ns()

    def look(self, most: int, *, stuck: bool = False) -> tuple[list[tuple[int, bytes]], int]:
        """Look at all connections. It may interrupt anything on the loop's thread, even itself.

        Args:
            most: How many requests are described.
            stuck: The loop may stand still, and the caller be a signal handler. A request not seen before came soon after the
                last look then. Calls that run now matter most: they are found even if the client is gone or has its response.

        Returns:
            A pair for each of these requests: the time when it was seen first, in monotonic nanoseconds, and its request line.
            Requests with a running application call come first, then the others by age, then WebSockets, which wait most of the
            time. And the number of requests whose response is not complete; WebSockets are not counted.
        """
        now = monotonic_ns()
        unseen = self._looked + 1 if stuck else now
        running = _running() if stuck else []
        since: dict[tuple[object, int], int] = {}
        found: list[tuple[int, int, RequestHandler]] = []
        in_flight = 0
        for connection in tuple(self._server.connections):
            exchange = connection.exchange
            if exchange is None:
                continue
            if isinstance(connection, WebSocketConnection):
                rank = WEBSOCKET
            else:
                rank = WAITING
                in_flight += 1
            if exchange in running:
                running.remove(exchange)
                rank = RUNNING
            key = connection, connection.requests
            since[key] = began = self._since.get(key, unseen + (rank == RUNNING))  # it runs, so it probably came last
            found.append((rank, began, exchange))
        found += [(RUNNING, unseen + 1, exchange) for exchange in running]
        self._since, self._looked = since, now
        first = nsmallest(most, found, key=itemgetter(0, 1))  # of thousands of requests, only these lines are made
        return [(began, exchange.describe().encode()) for _, began, exchange in first], in_flight


def _running() -> list[RequestHandler]:
    """Return the exchanges with a running application call in any thread, found on the stacks.

    The stack of a task or thread that the application has started leads to none.
    """
    found: list[RequestHandler] = []
    stacks: Iterable[FrameType] = sys._current_frames().values()  # noqa: SLF001 - documented, for debugging
    for stack in stacks:
        frame: FrameType | None = stack
        while frame is not None:
            if isinstance(exchange := frame.f_locals.get("self"), Exchange):
                found.append(exchange)
                break
            frame = frame.f_back
    return found
