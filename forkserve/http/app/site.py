"""What all requests of one process share: the application, the context that it runs in, and the queue in front of it."""

from __future__ import annotations

import contextvars
from secrets import token_bytes
from typing import TYPE_CHECKING, Any, Literal

from forkserve.http.app.hiddenloop import PER_CALL
from forkserve.http.framing.endpoints import TrustedPeers

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Hashable

    from forkserve.http.app.calls import Observer
    from forkserve.http.app.threadpool import ThreadPool
    from forkserve.http.app.turns import Turns
    from forkserve.http.framing.state import ServerState
    from forkserve.http.message.errors import RequestError


SECRET = token_bytes(16)
"""Known to the master, which imports this, and to the workers that are forked from it; to no other program."""
MOST_TEMPLATES = 64
"""Templates of environs or scopes that a process keeps."""


class Site:
    """What all requests of one process share. On the loop's thread.

    Args:
        server: What all connections share.
        app: The WSGI or ASGI application.
        interface: Which of the two it is.
        observer: Is notified of application calls.
        printable: Escapes control characters for log lines.

    Attributes:
        turns: The queue in front of a WSGI application that is called on the loop's thread.
        pool: The threads that call a WSGI application beside the loop.
        on_answer: Called with the `Exchange` when a response has ended, or is as complete as it will be.
        on_refused: Called with the `Exchange` when a request is refused that has one already.
        tasks: Tasks of requests and commands. asyncio refers to tasks only weakly: one that waits for something that nothing
            else refers to would be collected half-way.
        context: Requests run in copies of it.
        state: The state of the lifespan.
        hides_loop_per_call: Whether the loop is hidden from a WSGI application during its calls only (`hiddenloop`).
        ending_streams: Whether the drain has no more time for responses of unknown length.
    """

    def __init__(
        self,
        server: ServerState,
        app: Callable[..., Any],
        interface: Literal["wsgi", "asgi"],
        observer: Observer,
        printable: Callable[[str], str],
    ) -> None:
        self.server = server
        self.settings = server.settings
        self.loop = server.loop
        self.log = server.log
        self.tally = server.tally
        self.app = app
        self.interface = interface
        self.observer = observer
        self.printable = printable
        self.turns: Turns
        self.pool: ThreadPool
        # An exchange knows its site, so its class cannot be named here.
        self.on_answer: Callable[[Any], None] | None = None
        self.on_refused: Callable[[Any, RequestError], None] | None = None
        self.tasks: set[asyncio.Task[None]] = set()
        self.context = contextvars.copy_context()
        self.trusted = TrustedPeers(self.settings.forwarded_allow_ips if self.settings.proxy_headers else ())
        self.state: dict[str, Any] = {}
        self.hides_loop_per_call = PER_CALL
        self.ending_streams = False
        self._templates: dict[Hashable, dict[str, Any]] = {}

    def template(self, key: Hashable, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what requests with the same key have in common; it is made only if it is not kept.

        Few are kept: the address of ours that a PROXY header names may be any.
        """
        found = self._templates.get(key)
        if found is None:
            if len(self._templates) >= MOST_TEMPLATES:
                self._templates.clear()
            found = self._templates[key] = make()
        return found

    def freeze_context(self) -> None:
        """Let requests see the context variables as they are now, in the context of the caller: start-up is over."""
        self.context = contextvars.copy_context()
