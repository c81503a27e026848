"""What all connections of one process share: the application, the limits, the clock of the sweep, and the counters."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import sys
from collections.abc import Callable
from email.utils import formatdate
from math import inf
from time import time
from typing import TYPE_CHECKING, Any, Literal, Protocol

from forkserve.http.access import AccessLog
from forkserve.http.framing.outgoing import Buffered
from forkserve.http.message.errors import RequestError
from forkserve.http.message.http1 import Limits
from forkserve.http.message.response import Ending
from forkserve.http.proxy import TrustedPeers
from forkserve.http.refusals import Refusals

if TYPE_CHECKING:
    import ssl

    from forkserve.config.settings import Settings
    from forkserve.http.app.exchange import Exchange
    from forkserve.http.app.threads import ThreadPool
    from forkserve.http.app.websocket import WebSocket
    from forkserve.http.app.wsgi import Turns
    from forkserve.http.framing.connection import Connection
    from forkserve.http.message.fields import Fields
    from forkserve.http.message.http1 import Target
    from forkserve.http.quota import Quota


class Observer(Protocol):
    """Is told when calls of the application begin and end, for liveness."""

    def begin(self, line: bytes) -> None:
        """An inline application call begins; ``line`` is the request line."""

    def end(self) -> None:
        """It has ended."""

    def enter(self, line: bytes) -> int:
        """A call that runs beside others begins; return a number for `leave`. In any thread."""
        ...

    def leave(self, number: int) -> None:
        """It has ended."""

    def connected(self, count: int) -> None:
        """So many connections are open now."""

    def is_drain_ordered(self) -> bool:
        """Whether this process has been told to drain, perhaps without having had the time to notice."""
        ...


class Site:
    """What all connections of one process share.

    Args:
        settings: The settings.
        app: The WSGI or ASGI application.
        interface: Which of the two it is.
        loop: The loop that everything here runs on.
        observer: Told of inline application calls.
        printable: Escapes control characters for log lines.
        write_access: Appends to the access log; None to have none.

    Raises:
        ValueError: The format of the access log is not valid.
    """

    def __init__(
        self,
        settings: Settings,
        app: Callable[..., Any],
        interface: Literal["wsgi", "asgi"],
        loop: asyncio.AbstractEventLoop,
        observer: Observer,
        printable: Callable[[str], str],
        write_access: Callable[[bytes], None] | None,
    ) -> None:
        self.settings = settings
        self.app = app
        self.interface = interface
        self.loop = loop
        self.observer = observer
        self.printable = printable
        self.log = logging.getLogger("forkserve")
        self.limits = Limits(
            line=settings.limit_request_line,
            fields=settings.limit_request_fields,
            head=settings.limit_request_head,
            body=settings.limit_request_body or sys.maxsize,
            field=settings.limit_request_field_size,
        )
        self.header_timeout = settings.header_timeout or inf
        self.body_timeout = settings.body_timeout or inf
        self.write_timeout = settings.write_timeout or inf
        self.keep_alive = settings.keep_alive + 1.0  # ``now`` is up to a second old: never too early
        # Counted only where there is a limit: every request would have to pay for it.
        self.in_hand: set[Exchange] | None = set() if settings.limit_concurrency else None
        self.access_log = None if write_access is None else AccessLog(write_access, settings.access_logformat)
        self.on_answer: Callable[[Exchange], None] | None = None  # an answer has been written, or as much as there will be
        if self.access_log is not None:
            self.on_answer = self.access_log.write
        self.tls: ssl.SSLContext | None = None
        self.handshakes_failed = 0
        self.refusals = Refusals(self.log, loop.time)
        self.buffered = Buffered(settings.limit_buffered or sys.maxsize)
        self.connections: set[Connection | WebSocket] = set()
        # asyncio refers to tasks only weakly: one that waits for what nobody else refers to would be collected half-way.
        self.tasks: set[asyncio.Task[None]] = set()  # of requests and commands
        self.handshakes: set[asyncio.Task[None]] = set()  # in which connections are set up
        self.context = contextvars.copy_context()  # requests run in copies of it
        self.new_exchange: Callable[[Connection, Target, Fields], Exchange]
        self.inline: Turns  # if WSGI calls are made on the loop's thread
        self.rest: Callable[[], None] = _nothing  # have the loop end what it has begun before the next such call
        self.pool: ThreadPool  # if they are made beside it
        self.trusted = TrustedPeers(settings.forwarded_allow_ips if settings.proxy_headers else ())
        self.state: dict[str, Any] = {}  # the lifespan's
        self.requests = 0
        self.quota: Quota | None = None  # with --max-requests
        self.spent_at = sys.maxsize  # so many requests are what the quota is asked at
        self.draining = False
        self.ending_streams = False  # the drain has no more time for answers whose end nobody knows
        self.closing = not settings.keep_alive  # every answer is the last on its connection; so it is while draining
        self._common_lines = "".join(f"{name}: {value}\r\n" for name, value in settings.header).encode("latin-1")
        self._server_line = b"Server: forkserve\r\n" if settings.server_header else b""
        self.ending: Ending
        self.now = loop.time()
        self.tick()

    def freeze_context(self) -> None:
        """Let requests see the context variables as they are now, in the context of the caller: start-up is over."""
        self.context = contextvars.copy_context()

    def make_room(self) -> None:
        """See that another request may be taken in hand.

        Raises:
            RequestError: 503, there are as many as ``limit_concurrency`` allows.
        """
        assert self.in_hand is not None
        if len(self.in_hand) >= self.settings.limit_concurrency:
            self.in_hand = {other for other in self.in_hand if not other.complete and not other.gone}
            if len(self.in_hand) >= self.settings.limit_concurrency:
                raise RequestError(503, "too many requests in hand; try again later", (("Retry-After", "1"),))

    def tick(self) -> None:
        """Bring clock and Date line up to now; called by the sweep."""
        self.now = self.loop.time()
        date = f"Date: {formatdate(time(), usegmt=True)}\r\n" if self.settings.date_header else ""
        self.ending = Ending(self._common_lines, date.encode(), self._server_line)

    def sweep(self, late: float = 0.0) -> None:
        """Look at every connection once: the only clock that timeouts have.

        Args:
            late: Seconds by which this sweep is overdue, because an application held the thread. Whatever clients sent meanwhile
                has not been read yet, so every deadline is moved by as much.
        """
        self.tick()
        for connection in tuple(self.connections):
            try:
                connection.sweep(self.now, late)
            except Exception:
                # One connection must not stop the clock of all others.
                self.log.exception("a connection could not be looked after")
                connection.abandon()
        self.refusals.sum_up()
        if self.access_log is not None:
            self.access_log.flush()


def _nothing() -> None:
    """No call holds the thread: the loop ends everything in time."""
