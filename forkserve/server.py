"""Server: combines both halves, HTTP and processes. The calling process becomes the master."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import inspect
import logging
import signal
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from forkserve.base import console, greenlets, logs, privileges, startup
from forkserve.base.errors import ConfigError, ForkserveError, NestedServerError
from forkserve.base.handover import decode
from forkserve.config import apps
from forkserve.config import load as configuration
from forkserve.config.values import shown
from forkserve.http import access
from forkserve.http.framing.tls import make_context
from forkserve.http.message import readers
from forkserve.prefork.control.command import execute
from forkserve.prefork.ipc.pending import CALL_TIMEOUT
from forkserve.prefork.master.commands import MasterCommands
from forkserve.prefork.master.master import Master
from forkserve.prefork.master.upgrade.state import MasterState
from forkserve.prefork.policy.distribute import distribute
from forkserve.prefork.system import daemon
from forkserve.prefork.system.poller import READ
from forkserve.prefork.worker.classes import compose, load_class
from forkserve.prefork.worker.worker import Worker
from forkserve.upstream import upstream
from forkserve.web import appobject, inprocess
from forkserve.web.worker import HTTPWorker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from forkserve.base.lockfile import LockFile
    from forkserve.config.load import Config
    from forkserve.config.settings import Settings
    from forkserve.prefork.ipc.pending import JSON, Pending
    from forkserve.prefork.master.services import ObserverFactory
    from forkserve.prefork.system.poller import Timer


class Server(MasterCommands):
    """A server, for an app or for a worker class of your own. Its methods are the commands of the master that `run` becomes.

    Args:
        app: ``module:attr``, ``module:factory()`` or ``module``; or the application itself, which workers then get as it is when
            they are forked. Not needed for a worker class of your own.
        worker: The class that runs in each worker process.
        mixins: Classes in front of it: their ``child_<name>`` methods are commands, and their hooks are called.
        settings: Any setting by name, as in ``workers=4, base_port=9000``.

    Raises:
        ConfigError: A setting is unknown or has no valid value, or the classes cannot be combined.
    """

    def __init__(
        self,
        app: str | Callable[..., Any] | None = None,
        *,
        worker: type[Worker] = HTTPWorker,
        mixins: Sequence[type] = (),
        **settings: object,
    ) -> None:
        if not (inspect.isclass(worker) and issubclass(worker, Worker)):
            raise ConfigError(f"worker: {shown(worker)} is no subclass of forkserve.Worker")
        if not isinstance(mixins, list | tuple):
            raise ConfigError(f"mixins: {shown(mixins)} is no list of classes")
        needs_app = issubclass(worker, HTTPWorker)
        self._is_plain = worker is HTTPWorker and not mixins
        if app is not None:
            settings["app"] = app
        if app is not None and not isinstance(app, str):
            if not (callable(app) and needs_app):
                raise ConfigError(f"app: {shown(app)} is neither an application nor the name of one, as in 'module:attr'")
            settings["app"] = appobject.name_of(app)
            worker = appobject.worker_for(worker, app)
        config = configuration.from_keywords(needs_app=needs_app, **settings)
        self._troubles: list[str] = []
        super().__init__(compose(worker, mixins), config)

    @classmethod
    def from_config(cls, config: Config, *, troubles: Sequence[str] = ()) -> Server:
        """Make a server for a configuration that was read already, as the command line does.

        Args:
            config: The configuration.
            troubles: The errors so far in a program that takes over. There, errors are logged and not raised.

        Raises:
            ConfigError: There is no such worker class, or a setting cannot work on this machine.
            AppLoadError: The worker class's module fails while it is imported.
        """
        self = cls.__new__(cls)
        self._troubles = list(troubles)
        self._is_plain = True  # other classes are settings here
        try:
            runs = worker_class(config.settings)
        except ForkserveError as error:
            if not startup.takes_over():
                raise
            runs = _failing_class(error)
            self._troubles.append(str(error))
        MasterCommands.__init__(self, runs, _checked(config) if issubclass(runs, HTTPWorker) else config)
        return self

    def run(self) -> int:
        """Serve until a command or signal stops the server; return the exit code of the process.

        Raises:
            ConfigError: A setting cannot work on this machine, or this is no place to run a server.
            ListenError: An address cannot be listened on.
        """
        _check_place()
        with greenlets.taken_out():
            return self._run()

    def _run(self) -> int:
        settings = self.state.settings
        appobject.check(self.state.worker_class, settings)
        handed = startup.inherited
        if startup.takes_over() and handed is not None:
            return self._take_over(decode(handed.data, MasterState))
        if issubclass(self.state.worker_class, HTTPWorker):
            check_but_tls(settings)
            self.state.inheritance.make(self.pool.generations.committed, settings)
        upstream.check_path(settings)
        privileges.check_and_set_umask(settings)
        if handed is not None:
            upstream.rehearse(settings.nginx_upstream, decode(handed.data, MasterState).frontend)
            return Master(self).run()  # loads the app and ends the process; it opens no logs
        return daemon.run(self._start) if settings.daemon else self._start()

    async def serve(self, *, ready: Callable[[str], object] = lambda url: None) -> None:
        """Serve in the running event loop until the task is cancelled: no fork, no signals, no `ctl`.

        Then requests in hand are answered, for `graceful_timeout` seconds at most; to cancel it once more ends them.

        Args:
            ready: Called with the URL, as in ``http://127.0.0.1:8000``, when connections are accepted.

        Raises:
            ConfigError: A setting needs processes, such as `workers`: these are for `run`.
            AppLoadError: The application cannot be loaded.
            BootError: Its start-up failed.
            ListenError: An address cannot be listened on.
        """
        worker = self.state.worker_class
        if not (self._is_plain and issubclass(worker, HTTPWorker)):
            raise ConfigError(
                "worker, mixins: only a server with worker processes has these: use Server.run(), or leave them out"
            )
        inprocess.check(self.config)
        check_but_tls(self.settings)
        self._log_said()
        await inprocess.serve(self.settings, worker.preload(self.settings), ready)

    def _start(self) -> int:
        logs.configure(self.state.settings)
        self._log_said()
        return self._serve(upstream.hold(self.state.settings.nginx_upstream, None))

    def _log_said(self) -> None:
        for line in self.config.said.lines():
            logs.logger.info("%s", line)
        for line in self.config.said.warnings:
            logs.logger.warning("%s", line)

    def _serve(self, lock: LockFile | None, before: MasterState | None = None) -> int:
        """Run the master, with the observers that the settings need."""
        settings = self.state.settings
        frontend = None
        if settings.nginx_upstream is not None and lock is not None:
            frontend = upstream.Upstream(self.poller, self.state.name, settings.nginx_upstream, lock)
        with self._admin(before) as admin:
            return Master(self, frontend=frontend, observers=(*self.observer_factories(), *admin)).run()

    @contextlib.contextmanager
    def _admin(self, before: MasterState | None) -> Iterator[Sequence[ObserverFactory]]:
        """Listen at --admin, or go on with the previous program's socket; yield what starts the process for it and --statsd."""
        sends = self.state.settings.statsd is not None
        if self.state.settings.admin is None and not sends and (before is None or before.admin is None):
            yield ()
            return
        from forkserve.ops import observer  # noqa: PLC0415 - most servers do without its modules

        with observer.listening(self.state, before) as listener:
            yield (
                ()
                if listener is None and not sends
                else (partial(observer.Admin, listener=listener, execute=partial(execute, self)),)
            )

    def observer_factories(self) -> Sequence[ObserverFactory]:
        """Return the factories of observers, in the order in which these are notified. A subclass may add its own."""
        if not self.state.settings.reload:
            return ()
        from forkserve.devreload.reloader import DevReloader  # noqa: PLC0415 - production does without its modules

        return (DevReloader,)

    def _take_over(self, before: MasterState) -> int:
        """Resume the previous program's server. The pre-flight has checked everything; failures from now on are only logged."""
        privileges.adopt(before.account)
        privileges.check_and_set_umask(self.state.settings)

        def resume() -> int:
            self._troubles += logs.configure(self.state.settings, before.logs)
            lock = None
            try:
                lock = upstream.hold(self.state.settings.nginx_upstream, before.frontend)
            except ConfigError as error:
                self._troubles.append(str(error))
            logs.adopt_waiting(before.log_lines)
            for trouble in self._troubles:
                logs.logger.error("%s", trouble)
            return self._serve(lock, before)

        if before.settings.daemon:
            daemon.resume(resume)
        return resume()

    # What Python code may read.

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self.state.settings

    @property
    def name(self) -> str:
        """The server's name."""
        return self.state.name

    @property
    def pid(self) -> int:
        """The master's process; 0 before it runs."""
        return self.state.pid

    # What Python code adds to the master's loop.

    def map(self, name: str, items: Sequence[JSON], *, timeout: float | None = CALL_TIMEOUT, retries: int = 0) -> Pending:
        """Have the workers run a command for each item, each time in the worker that is idle first.

        Args:
            name: The command; it gets the item as its only argument.
            items: JSON values.
            timeout: Seconds for one item, from its turn on.
            retries: How often an item is given to another worker after one has died with it; it may then be done twice.

        The value is the list of replies, in the order of the items.
        """
        return distribute(lambda item: self.call(name, item, to="any", timeout=timeout), items, max(1, self.pool.wanted), retries)

    def add_io_handler(self, fileobj: Any, call: Callable[[Any, int], object], events: int = READ) -> None:
        """Call `call(fileobj, event)` when a descriptor, or an object with `fileno()`, is ready. It must not block."""
        self.poller.watch(fileobj, events, lambda event: call(fileobj, event))

    def remove_io_handler(self, fileobj: Any) -> None:
        """Remove the handler of an object. Call it before the object is closed."""
        self.poller.unwatch(fileobj)

    def every(self, seconds: float, call: Callable[[], object]) -> Timer:
        """Call `call` in the master every `seconds`; it must not block. `cancel()` of the timer ends it."""
        return self.poller.every(seconds, call)

    def on_signal(self, signum: signal.Signals, call: Callable[[], object]) -> None:
        """Call `call` when the master gets a signal, instead of its usual effect. It may be set before `run`, or later."""
        self.set_handler(signal.Signals(signum), call)


_LEVELS: Final = {
    logs.TRACE: "trace",
    logging.DEBUG: "debug",
    logging.INFO: "info",
    logging.WARNING: "warning",
    logging.ERROR: "error",
    logging.CRITICAL: "critical",
}
"""The names of the levels that `run` takes as numbers."""


def _check_place() -> None:
    """Raise ConfigError where no server can run: in a module that is only imported, beside the main thread, in an event loop."""
    processes = sys.modules.get("multiprocessing.process")
    if processes and getattr(processes.current_process(), "_inheriting", False):
        sys.exit(f"forkserve: the program {NestedServerError()}")  # for an exception, multiprocessing would print its own frames
    if apps.is_loading():
        raise NestedServerError
    if threading.current_thread() is not threading.main_thread():
        raise ConfigError("Server.run() was called in a thread: only the main thread gets signals, so call it there")
    if asyncio._get_running_loop() is not None:  # noqa: SLF001 - the public function raises where there is none
        raise ConfigError(
            "Server.run() was called in a running event loop, which workers would inherit: use `await Server(...).serve()` there"
        )


def run(app: str | Callable[..., Any] | None = None, **settings: Any) -> None:
    """Serve an application until a signal or `ctl stop`; the calling process becomes the master.

    A mistake is one line on stderr, and the process exits with the code of the command `forkserve`; so it does if the server
    ends with another code than 0.

    Args:
        app: ``module:attr``, ``module:factory()`` or ``module``. Or the application itself, as long as `reload` and `preload` are
            off, and no thread runs.
        settings: Those of `Server`. `log_level` may be a level of the module logging, such as `logging.INFO`.

    Raises:
        SystemExit: See above.
    """
    level = settings.get("log_level")
    if isinstance(level, int) and level in _LEVELS:
        settings["log_level"] = _LEVELS[level]
    try:
        code = Server(app, **settings).run()
    except NestedServerError:
        raise  # the process that imports the program shows it
    except ForkserveError as error:
        console.say(*console.lines_of(error), level=logging.ERROR)
        code = error.exit_code
    if code:
        raise SystemExit(code)


def serve(server: Server) -> int:
    """Run a server as the only purpose of this process; return the exit code."""
    code = server.run()
    for late in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(late, signal.SIG_IGN)  # a late signal must not change the exit code while the interpreter ends
    return code


def check_settings(settings: Settings) -> None:
    """Check in advance the settings that would stop every worker, TLS included. Imports no application.

    Raises:
        ConfigError: A setting cannot work.
    """
    check_but_tls(settings)
    make_context(settings)


def check_but_tls(settings: Settings) -> None:
    """Check in the master, before any fork, the settings that would stop every worker; except for those of TLS files.

    Raises:
        ConfigError: A setting cannot work.
    """
    if settings.app is not None:
        apps.parse_app_spec(settings.app)
    try:
        readers.chosen(settings.http)
        access.compile_format(settings.access_logformat)
    except (ModuleNotFoundError, ValueError) as error:
        raise ConfigError(str(error)) from error
    if settings.access_logfile is not None:
        access.import_early()


def _checked(config: Config) -> Config:
    """Return the configuration with a check of the settings that a reload reads, before a worker fails because of them."""
    again = config.again
    if again is None:
        return config

    def read() -> Config:
        fresh = again()
        check_but_tls(fresh.settings)
        return _checked(fresh)

    return dataclasses.replace(config, again=read)


def _failing_class(error: ForkserveError) -> type[Worker]:
    """Return a worker class in place of one that cannot be imported: no new worker starts, but the old ones keep serving."""

    class FailingWorker(Worker):
        def run(self) -> None:
            raise error

    return FailingWorker


def worker_class(settings: Settings) -> type[Worker]:
    """Return the class of the workers. Imports the user's module, if --worker names one; in the master.

    Raises:
        ConfigError: There is no such class, or it is no worker.
        AppLoadError: The module fails while it is imported.
    """
    if settings.worker is None:
        return HTTPWorker
    with contextlib.suppress(OSError):  # there is no working directory any more
        apps.extend_path(settings)
    found = load_class(settings.worker, "--worker")
    if not issubclass(found, Worker):
        raise ConfigError(f"--worker {settings.worker}: this is no subclass of forkserve.Worker")
    return compose(found, ())
