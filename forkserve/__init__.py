"""forkserve: a preforking WSGI and ASGI server."""

from importlib import import_module
from typing import TYPE_CHECKING

from forkserve.version import __version__

if TYPE_CHECKING:
    from forkserve import metrics, testing
    from forkserve.base.errors import CommandError, ConfigError
    from forkserve.prefork.control.client import connect
    from forkserve.prefork.ipc.pending import Reply, WouldDeadlock
    from forkserve.prefork.worker.worker import Worker, current_worker
    from forkserve.server import Server, run
    from forkserve.web.worker import HTTPWorker

__all__ = [
    "CommandError",
    "ConfigError",
    "HTTPWorker",
    "Reply",
    "Server",
    "Worker",
    "WouldDeadlock",
    "__version__",
    "connect",
    "current_worker",
    "metrics",
    "run",
    "testing",
]

_MODULES = {
    "CommandError": "forkserve.base.errors",
    "ConfigError": "forkserve.base.errors",
    "HTTPWorker": "forkserve.web.worker",
    "Reply": "forkserve.prefork.ipc.pending",
    "Server": "forkserve.server",
    "Worker": "forkserve.prefork.worker.worker",
    "WouldDeadlock": "forkserve.prefork.ipc.pending",
    "connect": "forkserve.prefork.control.client",
    "current_worker": "forkserve.prefork.worker.worker",
    "run": "forkserve.server",
}


def __getattr__(name: str) -> object:
    """Import on first use (PEP 562), so that `import forkserve` has no side effects, and a client loads no server."""
    if name in ("metrics", "testing"):
        return import_module(f"forkserve.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module 'forkserve' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
