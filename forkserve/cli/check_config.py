"""`--check-config`: does what a start does, up to loading the app, without serving."""

from forkserve.base import privileges
from forkserve.config import apps
from forkserve.config.settings import Settings
from forkserve.prefork.worker.classes import load_mixins
from forkserve.server import check_settings, worker_class
from forkserve.upstream import upstream


def check(settings: Settings) -> None:
    """Check the settings, and load the app in this process, which must end then. Raises ConfigError or AppLoadError."""
    privileges.account(settings)
    check_settings(settings)
    upstream.check_path(settings)
    apps.prepare_process(settings)
    load_mixins(worker_class(settings), settings.mixin)
    if settings.app is not None:
        apps.load_app(settings.app, interface=settings.interface, factory=settings.factory)
