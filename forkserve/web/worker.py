"""The HTTP worker: runs the HTTP service in a forked process."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from functools import partial
from math import inf
from random import SystemRandom
from types import MappingProxyType
from typing import TYPE_CHECKING

from forkserve.base import logs
from forkserve.base.copies import end_returned
from forkserve.base.logforms import uses_colors
from forkserve.config import apps
from forkserve.config.apps import LoadedApp
from forkserve.http.access import RequestLines
from forkserve.http.framing.tls import MADE_FROM, TLS, inherit, make_context
from forkserve.http.message import readers
from forkserve.http.service import SWEEP, Service
from forkserve.prefork.ipc.messages import Released, Spent
from forkserve.prefork.system.scoreboard import ACCEPTING, HANDSHAKES_FAILED, LINES, REQUESTS
from forkserve.prefork.worker import debuggers
from forkserve.prefork.worker.boot import EndOfBootError
from forkserve.prefork.worker.signals import ENDING
from forkserve.prefork.worker.worker import Worker
from forkserve.web import forked
from forkserve.web.hooks import HookApp, RequestHooks, tls_context
from forkserve.web.loop import DefaultExecutor, LogFlusher, flush_soon, greenlets_in_use, log_loop_error, new_loop
from forkserve.web.siblings import PULSE, close_queues, least_busy

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Iterator
    from typing import Any

    from forkserve.config.settings import Settings
    from forkserve.http.app.turns import Turns
    from forkserve.prefork.ipc.messages import Message
    from forkserve.prefork.worker.context import WorkerContext


class HTTPWorker(Worker):
    """Serves a WSGI or ASGI application on the worker's listeners. Everything here runs in the worker process."""

    _loop: asyncio.AbstractEventLoop | None = None
    _names: Collection[Any] = ()  # of the listeners
    _turns: Turns | None = None  # for an application that is called inline
    _fault: str | None = None  # the text to show if there is no application
    app_object: Callable[..., Any] | None = None  # the application itself, or its factory, if it is not given by name
    FACTS = MappingProxyType({"reader": lambda settings: readers.chosen(settings.http)})
    INHERITED_FROM = MADE_FROM
    INSTEAD = MappingProxyType(
        {
            **Worker.INSTEAD,
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
        return apps.load_app(settings.app, cls.app_object, interface=settings.interface, factory=settings.factory)

    def __init__(self, context: WorkerContext) -> None:
        """Take over the context."""
        super().__init__(context)
        loaded = context.preloaded
        self.app = HookApp(self.cfg, partial(self.preload, self.settings), loaded if isinstance(loaded, LoadedApp) else None)

    def run(self) -> None:
        """Load the application, serve until the worker has to drain, and drain."""
        self.wsgi = self.app.wsgi()
        end_returned()  # the application may have forked when it was imported
        # The objects of start-up stay: the collector need not look through them again and again. In a worker of a mold, which has
        # done this, one more collection would write into every page that this worker shares with the others.
        if not self.context.molded:
            gc.collect()
        gc.freeze()
        self.initialized()
        app = self.app.to_serve(self.wsgi)
        self._runs = self._describe(app)
        with asyncio.Runner(loop_factory=partial(new_loop, self.settings.loop)) as runner:
            self._loop = loop = runner.get_loop()
            loop.set_exception_handler(partial(log_loop_error, self.log))
            self._executor = DefaultExecutor(loop)
            if self.id == 1 and (text := greenlets_in_use(app.interface, self.settings.threads)):  # once is enough
                self.log.info(text)
            try:
                runner.run(self._serve(app))
            except BaseException as error:
                end_returned(error)
                raise
            finally:
                if "_service" in vars(self):
                    self._count(self._service)
                signal.set_wakeup_fd(-1)  # asyncio closes the descriptor first: a signal would be written to a closed one
                # The loop would wait for its executor without a limit, and in a thread that perhaps cannot be started.
                setattr(loop, "shutdown_default_executor", _nothing)  # noqa: B010 - of this loop

    def _describe(self, app: LoadedApp) -> str:
        """Describe the app, its interface and how it is called."""
        if self._fault is not None:
            return f"an error page, since {self.settings.app} does not load"
        threads = self.settings.threads
        how = (
            "ASGI" if app.interface == "asgi" else f"WSGI in {threads} thread{'s' * (threads > 1)}" if threads else "WSGI inline"
        )
        return f"{app.name}, {how}, reader {readers.chosen(self.settings.http)}"

    def serve_error_page(self, text: str) -> None:
        """Serve a page that says why there is no application; under --reload."""
        self._fault = text
        app = LoadedApp(lambda environ, start_response: (), "wsgi", "")  # never called
        self.app = HookApp(self.cfg, lambda: app)
        self.run()

    async def _serve(self, app: LoadedApp) -> None:
        loop = asyncio.get_running_loop()
        self._stop = loop.create_future()
        self._service = service = self._make_service(app, loop)
        self._names = {listener.sock.getsockname() for listener in self.listeners}
        loop.add_reader(self.channel.fileno(), self._beside_loop, self._inbox.receive)
        await service.start_up(self.settings.warmup if self._fault is None else None)
        if self._fault is not None:
            self.show_fault(self._fault)
        if not self.draining:
            self.row.refresh = partial(self._note_running, stuck=True)
            # The end of the boot may have been lost, or the loop may be closing for it: accept no connection then.
            if ENDING.intersection(self.context.early_signals):
                raise EndOfBootError
            self._beside_loop(self.ready)
            self._accept(service)
            await self._stop
        await close_queues(self, service)
        service.stop_accepting(relieved=self.relieved)
        for listener in self.listeners:
            listener.sock.close()
        self.send(Released())
        # A debugger may have stopped a thread: its request is not cut off.
        await service.drain(self.settings.graceful_timeout or inf, self.lingering, debuggers.stopped)
        await self._executor.finish(self, service.pause)
        self.note()  # the master reads the row once more when this process has ended

    def _make_service(self, app: LoadedApp, loop: asyncio.AbstractEventLoop) -> Service:
        access = logs.access_log()
        inherited = self.context.inherited
        # Never plain HTTP where a certificate is configured, whatever a subclass inherits.
        tls = inherited.context if isinstance(inherited, TLS) else make_context(self.settings)
        if tls is not None and self._fault is None:
            tls = tls_context(self, tls)
        write_access = None if access is None else access.write
        service = Service(self.settings, app.app, app.interface, loop, self.row, write_access, tls)
        if self.settings.debug and access is None and self.settings.access_log is not False:
            colors = uses_colors(self.settings.use_colors, os.environ, is_terminal=logs.stderr_is_terminal())
            service.log_requests(RequestLines(logs.write_stderr, self.settings.access_logformat, colors=colors))
        if self.settings.debug and not self.settings.shows_tracebacks and self.id == 1:
            why = "--user is given" if self.settings.user is not None else "an address is not loopback: give --debug itself"
            self.log.info("tracebacks are not shown in the browser: %s", why)
        self._turns = service.turns
        self._log_flusher = LogFlusher(loop)
        if "pre_request" in self.hooks or "post_request" in self.hooks:
            hooks = RequestHooks(self)
            service.call_back(hooks.before, hooks.after)
        return service

    def _accept(self, service: Service) -> None:
        shared = any(listener.slot is None for listener in self.listeners)
        sockets = [(one.sock, None if one.slot is not None else partial(least_busy, self)) for one in self.listeners]
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
        service = self._service
        self.row.note(*service.running.look(LINES, stuck=stuck))
        self._count(service)
        if stuck:  # what has been gathered would be lost if the worker is killed
            service.flush_access_log()

    def _count(self, service: Service) -> None:
        """Copy the counters into the scoreboard."""
        service.measure()
        self.row.count(service.server.tally, service.server.requests)

    @property
    def nr(self) -> int:
        """How many requests have begun, under gunicorn's name."""
        service = vars(self).get("_service")
        return service.server.requests if service else 0

    def send(self, message: Message) -> bool:
        """Send the master a message, from any thread; the loop sends later what the channel does not take at once."""
        sent = super().send(message)
        if self.channel.unsent and self._loop is not None and not self._loop.is_closed():
            flush_soon(self.channel, self._loop)
        return sent

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
        """Yield also the pipe of the threads, and clients' connections, which have a listener's address. In a forked process."""
        yield from super().own_descriptors()
        service: Service | None = vars(self).get("_service")
        if service is not None and service.pool is not None:
            yield from service.pool.descriptors
        yield from forked.connections(self._names)

    def released_by_fork(self) -> None:
        """End a process that the application has forked where it returns from the application. Called in that process."""
        super().released_by_fork()
        if self._loop is not None:
            forked.end_where_it_returns(self._loop)

    def drain(self) -> None:
        """Answer the running requests, then end."""
        super().drain()
        if not self._stop.done():
            self._stop.set_result(None)


async def _nothing(*_: object) -> None:
    """Do nothing."""
