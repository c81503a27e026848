"""Who the client is: the socket's word, or a trusted proxy's (X-Forwarded-For and X-Forwarded-Proto, or a PROXY header)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forkserve.http.framing.proxyheader import ProxyHeader
    from forkserve.http.message.fields import Fields

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

MOST_HOPS = 64
"""Elements of X-Forwarded-For that are looked at: no real chain is longer, and a client could write thousands."""
_ZONE = r"(?:%[A-Za-z0-9._~-]+)?"
_HOP = re.compile(
    rf"(?:(?P<four>[0-9.]+)|\[(?P<bracketed>[0-9A-Fa-f:.]+){_ZONE}\])(?::(?P<port>[0-9]{{1,5}}))?|(?P<six>[0-9A-Fa-f:.]+){_ZONE}",
    re.ASCII,
)


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
        self._networks = [_plain(ipaddress.ip_network(name, strict=False)) for name in names - {"*", "unix"}]

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
        return self._trusts(getattr(address, "ipv4_mapped", None) or address)

    def _trusts(self, address: Address) -> bool:
        return self._all or any(address in network for network in self._networks)

    def client(self, fields: Fields, peer: tuple[str, int] | None) -> tuple[str, int] | None:
        """Address and port of the client, as far as proxies can be believed; the port is 0 where none is named.

        From the right, where the nearest proxy has written, to the first hop that is not trusted: that is the client. At one that
        is no address, such as ``unknown``, the client is the hop to its right, or at last the peer: whoever has written that
        does not say where it is from, and what is further left may be a client's own words.

        Args:
            fields: The header section of a trusted peer.
            peer: Address and port of the peer.
        """
        client = peer
        for hop in hops(fields):
            address, port = _read_hop(hop)
            if address is None:
                break
            client = (str(address), port)
            if not self._trusts(address):
                break
        return client


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
        """Client and scheme of a request: as a trusted proxy tells, else as the socket does."""
        if not fields.forwarded or self.peer not in trusted:
            return self.client, self.scheme
        proto = b""
        for name, value in fields.headers:
            if name == b"x-forwarded-proto":
                proto = value.rpartition(b",")[2].strip(b" \t").lower()  # of several the last: the nearest proxy's
        scheme = {b"http": "http", b"https": "https", b"ws": "http", b"wss": "https"}.get(proto, self.scheme)
        return trusted.client(fields, self.client), scheme


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


def hops(fields: Fields) -> Iterator[str]:
    """The elements of all X-Forwarded-For fields, from right to left; not more than `MOST_HOPS`, and none that is empty."""
    left = MOST_HOPS
    for name, value in reversed(fields.headers):
        if name == b"x-forwarded-for":
            elements = value.decode("latin-1").rsplit(",", left)[-left:] if left else ()
            left -= len(elements)
            yield from filter(None, (element.strip(" \t") for element in reversed(elements)))


def _read_hop(hop: str) -> tuple[Address | None, int]:
    """Address and port (0 if there is none) of a hop; None if it is no address. A zone means nothing here, and is left out."""
    found = _HOP.fullmatch(hop)
    port = int((found and found["port"]) or 0)
    if found is None or port > 65535:
        return None, 0
    try:
        if found["four"]:
            return ipaddress.IPv4Address(found["four"]), port
        six = ipaddress.IPv6Address(found["bracketed"] or found["six"])
    except ValueError:
        return None, 0
    return six.ipv4_mapped or six, port


def _plain(network: Network) -> Network:
    """A network of version 4 that is written within version 6 (``::ffff:10.0.0.0/104``) as what it is."""
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    return network if mapped is None or network.prefixlen < 96 else ipaddress.IPv4Network((mapped, network.prefixlen - 96))
