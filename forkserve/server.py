"""Server: both halves put together. The calling process becomes the master."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from forkserve import config as configuration
from forkserve import loader, logs
from forkserve.errors import ConfigError
from forkserve.http.access import compile_format
from forkserve.http.parsers import new_parser
from forkserve.http.tls import make_context
from forkserve.prefork.master import Master
from forkserve.prefork.worker import Worker
from forkserve.web import HTTPWorker

if TYPE_CHECKING:
    from forkserve.config import Config
    from forkserve.settings import Settings


class Server:
    """A master with its workers.

    Args:
        app: ``module:attr``, ``module:factory()`` or ``module``; not needed for a worker class of your own.
        worker: What runs in each worker process.
        settings: Any setting by name, as in ``workers=4, base_port=9000``.

    Raises:
        ConfigError: A setting is unknown or has no valid value.
    """

    def __init__(self, app: str | None = None, *, worker: type[Worker] = HTTPWorker, **settings: object) -> None:
        needs_app = issubclass(worker, HTTPWorker)
        if app is not None:
            settings["app"] = app
        self._become(configuration.from_keywords(needs_app=needs_app, **settings), worker)

    @classmethod
    def from_config(cls, config: Config) -> Server:
        """A server for settings that have been put together already, as the command line does.

        Raises:
            ConfigError: The worker class cannot be had, or a setting cannot work on this machine.
        """
        self = cls.__new__(cls)
        self._become(config, _worker_class(config.settings))
        return self

    def _become(self, config: Config, worker: type[Worker]) -> None:
        self.config = config
        self.worker_class = worker

    def run(self) -> int:
        """Serve until told to stop; the exit code of the process (design: exit codes).

        Raises:
            ConfigError: A setting cannot work on this machine.
            ListenError: An address cannot be listened on.
        """
        settings = self.config.settings
        if issubclass(self.worker_class, HTTPWorker):
            check(settings)
        logs.configure(settings)
        return Master(self.worker_class, self.config).run()


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
        compile_format(settings.access_logformat)
    except (ModuleNotFoundError, ValueError) as error:
        raise ConfigError(str(error)) from error


def _worker_class(settings: Settings) -> type[Worker]:
    if settings.worker is None:
        return HTTPWorker
    loader.extend_path(settings)
    spec = settings.worker
    module, _, name = spec.partition(":")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"--worker {spec}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Worker)):
        raise ConfigError(f"--worker {spec}: this is no subclass of forkserve.Worker")
    return found
