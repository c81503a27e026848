"""Identifiers of requests: --request-id-header. Without that setting, nothing here runs.

One that comes with a request is kept if it has the form `KEPT`; else one is made, and takes its place among the fields: the app
and its middleware find the same identifier in the field as the logs have. It is also in the response, unless the app gives the
field itself, and in the `state` of an ASGI scope.
"""

from __future__ import annotations

import os
import re
from functools import cache
from typing import TYPE_CHECKING, Any

from forkserve.base.logforms import Trace, current
from forkserve.http.app.exchange import Exchange, traceparent
from forkserve.http.message.fields import with_headers

if TYPE_CHECKING:
    from collections.abc import Callable

    from forkserve.http.framing.writer import RequestHandler, UpgradeWriter
    from forkserve.http.message.fields import Fields
    from forkserve.http.message.http1 import Target

    NewExchange = Callable[[UpgradeWriter, Target, Fields], RequestHandler]

_KEPT = re.compile(rb"[A-Za-z0-9._-]{1,128}")


def with_ids(new_exchange: NewExchange, header: str) -> NewExchange:
    """Return a function that makes the exchanges of `new_exchange`, each with an identifier in the field `header`."""
    name, lower = header.encode("ascii"), header.lower().encode("ascii")

    def new(writer: UpgradeWriter, target: Target, fields: Fields) -> RequestHandler:
        value = fields.get(lower)
        if value is None or _KEPT.fullmatch(value) is None:
            value = os.urandom(16).hex().encode()  # random in every process, whatever it was forked from
            headers = [*(pair for pair in fields.headers if pair[0] != lower), (lower, value)]
            fields = with_headers(fields, headers)
        exchange = new_exchange(writer, target, fields)
        assert isinstance(exchange, Exchange)
        exchange.request_id = (name, value)
        kind: Any = type(exchange)
        exchange.__class__ = _identified(kind)
        exchange.context.run(current.set, exchange.trace)
        return exchange

    return new


@cache
def _identified(kind: Any) -> type[Exchange]:
    """Return the class of exchanges like these that also pass their identifier on."""
    return type(kind.__name__, (_Identified, kind), {"__slots__": ()})


class _Identified(Exchange):
    """What an exchange with an identifier does besides. It is put in front of each class of exchanges."""

    __slots__ = ()

    def answer(self, data: bytes) -> int | None:
        """Send the whole body at once; return the time, if it was taken."""
        self._echo()
        return super().answer(data)

    def write(self, data: bytes, *, more: bool) -> None:
        """Send a piece of the body."""
        if not self.started:
            self._echo()
        super().write(data, more=more)

    def _echo(self) -> None:
        head = self.head
        if head is not None:
            self.head = head.with_own(*self.request_id)

    def _scope(self) -> dict[str, Any]:
        """Return what an ASGI application is called with."""
        scope: dict[str, Any] = super()._scope()  # type: ignore[misc]  # that of the class of ASGI
        scope["state"]["request_id"] = self.request_id[1].decode()
        return scope

    def _accept(self, message: dict[str, Any]) -> None:
        """Accept a WebSocket."""
        name, value = self.request_id
        headers = list(message.get("headers", ()))
        if not any(bytes(pair[0]).lower() == name.lower() for pair in headers):
            headers.append((name, value))
        super()._accept({**message, "headers": headers})  # type: ignore[misc]  # that of the class of WebSockets

    @property
    def trace(self) -> Trace:
        """What records of this request have in common."""
        return Trace(self.request_id[1].decode(), traceparent(self.fields))
