"""HTTP on given sockets, in this process: start, sweep, drain, stop. No forking here; the worker is a thin shell around it."""

from __future__ import annotations

import asyncio
import logging
import socket
from contextvars import ContextVar
from math import inf
from typing import TYPE_CHECKING

from forkserve.http.acceptor import Acceptor
from forkserve.http.app.asgi import ASGIExchange
from forkserve.http.app.lifespan import Lifespan
from forkserve.http.app.threads import ThreadedExchange, ThreadPool
from forkserve.http.app.websocket import WebSocket
from forkserve.http.app.wsgi import Turns, WSGIExchange
from forkserve.http.framing.connection import Connection
from forkserve.http.inhand import InHand
from forkserve.http.quota import Quota
from forkserve.http.sharedqueue import SharedAcceptor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from forkserve.http.app.exchange import Exchange
    from forkserve.http.message.fields import Fields
    from forkserve.http.message.http1 import Target
    from forkserve.http.site import Site

SWEEP = 1.0
"""Seconds between two looks at all connections."""
NEWCOMERS = 2.0
"""Seconds that a draining process waits for a connection that has sent no request, or has not finished its TLS handshake."""
DRAIN_SWEEP = 0.05
"""The same as `SWEEP` while draining, when there are few connections and everyone is waiting."""
LEAST_SHUTDOWN = 0.5
"""Seconds that the application's shutdown gets even when requests have used up the graceful timeout; whoever waits for this
process to end then has not much more patience."""

_handled: ContextVar[Exchange | None] = ContextVar("forkserve_handled", default=None)
"""The exchange in whose context this is; only where somebody is called back for each request."""


class Service:
    """One application served on given sockets by the running loop.

    Args:
        site: Which application, and how.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self.loop = site.loop
        self.pool: ThreadPool | None = None
        self.turns: Turns | None = None  # for an application that is called inline
        self.in_hand = InHand(site)
        self._lifespan: Lifespan | None = None
        self._acceptors: list[Acceptor] = []
        self._timer: asyncio.TimerHandle | None = None
        self._ended: set[Connection | WebSocket] = set()  # streams that a drain has cut off
        if site.interface == "asgi":
            site.new_exchange = _asgi_exchange
            self._lifespan = Lifespan(site, site.settings.lifespan)
        elif site.settings.threads:
            site.pool = self.pool = ThreadPool(site, site.settings.threads)
            site.new_exchange = ThreadedExchange
        else:
            site.inline = self.turns = Turns(site)
            site.rest = self.turns.rest
            site.new_exchange = WSGIExchange

    def tell(self, on_request: Callable[[Exchange], None] | None, on_answer: Callable[[Exchange], None] | None) -> None:
        """Call back for each request before the application gets it, and when its answer has been written; in its context."""
        new_exchange, log = self.site.new_exchange, self.site.on_answer

        def announce(connection: Connection, target: Target, fields: Fields) -> Exchange:
            exchange = new_exchange(connection, target, fields)
            exchange.context.run(_handled.set, exchange)
            if on_request is not None:
                exchange.context.run(on_request, exchange)
            return exchange

        def report(exchange: Exchange) -> None:
            if log is not None:
                log(exchange)
            if on_answer is not None:
                _in_its_context(on_answer, exchange)

        self.site.new_exchange, self.site.on_answer = announce, report

    async def startup(self) -> None:
        """Run the application's own start-up.

        Raises:
            LifespanError: It failed.
        """
        if self._lifespan is not None:
            await self._lifespan.startup()

    def accept(
        self,
        sockets: Iterable[tuple[socket.socket, Callable[[], float | None] | None]],
        on_tick: Callable[[], None],
        period: float,
        on_sweep: Callable[[], None] = lambda: None,
    ) -> None:
        """Accept connections from now on.

        Args:
            sockets: Listening sockets; with each, for one that others share, how much those have to do (`SharedAcceptor`).
            on_tick: Called every ``period`` seconds.
            period: At most `SWEEP`.
            on_sweep: Called after each look at all connections, every `SWEEP` seconds.
        """
        self._acceptors = [
            Acceptor(self.site, sock) if least_busy is None else SharedAcceptor(self.site, sock, least_busy, self.turns)
            for sock, least_busy in sockets
        ]
        for acceptor in self._acceptors:
            acceptor.start()
        self._on_tick, self._on_sweep, self._period = on_tick, on_sweep, period
        self._swept = self.loop.time()
        self._tick()

    def _tick(self) -> None:
        now = self.loop.time()
        self._timer = self.loop.call_later(DRAIN_SWEEP if self.site.draining else self._period, self._tick)
        self._on_tick()
        since = now - self._swept
        if since > SWEEP - self._period / 2 or self.site.draining:
            self._swept = now
            # An overdue sweep: an application held the thread.
            self.site.sweep(late=since - SWEEP if since > SWEEP * 1.5 else 0.0)
            self._on_sweep()

    def hide_loop(self) -> None:
        """Let inline WSGI applications not see that a loop runs on their thread; call this before the first request.

        Django's ORM refuses to work where one runs, and ``asyncio.run()`` does. Hidden once and for all: to do it around every
        call would cost half a microsecond, and nothing here asks asyncio which loop is running.
        """
        if self.turns is not None:
            asyncio._set_running_loop(None)  # noqa: SLF001 - asyncio's own means for whoever runs a loop

    async def ask(self, path: str) -> int:
        """Have the application answer a GET request of our own; the status of its answer, or 0 if there was none.

        It comes over a connection of this process with itself, as every other request comes over one.
        """
        loop, answer = self.loop, b""
        ours, theirs = socket.socketpair()
        with ours:
            ours.setblocking(False)
            theirs.setblocking(False)
            await loop.connect_accepted_socket(lambda: Connection(self.site), theirs)
            request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: forkserve\r\nConnection: close\r\n\r\n"
            await loop.sock_sendall(ours, request.encode("latin-1"))
            while data := await loop.sock_recv(ours, 65536):
                answer = answer or data
        status = answer[9:12]
        return int(status) if status.isdigit() else 0

    def limit_requests(self, number: int, on_spent: Callable[[int, bool], None]) -> None:
        """Answer only so many requests, and a few more until a successor is there (`Quota`). Call `accept` before."""
        Quota(self.site, number, self._acceptors, on_spent)

    def serve_on(self) -> None:
        """Answer whatever comes after all."""
        if self.site.quota is not None:
            self.site.quota.lift()

    def stop_accepting(self, *, relieved: bool = False) -> None:
        """Take what waits in the queues, then accept no more.

        Args:
            relieved: Another process accepts there: if requests are limited, what waits is left to that.
        """
        leave = relieved and self.site.quota is not None
        if not leave:
            self.serve_on()
        for acceptor in self._acceptors:
            acceptor.stop(leave=leave)
        self._acceptors.clear()

    async def pause(self, seconds: float) -> None:
        """Sleep; unlike asyncio's, without asking for the running loop, which may be hidden."""
        over = self.loop.create_future()
        self.loop.call_later(seconds, over.set_result, None)
        await over

    async def drain(self, grace: float, on_lingering: Callable[[], object] = lambda: None) -> None:
        """Let every client have its answer, then run the application's shutdown. Call `stop_accepting` before.

        Args:
            grace: Seconds after which what is still open is logged and left; the shutdown gets what remains of them.
            on_lingering: Called once if nothing is left but streams, which may take all of that time.
        """
        site, began = self.site, self.loop.time()
        end, stream_grace = began + grace, site.settings.stream_grace
        streams_end = inf if stream_grace is None else began + stream_grace
        site.draining = site.closing = True
        # For connections whose answer had begun before, and did not say that it is the last: they get one that does.
        site.keep_alive = min(site.keep_alive, site.settings.linger)
        if self._timer is not None:
            self._timer.cancel()
            self._tick()
        drained: set[Connection | WebSocket] = set()
        lingers = False
        while self._has_work() and (now := self.loop.time()) < end:
            for connection in site.connections - drained:
                connection.drain(now, site.settings.linger)
            drained |= site.connections
            if now > began + NEWCOMERS:
                for task in site.handshakes:
                    task.cancel()
            if now >= streams_end:
                self._end_streams()
            if not lingers and self._has_only_streams():
                lingers = True
                on_lingering()
            await self.pause(DRAIN_SWEEP / 2)
        self._give_up()
        if self._lifespan is not None:
            await self._lifespan.shutdown(max(LEAST_SHUTDOWN, end - self.loop.time()))
        if self._timer is not None:
            self._timer.cancel()
        if site.access_log is not None:
            site.access_log.flush()

    def _has_work(self) -> bool:
        site = self.site
        return bool(site.connections or site.tasks or site.handshakes or (self.pool and self.pool.in_hand))

    def _has_only_streams(self) -> bool:
        """Whether all that is left are answers whose end nobody knows, and WebSockets."""
        site = self.site
        streams = sum(connection.is_stream for connection in site.connections)
        calls = len(site.tasks) + (self.pool.in_hand if self.pool else 0)  # also those whose client has left
        return 0 < streams == len(site.connections) and calls <= streams and not site.handshakes

    def _end_streams(self) -> None:
        """Let streams know that the time is over for them, each with a line in the log."""
        site = self.site
        site.ending_streams = True
        level = logging.DEBUG if site.settings.reload else logging.WARNING
        for connection in site.connections - self._ended:
            if connection.is_stream and connection.in_hand is not None:
                site.log.log(
                    level, "a stream is cut off, %g s after the drain began: %s", site.settings.stream_grace, connection.in_hand
                )
                self._ended.add(connection)
                connection.end_stream()

    def _give_up(self) -> None:
        """Log what is still open, and leave it."""
        site = self.site
        for line in sorted(filter(None, (connection.in_hand for connection in site.connections - self._ended))):
            site.log.warning("still open after the graceful timeout: %s", line)
        for connection in tuple(site.connections):
            connection.abandon()
        for task in site.tasks | site.handshakes:
            task.cancel()


def _in_its_context(call: Callable[[Exchange], None], exchange: Exchange) -> None:
    """Call in the context of the exchange, or in a copy while the application runs in it in a thread."""
    if _handled.get() is exchange:
        call(exchange)  # the application itself has led here, from `send`
        return
    try:
        exchange.context.run(call, exchange)
    except RuntimeError:  # the hooks that are called here let none out
        exchange.context.copy().run(call, exchange)


def _asgi_exchange(connection: Connection, target: Target, fields: Fields) -> Exchange:
    if fields.upgrade == b"websocket" and b"upgrade" in fields.connection:
        return WebSocket(connection, target, fields)
    return ASGIExchange(connection, target, fields)
