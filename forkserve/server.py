"""Server: both halves put together. The calling process becomes the master."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING

from forkserve import config as configuration
from forkserve import daemon, loader, logs
from forkserve.errors import ConfigError
from forkserve.frontend import upstream
from forkserve.http import access
from forkserve.http.parsers import new_parser
from forkserve.http.tls import make_context
from forkserve.prefork import privileges
from forkserve.prefork.classes import compose, load_class
from forkserve.prefork.master import Master
from forkserve.prefork.upgrade import birth
from forkserve.prefork.upgrade.state import decode
from forkserve.prefork.worker import Worker
from forkserve.web import HTTPWorker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from forkserve.config import Config
    from forkserve.prefork.upgrade.state import Exported
    from forkserve.settings import Settings


class Server(Master):
    """A master with its workers, for an app or for a worker class of your own.

    Args:
        app: ``module:attr``, ``module:factory()`` or ``module``; not needed for a worker class of your own.
        worker: What runs in each worker process.
        mixins: Classes put in front of it: their ``child_<name>`` methods are commands, their hooks are called.
        settings: Any setting by name, as in ``workers=4, base_port=9000``.

    Raises:
        ConfigError: A setting is unknown or has no valid value, or the classes do not go together.
    """

    def __init__(
        self, app: str | None = None, *, worker: type[Worker] = HTTPWorker, mixins: Sequence[type] = (), **settings: object
    ) -> None:
        needs_app = issubclass(worker, HTTPWorker)
        if app is not None:
            settings["app"] = app
        config = configuration.from_keywords(needs_app=needs_app, **settings)
        super().__init__(compose(worker, mixins), config)

    @classmethod
    def from_config(cls, config: Config) -> Server:
        """A server for settings that have been put together already, as the command line does.

        Raises:
            ConfigError: There is no such worker class, or a setting cannot work on this machine.
            AppLoadError: The worker class's module fails while it is imported.
        """
        self = cls.__new__(cls)
        runs = worker_class(config.settings)
        Master.__init__(self, runs, _checked(config) if issubclass(runs, HTTPWorker) else config)
        return self

    def run(self) -> int:
        """Serve until told to stop; the exit code of the process (design: exit codes).

        Raises:
            ConfigError: A setting cannot work on this machine.
            ListenError: An address cannot be listened on.
        """
        if issubclass(self.worker_class, HTTPWorker):
            check(self.settings)
        upstream.check(self.settings)
        privileges.prepare(self.settings)
        handed = birth.handed
        if handed is None:
            return daemon.run(self._serve) if self.settings.daemon else self._serve()
        before = decode(handed.data)
        if handed.confirm is not None:
            upstream.rehearse(self.settings.nginx_upstream, before.get("front"))
            return super().run()  # which loads the app and ends, and opens no logs
        serve = partial(self._serve, before.get("front"))
        if before["settings"]["daemon"]:
            daemon.resume(serve)
        return serve()

    def _serve(self, held: Exported | None = None) -> int:
        logs.configure(self.settings)
        path = self.settings.nginx_upstream
        lock = upstream.hold(path, held)
        if path is not None and lock is not None:
            self.front = upstream.Upstream(self.poller, self.name, path, lock)
        return super().run()


def check(settings: Settings) -> None:
    """Find out in the master, before any fork, what every worker would trip over. Imports no application.

    Raises:
        ConfigError: What it is, in one line.
    """
    if settings.app is not None:
        loader.parse_app_spec(settings.app)
    make_context(settings)
    try:
        new_parser(settings.http)
        access.compile_format(settings.access_logformat)
    except (ModuleNotFoundError, ValueError) as error:
        raise ConfigError(str(error)) from error
    if settings.access_logfile is not None:
        access.import_early()


def _checked(config: Config) -> Config:
    """The same configuration, but one that checks as well what a reload reads, before a worker trips over it."""
    again = config.again
    if again is None:
        return config

    def read() -> Config:
        fresh = again()
        check(fresh.settings)
        return _checked(fresh)

    return dataclasses.replace(config, again=read)


def worker_class(settings: Settings) -> type[Worker]:
    """Return the class of the workers. Imports the user's module, if --worker names one; in the master.

    Raises:
        ConfigError: There is no such class, or it is no worker.
        AppLoadError: The module fails while it is imported.
    """
    if settings.worker is None:
        return HTTPWorker
    loader.extend_path(settings)
    found = load_class(settings.worker, "--worker")
    if not issubclass(found, Worker):
        raise ConfigError(f"--worker {settings.worker}: this is no subclass of forkserve.Worker")
    return compose(found, ())
