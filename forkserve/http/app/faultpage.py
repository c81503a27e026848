"""The page that is served in a development server while the code on disk does not load. Only --reload makes one."""

from __future__ import annotations

from html import escape
from ipaddress import ip_address
from typing import TYPE_CHECKING

from forkserve.http.app.exchange import Exchange
from forkserve.http.message.response import ResponseHead, read_code
from forkserve.http.proxy import Endpoints, hops

if TYPE_CHECKING:
    from collections.abc import Callable

    from forkserve.http.framing.connection import Connection
    from forkserve.http.message.fields import Fields
    from forkserve.http.message.http1 import Target

# No script, whatever the text; and what a proxy or browser keeps would still be shown when the fault is mended.
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
    """Answers a request with the page, whatever the application would have spoken; a WebSocket's handshake as well."""

    __slots__ = ()

    text = ""

    def start(self) -> None:
        """Answer when the body has been read, which a client may not be able to stop sending."""
        if self.connection.body is None:
            self._answer()
        else:
            self.connection.send_continue()

    def body_data(self, data: bytes) -> None:
        """Drop it."""

    def body_end(self) -> None:
        """Answer."""
        self._answer()

    def _answer(self) -> None:
        local = _is_local(self.connection, self.fields)
        page = PAGE.format(ADVICE, escape(self.text, quote=False)) if local else PAGE.format(HIDDEN, "")
        self.head = ResponseHead(*read_code(500), str)
        self.head.add(HEADERS)
        self.write(page.encode("utf-8", "backslashreplace"), more=False)


def exchange(text: str) -> Callable[[Connection, Target, Fields], FaultExchange]:
    """Return what makes the exchanges that show a text."""
    return type("FaultExchange", (FaultExchange,), {"__slots__": (), "text": text})


def _is_local(connection: Connection, fields: Fields) -> bool:
    """Whether both who sent the request and whom a proxy names, in a PROXY header or a field, are this machine."""
    socket = Endpoints()
    socket.read(connection.transport)
    named = connection.endpoints.client, *((hop,) for hop in hops(fields))  # by whomever: here nobody needs to be believed
    return (not socket.peer or _is_loopback(socket.peer)) and all(one is None or _is_loopback(one[0]) for one in named)


def _is_loopback(host: str) -> bool:
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback
