"""The beginning of a connection where TLS is spoken: a handshake that fails is counted, and plain HTTP is answered."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from math import inf
from typing import TYPE_CHECKING

from forkserve.http.framing.connection import Connection
from forkserve.http.message.errors import RequestError

if TYPE_CHECKING:
    from forkserve.http.proxy import Endpoints
    from forkserve.http.site import Site

Readable = Callable[[socket.socket, float], Awaitable[None]]
LONGEST_SHUTDOWN = 3600.0
"""Seconds; it must be a number."""
LEAST_TIME = 0.1
"""Seconds that a handshake has, however late its first byte was."""


class PlainConnection(Connection):
    """A client that speaks no TLS. It gets a 400 in plain HTTP. Nothing that it sends is read as a request."""

    __slots__ = ()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is connected (asyncio)."""
        super().connection_made(transport)
        self.site.handshakes_failed += 1
        self._refuse(RequestError(400, "plain HTTP was sent where TLS is spoken: use https"))


async def connect_tls(site: Site, client: socket.socket, host: str, endpoints: Endpoints, readable: Readable) -> None:
    """Make a connection of a socket whose client is to speak TLS.

    Args:
        site: What all connections share.
        client: Accepted, non-blocking; what a PROXY header was has been read.
        host: The address of its peer, for the log.
        endpoints: For the connection.
        readable: Waits until the socket can be read, or the loop's clock says so much.

    Raises:
        OSError: There is no connection. The reason is logged.
        EOFError: The client has left without a word. It may only have looked whether anybody listens.
    """
    loop, until = site.loop, site.loop.time() + site.header_timeout
    try:
        plain = await _speaks_http(loop, client, until, readable)
        connection = PlainConnection(site) if plain else Connection(site)
        connection.endpoints = endpoints
        if plain:
            await loop.connect_accepted_socket(lambda: connection, client)
            return
        await loop.connect_accepted_socket(
            lambda: connection,
            client,
            ssl=site.tls,
            ssl_handshake_timeout=None if until == inf else max(LEAST_TIME, until - loop.time()),
            ssl_shutdown_timeout=min(site.write_timeout, LONGEST_SHUTDOWN),  # `Connection.sweep` has the last word
        )
    except OSError as error:
        site.handshakes_failed += 1
        site.refusals.note("TLS handshake", host, _reason(error))
        raise


async def _speaks_http(loop: asyncio.AbstractEventLoop, client: socket.socket, until: float, readable: Readable) -> bool:
    """Look at the first byte, and leave it there: text is no TLS, whatever else it is; all that is not text is TLS's to judge.

    Raises:
        TimeoutError: None has come in time.
        EOFError: None comes.
    """
    while True:
        try:
            first = client.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            if loop.time() >= until:
                raise TimeoutError("it did not begin in time (--header-timeout)") from None
            await readable(client, until)
            continue
        except ConnectionError:
            raise EOFError from None
        if not first:
            raise EOFError
        return first.isascii() and (first.isspace() or first.decode().isprintable())


def _reason(error: OSError) -> str:
    """Why a handshake has failed: OpenSSL's reason, or the system's, in one line."""
    reason = getattr(error, "verify_message", None) or getattr(error, "reason", None) or error.strerror or str(error)
    return " ".join(str(reason).split()) or "the client has left"
