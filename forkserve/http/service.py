"""HTTP on given sockets, in this process: start, sweep, drain, stop. Application, framing and log are put together here.

Nothing here forks; the worker is a thin shell around it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import nullcontext
from contextvars import ContextVar
from math import inf
from time import thread_time_ns
from types import MethodType
from typing import TYPE_CHECKING

from forkserve.base import logs
from forkserve.base.errors import BootError
from forkserve.base.loggers import changed_access_loggers, has_handlers
from forkserve.http.acceptor import Acceptor
from forkserve.http.access import BATCH, AccessLog
from forkserve.http.app.asgi import ASGIExchange
from forkserve.http.app.exchange import Exchange
from forkserve.http.app.faultpage import fault_exchange, probed
from forkserve.http.app.hiddenloop import hidden_loop
from forkserve.http.app.lifespan import Lifespan, LifespanError
from forkserve.http.app.site import Site
from forkserve.http.app.threadpool import ThreadPool
from forkserve.http.app.threads import ThreadedExchange
from forkserve.http.app.turns import Turns
from forkserve.http.app.websocket import WebSocketExchange
from forkserve.http.app.wsgi import WSGIExchange
from forkserve.http.framing.endpoints import Endpoints
from forkserve.http.framing.h1 import NEWCOMER_TIME, H1Connection
from forkserve.http.framing.state import ServerState
from forkserve.http.inhand import RunningRequests
from forkserve.http.quota import Quota
from forkserve.http.sharedqueue import SharedAcceptor

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager
    from typing import Any, Literal

    from forkserve.config.settings import Settings
    from forkserve.http.app.calls import Observer
    from forkserve.http.framing.writer import Client, Framing, RequestHandler, UpgradeWriter
    from forkserve.http.message.fields import Fields
    from forkserve.http.message.http1 import Target

SWEEP = 1.0
"""Seconds between two looks at all connections."""
DRAIN_SWEEP = 0.05
"""The same as `SWEEP` while draining, when there are few connections and the master waits."""
FULL_PAUSE = 0.1
"""Seconds until a process that has as many connections as it may have looks whether there are fewer."""
LEAST_SHUTDOWN = 0.5
"""Seconds that the application's shutdown gets even when requests have used up the graceful timeout. The master kills the process
soon after that timeout, so it cannot be much."""

_handled: ContextVar[Exchange | None] = ContextVar("forkserve_handled", default=None)
"""The exchange that the context belongs to; set only if there are callbacks for each request."""


class Service:
    """One application served on given sockets by the running loop.

    Args:
        settings: The settings.
        app: The WSGI or ASGI application.
        interface: Which of the two it is.
        loop: The loop that everything here runs on.
        observer: Is notified of application calls and of the number of connections.
        write_access: Appends to the access log; None to have none, unless loggers handle requests.
        tls: The TLS context; None to speak plain HTTP.

    Raises:
        ValueError: The format of the access log is not valid.
        BootError: No thread can be started for the application.

    Attributes:
        server: What all connections share.
        site: What all requests share.
        turns: The queue in front of an application that is called on the loop's thread.
        pool: The threads of an application that is called in threads.
        running: Finds the running requests.
    """

    def __init__(
        self,
        settings: Settings,
        app: Callable[..., Any],
        interface: Literal["wsgi", "asgi"],
        loop: asyncio.AbstractEventLoop,
        observer: Observer,
        write_access: Callable[[bytes], None] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.loop = loop
        self.server = server = ServerState(settings, loop, observer.connected)
        server.tls = tls
        self.site = Site(server, app, interface, observer, logs.printable)
        self._sites = [self.site]  # and that of files
        self.running = RunningRequests(server)
        self.pool: ThreadPool | None = None
        self.turns: Turns | None = None
        self._access_log: AccessLog | None = None
        self._lifespan: Lifespan | None = None
        self._quota: Quota | None = None
        self._acceptors: list[Acceptor] = []
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0  # when the next tick should come, on the loop's clock
        self._held = 0  # nanoseconds by which ticks were late since the last `measure`
        self._spent = thread_time_ns()
        self._cut_off: set[Client] = set()  # streams that a drain has ended
        handled = settings.access_log is not False and any(map(has_handlers, changed_access_loggers()))
        if write_access is not None or handled:
            self.log_requests(AccessLog(write_access, settings.access_logformat, 1 if settings.debug else BATCH))
        self._choose_exchange()

    def log_requests(self, log: AccessLog) -> None:
        """Log requests from now on. Call this before `call_back`."""
        self._access_log, self.server.on_refused = log, log.write_unread
        for site in self._sites:
            site.on_answer, site.on_refused = log.write, log.write_refused

    def _choose_exchange(self) -> None:
        site, server, settings = self.site, self.server, self.server.settings
        if site.interface == "asgi":
            server.new_exchange = MethodType(_asgi_exchange, site)  # the same as a partial, but Python calls it faster
            self._lifespan = Lifespan(site, settings.lifespan)
            if settings.half_close == "disconnect":
                server.half_close_timeout = server.write_timeout
        elif settings.threads:
            try:
                site.pool = self.pool = ThreadPool(self.loop, site.observer, site.log, settings.threads)
            except RuntimeError as error:
                raise BootError(f"--threads {settings.threads}: no thread can be started (see `ulimit -u`): {error}") from None
            server.new_exchange = MethodType(ThreadedExchange, site)
        else:
            site.turns = self.turns = Turns(self.loop, site.observer, site.tally)
            server.rest = self.turns.rest
            server.new_exchange = MethodType(WSGIExchange, site)
        if settings.shows_tracebacks:
            from forkserve.http.app.debugpages import DebugPages  # noqa: PLC0415 - only while developing

            server.new_exchange = DebugPages(site).in_front_of(server.new_exchange)
        if settings.static:
            from forkserve.http.app.static import StaticFiles  # noqa: PLC0415 - it imports much of werkzeug

            static = StaticFiles(site)
            self._sites.append(static.site)
            server.new_exchange = static.in_front_of(server.new_exchange)
        if settings.reload:
            server.new_exchange = probed(site, server.new_exchange)
        if settings.request_id_header is not None:
            from forkserve.http.app.requestids import with_ids  # noqa: PLC0415 - seldom needed

            server.new_exchange = with_ids(server.new_exchange, settings.request_id_header)

    def show_fault(self, text: str) -> None:
        """Answer every request from now on with a page that shows `text` instead of calling the application."""
        self.server.new_exchange = fault_exchange(self.site, text)

    def call_back(self, on_request: Callable[[Exchange], None] | None, on_answer: Callable[[Exchange], None] | None) -> None:
        """Call back for each request before the application gets it, and when its response has ended; in its context."""
        new_exchange, log = self.server.new_exchange, self.site.on_answer

        def announce(writer: UpgradeWriter, target: Target, fields: Fields) -> RequestHandler:
            exchange = new_exchange(writer, target, fields)
            assert isinstance(exchange, Exchange)
            exchange.context.run(_handled.set, exchange)
            if on_request is not None and exchange.site.on_answer is not None:  # not the debugger's
                with self.loop_hidden():
                    exchange.context.run(on_request, exchange)
            return exchange

        def report(exchange: Exchange) -> None:
            if log is not None:
                log(exchange)
            if on_answer is not None:
                _in_its_context(on_answer, exchange)

        self.server.new_exchange = announce
        for site in self._sites:
            site.on_answer = report

    async def start_up(self, warmup: str | None = None) -> None:
        """Run the application's own start-up, and warm the application up.

        Args:
            warmup: The path to request; None for none.

        Raises:
            BootError: One of them failed.
        """
        if self._lifespan is not None:
            try:
                await self._lifespan.startup()
            except LifespanError as error:
                raise BootError(str(error)) from error.__cause__
        self._hide_loop()
        if warmup is not None:
            status = await self._request_status(warmup)
            if not 200 <= status < 400:
                raise BootError(f"--warmup {warmup}: the app answered {status or 'nothing'}, not 2xx or 3xx")

    def accept(
        self,
        sockets: Iterable[tuple[socket.socket, Callable[[], float | None] | None]],
        on_tick: Callable[[], None],
        period: float,
        on_sweep: Callable[[], None] = lambda: None,
        framing: Framing = H1Connection,
    ) -> None:
        """Accept connections from now on.

        Args:
            sockets: Listening sockets; with each that other processes share, a function for their load (`SharedAcceptor`).
            on_tick: Called every ``period`` seconds.
            period: At most `SWEEP`.
            on_sweep: Called after each look at all connections, every `SWEEP` seconds.
            framing: What clients speak; by default HTTP/1.1.
        """
        self._acceptors = [
            Acceptor(self.server, sock, framing)
            if least_busy is None
            else SharedAcceptor(self.server, sock, framing, least_busy, self.turns)
            for sock, least_busy in sockets
        ]
        if self._access_log is not None:
            self._access_log.report_to(changed_access_loggers())  # the app may have changed them until now
        for acceptor in self._acceptors:
            acceptor.start()
        self._on_tick, self._on_sweep, self._period = on_tick, on_sweep, period
        self._swept = self._due = self.loop.time()
        self._tick()

    def _tick(self) -> None:
        now, period = self.loop.time(), DRAIN_SWEEP if self.server.draining else self._period
        self._timer = self.loop.call_later(period, self._tick)
        late, self._due = max(0, int((now - self._due) * 1e9)), now + period
        self._held += late
        self.server.tally.lag = max(self.server.tally.lag, late)
        self._on_tick()
        since = now - self._swept
        if since > SWEEP - self._period / 2 or self.server.draining:
            self._swept = now
            # An overdue sweep: an application held the thread.
            self.server.sweep(late=since - SWEEP if since > SWEEP * 1.5 else 0.0)
            self.flush_access_log()
            self._on_sweep()

    def flush_access_log(self) -> None:
        """Write the lines of the access log that have been gathered. A signal handler may call it."""
        if self._access_log is not None:
            self._access_log.flush()

    def measure(self) -> None:
        """Bring the busy time up to now; called about once a second.

        Calls on the loop's thread are counted one by one. Of threads it is the mean. Of an ASGI application it is the CPU time of
        the loop's thread, or the time in which the loop was held, if that is more: a call that blocks takes no CPU time.
        """
        tally = self.server.tally
        if self.pool is not None:
            tally.busy = max(tally.busy, self.pool.busy)  # a call that ends just now may count in part
        elif self.turns is None:
            spent, held, self._held = thread_time_ns(), self._held, 0
            tally.busy += max(spent - self._spent, held)
            self._spent = spent

    def _hide_loop(self) -> None:
        """Hide from WSGI applications called on the loop's thread that a loop runs there; before the first request.

        Django's ORM refuses to work where a loop runs, and so does ``asyncio.run()``. The loop is hidden for good: to hide it
        around every call costs half a microsecond, and nothing here needs asyncio to know the running loop. Python 3.14 does
        (`hiddenloop`), and so does other code that shares the loop.
        """
        if self.turns is not None and not self.site.hides_loop_per_call:
            asyncio._set_running_loop(None)  # noqa: SLF001 - made for those that run a loop

    def loop_hidden(self) -> AbstractContextManager[None]:
        """Return a context in which other code of such an application, as commands and hooks, sees no loop either."""
        return hidden_loop() if self.turns is not None and self.site.hides_loop_per_call else nullcontext()

    async def _request_status(self, path: str) -> int:
        """Send the application a GET request; return the status of its response, or 0 if there was none.

        The request is sent over a connection of this process with itself, to be like every other request.
        """
        loop, answer = self.loop, b""
        ours, theirs = socket.socketpair()
        with ours:
            ours.setblocking(False)
            theirs.setblocking(False)
            self.server.coming += 1
            await loop.connect_accepted_socket(lambda: H1Connection(self.server, Endpoints()), theirs)
            request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: forkserve\r\nConnection: close\r\n\r\n"
            await loop.sock_sendall(ours, request.encode("latin-1"))
            while data := await loop.sock_recv(ours, 65536):
                answer = answer or data
        status = answer[9:12]
        return int(status) if status.isdigit() else 0

    def limit_requests(self, number: int, on_spent: Callable[[int, bool], None]) -> None:
        """Limit the number of requests, with a few more until a successor is ready (`Quota`). Call `accept` before."""
        self._quota = Quota(self.server, number, self._acceptors, on_spent)

    def limit_connections(self, most: int) -> None:
        """Have at most this many connections at once; others wait in the queues. Call `accept` before."""

        def admit() -> bool:
            if len(self.server.connections) + self.server.coming < most:
                return True
            for acceptor in self._acceptors:
                acceptor.hold()
            self.loop.call_later(FULL_PAUSE, go_on)
            return False

        def go_on() -> None:
            for acceptor in self._acceptors:
                acceptor.go_on()

        for acceptor in self._acceptors:
            acceptor.admit = admit

    def serve_on(self) -> None:
        """Lift the limit of requests."""
        if self._quota is not None:
            self._quota.lift()
            self._quota = None

    def stop_accepting(self, *, relieved: bool = False) -> None:
        """Accept what waits in the queues, then accept no more.

        Args:
            relieved: Whether another process accepts there; if requests are limited, the queue is left to that process.
        """
        leave = relieved and self._quota is not None
        if not leave:
            self.serve_on()
        for acceptor in self._acceptors:
            acceptor.stop(leave=leave)
        self._acceptors.clear()

    async def pause(self, seconds: float) -> None:
        """Sleep; unlike asyncio's `sleep`, this does not need the running loop, which may be hidden."""
        over = self.loop.create_future()
        timer = self.loop.call_later(seconds, over.set_result, None)
        try:
            await over
        finally:
            timer.cancel()

    async def drain(
        self, grace: float, on_lingering: Callable[[], object] = lambda: None, is_held: Callable[[], bool] = lambda: False
    ) -> None:
        """Answer the requests that are running, then run the application's shutdown. Call `stop_accepting` before.

        Args:
            grace: Seconds after which connections that are still open are logged and closed; the shutdown gets the rest of them.
            on_lingering: Called once if nothing is left but streams, which may take all of that time.
            is_held: Returns whether the seconds do not count at present.
        """
        server, began = self.server, self.loop.time()
        end, stream_grace = began + grace, server.settings.stream_grace
        streams_end = inf if stream_grace is None else began + stream_grace
        server.draining = server.closing = True
        # A connection whose response had begun before, without Connection: close, gets another request whose response has it.
        server.keep_alive = min(server.keep_alive, server.settings.linger)
        if self._timer is not None:
            self._timer.cancel()
            self._tick()
        drained: set[Client] = set()
        lingers = False
        while self._has_work() and (now := self.loop.time()) < end:
            for connection in server.connections - drained:
                connection.drain(now, server.settings.linger)
            drained |= server.connections
            if is_held():
                end = now + grace
            if now > began + NEWCOMER_TIME:
                for task in server.handshakes:
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
        self.flush_access_log()

    async def close(self) -> None:
        """End everything that still runs; for a process that goes on. Call `stop_accepting` before, and usually `drain`."""
        self._give_up()
        tasks = self.site.tasks | self.server.handshakes
        if self._lifespan is not None and (task := self._lifespan.abort()) is not None:
            tasks.add(task)
        if self._timer is not None:
            self._timer.cancel()
        self.flush_access_log()
        if self.pool is not None:
            self.pool.close()
        await asyncio.wait([*tasks, asyncio.ensure_future(self.pause(0))], timeout=LEAST_SHUTDOWN)

    def _has_work(self) -> bool:
        server = self.server
        return bool(server.connections or self.site.tasks or server.handshakes or (self.pool and self.pool.in_progress))

    def _has_only_streams(self) -> bool:
        """Return whether nothing is left but responses of unknown length and WebSockets."""
        server = self.server
        streams = sum(_is_stream(connection) for connection in server.connections)
        calls = len(self.site.tasks) + (self.pool.in_progress if self.pool else 0)  # also those whose client has left
        return 0 < streams == len(server.connections) and calls <= streams and not server.handshakes

    def _end_streams(self) -> None:
        """End streams, each with a line in the log: their time is over."""
        server, settings = self.server, self.server.settings
        self.site.ending_streams = True
        level = logging.DEBUG if settings.reload else logging.WARNING
        for connection in server.connections - self._cut_off:
            exchange = connection.exchange
            if exchange is not None and exchange.is_stream:
                line = exchange.describe()
                server.log.log(level, "a stream is cut off, %g s after the drain began: %s", settings.stream_grace, line)
                self._cut_off.add(connection)
                exchange.end_stream()

    def _give_up(self) -> None:
        """Log the requests that are still running, and close their connections."""
        server = self.server
        left = (connection.exchange for connection in server.connections - self._cut_off)
        for line in sorted(exchange.describe() for exchange in left if exchange is not None):
            server.log.warning("still open after the graceful timeout: %s", line)
        for connection in tuple(server.connections):
            connection.abandon()
        for task in self.site.tasks | server.handshakes:
            task.cancel()


def _is_stream(connection: Client) -> bool:
    return connection.exchange is not None and connection.exchange.is_stream


def _in_its_context(call: Callable[[Exchange], None], exchange: Exchange) -> None:
    """Call in the context of the exchange, or in a copy of it while the application runs there in a thread."""
    if _handled.get() is exchange:
        call(exchange)  # the application has called `send`, in this context
        return
    try:
        exchange.context.run(call, exchange)
    except RuntimeError:  # the context is in use; hooks raise nothing
        exchange.context.copy().run(call, exchange)


def _asgi_exchange(site: Site, writer: UpgradeWriter, target: Target, fields: Fields) -> Exchange:
    if fields.upgrade == b"websocket":
        return WebSocketExchange(site, writer, target, fields)
    return ASGIExchange(site, writer, target, fields)
