"""What all connections of one process share: limits, timeouts, counters, and the clock of the sweep."""

from __future__ import annotations

import logging
import sys
from email.utils import formatdate
from math import inf
from time import time
from typing import TYPE_CHECKING

from forkserve.base.tally import Tally
from forkserve.http.framing.h1head import CommonFields
from forkserve.http.framing.outgoing import Buffered
from forkserve.http.framing.refusals import Refusals
from forkserve.http.message.errors import RequestError
from forkserve.http.message.http1 import RequestLimits
from forkserve.http.message.readers import chosen, new_reader, ordinary_reader

if TYPE_CHECKING:
    import asyncio
    import ssl
    from collections.abc import Callable

    from forkserve.config.settings import Settings
    from forkserve.http.framing.writer import Client, ClientConnection, RequestHandler, UpgradeWriter
    from forkserve.http.message.fields import Fields
    from forkserve.http.message.http1 import Target

HALF_CLOSED = 600.0
"""Longest time in which a client that sends no more waits for the next piece of its answer: it may have left altogether."""


class ServerState:
    """What all connections of one process share. On the loop's thread.

    Args:
        settings: The settings.
        loop: The loop that everything here runs on.
        on_connections: Called with the number of open connections when it changes.

    Attributes:
        new_exchange: Makes the handler of a request.
        on_refused: Called for a request that was refused before it had a handler.
        rest: Gives the loop time to end what it has begun before the next application call holds the thread.
        half_close_timeout: Seconds between two pieces of a response to a client that sends no more.
        in_progress: The requests being served; counted only with a limit, as counting costs time in every request.
        tally: Counts what the connections and requests do.
        coming: Connections that are accepted but not set up yet.
        spent_at: The number of requests at which `on_spent` is called.
        closing: Whether every response is the last on its connection, as while draining.
        now: The loop's time at the last sweep.
        common: The fields that every response has, with the Date of the last sweep.
    """

    def __init__(self, settings: Settings, loop: asyncio.AbstractEventLoop, on_connections: Callable[[int], None]) -> None:
        self.settings = settings
        self.loop = loop
        self.log = logging.getLogger("forkserve")
        self.limits = RequestLimits.of(settings)
        self.read_head = new_reader(settings.http, self.limits)
        self.read_ordinary = ordinary_reader(self.limits) if chosen(settings.http) == "c" else None
        self.header_timeout = settings.header_timeout or inf
        self.body_timeout = settings.body_timeout or inf
        self.write_timeout = settings.write_timeout or inf
        self.half_close_timeout = HALF_CLOSED
        self.keep_alive = settings.keep_alive + 1.0  # ``now`` is up to a second old: never too early
        self.tls: ssl.SSLContext | None = None
        self.refusals = Refusals(self.log, loop.time)
        self.buffered = Buffered(settings.limit_buffered or sys.maxsize)
        self.new_exchange: Callable[[UpgradeWriter, Target, Fields], RequestHandler]
        self.on_refused: Callable[[ClientConnection, RequestError], None] | None = None
        self.rest: Callable[[], None] = _nothing
        self.connections: set[Client] = set()
        self.handshakes: set[asyncio.Task[None]] = set()  # in which connections are set up
        self.handshakes_failed = 0
        self.coming = 0
        self.requests = 0
        self.tally = Tally()
        self.in_progress: set[RequestHandler] | None = set() if settings.limit_concurrency else None
        self.spent_at = sys.maxsize
        self.on_spent: Callable[[], None] = _nothing
        self.draining = False
        self.closing = not settings.keep_alive
        self._configured = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in settings.header]
        self._on_connections = on_connections
        self.now = loop.time()
        self.common: CommonFields
        self.tick()

    def connected(self, client: Client) -> None:
        """Count a connection."""
        self.connections.add(client)
        self.tally.accepted += 1
        self._on_connections(len(self.connections))

    def disconnected(self, client: Client) -> None:
        """Count a connection no more."""
        self.connections.discard(client)
        self._on_connections(len(self.connections))

    def make_room(self, in_progress: set[RequestHandler]) -> None:
        """See that another request may be served besides those in progress; forget the ones that have ended.

        Raises:
            RequestError: 503, there are as many as ``limit_concurrency`` allows.
        """
        if len(in_progress) >= self.settings.limit_concurrency:
            in_progress -= {other for other in in_progress if other.complete or other.gone}
            if len(in_progress) >= self.settings.limit_concurrency:
                raise RequestError(503, "too many requests in hand; try again later", (("Retry-After", "1"),))

    def tick(self) -> None:
        """Bring clock and Date field up to now; called by the sweep."""
        self.now = self.loop.time()
        date = formatdate(time(), usegmt=True).encode() if self.settings.date_header else b""
        self.common = CommonFields(self._configured, date, b"forkserve" if self.settings.server_header else b"")

    def sweep(self, late: float = 0.0) -> None:
        """Look at every connection once: the only clock that timeouts have.

        Args:
            late: Seconds by which this sweep is overdue because an application held the thread. What clients sent meanwhile has
                not been read yet, so every deadline is moved by as much.
        """
        self.tick()
        for client in tuple(self.connections):
            try:
                client.sweep(self.now, late)
            except Exception:
                # One connection must not stop the clock of all others.
                self.log.exception("a connection could not be looked after")
                client.abandon()
        self.refusals.sum_up()


def _nothing() -> None:
    """Do nothing."""
