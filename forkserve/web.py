"""The HTTP worker: the place where a forked process meets the HTTP service."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import inf
from random import SystemRandom
from time import monotonic_ns
from typing import TYPE_CHECKING

from forkserve.base import logfile, logs
from forkserve.base.errors import BootError
from forkserve.config import apps
from forkserve.config.apps import LoadedApp
from forkserve.http.app import faultpage
from forkserve.http.app.exchange import Exchange
from forkserve.http.app.lifespan import LifespanError
from forkserve.http.app.threads import ThreadedExchange
from forkserve.http.framing.tls import MADE_FROM, TLS, inherit, make_context
from forkserve.http.service import SWEEP, Service
from forkserve.http.site import Site
from forkserve.prefork.ipc.hooks import run_hook
from forkserve.prefork.ipc.messages import Spent
from forkserve.prefork.system import acceptqueue, finish, forks
from forkserve.prefork.system.scoreboard import ACCEPTING, BEAT, CONNECTIONS, HANDSHAKES_FAILED, REQUESTS, STARTED
from forkserve.prefork.system.signals import SignalQueue
from forkserve.prefork.worker.boot import EndOfBootError
from forkserve.prefork.worker.worker import ENDING, WORKER_SIGNALS, Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Iterator
    from typing import Any

    from forkserve.config.settings import Settings
    from forkserve.http.app.wsgi import Turns
    from forkserve.prefork.ipc.messages import Message

try:
    import uvloop
except Exception:  # noqa: BLE001 - not CPython, or not Unix; or half installed, as an upgrade takes place
    uvloop = None  # type: ignore[assignment, unused-ignore]  # the name must exist

PULSE = 0.11
"""Seconds between two signs of life on a shared address, where siblings want to know who is free to take a connection."""
HANDSHAKE = 1.0
"""Seconds for which the handshakes that have begun are waited for, when a listener is closed; longer than most of them take."""
SILENT = 130_000_000
"""Nanoseconds without a sign of life after which a worker counts as busy: a pulse, and what a timer may be late."""


@dataclass(frozen=True, slots=True)
class Request:
    """What the hooks ``pre_request`` and ``post_request`` get as ``req``: gunicorn's names."""

    method: str
    uri: str
    path: str
    query: str
    version: tuple[int, int]
    headers: list[tuple[str, str]]

    @classmethod
    def of(cls, exchange: Exchange) -> Request:
        """The request of an exchange."""
        target, fields = exchange.target, exchange.fields
        return cls(
            method=target.method,
            uri=target.environ["RAW_URI"],
            path=target.environ["PATH_INFO"],
            query=target.environ["QUERY_STRING"],
            version=(1, int(fields.version[2])),
            headers=[(name.decode("ascii").upper(), value.decode("latin-1")) for name, value in fields.headers],
        )


@dataclass(frozen=True, slots=True)
class Response:
    """What the hook ``post_request`` gets as ``resp``: gunicorn's names; ``sent`` is in bytes of body."""

    status: str
    status_code: int
    sent: int


class HTTPWorker(Worker):
    """Serves a WSGI or ASGI application on the worker's listeners. Everything here runs in the worker process."""

    _loop: asyncio.AbstractEventLoop | None = None
    _executor: ThreadPoolExecutor | None = None  # the loop's default one, as the application may have set it
    _names: Collection[Any] = ()  # of the listeners
    _turns: Turns | None = None  # for an application that is called inline
    _fault: str | None = None  # why there is no application
    INHERITED_FROM = MADE_FROM

    @classmethod
    def scheme(cls, settings: Settings) -> str:
        """What its addresses begin with in the start-up lines."""
        return "http" if settings.certfile is None else "https"

    @classmethod
    def before_fork(cls, settings: Settings, last: object) -> object:
        """Make the TLS context. A subclass that has more to make makes that in its `preload`."""
        return inherit(settings, last)

    @classmethod
    def preload(cls, settings: Settings) -> LoadedApp:
        """Load the application: in the mold if there is one, else in each worker."""
        assert settings.app is not None
        return apps.load_app(settings.app, interface=settings.interface, factory=settings.factory)

    def run(self) -> None:
        """Load the application, serve until told to drain, and drain."""
        loaded = self.context.preloaded
        app = loaded if isinstance(loaded, LoadedApp) else self.preload(self.settings)
        forks.end_returned()  # the application may have forked when it was imported
        self._run(app)

    def stand_in(self, text: str) -> None:
        """Serve a page that says why there is no application; under --reload."""
        self._fault = text
        self._run(LoadedApp(lambda environ, start_response: (), "wsgi", ""))  # never called

    def _run(self, app: LoadedApp) -> None:
        # What start-up made lives on: keep the collector from looking through it again and again. After a mold has done
        # that, one more collection would write into every page that this worker shares with the others.
        if not self.context.molded:
            gc.collect()
        gc.freeze()
        self.initialized()
        with asyncio.Runner(loop_factory=self._new_loop) as runner:
            self._loop = loop = runner.get_loop()
            loop.set_exception_handler(self._loop_failed)
            self._follow_executor(loop)
            try:
                runner.run(self._serve(app))
            except BaseException as error:
                forks.end_returned(error)
                raise
            finally:
                signal.set_wakeup_fd(-1)  # asyncio closes the descriptor first, and a signal would meet it
                # The loop's end would wait for its executor without a limit, in a thread, which it may not get.
                setattr(loop, "shutdown_default_executor", _nothing)  # noqa: B010 - of this loop

    def _follow_executor(self, loop: asyncio.AbstractEventLoop) -> None:
        """Know what the loop's default executor is, which uvloop does not say."""
        set_default_executor = loop.set_default_executor

        def follow(executor: ThreadPoolExecutor) -> None:
            self._executor = executor
            set_default_executor(executor)

        loop.set_default_executor = follow  # type: ignore[method-assign, assignment]  # of this loop
        follow(ThreadPoolExecutor(thread_name_prefix="asyncio"))

    async def _finish_executor(self) -> None:
        """Wait for what the application has handed to the loop's default executor, with the loop running, while time is left."""
        assert self._executor is not None
        self._executor.shutdown(wait=False)
        threads = self._executor._threads  # noqa: SLF001 - asked for nothing else would tell whether they have ended
        moment = time.monotonic() + finish.MOMENT
        while any(thread.is_alive() for thread in tuple(threads)) and self.time_left():
            if time.monotonic() > moment:
                self.wait_for_threads()
            await self._service.pause(finish.MOMENT / 2)

    def _new_loop(self) -> asyncio.AbstractEventLoop:
        choice = self.settings.loop
        if choice == "asyncio" or (choice == "auto" and uvloop is None):
            return asyncio.new_event_loop()
        if uvloop is None:
            raise BootError("uvloop is not installed: pip install uvloop, or use --loop asyncio")
        return uvloop.new_event_loop()

    def _loop_failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        error = context.get("exception")
        self.log.error("%s", context.get("message"), exc_info=error if isinstance(error, BaseException) else None)

    async def _serve(self, app: LoadedApp) -> None:
        loop = asyncio.get_running_loop()
        self._stop = loop.create_future()
        access = logs.access_log()
        write_access = None if access is None else access.write
        site = Site(self.settings, app.app, app.interface, loop, self.row, logs.printable, write_access)
        inherited = self.context.inherited
        # Not without where a certificate is asked for, whatever a subclass has made.
        site.tls = inherited.context if isinstance(inherited, TLS) else make_context(self.settings)
        try:
            self._service = service = Service(site)
        except RuntimeError as error:
            raise BootError(f"--threads {self.settings.threads}: no thread can be started (see `ulimit -u`): {error}") from None
        self._logs_wait = False
        logfile.when_waiting(self._flush_logs_soon)
        self._names = {listener.sock.getsockname() for listener in self.listeners}
        self._turns = service.turns
        if "pre_request" in self.hooks or "post_request" in self.hooks:
            service.tell(self._pre_request, self._post_request)
        loop.add_reader(self.channel.fileno(), self.on_channel)
        try:
            await service.startup()
        except LifespanError as error:
            raise BootError(str(error)) from error.__cause__
        service.hide_loop()
        if self._fault is not None:
            self.show_fault(self._fault)
        elif self.settings.warmup is not None:
            status = await service.ask(self.settings.warmup)
            if not 200 <= status < 400:
                raise BootError(f"--warmup {self.settings.warmup}: the app answered {status or 'nothing'}, not 2xx or 3xx")
        if not self.draining:
            shared = any(listener.slot is None for listener in self.listeners)
            sockets = [(one.sock, None if one.slot is not None else self._least_busy) for one in self.listeners]
            period = min(PULSE if shared else SWEEP, self.settings.timeout / 3 or SWEEP)  # a beat comes well before it is due
            self.row.refresh = partial(self._note_in_hand, stuck=True)
            # The end of the boot may have been lost, or this may run on while the loop is closed for it: take no connection then.
            if ENDING.intersection(self.context.asked):
                raise EndOfBootError
            self.ready()
            site.freeze_context()
            service.accept(sockets, self._note, period, self._note_in_hand)
            if self.settings.max_requests:
                # Not from `random`, whose state workers of one mold share, and which belongs to the app.
                jitter = SystemRandom().randint(0, self.settings.max_requests_jitter)
                service.limit_requests(self.settings.max_requests + jitter, self._spent)
            await self._stop
        await self._close_queues()
        service.stop_accepting(relieved=self.relieved)
        for listener in self.listeners:
            listener.sock.close()
        self.released()
        await service.drain(self.settings.graceful_timeout or inf, self.lingering)
        await self._finish_executor()

    async def _close_queues(self) -> None:
        """See that nothing is left in the queues of listeners that are closed when this worker accepts no more.

        If others accept there, the last of them sees to that.
        """
        alone = not self.scoreboard.siblings(self.row)
        mine = [one.sock for one in self.listeners if one.slot is not None or alone]
        closing = [sock for sock in mine if acceptqueue.identity(sock) in self.closing]
        for sock in closing:
            acceptqueue.refuse(sock)
        until = time.monotonic() + HANDSHAKE
        while any(map(acceptqueue.has_handshakes, closing)) and time.monotonic() < until:
            await self._service.pause(HANDSHAKE / 100)

    def _spent(self, requests: int, full: bool) -> None:  # noqa: FBT001 - a callback
        """Ask for a successor: so many requests have come; if `full`, no connection is accepted before that is there."""
        if full:
            self.row.cells[ACCEPTING] = 0
        self.send(Spent(requests, full))

    def serve_on(self) -> None:
        """Accept again: the successor failed."""
        if not self.draining:
            self.row.cells[ACCEPTING] = 1
            self._service.serve_on()

    def show_fault(self, text: str) -> None:
        """Answer every request from now on with a page that says what does not load."""
        self._service.site.new_exchange = faultpage.exchange(text)

    def _pre_request(self, exchange: Exchange) -> None:
        run_hook(self.hooks, "pre_request", self, Request.of(exchange), keep=True)

    def _post_request(self, exchange: Exchange) -> None:
        code, line = (500, b"") if exchange.head is None else (exchange.head.code, exchange.head.lines[0])
        response = Response(line[9:].strip().decode("latin-1"), code, exchange.sent)
        run_hook(self.hooks, "post_request", self, Request.of(exchange), exchange.given or {}, response, keep=True)

    def _least_busy(self) -> float | None:
        """How many connections that sibling has that has the fewest, and time for more; None if there is no sibling."""
        siblings = self.scoreboard.siblings(self.row)
        if not siblings:
            return None
        since = monotonic_ns() - SILENT
        free = (row.cells[CONNECTIONS] for row in siblings if not row.cells[STARTED] and row.cells[BEAT] > since)
        return min(free, default=inf)

    def _note(self) -> None:
        """Write down how things stand."""
        self.keep_signals()
        self._leave.look()
        self.row.cells[REQUESTS] = self._service.site.requests
        self.row.cells[HANDSHAKES_FAILED] = self._service.site.handshakes_failed
        pool = self._service.pool
        if pool is None or not self.settings.timeout or not pool.stuck(self.settings.timeout):
            self.beat()

    def note(self) -> None:
        """Write down how things stand, in full."""
        self._note()
        self._note_in_hand()

    def _note_in_hand(self, *, stuck: bool = False) -> None:
        """Write down which requests are in hand, for the log line of a stuck worker, and how many, for the status."""
        self.row.note(*self._service.in_hand.look(stuck=stuck))

    def send(self, message: Message) -> bool:
        """Send the master a message, from any thread; what it does not take at once, when it does."""
        sent = super().send(message)
        if self.channel.unsent and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.add_writer, self.channel.fileno(), self._flush)
        return sent

    def _flush(self) -> None:
        self.channel.flush()
        if not self.channel.unsent and self._loop is not None:
            self._loop.remove_writer(self.channel.fileno())

    def _flush_logs_soon(self) -> None:
        """Have the loop write what waits for room in the logs; called in any thread."""
        if not self._logs_wait and self._loop is not None and not self._loop.is_closed():
            self._logs_wait = True
            with contextlib.suppress(RuntimeError):  # it is just being closed
                self._loop.call_soon_threadsafe(self._flush_logs)

    def _flush_logs(self) -> None:
        pause = logfile.flush()
        self._logs_wait = pause is not None
        if pause is None and logfile.next_flush() is not None:  # of a thread that has just seen that somebody looks after them
            self._flush_logs_soon()
        if pause is not None and self._loop is not None:
            self._loop.call_later(pause, self._flush_logs)

    def between_requests(self, call: Callable[[], None]) -> None:
        """Call it when no inline request is in the middle; ASGI and threads have none."""
        if self._turns is None:
            call()
        else:
            self._turns.between(call)

    def run_command(self, command: Coroutine[Any, Any, None], *, is_async: bool) -> None:
        """Run a command on the loop; where that is hidden, beside it."""
        if self._turns is not None:
            super().run_command(command, is_async=is_async)
            return
        tasks = self._service.site.tasks  # it counts as a request when the worker drains
        task = asyncio.Task(command, loop=self._loop, context=self.new_context())
        tasks.add(task)

        def done(ended: asyncio.Task[None]) -> None:
            tasks.discard(ended)
            self.on_channel()

        task.add_done_callback(done)

    def install_signals(self) -> None:
        """Obey signals on the loop, never inside a request."""
        assert self._loop is not None
        self._signals = SignalQueue(WORKER_SIGNALS, beside_loop=True)
        self._loop.add_reader(self._signals.fileno(), self.on_signals)

    def own_descriptors(self) -> Iterator[int]:
        """Return, besides, the descriptors of clients' connections: they have a listener's address. In a forked process."""
        yield from super().own_descriptors()
        for descriptor in forks.open_descriptors():
            with contextlib.suppress(OSError), _borrowed(descriptor) as sock:
                if any(_is_accepted_by(name, sock.getsockname()) for name in self._names):
                    yield descriptor

    def released_by_fork(self) -> None:
        """See that a process that the application has forked ends where it comes back. In that process."""
        super().released_by_fork()
        if self._loop is None:
            return
        epoll = getattr(self._loop, "_get_backend_id", None) or getattr(getattr(self._loop, "_selector", None), "fileno", None)
        if epoll is not None:
            forks.separate_epoll(epoll())
        # Out of the application's call: an exception, or what a thread has to say; or back to the loop.
        setattr(Exchange, "fail", lambda exchange, error, what: forks.end(error))  # noqa: B010 - of a class, in this process alone
        setattr(ThreadedExchange, "_hand_over", _end_thread)  # noqa: B010 - as above
        self._loop.call_soon(forks.end)

    def drain(self) -> None:
        """Answer what is in hand, then end."""
        super().drain()
        if not self._stop.done():
            self._stop.set_result(None)


async def _nothing(*_: object) -> None:
    """Do nothing."""


def _end_thread(exchange: Exchange, call: object, *arguments: object) -> None:
    forks.end(next((one for one in arguments if isinstance(one, BaseException)), None))


@contextlib.contextmanager
def _borrowed(descriptor: int) -> Iterator[socket.socket]:
    """Look at a descriptor as a socket. Raises OSError if it is none."""
    sock = socket.socket(fileno=descriptor)
    try:
        yield sock
    finally:
        sock.detach()


def _is_accepted_by(listener: Any, name: Any) -> bool:
    """Whether a socket with this name is, or was accepted by, a listener with that one."""
    if not (isinstance(listener, tuple) and isinstance(name, tuple)):
        return bool(name) and name == listener
    return len(name) == len(listener) and name[1] == listener[1] and listener[0] in (name[0], "0.0.0.0", "::")  # noqa: S104
