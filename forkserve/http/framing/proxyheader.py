"""The PROXY header of HAProxy's proxy protocol, versions 1 and 2: the client of a proxy that forwards bytes.

Pure. The header is read as it comes. Bytes that are not a header, or not the beginning of one, are an error as soon as that is
certain; bytes behind it are never looked at. Addresses other than TCP's (unix sockets, UDP) are accepted and ignored, as the
protocol requires.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

LONGEST = 4096
"""Bytes of the longest header: version 2 may carry much that is not used here, such as a client's certificate."""
_LONGEST_V1 = 107  # its line end included
_BEGIN_V1 = b"PROXY "
_V1 = re.compile(
    rb"PROXY (?:UNKNOWN(?: .*)?|(TCP4) ([0-9.]+) ([0-9.]+) ([0-9]{1,5}) ([0-9]{1,5})"
    rb"|(TCP6) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) ([0-9]{1,5}) ([0-9]{1,5}))\r\n",
    re.DOTALL,
)
_BEGIN_V2 = b"\r\n\r\n\0\r\nQUIT\n"
_HEAD_V2 = 16  # signature, version and command, family and protocol, length of the rest
_LOCAL, _PROXY = 0x20, 0x21
_UNSPECIFIED, _TCP4, _TCP6 = 0x00, 0x11, 0x21
_SSL = 0x20
# Bytes that the two addresses take; other families must be refused.
_ADDRESSES_V2 = {_UNSPECIFIED: 0, _TCP4: 12, 0x12: 12, _TCP6: 36, 0x22: 36, 0x31: 216, 0x32: 216}

Address = tuple[str, int]


class ProxyHeaderError(Exception):
    """There is no header that is allowed here; the text quotes no byte of the client's."""


class ProxyHeader(NamedTuple):
    """A whole header.

    Attributes:
        size: The number of its bytes.
        ends: The addresses of client and server; None if those of the socket are to be used.
        tls: Whether the client uses TLS with the proxy; only version 2 can say that.
    """

    size: int
    ends: tuple[Address, Address] | None = None
    tls: bool = False


def read_proxy_header(data: bytes, allowed: str) -> ProxyHeader | None:
    """Read the header that a connection begins with; return None if more of it must come.

    Args:
        data: The bytes that have come.
        allowed: ``v1``, ``v2``, or ``auto`` for both.

    Raises:
        ProxyHeaderError: There is none, or it is not valid.
    """
    if data[:12] == _BEGIN_V2[: len(data)] and allowed != "v1":
        return _read_v2(data)
    if data[:6] == _BEGIN_V1[: len(data)] and allowed != "v2":
        return _read_v1(data)
    raise ProxyHeaderError("is missing" if allowed == "auto" else f"is missing, or not of {allowed}")


def _read_v1(data: bytes) -> ProxyHeader | None:
    end = data.find(b"\n", 0, _LONGEST_V1) + 1
    if not end:
        if len(data) >= _LONGEST_V1:
            raise ProxyHeaderError("is too long")
        return None
    match = _V1.fullmatch(data, 0, end)
    if match is None:
        raise ProxyHeaderError("is malformed")
    if match.lastindex is None:
        return ProxyHeader(end)
    family, client, server, client_port, server_port = (group.decode("ascii") for group in match.groups() if group is not None)
    return ProxyHeader(end, (_address_v1(family, client, client_port), _address_v1(family, server, server_port)))


def _address_v1(family: str, host: str, port: str) -> Address:
    try:
        address = IPv4Address(host) if family == "TCP4" else IPv6Address(host)
    except ValueError as error:
        raise ProxyHeaderError("is malformed") from error
    if int(port) > 0xFFFF or (port[0] == "0" and port != "0"):
        raise ProxyHeaderError("is malformed")
    return _text(address), int(port)


def _read_v2(data: bytes) -> ProxyHeader | None:
    if len(data) < _HEAD_V2:
        return None
    command, family, size = data[12], data[13], _HEAD_V2 + int.from_bytes(data[14:16], "big")
    if command not in (_LOCAL, _PROXY):
        raise ProxyHeaderError("is of a version or command that is not known")
    if size > LONGEST:
        raise ProxyHeaderError("is too long")
    # A connection of the proxy's own (a health check) has no addresses, even if there are some in the header.
    if command == _PROXY:
        if family not in _ADDRESSES_V2:
            raise ProxyHeaderError("is of a family that is not known")
        if size < _HEAD_V2 + _ADDRESSES_V2[family]:
            raise ProxyHeaderError("is too short for its addresses")
    if len(data) < size:
        return None
    if command == _PROXY and family in (_TCP4, _TCP6):
        ends = _addresses_v2(data, IPv4Address, 4) if family == _TCP4 else _addresses_v2(data, IPv6Address, 16)
        return ProxyHeader(size, ends, _says_tls(data[_HEAD_V2 + _ADDRESSES_V2[family] : size]))
    return ProxyHeader(size)


def _addresses_v2(data: bytes, kind: type[IPv4Address | IPv6Address], width: int) -> tuple[Address, Address]:
    between, ports = _HEAD_V2 + width, _HEAD_V2 + 2 * width
    client, server = _text(kind(data[_HEAD_V2:between])), _text(kind(data[between:ports]))
    return (client, int.from_bytes(data[ports : ports + 2], "big")), (server, int.from_bytes(data[ports + 2 : ports + 4], "big"))


def _says_tls(more: bytes) -> bool:
    """Return whether the values behind the addresses, each with type and length, have PP2_CLIENT_SSL in a PP2_TYPE_SSL."""
    while len(more) > 3:
        end = 3 + int.from_bytes(more[1:3], "big")
        if more[0] == _SSL and 3 < end <= len(more):
            return bool(more[3] & 1)
        more = more[end:]
    return False


def _text(address: IPv4Address | IPv6Address) -> str:
    """Return an address as a socket shows it; IPv4 written as IPv6 (``::ffff:192.0.2.1``) as IPv4."""
    return str(getattr(address, "ipv4_mapped", None) or address)
