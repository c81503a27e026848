"""The client of a request: the socket's peer, or what a trusted proxy says (X-Forwarded-For and -Proto, or a PROXY header)."""

from __future__ import annotations

import ipaddress
import re
import socket
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
_SCHEMES = {b"http": "http", b"https": "https", b"ws": "http", b"wss": "https"}
"""The scheme of a request, by the value of X-Forwarded-Proto."""


class TrustedPeers:
    """The peers that are trusted to forward headers.

    Args:
        allowed: Addresses, networks in CIDR form, ``unix`` for peers on unix sockets, or ``*`` for all.

    Raises:
        ValueError: An entry is none of these.
    """

    def __init__(self, allowed: Iterable[str]) -> None:
        names = set(allowed)
        self._all = "*" in names
        self._unix = self._all or "unix" in names
        self._networks = [_plain(ipaddress.ip_network(name, strict=False)) for name in names - {"*", "unix"}]
        # The networks of IPv4 once more, as mask and address: each request through a proxy is looked up.
        self._fours = [(int(n.netmask), int(n.network_address)) for n in self._networks if n.version == 4]

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
        """Return address and port of the client, by what trusted proxies forward; the port is 0 where none is named.

        X-Forwarded-For is read from the right, where the nearest proxy has written. The first hop that is not trusted is the
        client. If a hop is no address, such as ``unknown``, the client is the hop to its right, or else the peer: the proxy that
        wrote it hides its peer, and the hops further left may be invented by a client.

        Args:
            fields: The header section of a trusted peer.
            peer: Address and port of the peer.
        """
        client = peer
        for hop in hops(fields):
            number = _read_dotted(hop)
            if number is not None:  # by far the most frequent form
                client = (hop, 0)
                if self._all or any(number & mask == four for mask, four in self._fours):
                    continue
                break
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
        tls: Whether this process encrypts the bytes.
        socket_peer: The address of the socket's peer, whatever a PROXY header says; empty on a unix socket.
        is_unix: Whether our end is a unix socket.
    """

    __slots__ = ("_seen", "_seen_by", "_trusted", "client", "is_unix", "scheme", "server", "socket_peer", "tls")

    def __init__(self) -> None:
        self.client: tuple[str, int] | None = None
        self.server: tuple[str, int | None] | None = None
        self.scheme = "http"
        self.tls = False
        self.socket_peer = ""
        self.is_unix = False
        self._trusted: bool | None = None  # whether the peer is; not known before the first request that a proxy forwards
        self._seen_by: Fields | None = None  # the last request for which `seen_through` was called
        self._seen: tuple[tuple[str, int] | None, str]

    def read(self, transport: Any) -> None:
        """Take the addresses from a transport."""
        peer = transport.get_extra_info("peername")
        if isinstance(peer, tuple) and len(peer) >= 2:
            self.client = (_unmapped(str(peer[0])), int(peer[1]))
        own = transport.get_extra_info("sockname")
        if isinstance(own, tuple):
            self.server = (_unmapped(str(own[0])), int(own[1]))
        else:
            self.server = (own.decode("utf-8", "replace") if isinstance(own, bytes) else str(own or ""), None)
        if transport.get_extra_info("sslcontext") is not None:
            self.scheme = "https"
            self.tls = True
        self.is_unix = self.server[1] is None
        self.socket_peer = self.peer

    @property
    def peer(self) -> str:
        """The address of the client of this connection, which decides about trust; empty on a unix socket."""
        if self.client is not None:
            return self.client[0]
        # Without an address it is a unix socket's, or the client left before its address was read.
        return "" if self.is_unix else "unknown"

    def seen_through(self, fields: Fields, trusted: TrustedPeers) -> tuple[tuple[str, int] | None, str]:
        """Return client and scheme of a request: those that a trusted proxy forwards, else those of the connection."""
        if not fields.forwarded:
            return self.client, self.scheme
        if fields is not self._seen_by:
            if self._trusted is None:
                self._trusted = self.peer in trusted
            seen = self.client, self.scheme
            if self._trusted:
                proto = fields.get(b"x-forwarded-proto") or b""
                last = proto.rpartition(b",")[2].strip(b" \t").lower()  # of several the last: the nearest proxy's
                seen = trusted.client(fields, self.client), _SCHEMES.get(last, self.scheme)
            self._seen, self._seen_by = seen, fields
        return self._seen

    def see(self, fields: Fields, client: tuple[str, int] | None, scheme: str) -> None:
        """Set what `seen_through` returns for a request: a hook of the user's has changed it."""
        fields.forwarded = True  # so that it is looked at
        self._seen, self._seen_by = (client, scheme), fields


class ProxiedEndpoints(Endpoints):
    """The two ends of a connection through a proxy, as its PROXY header names them.

    The address in the PROXY header replaces the peer address everywhere. Forwarded headers are then trusted only if that address
    is trusted: a proxy that sends a PROXY header does not look into the bytes, so the headers are the client's and may lie.

    Args:
        header: The PROXY header.
    """

    __slots__ = ("_header",)

    def __init__(self, header: ProxyHeader) -> None:
        super().__init__()
        self._header = header

    def read(self, transport: Any) -> None:
        """Take the addresses from the header, and those that it lacks from the transport."""
        super().read(transport)
        if self._header.ends is not None:
            self.client, self.server = self._header.ends
            self.is_unix = self.server is not None and self.server[1] is None
        if self._header.tls:
            self.scheme = "https"


def hops(fields: Fields) -> Iterator[str]:
    """Return the elements of all X-Forwarded-For fields from right to left: at most `MOST_HOPS`, and no empty ones."""
    value = (fields.get(b"x-forwarded-for") or b"").decode("latin-1")
    elements = value.rsplit(",", MOST_HOPS)[-MOST_HOPS:]
    return filter(None, (element.strip(" \t") for element in reversed(elements)))


def _read_dotted(hop: str) -> int | None:
    """Return an IPv4 address without a port as a number; None if it is not one."""
    try:
        return int.from_bytes(socket.inet_pton(socket.AF_INET, hop), "big")
    except (OSError, ValueError):
        return None


def _read_hop(hop: str) -> tuple[Address | None, int]:
    """Return address and port (0 if there is none) of a hop; None if it is no address. A zone is dropped."""
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


def _unmapped(host: str) -> str:
    """Return the address of a peer; for one of IPv4 on a socket of IPv6 (``::ffff:192.0.2.1``) that of IPv4."""
    return host[7:] if host.startswith("::ffff:") and "." in host else host


def _plain(network: Network) -> Network:
    """Return an IPv4 network that is written as IPv6 (``::ffff:10.0.0.0/104``) as IPv4; others as they are."""
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    return network if mapped is None or network.prefixlen < 96 else ipaddress.IPv4Network((mapped, network.prefixlen - 96))
