"""Addresses as users write them. Pure: nothing is looked up, nothing is opened."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Literal

DEFAULT_PORT = 8000
EVERY_IPV4, EVERY_ADDRESS = "0.0.0.0", "::"  # noqa: S104 - the second one of IPv4 too
# sockaddr_un.sun_path holds 108 bytes including the final NUL on Linux, 104 elsewhere; there, bind refuses the rest.
MAX_UNIX_PATH = 107
_DIGITS = re.compile(r"[0-9]{1,5}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Address:
    """An address to listen on: `host` and `port`, `path` (`@name`: in the abstract namespace), or `fd`."""

    kind: Literal["tcp", "unix", "fd"]
    host: str = ""
    port: int = 0
    path: str = ""
    fd: int = -1

    def __str__(self) -> str:
        match self.kind:
            case "unix":
                return f"unix:{self.path}"
            case "fd":
                return f"fd://{self.fd}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str, port: int | None = DEFAULT_PORT) -> Address:
    """Read `HOST:PORT`, `:PORT`, `HOST`, `[IPV6]:PORT`, `[IPV6]`, `unix:PATH`, `unix:@NAME` or `fd://N`, as gunicorn does.

    Without a host it is every IPv4 interface.

    Args:
        text: The address.
        port: The port of a host alone; None: there must be one.

    Raises ValueError with a one-line message for anything else.
    """
    if text.startswith("fd://"):
        return Address("fd", fd=_number(text, text[5:], 2**31 - 1, "descriptor"))
    if text.startswith("unix:"):
        return _unix(text)
    netloc = text.removeprefix("tcp://")
    host, colon, digits = netloc.rpartition(":")
    if not colon or netloc.endswith("]"):
        if not netloc or port is None or netloc.isdigit():
            hint = f"; write :{text} for the port" if _DIGITS.fullmatch(text) else ""
            raise ValueError(f"{text!r} is not an address: expected HOST:PORT, [IPV6]:PORT, unix:PATH or fd://N{hint}")
        host, digits = netloc, str(port)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if ":" not in host:
            raise ValueError(f"{text!r}: only an IPv6 address is written in brackets")
    elif ":" in host:
        raise ValueError(f"{text!r}: write an IPv6 address in brackets, as [::1]:8000")
    host = host or EVERY_IPV4
    if not host.isprintable() or any(letter in host for letter in "/@ ?#[]"):
        raise ValueError(f"{text!r}: {host!r} is not a host")
    return Address("tcp", host=host, port=_number(text, digits, 65535, "port"))


def plain_host(host: str) -> str:
    """Return the host to bind; an IPv4 address in IPv6 form (`::ffff:127.0.0.1`) becomes plain IPv4.

    Raises ValueError, with the reason, for an address that no server can listen on.
    """
    if not host:
        raise ValueError("no host is named: write 127.0.0.1, or 0.0.0.0 for every interface")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host  # a name, or a short form such as 127.1
    zone = getattr(address, "scope_id", None)
    if zone and not address.is_link_local:
        raise ValueError(f"only a link-local address (fe80::) names an interface: leave %{zone} out")
    if address.version == 6 and address.is_link_local and not zone:
        raise ValueError(f"a link-local address needs its interface: write [{host}%eth0], with the interface's name")
    mapped = getattr(address, "ipv4_mapped", None)
    if (mapped or address).is_multicast or str(mapped or address) == "255.255.255.255":
        raise ValueError("this address stands for many machines, and no server can listen on it")
    return str(mapped or host)


def is_loopback(host: str) -> bool:
    """Return whether a host is a loopback address, or a name that always leads to one (RFC 6761)."""
    name = host.lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _unix(text: str) -> Address:
    path = text[5:]
    path = path.removeprefix("//")  # unix:///run/x.sock, as some tools write it
    if path in ("", "@"):
        raise ValueError(f"{text!r} names no path")
    if "\0" in path:
        raise ValueError(f"{text!r}: a path cannot hold a NUL")
    if len(path.encode("utf-8", "surrogateescape")) > MAX_UNIX_PATH:
        raise ValueError(f"{text!r}: the path of a unix socket has at most {MAX_UNIX_PATH} bytes")
    return Address("unix", path=path)


def _number(text: str, digits: str, largest: int, what: str) -> int:
    if not _DIGITS.fullmatch(digits) or int(digits) > largest:
        raise ValueError(f"{text!r}: {digits!r} is not a {what}")
    return int(digits)
