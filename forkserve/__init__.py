"""forkserve: a preforking WSGI and ASGI server."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forkserve.prefork.worker import Worker
    from forkserve.server import Server
    from forkserve.web import HTTPWorker

__all__ = ["HTTPWorker", "Server", "Worker", "__version__"]

_WHERE = {"HTTPWorker": "forkserve.web", "Server": "forkserve.server", "Worker": "forkserve.prefork.worker"}


def __getattr__(name: str) -> object:
    """Import on first use, so that either half can be had without the other (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415  # slow to import, seldom asked

        return version("forkserve")
    if name not in _WHERE:
        raise AttributeError(f"module 'forkserve' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)
