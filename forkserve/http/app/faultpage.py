"""The page that is served in a development server while the code on disk does not load. Only --reload makes one."""

from __future__ import annotations

from functools import partial
from html import escape
from ipaddress import ip_address
from typing import TYPE_CHECKING

from forkserve.http.app.exchange import Exchange
from forkserve.http.framing.endpoints import hops
from forkserve.http.message.response import ResponseHead, read_code

if TYPE_CHECKING:
    from collections.abc import Callable

    from forkserve.http.app.site import Site
    from forkserve.http.framing.endpoints import Endpoints
    from forkserve.http.message.fields import Fields

# No script may run, whatever the text is. A copy kept by a proxy or browser would still be shown when the fault is repaired.
HEADERS = (
    ("Content-Type", "text/html; charset=utf-8"),
    ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'"),
    ("X-Content-Type-Options", "nosniff"),
    ("Cache-Control", "no-store"),
)
PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>The app does not load</title></head>
<body style="font: 16px sans-serif; margin: 2em">
<h1 style="font-size: 1.3em">The app does not load</h1>
<p>{}</p>
<pre style="font: 14px monospace; white-space: pre-wrap">{}</pre>
</body>
</html>
"""
ADVICE = "Save a file of it, and it is tried again."
HIDDEN = "What is wrong is shown on the server's terminal, and here to browsers on the server's own machine."


class FaultExchange(Exchange):
    """Answers a request with the page, for WSGI, ASGI and the handshake of a WebSocket alike."""

    __slots__ = ()

    text = ""

    def start(self) -> None:
        """Answer when the body has been read: a client may not be able to stop sending it."""
        if self.fields.has_body:
            self.writer.want_body()
        else:
            self._answer()

    def body_data(self, data: bytes) -> None:
        """Drop the bytes."""

    def body_end(self) -> None:
        """Answer."""
        self._answer()

    def _answer(self) -> None:
        local = _is_local(self.writer.connection.endpoints, self.fields)
        page = PAGE.format(ADVICE, escape(self.text, quote=False)) if local else PAGE.format(HIDDEN, "")
        self.head = ResponseHead(*read_code(500), str)
        self.head.add(HEADERS)
        self.write(page.encode("utf-8", "backslashreplace"), more=False)


def fault_exchange(site: Site, text: str) -> Callable[..., FaultExchange]:
    """Return a function that makes exchanges of `site` which show a text."""
    return partial(type("FaultExchange", (FaultExchange,), {"__slots__": (), "text": text}), site)


def _is_local(endpoints: Endpoints, fields: Fields) -> bool:
    """Return whether the sender and every address that a proxy names, in a PROXY header or a field, are of this machine.

    A proxy need not be trusted here: a lie can only hide the text.
    """
    named = endpoints.client, *((hop,) for hop in hops(fields))
    peer = endpoints.socket_peer
    return (not peer or _is_loopback(peer)) and all(one is None or _is_loopback(one[0]) for one in named)


def _is_loopback(host: str) -> bool:
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
