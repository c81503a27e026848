"""An application that the program gives as an object. The master has imported it, so that workers get it by the fork."""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING, Any

from forkserve.base.errors import ConfigError
from forkserve.web.worker import HTTPWorker

if TYPE_CHECKING:
    from collections.abc import Callable

    from forkserve.config.settings import Settings
    from forkserve.prefork.worker.worker import Worker


def name_of(app: Callable[..., Any]) -> str:
    """Return `module:attr` for messages and the status: as the program knows it, or else by its class."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    module = spec.name if spec else os.path.basename(getattr(main, "__file__", None) or "app").removesuffix(".py")
    if not all(part.isidentifier() for part in module.split(".")):
        module = "app"
    found = next((name for name, value in vars(main).items() if value is app and name.isidentifier()), type(app).__name__)
    return f"{module}:{found}"


def worker_for(worker: type[Worker], app: Callable[..., Any]) -> type[Worker]:
    """Return the worker class with the application."""
    own = {"__module__": worker.__module__, "__doc__": worker.__doc__, "app_object": staticmethod(app)}
    return type(worker.__name__, (worker,), own)


def check(worker: type[Worker], settings: Settings) -> None:
    """Check in the master that workers can get the application by the fork.

    Raises:
        ConfigError: It must be given by its name.
    """
    if not issubclass(worker, HTTPWorker) or worker.app_object is None:
        return
    name = f"give its name instead, as in {settings.app!r}, and start the server below `if __name__ == '__main__':`"
    if settings.reload:
        raise ConfigError(f"reload: the app is given as an object, so a reload cannot import it again: {name}")
    if settings.preload:
        raise ConfigError(f"preload: the app is given as an object, which is loaded already: leave this out, or {name}")
    own = threading.current_thread()
    threads = [thread.name for thread in threading.enumerate() if thread is not own and thread.is_alive()]
    if threads:
        raise ConfigError(
            f"app: it is given as an object, but workers would not have these threads: {', '.join(threads)}; {name}"
        )
