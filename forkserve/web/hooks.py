"""The hooks ``pre_request`` and ``post_request``, with the arguments that gunicorn gives them. In a worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from forkserve.prefork.ipc.hooks import run_hook

if TYPE_CHECKING:
    from forkserve.http.app.exchange import Exchange
    from forkserve.prefork.worker.worker import Worker


@dataclass(frozen=True, slots=True)
class HookRequest:
    """The argument ``req`` of the hooks ``pre_request`` and ``post_request``, with gunicorn's names."""

    method: str
    uri: str
    path: str
    query: str
    version: tuple[int, int]
    headers: list[tuple[str, str]]

    @classmethod
    def of(cls, exchange: Exchange) -> HookRequest:
        """Return the request of an exchange."""
        target, fields = exchange.target, exchange.fields
        line: dict[str, str] = {}
        target.put_line(line)
        return cls(
            method=target.method,
            uri=target.raw,
            path=line["PATH_INFO"],
            query=line["QUERY_STRING"],
            version=(1, int(fields.version[2])),
            headers=[(name.decode("ascii").upper(), value.decode("latin-1")) for name, value in fields.headers],
        )


@dataclass(frozen=True, slots=True)
class HookResponse:
    """The argument ``resp`` of the hook ``post_request``, with gunicorn's names; ``sent`` is in bytes of the body."""

    status: str
    status_code: int
    sent: int

    @classmethod
    def of(cls, exchange: Exchange) -> HookResponse:
        """Return the response of an exchange; 500 without a head."""
        head = exchange.head
        if head is None:
            return cls("", 500, exchange.sent)
        return cls(f"{head.code} {head.phrase.decode('latin-1')}".strip(), head.code, exchange.sent)


class RequestHooks:
    """Calls the hooks ``pre_request`` and ``post_request``.

    Args:
        worker: The hooks' first argument.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def before(self, exchange: Exchange) -> None:
        """Call ``pre_request``."""
        run_hook(self._worker.hooks, "pre_request", self._worker, HookRequest.of(exchange), keep=True)

    def after(self, exchange: Exchange) -> None:
        """Call ``post_request``."""
        arguments = HookRequest.of(exchange), exchange.scope_or_environ or {}, HookResponse.of(exchange)
        run_hook(self._worker.hooks, "post_request", self._worker, *arguments, keep=True)
