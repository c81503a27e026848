"""Takes connections from one listening socket; where other processes listen on it, too: `sharedqueue`.

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

from forkserve.http.framing.connection import Connection
from forkserve.http.framing.proxyheader import LONGEST, ProxyHeaderError, read_proxy_header
from forkserve.http.framing.tlsconnect import connect_tls
from forkserve.http.proxy import Endpoints, ProxiedEndpoints, TrustedPeers

if TYPE_CHECKING:
    from forkserve.http.framing.proxyheader import ProxyHeader
    from forkserve.http.site import Site

AT_ONCE = 64
"""Connections taken per wake-up."""
PAUSE = 0.1
"""Seconds without accepting when descriptors or memory have run out."""
# accept(2): "treat them like EAGAIN by retrying"; that client has gone already.
_CLIENTS_FAULT = frozenset(
    (
        errno.ECONNABORTED, errno.ENETDOWN, errno.EPROTO, errno.ENOPROTOOPT, errno.EHOSTDOWN, errno.EHOSTUNREACH,
        errno.EOPNOTSUPP, errno.ENETUNREACH, errno.EPERM,
    )
)  # fmt: skip
_EXHAUSTED = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


class Acceptor:
    """Takes connections from one listening socket and gives each a `Connection`. On the loop's thread.

    Args:
        site: What the connections share.
        sock: Listening and non-blocking; stays the caller's.
    """

    def __init__(self, site: Site, sock: socket.socket) -> None:
        self._site = site
        self._loop = site.loop
        self._sock = sock
        self._warned = False
        self._stopped = self._holding = False
        self._timer: asyncio.TimerHandle | None = None
        settings = site.settings
        self._senders = None if settings.proxy_protocol == "off" else TrustedPeers(settings.proxy_allow_from)
        self._complained = False

    def start(self) -> None:
        """Accept from now on."""
        self._timer = None
        if not self._holding:
            self._loop.add_reader(self._sock, self._ready)

    def stop(self, *, leave: bool = False) -> None:
        """Take what waits in the queue, or leave it to others who accept there; then accept no more."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        while not leave and self._accept():
            pass
        self._loop.remove_reader(self._sock)

    def hold(self) -> None:
        """Accept nothing until `go_on`: connections wait in the queue."""
        self._holding = True
        self._loop.remove_reader(self._sock)

    def go_on(self) -> None:
        """Accept again."""
        if self._holding:
            self._holding = False
            if not self._stopped and self._timer is None:
                self.start()

    def _ready(self) -> None:
        # With a quota one at a time, as each that there might be counts.
        for _ in range(AT_ONCE if self._site.quota is None else 1):
            if not self._accept():
                return

    def _rest(self, seconds: float, then: Callable[[], None]) -> None:
        """Accept nothing for so long; `then` calls `start`."""
        if not self._stopped:
            self._loop.remove_reader(self._sock)
            self._timer = self._loop.call_later(seconds, then)

    def _accept(self) -> bool:
        """Take one connection; whether there may be another."""
        quota = self._site.quota
        if quota is not None and not quota.admit():
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
        if quota is not None:
            quota.coming += 1
        client.setblocking(False)
        task = self._loop.create_task(self._connect(client, peer))
        self._site.handshakes.add(task)
        task.add_done_callback(self._site.handshakes.discard)
        return True

    def _exhausted(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            self._site.log.warning("cannot accept connections for now: %s; new ones wait in the queue", error.strerror)
        if self._timer is None:
            self._rest(PAUSE, self.start)

    async def _connect(self, client: socket.socket, peer: Any) -> None:
        site, endpoints = self._site, Endpoints()
        try:
            if self._senders is not None and _host(peer) in self._senders:
                endpoints = ProxiedEndpoints(await self._proxy_header(client))
            if site.tls is not None:
                await connect_tls(site, client, _host(peer), endpoints, self._readable)
                return
            connection = Connection(site)
            connection.endpoints = endpoints
            await self._loop.connect_accepted_socket(lambda: connection, client)
        except asyncio.CancelledError:
            site.refusals.note("connection", _host(peer), "it had not begun when this process came to its end")
            raise
        except ProxyHeaderError as error:
            client.close()
            self._not_connected()
            self._complain(_host(peer), error)
        except (TimeoutError, OSError, EOFError):
            self._not_connected()
            client.close()  # a client that gave up is nobody's error; of a handshake that failed it was said

    def _not_connected(self) -> None:
        if self._site.quota is not None:
            self._site.quota.coming -= 1

    async def _proxy_header(self, client: socket.socket) -> ProxyHeader:
        """Take the PROXY header from a connection, and not a byte more: what follows may be TLS, which only the loop can read.

        Raises:
            ProxyHeaderError: There was none that counts.
            EOFError: There was nothing at all, as when a proxy looks whether anybody listens.
        """
        allowed, until, data = self._site.settings.proxy_protocol, self._loop.time() + self._site.header_timeout, b""
        while True:
            try:
                ahead = client.recv(LONGEST - len(data), socket.MSG_PEEK)
            except BlockingIOError:
                # Only here, with nothing left to read: while an application held the thread it may have come in time.
                if self._loop.time() >= until:
                    raise ProxyHeaderError("did not come in time") from None
                await self._readable(client, until)
                continue
            if not ahead:
                raise ProxyHeaderError("ends too early") if data else EOFError
            header = read_proxy_header(data + ahead, allowed)
            # A beginning is taken as well: if it stayed readable, there would be nothing to wait for but its being readable.
            data += client.recv(len(ahead) if header is None else header.size - len(data))
            if header is not None:
                return header

    async def _readable(self, client: socket.socket, until: float) -> None:
        """Wait until there may be something to read, or the loop's clock says `until`; close the socket if cancelled."""
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

    def _complain(self, host: str, error: ProxyHeaderError) -> None:
        """Log a warning once, for a proxy that is not set up for it; from then on clients must not fill the log."""
        why = f"its PROXY header {error} (--proxy-protocol {self._site.settings.proxy_protocol})"
        if self._complained:
            self._site.refusals.note("connection", host, why)
        else:
            self._complained = True
            self._site.log.warning("connection from %s closed: %s", host or "a unix socket", why)


def _host(peer: Any) -> str:
    """The address of a peer as accept(2) gives it; empty on a unix socket."""
    return str(peer[0]) if isinstance(peer, tuple) else ""
