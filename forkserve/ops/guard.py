"""The guard of --admin: which paths a client may read or change, by the address and the fields of a request. Pure.

The dangers are other machines, if the address is not a loopback one; web pages that the operator's browser shows meanwhile, which
can send requests to loopback addresses too (by a name that leads there, "DNS rebinding", or across origins); and other users of
the machine, against whom a token helps, or a unix socket's permissions.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from forkserve.config.addresses import Address, is_loopback

PUBLIC: Final = frozenset(("/metrics", "/livez", "/readyz"))
"""Paths for programs, which need no token."""
REALM: Final = ("www-authenticate", 'Basic realm="forkserve: any user, and the token as password", charset="UTF-8"')


_QUERY: Final = re.compile(r"((?<!\S)[!#$%&'*+.^_`|~0-9A-Za-z-]+ [^\s?]*)\?\S*")  # behind a method and a path


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not answered."""

    status: int
    why: str
    headers: tuple[tuple[str, str], ...] = ()


def is_local(address: Address) -> bool:
    """Return whether only this machine reaches an address."""
    return address.kind == "unix" or is_loopback(address.host)


@dataclass(frozen=True, slots=True)
class Guard:
    """The rules of one address.

    Attributes:
        address: The address.
        hostname: The name of this machine.
        token: What clients must know; None to have no token.
        writable: Whether those with the token may change the server.
    """

    address: Address
    hostname: str
    token: str | None
    writable: bool

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches the address."""
        return is_local(self.address)

    def refusal(self, method: str, path: str, headers: Mapping[str, str]) -> Refusal | None:
        """Return why a request is not answered; None: it is.

        Args:
            method: The method.
            path: The path, without the query.
            headers: The fields, by names in lower case.
        """
        host = headers.get("host", "")
        if not (self.knows(host) or (not host and path in PUBLIC)):  # a browser sends a Host; a balancer's check may not
            return Refusal(421, "this Host is not served: use the address of --admin, localhost or a loopback address")
        return None if path in PUBLIC else self._refusal_of_private(method, path, headers)

    def _refusal_of_private(self, method: str, path: str, headers: Mapping[str, str]) -> Refusal | None:
        if not self.is_local and self.token is None:
            return Refusal(403, "on an address that other machines reach, this needs --admin-token-file")
        changes = path.startswith("/command/")
        if changes and not self.writable:
            return Refusal(403, "the server may not be changed here: give --admin-write and --admin-token-file")
        # A browser sends Basic by itself, also for other sites' pages. It never sends Bearer by itself.
        if self.token is not None and not self._authorized(headers.get("authorization", ""), basic=not changes):
            wanted = ("www-authenticate", "Bearer") if changes else REALM
            return Refusal(401, "give the token of --admin-token-file", (wanted,))
        # A page of another site may lead a person here. It may not do it unseen, as with many streams of events.
        followed = method in ("GET", "HEAD") and headers.get("sec-fetch-mode") == "navigate"
        if not followed and not _same_origin(headers):
            return Refusal(403, "a page of another origin has sent this")
        return None

    def knows(self, host: str) -> bool:
        """Whether a Host field names this server, so that no other name can lead a browser here."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
            literal = ipaddress.ip_address(name.partition("%")[0])
        except ValueError:
            try:
                name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
            except ValueError:
                return False
            return bool(name) and name in ("localhost", self.address.host.lower(), self.hostname.lower())
        mapped = getattr(literal, "ipv4_mapped", None) or literal
        # Nobody else's name is a number: behind another one of this machine's addresses there is no other site.
        return bool(mapped.is_loopback) or not self.is_local

    def _authorized(self, given: str, *, basic: bool) -> bool:
        assert self.token is not None
        scheme, _, value = given.partition(" ")
        value = value.strip()
        if scheme.lower() == "basic" and basic:
            try:
                value = base64.b64decode(value, validate=True).decode("utf-8").partition(":")[2]
            except (binascii.Error, UnicodeDecodeError):
                return False
        elif scheme.lower() != "bearer":
            return False
        return hmac.compare_digest(value.encode("utf-8", "surrogateescape"), self.token.encode())


def _same_origin(headers: Mapping[str, str]) -> bool:
    """Whether a request comes from a page of this server, or from no page."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None and site != "same-origin":
        return False
    if origin is None:
        return True
    try:
        return urlsplit(origin).netloc.lower() == headers.get("host", "").lower()
    except ValueError:
        return False


def without_queries(value: Any) -> Any:
    """Return JSON in which no request line has its query, which may hold secrets: `GET /search?q=1` becomes `GET /search?...`."""
    if isinstance(value, str):
        return _QUERY.sub(r"\1?...", value) if "?" in value else value
    if isinstance(value, Mapping):
        return {key: without_queries(one) for key, one in value.items()}
    return list(map(without_queries, value)) if isinstance(value, list) else value
