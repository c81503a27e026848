"""Names: the attributes of gunicorn's workers that this server's workers do not have; the error says what to use."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from forkserve.prefork.ipc.hooks import missing_attribute


class Named:
    """A worker with errors for the names that it does not have."""

    INSTEAD: ClassVar = MappingProxyType(
        {
            "max_requests": "worker.cfg.max_requests",
            "notify": "worker.beat()",
            "timeout": "worker.cfg.timeout",
            "tmp": "worker.beat() for a heartbeat",
        }
    )
    """What to use, by the missing name."""

    if not TYPE_CHECKING:  # the type checker would accept any name

        def __getattr__(self, name: str) -> Any:
            """Raise AttributeError, and say what to use."""
            raise missing_attribute(self, "the worker", name, self.INSTEAD)

        def __setattr__(self, name: str, value: object) -> None:
            """Set an attribute, but not `alive`, by which gunicorn's hooks end a worker."""
            if name == "alive":
                raise AttributeError(
                    "worker.alive cannot be set: to have this worker replaced, use os.kill(worker.pid, signal.SIGTERM),"
                    " or the settings max_requests and max_memory"
                )
            super().__setattr__(name, value)
