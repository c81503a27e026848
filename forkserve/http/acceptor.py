"""Accepts connections from one listening socket. For a socket that other processes share: `sharedqueue`.

Not ``loop.create_server``, even for a worker alone on its port: asyncio pauses for a second when descriptors run out,
libuv closes what it cannot take, and neither lets a draining worker empty the queue before it stops.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING, Any

from forkserve.http.framing.endpoints import Endpoints, ProxiedEndpoints, TrustedPeers
from forkserve.http.framing.proxyheader import LONGEST, ProxyHeaderError, read_proxy_header
from forkserve.http.framing.tlsconnect import connect_tls

if TYPE_CHECKING:
    from forkserve.http.framing.proxyheader import ProxyHeader
    from forkserve.http.framing.state import ServerState
    from forkserve.http.framing.writer import Framing

AT_ONCE = 64
"""Connections accepted per wake-up."""
PAUSE = 0.1
"""Seconds without accepting when descriptors or memory have run out."""
# accept(2): "treat them like EAGAIN by retrying"; the client has left already.
_CLIENTS_FAULT = frozenset(
    (
        errno.ECONNABORTED, errno.ENETDOWN, errno.EPROTO, errno.ENOPROTOOPT, errno.EHOSTDOWN, errno.EHOSTUNREACH,
        errno.EOPNOTSUPP, errno.ENETUNREACH, errno.EPERM,
    )
)  # fmt: skip
_EXHAUSTED = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


class Acceptor:
    """Accepts connections from one listening socket and makes the protocol of each. On the loop's thread.

    Args:
        server: What the connections share.
        sock: Listening and non-blocking; the caller closes it.
        framing: Makes the protocol of a connection.

    Attributes:
        admit: Returns whether another connection may be accepted; with ``--max-requests``.
    """

    def __init__(self, server: ServerState, sock: socket.socket, framing: Framing) -> None:
        self._server = server
        self._framing = framing
        self._loop = server.loop
        self.admit: Callable[[], bool] | None = None
        self._sock = sock
        self._warned = False
        self._stopped = self._holding = False
        self._timer: asyncio.TimerHandle | None = None
        settings = server.settings
        self._senders = None if settings.proxy_protocol == "off" else TrustedPeers(settings.proxy_allow_from)
        self._warned_of_header = False

    def start(self) -> None:
        """Accept from now on."""
        self._timer = None
        if not self._holding:
            self._loop.add_reader(self._sock, self._ready)

    def stop(self, *, leave: bool = False) -> None:
        """Accept what waits in the queue, or leave it to other processes that accept there; then accept no more."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        while not leave and self._accept():
            pass
        self._loop.remove_reader(self._sock)

    def hold(self) -> None:
        """Accept nothing until `go_on`; connections wait in the queue."""
        self._holding = True
        self._loop.remove_reader(self._sock)

    def go_on(self) -> None:
        """Accept again."""
        if self._holding:
            self._holding = False
            if not self._stopped and self._timer is None:
                self.start()

    def _ready(self) -> None:
        # With a quota one at a time: each connection counts.
        for _ in range(AT_ONCE if self.admit is None else 1):
            if not self._accept():
                return

    def _rest(self, seconds: float, then: Callable[[], None]) -> None:
        """Accept nothing for this time; `then` calls `start`."""
        if not self._stopped:
            self._loop.remove_reader(self._sock)
            self._timer = self._loop.call_later(seconds, then)

    def _accept(self) -> bool:
        """Accept one connection; return whether there may be another."""
        if self.admit is not None and not self.admit():
            return False
        try:
            client, peer = self._sock.accept()
        except (BlockingIOError, InterruptedError):
            self._warned = False  # the queue is empty: the shortage is over
            return False
        except OSError as error:
            if error.errno in _EXHAUSTED:
                self._exhausted(error)
                return False
            if error.errno in _CLIENTS_FAULT:
                return True
            raise
        self._server.coming += 1
        client.setblocking(False)
        task = self._loop.create_task(self._connect(client, peer))
        self._server.handshakes.add(task)
        task.add_done_callback(self._server.handshakes.discard)
        return True

    def _exhausted(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            self._server.log.warning("cannot accept connections for now: %s; new ones wait in the queue", error.strerror)
        if self._timer is None:
            self._rest(PAUSE, self.start)

    async def _connect(self, client: socket.socket, peer: Any) -> None:
        server, endpoints = self._server, Endpoints()
        try:
            if self._senders is not None and _host(peer) in self._senders:
                endpoints = ProxiedEndpoints(await self._proxy_header(client))
            if server.tls is not None:
                await connect_tls(server, client, _host(peer), endpoints, self._readable, self._framing)
                return
            connection = self._framing(server, endpoints)
            await self._loop.connect_accepted_socket(lambda: connection, client)
        except asyncio.CancelledError:
            server.refusals.note("connection", _host(peer), "it had not begun when this process came to its end")
            raise
        except ProxyHeaderError as error:
            client.close()
            server.coming -= 1
            self._warn_of_header(_host(peer), error)
        except (TimeoutError, OSError, EOFError):
            server.coming -= 1
            client.close()  # that a client gives up is no error; a handshake that failed is logged already

    async def _proxy_header(self, client: socket.socket) -> ProxyHeader:
        """Read the PROXY header from a connection, and no byte more: what follows may be TLS, which only the loop can read.

        Raises:
            ProxyHeaderError: There is no valid header.
            EOFError: The connection ended without a byte, as in a proxy's health check.
        """
        allowed, until, data = self._server.settings.proxy_protocol, self._loop.time() + self._server.header_timeout, b""
        while True:
            try:
                ahead = client.recv(LONGEST - len(data), socket.MSG_PEEK)
            except BlockingIOError:
                # Only here, with nothing left to read: the header may have come in time while an application held the thread.
                if self._loop.time() >= until:
                    raise ProxyHeaderError("did not come in time") from None
                await self._readable(client, until)
                continue
            if not ahead:
                raise ProxyHeaderError("ends too early") if data else EOFError
            header = read_proxy_header(data + ahead, allowed)
            # A part is read as well: if it stayed in the socket, that would be readable at once and not when more has come.
            data += client.recv(len(ahead) if header is None else header.size - len(data))
            if header is not None:
                return header

    async def _readable(self, client: socket.socket, until: float) -> None:
        """Wait until there may be something to read, or until that time on the loop's clock; close the socket if cancelled."""
        readable = self._loop.create_future()

        def wake() -> None:
            if not readable.done():
                readable.set_result(None)

        timer = self._loop.call_at(until, wake) if until < inf else None
        self._loop.add_reader(client, wake)
        try:
            await readable
        finally:
            self._loop.remove_reader(client)
            if timer is not None:
                timer.cancel()
            if readable.cancelled():
                client.close()

    def _warn_of_header(self, host: str, error: ProxyHeaderError) -> None:
        """Log a warning once, for a proxy that is set up wrongly; after that clients must not fill the log."""
        why = f"its PROXY header {error} (--proxy-protocol {self._server.settings.proxy_protocol})"
        if self._warned_of_header:
            self._server.refusals.note("connection", host, why)
        else:
            self._warned_of_header = True
            self._server.log.warning("connection from %s closed: %s", host or "a unix socket", why)


def _host(peer: Any) -> str:
    """Return the address of a peer as accept(2) gives it; empty on a unix socket."""
    return str(peer[0]) if isinstance(peer, tuple) else ""
