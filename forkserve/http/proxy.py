"""Who the client is: the socket's word, or a trusted proxy's (X-Forwarded-For and X-Forwarded-Proto, or a PROXY header)."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forkserve.http.fields import Fields
    from forkserve.http.proxyheader import ProxyHeader

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_TCP = (socket.AF_INET, socket.AF_INET6)


class TrustedPeers:
    """Whose forwarded headers count.

    Args:
        allowed: Addresses, networks in CIDR form, ``unix`` for peers on unix sockets, or ``*`` for all.

    Raises:
        ValueError: One of them is none of these.
    """

    def __init__(self, allowed: Iterable[str]) -> None:
        names = set(allowed)
        self._all = "*" in names
        self._unix = self._all or "unix" in names
        self._networks: list[Network] = [ipaddress.ip_network(name, strict=False) for name in names - {"*", "unix"}]

    def __contains__(self, host: object) -> bool:
        """Whether a peer (its address as text; empty for a unix socket) is trusted."""
        if self._all:
            return True
        if not host:
            return self._unix
        try:
            address = ipaddress.ip_address(str(host))
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None)
        return any((mapped or address) in network for network in self._networks)

    def client(self, hops: list[str], peer: str) -> str:
        """The address of the client: the last hop that no trusted proxy vouches for."""
        for hop in reversed(hops):
            if hop not in self:
                return hop
        return hops[0] if hops else peer


class Endpoints:
    """The two ends of a connection.

    Attributes:
        client: Address and port of the peer; None on a unix socket.
        server: Address and port of our end; the path and None on a unix socket.
        scheme: ``http`` or ``https``.
        tls: Whether the bytes are encrypted by this process.
    """

    __slots__ = ("client", "scheme", "server", "tls")

    def __init__(self) -> None:
        self.client: tuple[str, int] | None = None
        self.server: tuple[str, int | None] | None = None
        self.scheme = "http"
        self.tls = False

    def read(self, transport: Any) -> None:
        """Take the addresses from a transport."""
        peer = transport.get_extra_info("peername")
        if isinstance(peer, tuple) and len(peer) >= 2:
            self.client = (str(peer[0]), int(peer[1]))
        own = transport.get_extra_info("sockname")
        if isinstance(own, tuple):
            self.server = (str(own[0]), int(own[1]))
        else:
            self.server = (own.decode("utf-8", "replace") if isinstance(own, bytes) else str(own or ""), None)
        if transport.get_extra_info("sslcontext") is not None:
            self.scheme = "https"
            self.tls = True

    @property
    def peer(self) -> str:
        """The address of the client of this connection, which trust goes by; empty on a unix socket."""
        if self.client is not None:
            return self.client[0]
        # Without an address it is a unix socket's, or one that had gone before we could ask.
        return "" if self.server is not None and self.server[1] is None else "unknown"

    def seen_through(self, fields: Fields, trusted: TrustedPeers) -> tuple[tuple[str, int] | None, str]:
        """Client and scheme of a request: as a trusted proxy tells, else as the socket does.

        Duplicate fields are joined before hops are counted, and the last untrusted hop wins, so a client cannot put
        itself in front.
        """
        if not fields.forwarded or self.peer not in trusted:
            return self.client, self.scheme
        hops: list[str] = []
        proto = b""
        for name, value in fields.headers:
            if name == b"x-forwarded-for":
                hops += [_bare(hop) for hop in value.decode("latin-1").split(",") if hop.strip(" \t")]
            elif name == b"x-forwarded-proto":
                proto = value.rpartition(b",")[2].strip(b" \t").lower()
        client = self.client
        if hops and trusted.client(hops, "") != "":
            client = (trusted.client(hops, ""), 0)
        scheme = {b"http": "http", b"https": "https", b"ws": "http", b"wss": "https"}.get(proto, self.scheme)
        return client, scheme


class ProxiedEndpoints(Endpoints):
    """The two ends of a connection whose bytes a proxy passes on, as the proxy has told them.

    Whatever goes by the peer goes by the client that was told, as if it had connected itself. Forwarded fields, too: a proxy that
    sends a PROXY header does so because it does not look into what it passes on, so they are the client's, who could be lying.

    Args:
        told: The header.
    """

    __slots__ = ("_told",)

    def __init__(self, told: ProxyHeader) -> None:
        super().__init__()
        self._told = told

    def read(self, transport: Any) -> None:
        """Take from a transport what was not told."""
        super().read(transport)
        if self._told.ends is not None:
            self.client, self.server = self._told.ends
        if self._told.tls:
            self.scheme = "https"


def _bare(hop: str) -> str:
    """A hop without brackets and port; what is no address stays as it is and is trusted by nobody."""
    hop = hop.strip(" \t")
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop
