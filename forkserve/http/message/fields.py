"""The field section of a request: names, values, and their meaning (RFC 9110, RFC 9112). Pure."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from forkserve.http.message.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Headers = list[tuple[bytes, bytes]]
"""Names in lower case, and values without the blanks around them, in the order of the request."""

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
# Possessive quantifiers: there is no backtracking, so the time is linear for any input.
_WHOLE_TOKEN = re.compile(TOKEN + rb"++")
_IN_HOST = rb"[A-Za-z0-9\-._~!$&()*+;=]*+"
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|" + _IN_HOST + rb"(?:%[0-9A-Fa-f]{2}" + _IN_HOST + rb")*)(?::([0-9]{0,5}))?")
_DIGITS = re.compile(rb"[0-9]{1,19}")

USUAL_NAMES = frozenset(
    b"accept accept-charset accept-encoding accept-language access-control-request-headers access-control-request-method age "
    b"alt-used authorization b3 baggage cache-control cdn-loop cf-connecting-ip cf-ipcountry cf-ray cf-visitor connection "
    b"content-encoding content-language content-length content-type cookie date depth dnt early-data expect fastly-client-ip "
    b"forwarded from host idempotency-key if-match if-modified-since if-none-match if-range if-unmodified-since keep-alive "
    b"last-event-id max-forwards origin pragma priority proxy proxy-authorization proxy-connection purpose range referer "
    b"save-data sec-ch-ua sec-ch-ua-mobile sec-ch-ua-platform sec-fetch-dest sec-fetch-mode sec-fetch-site sec-fetch-user "
    b"sec-gpc sec-purpose sec-websocket-extensions sec-websocket-key sec-websocket-protocol sec-websocket-version te "
    b"traceparent tracestate trailer transfer-encoding true-client-ip upgrade upgrade-insecure-requests user-agent via "
    b"x-amz-cf-id x-amz-date x-amzn-trace-id x-api-key x-b3-sampled x-b3-spanid x-b3-traceid x-client-ip x-cloud-trace-context "
    b"x-correlation-id x-csrf-token x-csrftoken x-envoy-external-address x-forwarded-for x-forwarded-host x-forwarded-port "
    b"x-forwarded-prefix x-forwarded-proto x-forwarded-server x-forwarded-ssl x-original-uri x-real-ip x-request-id "
    b"x-request-start x-requested-with x-scheme".split()
)
"""The names that clients and proxies send most, which are read faster than others. The set never changes: no client can make the
requests of another one slower."""
_LOWER = {spelling: name for name in USUAL_NAMES for spelling in (name, name.title())}

# A second one of these changes the meaning of the message, or of the application's reading of it.
_ONLY_ONCE = frozenset((b"host", b"content-length", b"transfer-encoding", b"content-type"))
# The options of a Connection field that have a meaning here; there may be thousands of others.
_OPTIONS = re.compile(rb"(?:^|,)[\t ]*+(close|keep-alive|upgrade)[\t ]*+(?=,|$)")
_LONGEST_KEPT = 256
# PEP 3333 and RFC 3875: two names have no prefix. Two names never get into an environ: libraries would take HTTP_PROXY for a
# setting, and the transfer coding is removed before the application reads the body.
_CGI_NAMES = {b"content-type": "CONTENT_TYPE", b"content-length": "CONTENT_LENGTH", b"proxy": "", b"transfer-encoding": ""}


def cgi_key(name: bytes) -> str:
    """Return the key of a field in an environ (PEP 3333); empty if the field does not belong there.

    Args:
        name: The name in lower case.
    """
    key = _CGI_NAMES.get(name)
    return "HTTP_" + name.decode("ascii").upper().replace("-", "_") if key is None else key


_KEYS = {name: cgi_key(name) for name in USUAL_NAMES}


def split_lines(lines: Iterable[bytes]) -> Headers:
    """Split header lines into names and values.

    Names that contain an underscore are dropped: a CGI-style environ cannot tell ``x_user`` from ``x-user``, and a proxy that
    removes one does not remove the other.

    Args:
        lines: The lines; they contain no control character but tabs.

    Raises:
        RequestError: 400, a line is malformed.
    """
    headers: Headers = []
    known = _LOWER.get
    for line in lines:
        name, colon, value = line.partition(b":")
        lower = known(name)
        if lower is None or not colon:
            if not colon or _WHOLE_TOKEN.fullmatch(name) is None:
                raise RequestError(400, "a header field is malformed")
            lower = name.lower()
            if b"_" in lower:
                continue
        headers.append((lower, value.strip(b" \t")))
    return headers


class Fields:
    """The field section of a request and its meaning. Never changed.

    Args:
        version: The HTTP version, ``1.0`` or ``1.1``.
        headers: The fields, as `split_lines` returns them.

    Raises:
        RequestError: 400, the section is ambiguous: two servers could read it in two ways.

    Attributes:
        upgrade: The protocol to which the client wants to change, in lower case; empty if there is none.
        forwarded: Whether a proxy may have named the client.
        has_body: Whether bytes of a body follow the head.
        usual: Whether it is a request of HTTP/1.1 without a body, after which the connection is kept.
        refusal: Why a valid request cannot be served: 417 or 501. It is raised last, so that 400 has precedence.
    """

    __slots__ = (
        "_options", "chunked", "content_length", "expect_continue", "forwarded", "has_body", "headers", "host", "keep_alive",
        "refusal", "upgrade", "usual", "version",
    )  # fmt: skip

    def __init__(self, version: str, headers: Headers) -> None:
        self.version = version
        self.headers = headers
        self.host: bytes | None = None
        self.content_length: int | None = None
        self.chunked = False
        self.expect_continue = False
        self.forwarded = False
        self.upgrade = b""
        self.refusal: RequestError | None = None
        self._options: frozenset[bytes] = frozenset()
        self._interpret()
        options = self._options
        if self.upgrade and b"upgrade" not in options:
            self.upgrade = b""
        # An Upgrade that is not taken changes nothing (RFC 9110 7.8): its client sends the other protocol only after a 101.
        self.keep_alive = b"close" not in options and (version == "1.1" or b"keep-alive" in options)
        if self.host is None and version == "1.1":
            raise RequestError(400, "an HTTP/1.1 request needs a Host field")
        if self.chunked and self.content_length is not None:
            raise RequestError(400, "both Content-Length and Transfer-Encoding")
        self.has_body = self.chunked or bool(self.content_length)
        self.usual = self.keep_alive and version == "1.1" and not self.has_body

    def _interpret(self) -> None:
        seen: set[bytes] = set()
        for name, value in self.headers:
            interpret = _MEANINGS.get(name)
            if interpret is not None:
                if name in _ONLY_ONCE:
                    if name in seen:
                        raise RequestError(400, f"more than one {name.decode()} field")
                    seen.add(name)
                interpret(self, value)

    def get(self, name: bytes) -> bytes | None:
        """Return the value of a field, or None; the values of a repeated one are joined.

        Args:
            name: In lower case.
        """
        values = [value for key, value in self.headers if key == name]
        return b", ".join(values) if values else None

    def put_fields(self, environ: dict[str, Any]) -> None:
        """Add the fields to an environ (PEP 3333) that has none; the values of repeated ones are joined."""
        headers = self.headers
        size = len(environ)
        for name, value in headers:
            environ[_KEYS.get(name) or cgi_key(name)] = value.decode("latin-1")
        if len(environ) != size + len(headers) or "" in environ:
            environ.update(_joined(headers))
            environ.pop("", None)

    def with_authority(self, authority: bytes) -> Fields:
        """Return the fields with the authority of an absolute target in place of the Host field (RFC 9112 3.2.2).

        Raises:
            RequestError: 400, the authority is malformed, or it names another host than the Host field: a proxy in front of this
                server would believe one of the two, and it is unknown which.
        """
        if not valid_host(authority) or not authority.partition(b":")[0]:
            raise RequestError(400, "the request target is malformed")
        if self.host is not None and _without_port(self.host) != _without_port(authority):
            raise RequestError(400, "the request target and the Host field name different hosts")
        return Fields(self.version, [(b"host", authority), *(pair for pair in self.headers if pair[0] != b"host")])


def with_headers(fields: Fields, headers: Headers) -> Fields:
    """Return the fields with others for the application; where the message ends still goes by those of the client.

    Args:
        fields: Those of the client, from any reader.
        headers: Those for the application, with names in lower case.
    """
    changed = Fields.__new__(Fields)
    for name in Fields.__slots__:
        setattr(changed, name, getattr(fields, name, None))
    changed.headers = headers
    return changed


def _joined(headers: Headers) -> dict[str, str]:
    joined: dict[str, str] = {}
    for name, value in headers:
        key, text = cgi_key(name), value.decode("latin-1")
        joined[key] = text if key not in joined else joined[key] + ("; " if key == "HTTP_COOKIE" else ",") + text
    return joined


def valid_host(value: bytes) -> bool:
    """Return whether a Host value is ``host[:port]`` or empty (RFC 9112 3.2, RFC 3986 3.2.2; no comma or quote in a name)."""
    return (_known_host if len(value) <= _LONGEST_KEPT else _known_host.__wrapped__)(value)


@lru_cache(1024)
def _known_host(value: bytes) -> bool:
    match = _HOST.fullmatch(value)
    return match is not None and (not match[1] or int(match[1]) <= 65535)


def _without_port(host: bytes) -> bytes:
    return host.lower().removesuffix(b":80").removesuffix(b":443").removesuffix(b":")


@lru_cache(256)
def _known_options(value: bytes) -> frozenset[bytes]:
    return frozenset(_OPTIONS.findall(value.lower()))


def _interpret_host(fields: Fields, value: bytes) -> None:
    if not valid_host(value):
        raise RequestError(400, "the Host field is malformed")
    fields.host = value


def _interpret_content_length(fields: Fields, value: bytes) -> None:
    if _DIGITS.fullmatch(value) is None:
        raise RequestError(400, "the Content-Length field is malformed")
    fields.content_length = int(value)


def _interpret_transfer_encoding(fields: Fields, value: bytes) -> None:
    if fields.version == "1.0":
        raise RequestError(400, "Transfer-Encoding in an HTTP/1.0 request")
    if value.lower() != b"chunked":
        *others, last = (coding.strip(b" \t").lower() for coding in value.split(b","))
        if (
            others
            and last == b"chunked"
            and all(_WHOLE_TOKEN.fullmatch(c) and c not in (b"chunked", b"identity") for c in others)
        ):
            fields.refusal = RequestError(501, "this transfer coding is not supported")
        else:
            raise RequestError(400, "the Transfer-Encoding field is malformed")
    fields.chunked = True


def _interpret_connection(fields: Fields, value: bytes) -> None:
    options = _known_options if len(value) <= _LONGEST_KEPT else _known_options.__wrapped__
    fields._options |= options(value)  # noqa: SLF001 - a part of this class


def _interpret_expect(fields: Fields, value: bytes) -> None:
    if value.lower() != b"100-continue":
        fields.refusal = fields.refusal or RequestError(417, "only 100-continue can be expected")
    # RFC 9110 10.1.1: an expectation in an HTTP/1.0 request is ignored.
    fields.expect_continue = fields.version == "1.1"


def _interpret_upgrade(fields: Fields, value: bytes) -> None:
    fields.upgrade = value.lower()


def _interpret_forwarded(fields: Fields, value: bytes) -> None:
    fields.forwarded = True


def _interpret_nothing(fields: Fields, value: bytes) -> None:
    """Do nothing, for a field that may only not be repeated."""


_MEANINGS: dict[bytes, Callable[[Fields, bytes], None]] = {
    b"host": _interpret_host,
    b"content-length": _interpret_content_length,
    b"content-type": _interpret_nothing,
    b"transfer-encoding": _interpret_transfer_encoding,
    b"connection": _interpret_connection,
    b"expect": _interpret_expect,
    b"upgrade": _interpret_upgrade,
    b"x-forwarded-for": _interpret_forwarded,
    b"x-forwarded-proto": _interpret_forwarded,
}
