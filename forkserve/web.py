"""The HTTP worker: runs the HTTP service in a forked process."""

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
from types import MappingProxyType
from typing import TYPE_CHECKING

from forkserve.base import logfile, logs
from forkserve.base.copies import end_returned
from forkserve.base.errors import BootError
from forkserve.config import apps
from forkserve.config.apps import LoadedApp
from forkserve.http.app.exchange import Exchange
from forkserve.http.app.lifespan import LifespanError
from forkserve.http.app.threads import ThreadedExchange
from forkserve.http.framing.tls import MADE_FROM, TLS, inherit, make_context
from forkserve.http.message import readers
from forkserve.http.service import SWEEP, Service
from forkserve.prefork.ipc.hooks import run_hook
from forkserve.prefork.ipc.messages import Released, Spent
from forkserve.prefork.system import acceptqueue, finish, forks
from forkserve.prefork.system.scoreboard import ACCEPTING, BEAT, CONNECTIONS, HANDSHAKES_FAILED, REQUESTS, STARTED
from forkserve.prefork.worker.boot import EndOfBootError
from forkserve.prefork.worker.signals import ENDING
from forkserve.prefork.worker.worker import Worker

if TYPE_CHECKING:
    import logging
    from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator
    from typing import Any

    from forkserve.config.settings import Settings
    from forkserve.http.app.turns import Turns
    from forkserve.prefork.ipc.messages import Message

try:
    import uvloop
except Exception:  # noqa: BLE001 - not CPython, or not Unix; or half installed, as an upgrade takes place
    uvloop = None  # type: ignore[assignment, unused-ignore]  # the name must exist

PULSE = 0.11
"""Seconds between two heartbeats on a shared address, where siblings look which worker can take a connection."""
HANDSHAKE = 1.0
"""Seconds to wait for TCP handshakes that have begun when a listener is closed; longer than most of them take."""
SILENT = 130_000_000
"""Nanoseconds without a heartbeat after which a worker counts as busy: a pulse, and the delay of a timer."""


@dataclass(frozen=True, slots=True)
class HookRequest:
    """The argument ``req`` of the hooks ``pre_request`` and ``post_request``, with gunicorn's names."""

    method: str
    uri: str
    path: str
    query: str
    version: tuple[int, int]
    headers: list[tuple[str, str]]

    @classmethod
    def of(cls, exchange: Exchange) -> HookRequest:
        """Return the request of an exchange."""
        target, fields = exchange.target, exchange.fields
        line: dict[str, str] = {}
        target.put_line(line)
        return cls(
            method=target.method,
            uri=target.raw,
            path=line["PATH_INFO"],
            query=line["QUERY_STRING"],
            version=(1, int(fields.version[2])),
            headers=[(name.decode("ascii").upper(), value.decode("latin-1")) for name, value in fields.headers],
        )


@dataclass(frozen=True, slots=True)
class HookResponse:
    """The argument ``resp`` of the hook ``post_request``, with gunicorn's names; ``sent`` is in bytes of the body."""

    status: str
    status_code: int
    sent: int

    @classmethod
    def of(cls, exchange: Exchange) -> HookResponse:
        """Return the response of an exchange; 500 without a head."""
        head = exchange.head
        if head is None:
            return cls("", 500, exchange.sent)
        return cls(f"{head.code} {head.phrase.decode('latin-1')}".strip(), head.code, exchange.sent)


class RequestHooks:
    """Calls the hooks ``pre_request`` and ``post_request``.

    Args:
        worker: The hooks' first argument.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def before(self, exchange: Exchange) -> None:
        """Call ``pre_request``."""
        run_hook(self._worker.hooks, "pre_request", self._worker, HookRequest.of(exchange), keep=True)

    def after(self, exchange: Exchange) -> None:
        """Call ``post_request``."""
        arguments = HookRequest.of(exchange), exchange.scope_or_environ or {}, HookResponse.of(exchange)
        run_hook(self._worker.hooks, "post_request", self._worker, *arguments, keep=True)


class DefaultExecutor:
    """The loop's default executor, also one that the application has set: uvloop has no way to read it.

    Args:
        loop: The loop. From now on it notifies this object of a new executor.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._set = loop.set_default_executor
        loop.set_default_executor = self._follow  # type: ignore[method-assign, assignment]  # of this loop
        self._follow(ThreadPoolExecutor(thread_name_prefix="asyncio"))

    def _follow(self, executor: ThreadPoolExecutor) -> None:
        self._executor = executor
        self._set(executor)

    async def finish(self, worker: Worker, pause: Callable[[float], Awaitable[None]]) -> None:
        """Wait, with the loop running and while the worker has time left, for work that the application has given to it.

        Args:
            worker: Knows how much time is left.
            pause: Sleeps for a number of seconds.
        """
        self._executor.shutdown(wait=False)
        threads = self._executor._threads  # noqa: SLF001 - no public name shows whether they have ended
        moment = time.monotonic() + finish.MOMENT
        while any(thread.is_alive() for thread in tuple(threads)) and worker.time_left():
            if time.monotonic() > moment:
                worker.wait_for_threads()
            await pause(finish.MOMENT / 2)


class LogFlusher:
    """Writes log lines that had to wait for room in a pipe, by the loop.

    Args:
        loop: The loop of this process.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due = False
        logfile.when_waiting(self._flush_soon)

    def _flush_soon(self) -> None:
        """Have the loop write what waits; called in any thread."""
        if not self._due and not self._loop.is_closed():
            self._due = True
            with contextlib.suppress(RuntimeError):  # it is just being closed
                self._loop.call_soon_threadsafe(self._flush)

    def _flush(self) -> None:
        pause = logfile.flush()
        self._due = pause is not None
        if pause is not None:
            self._loop.call_later(pause, self._flush)
        elif logfile.next_flush() is not None:  # a thread has added a line and seen that a flush was due
            self._flush_soon()


class HTTPWorker(Worker):
    """Serves a WSGI or ASGI application on the worker's listeners. Everything here runs in the worker process."""

    _loop: asyncio.AbstractEventLoop | None = None
    _names: Collection[Any] = ()  # of the listeners
    _turns: Turns | None = None  # for an application that is called inline
    _fault: str | None = None  # the text to show if there is no application
    FACTS = MappingProxyType({"reader": lambda settings: readers.chosen(settings.http)})
    INHERITED_FROM = MADE_FROM
    INSTEAD = MappingProxyType(
        {
            **Worker.INSTEAD,
            "app": "worker.wsgi in post_worker_init",
            "wsgi": "post_worker_init or a later hook: the app is not loaded yet",
        }
    )

    @classmethod
    def scheme(cls, settings: Settings) -> str:
        """Return the scheme of its addresses in the start-up lines."""
        return "http" if settings.certfile is None else "https"

    @classmethod
    def before_fork(cls, settings: Settings, last: object) -> object:
        """Make the TLS context. A subclass makes other things in its `preload`."""
        return inherit(settings, last)

    @classmethod
    def preload(cls, settings: Settings) -> LoadedApp:
        """Load the application: in the mold if there is one, else in each worker."""
        assert settings.app is not None
        return apps.load_app(settings.app, interface=settings.interface, factory=settings.factory)

    def run(self) -> None:
        """Load the application, serve until the worker has to drain, and drain."""
        loaded = self.context.preloaded
        app = loaded if isinstance(loaded, LoadedApp) else self.preload(self.settings)
        end_returned()  # the application may have forked when it was imported
        self.wsgi = app.app
        self._run(app)

    def serve_error_page(self, text: str) -> None:
        """Serve a page that says why there is no application; under --reload."""
        self._fault = text
        self._run(LoadedApp(lambda environ, start_response: (), "wsgi", ""))  # never called

    def _run(self, app: LoadedApp) -> None:
        # The objects of start-up stay: the collector need not look through them again and again. In a worker of a mold, which has
        # done this, one more collection would write into every page that this worker shares with the others.
        if not self.context.molded:
            gc.collect()
        gc.freeze()
        self.initialized()
        with asyncio.Runner(loop_factory=partial(_new_loop, self.settings.loop)) as runner:
            self._loop = loop = runner.get_loop()
            loop.set_exception_handler(partial(_log_loop_error, self.log))
            self._executor = DefaultExecutor(loop)
            try:
                runner.run(self._serve(app))
            except BaseException as error:
                end_returned(error)
                raise
            finally:
                signal.set_wakeup_fd(-1)  # asyncio closes the descriptor first: a signal would be written to a closed one
                # The loop would wait for its executor without a limit, and in a thread that perhaps cannot be started.
                setattr(loop, "shutdown_default_executor", _nothing)  # noqa: B010 - of this loop

    async def _serve(self, app: LoadedApp) -> None:
        loop = asyncio.get_running_loop()
        self._stop = loop.create_future()
        self._service = service = self._make_service(app, loop)
        self._names = {listener.sock.getsockname() for listener in self.listeners}
        loop.add_reader(self.channel.fileno(), self._beside_loop, self._inbox.receive)
        await self._start_up(service)
        if not self.draining:
            self.row.refresh = partial(self._note_running, stuck=True)
            # The end of the boot may have been lost, or the loop may be closing for it: accept no connection then.
            if ENDING.intersection(self.context.early_signals):
                raise EndOfBootError
            self._beside_loop(self.ready)
            self._accept(service)
            await self._stop
        await _close_queues(self, service)
        service.stop_accepting(relieved=self.relieved)
        for listener in self.listeners:
            listener.sock.close()
        self.send(Released())
        await service.drain(self.settings.graceful_timeout or inf, self.lingering)
        await self._executor.finish(self, service.pause)

    def _make_service(self, app: LoadedApp, loop: asyncio.AbstractEventLoop) -> Service:
        access = logs.access_log()
        inherited = self.context.inherited
        # Never plain HTTP where a certificate is configured, whatever a subclass inherits.
        tls = inherited.context if isinstance(inherited, TLS) else make_context(self.settings)
        write_access = None if access is None else access.write
        try:
            service = Service(self.settings, app.app, app.interface, loop, self.row, write_access, tls)
        except RuntimeError as error:
            raise BootError(f"--threads {self.settings.threads}: no thread can be started (see `ulimit -u`): {error}") from None
        self._turns = service.turns
        self._log_flusher = LogFlusher(loop)
        if "pre_request" in self.hooks or "post_request" in self.hooks:
            hooks = RequestHooks(self)
            service.call_back(hooks.before, hooks.after)
        return service

    async def _start_up(self, service: Service) -> None:
        """Run the application's start-up, and warm it up.

        Raises:
            BootError: It failed.
        """
        try:
            await service.startup()
        except LifespanError as error:
            raise BootError(str(error)) from error.__cause__
        service.hide_loop()
        if self._fault is not None:
            self.show_fault(self._fault)
        elif self.settings.warmup is not None:
            status = await service.request_status(self.settings.warmup)
            if not 200 <= status < 400:
                raise BootError(f"--warmup {self.settings.warmup}: the app answered {status or 'nothing'}, not 2xx or 3xx")

    def _accept(self, service: Service) -> None:
        shared = any(listener.slot is None for listener in self.listeners)
        sockets = [(one.sock, None if one.slot is not None else partial(_least_busy, self)) for one in self.listeners]
        period = min(PULSE if shared else SWEEP, self.settings.timeout / 3 or SWEEP)  # a heartbeat comes well before it is due
        service.site.freeze_context()
        service.accept(sockets, self._note, period, self._note_running)
        if self.settings.max_requests:
            # Not from `random`, whose state workers of one mold share, and which belongs to the app.
            jitter = SystemRandom().randint(0, self.settings.max_requests_jitter)

            def request_successor(requests: int, full: bool) -> None:  # noqa: FBT001 - a callback
                if full:  # no connection is accepted before the successor is ready
                    self.row.cells[ACCEPTING] = 0
                self.send(Spent(requests, full))

            service.limit_requests(self.settings.max_requests + jitter, request_successor)

    def serve_on(self) -> None:
        """Accept again: the successor failed."""
        if not self.draining:
            self.row.cells[ACCEPTING] = 1
            self._service.serve_on()

    def show_fault(self, text: str) -> None:
        """Answer every request from now on with a page that says what does not load."""
        self._service.show_fault(text)

    def _note(self) -> None:
        """Update the scoreboard, and send a heartbeat unless all threads are stuck."""
        self._signals.check()
        self._leave.look()
        self.row.cells[REQUESTS] = self._service.server.requests
        self.row.cells[HANDSHAKES_FAILED] = self._service.server.handshakes_failed
        pool = self._service.pool
        if pool is None or not self.settings.timeout or not pool.stuck(self.settings.timeout):
            self.beat()

    def note(self) -> None:
        """Update the scoreboard with the running requests."""
        self._note()
        self._note_running()

    def _note_running(self, *, stuck: bool = False) -> None:
        """Write the running requests into the scoreboard: for the log line of a stuck worker, and their number for the status."""
        self.row.note(*self._service.running.look(stuck=stuck))

    @property
    def nr(self) -> int:
        """How many requests have begun, under gunicorn's name."""
        service = vars(self).get("_service")
        return service.server.requests if service else 0

    def send(self, message: Message) -> bool:
        """Send the master a message, from any thread; the loop sends later what the channel does not take at once."""
        sent = super().send(message)
        if self.channel.unsent and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.add_writer, self.channel.fileno(), self._flush)
        return sent

    def _flush(self) -> None:
        self.channel.flush()
        if not self.channel.unsent and self._loop is not None:
            self._loop.remove_writer(self.channel.fileno())

    def between_requests(self, call: Callable[[], None]) -> None:
        """Call back when no application call holds the loop's thread; with ASGI and threads that is now."""
        if self._turns is None:
            call()
        else:
            self._turns.between(call)

    def run_command(self, command: Coroutine[Any, Any, None], *, is_async: bool) -> None:
        """Run a command on the loop, or beside it where the loop is hidden."""
        if self._turns is not None:
            with self._service.loop_hidden():
                super().run_command(command, is_async=is_async)
            return
        tasks = self._service.site.tasks  # it counts as a request when the worker drains
        task = asyncio.Task(command, loop=self._loop, context=self.new_context())
        tasks.add(task)

        def done(ended: asyncio.Task[None]) -> None:
            tasks.discard(ended)
            self._inbox.receive()

        task.add_done_callback(done)

    def install_signals(self) -> None:
        """Handle signals on the loop, never inside a request."""
        assert self._loop is not None
        self._loop.add_reader(self._signals.install(beside_loop=True).fileno(), self._beside_loop, self._signals.obey)

    def _beside_loop(self, call: Callable[[], object]) -> None:
        """Call something that may call code of the application, with the loop hidden wherever it is hidden from requests."""
        with self._service.loop_hidden():
            call()

    def own_descriptors(self) -> Iterator[int]:
        """Yield also the descriptors of clients' connections, which have a listener's address. Called in a forked process."""
        yield from super().own_descriptors()
        service: Service | None = vars(self).get("_service")
        if service is not None and service.pool is not None:
            yield from service.pool.descriptors
        for descriptor in forks.open_descriptors():
            with contextlib.suppress(OSError), _borrowed(descriptor) as sock:
                if any(_is_accepted_by(name, sock.getsockname()) for name in self._names):
                    yield descriptor

    def released_by_fork(self) -> None:
        """End a process that the application has forked where it returns from the application. Called in that process."""
        super().released_by_fork()
        if self._loop is None:
            return
        epoll = getattr(self._loop, "_get_backend_id", None) or getattr(getattr(self._loop, "_selector", None), "fileno", None)
        if epoll is not None:
            forks.separate_epoll(epoll())
        # It leaves the application's call with an exception, or with a result for the loop, or by returning to the loop.
        setattr(Exchange, "fail", lambda exchange, error, what: forks.end(error))  # noqa: B010 - of a class, in this process alone
        setattr(ThreadedExchange, "_hand_over", _end_thread)  # noqa: B010 - as above
        self._loop.call_soon(forks.end)

    def drain(self) -> None:
        """Answer the running requests, then end."""
        super().drain()
        if not self._stop.done():
            self._stop.set_result(None)


def _least_busy(worker: Worker) -> float | None:
    """Return the smallest number of connections of a sibling that can take more; None if there is no sibling."""
    siblings = worker.scoreboard.siblings(worker.row)
    if not siblings:
        return None
    since = monotonic_ns() - SILENT
    free = (row.cells[CONNECTIONS] for row in siblings if not row.cells[STARTED] and row.cells[BEAT] > since)
    return min(free, default=inf)


async def _close_queues(worker: Worker, service: Service) -> None:
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


def _new_loop(choice: str) -> asyncio.AbstractEventLoop:
    if choice == "asyncio" or (choice == "auto" and uvloop is None):
        return asyncio.new_event_loop()
    if uvloop is None:
        raise BootError("uvloop is not installed: pip install uvloop, or use --loop asyncio")
    return uvloop.new_event_loop()


def _log_loop_error(log: logging.Logger, _: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
    error = context.get("exception")
    log.error("%s", context.get("message"), exc_info=error if isinstance(error, BaseException) else None)


async def _nothing(*_: object) -> None:
    """Do nothing."""


def _end_thread(exchange: Exchange, call: object, *arguments: object) -> None:
    forks.end(next((one for one in arguments if isinstance(one, BaseException)), None))


@contextlib.contextmanager
def _borrowed(descriptor: int) -> Iterator[socket.socket]:
    """Use a descriptor as a socket for a moment. Raises OSError if it is none."""
    sock = socket.socket(fileno=descriptor)
    try:
        yield sock
    finally:
        sock.detach()


def _is_accepted_by(listener: Any, name: Any) -> bool:
    """Return whether a socket with address `name` is a listener with address `listener`, or was accepted by it."""
    if not (isinstance(listener, tuple) and isinstance(name, tuple)):
        return bool(name) and name == listener
    return len(name) == len(listener) and name[1] == listener[1] and listener[0] in (name[0], "0.0.0.0", "::")  # noqa: S104
