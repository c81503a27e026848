"""The start of a TLS connection: a handshake that fails is counted, and plain HTTP is answered."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from math import inf
from typing import TYPE_CHECKING

from forkserve.http.framing.h1 import H1Connection
from forkserve.http.message.errors import RequestError

if TYPE_CHECKING:
    from forkserve.http.framing.endpoints import Endpoints
    from forkserve.http.framing.state import ServerState
    from forkserve.http.framing.writer import Framing

Readable = Callable[[socket.socket, float], Awaitable[None]]
LONGEST_SHUTDOWN = 3600.0
"""Seconds; asyncio takes no infinity."""
LEAST_TIME = 0.1
"""Seconds that a handshake has at least, however late its first byte was."""


class PlainConnection(H1Connection):
    """A client that speaks no TLS. It gets a 400 in plain HTTP. None of its bytes are read as a request."""

    __slots__ = ()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Answer at once (asyncio)."""
        super().connection_made(transport)
        self.state.handshakes_failed += 1
        self.refuse(RequestError(400, "plain HTTP was sent where TLS is spoken: use https"))


async def connect_tls(
    state: ServerState, client: socket.socket, host: str, endpoints: Endpoints, readable: Readable, framing: Framing
) -> None:
    """Start TLS on an accepted socket, and make a connection of it.

    Args:
        state: What all connections share.
        client: Accepted and non-blocking; a PROXY header has been read.
        host: The address of its peer, for the log.
        endpoints: The endpoints of the new connection.
        readable: Waits until the socket can be read, or until a time on the loop's clock.
        framing: Makes the connection.

    Raises:
        OSError: There is no connection. The reason is logged.
        EOFError: The client has left without sending a byte. Perhaps it checked only whether the port is open.
    """
    loop, until = state.loop, state.loop.time() + state.header_timeout
    try:
        plain = await _speaks_http(loop, client, until, readable)
        connection = (PlainConnection if plain else framing)(state, endpoints)
        if plain:
            await loop.connect_accepted_socket(lambda: connection, client)
            return
        await loop.connect_accepted_socket(
            lambda: connection,
            client,
            ssl=state.tls,
            ssl_handshake_timeout=None if until == inf else max(LEAST_TIME, until - loop.time()),
            ssl_shutdown_timeout=min(state.write_timeout, LONGEST_SHUTDOWN),  # the sweep aborts it before
        )
    except OSError as error:
        state.handshakes_failed += 1
        state.refusals.note("TLS handshake", host, _reason(error))
        raise


async def _speaks_http(loop: asyncio.AbstractEventLoop, client: socket.socket, until: float, readable: Readable) -> bool:
    """Look at the first byte, and leave it there. Text is no TLS; anything else is left to the TLS handshake.

    Raises:
        TimeoutError: No byte has come in time.
        EOFError: The client sends none.
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
    """Return why a handshake has failed: OpenSSL's reason, or the system's, in one line."""
    reason = getattr(error, "verify_message", None) or getattr(error, "reason", None) or error.strerror or str(error)
    return " ".join(str(reason).split()) or "the client has left"
