"""The field section of a request: its lines and their meaning (RFC 9110, RFC 9112). Pure.

Whether a line is valid depends on the line alone, as folded lines are refused, and clients send the same lines again and again.
So a line is checked and split once and then kept; only lines not seen before are given to a parser. The meaning of the lines
together is computed for every section.
"""

import re
from collections.abc import Callable
from functools import lru_cache

from forkserve.http.message.errors import RequestError

Headers = list[tuple[bytes, bytes]]
ParseLines = Callable[[list[bytes]], Headers]
"""A parser: splits valid header lines, in order, names in lower case; raises ``ValueError`` if it refuses a line."""

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
# Possessive quantifiers: there is no backtracking, so the time is linear for any input.
_FIELD = re.compile(TOKEN + rb"++:[\t\x20-\x7e\x80-\xff]*+")
_WHOLE_TOKEN = re.compile(TOKEN + rb"++")
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|(?:[A-Za-z0-9\-._~!$&()*+;=]|%[0-9A-Fa-f]{2})*+)(?::([0-9]{0,5}))?")
_DIGITS = re.compile(rb"[0-9]{1,19}")

# A second one of these changes the meaning of the message, or of the application's reading of it.
_ONLY_ONCE = frozenset((b"host", b"content-length", b"transfer-encoding", b"content-type"))
# The options of a Connection field that have a meaning here; there may be thousands of others.
_OPTIONS = re.compile(rb"(?:^|,)[\t ]*+(close|keep-alive|upgrade)[\t ]*+(?=,|$)")
_SECRET = frozenset((b"authorization", b"cookie", b"proxy-authorization"))
# PEP 3333 and RFC 3875: two names have no prefix. Two names never get into an environ: libraries would take HTTP_PROXY for a
# setting, and the transfer coding is removed before the application reads the body.
_CGI_NAMES = {b"content-type": "CONTENT_TYPE", b"content-length": "CONTENT_LENGTH", b"proxy": "", b"transfer-encoding": ""}


class Line:
    """A header line, split into name and value. Shared by all requests that have it; never changed.

    Attributes:
        pair: The name in lower case, and the value.
        interpret: Applies the field to `Fields`; None if the field has a meaning for the application only.
        key: The name in an environ (PEP 3333); empty if the field does not belong there.
        text: The value in an environ.
    """

    __slots__ = ("interpret", "key", "pair", "text")

    def __init__(self, name: bytes, value: bytes) -> None:
        self.pair = (name, value)
        self.interpret, self.key = _NAMES.get(name) or _read_name(name)
        self.text = value.decode("latin-1")


Interpret = Callable[["Fields", bytes], None]

_NAMES: dict[bytes, tuple[Interpret | None, str]] = {}
"""By name: the attributes of `Line` that depend on the name alone, as values change more often."""
_NAMES_KEPT = 1024


def _read_name(name: bytes) -> tuple[Interpret | None, str]:
    interpret = _drop if b"_" in name else _MEANINGS.get(name)
    key = _CGI_NAMES.get(name, "HTTP_" + name.decode("ascii").upper().replace("-", "_"))
    if len(_NAMES) < _NAMES_KEPT and len(name) <= _LONGEST_KEPT:
        _NAMES[name] = interpret, key
    return interpret, key


_LINES: dict[bytes, Line] = {}
_LINES_KEPT = 2048
_LONGEST_KEPT = 256


class LineReader:
    """Splits the header lines of one connection.

    Lines are kept for all connections. A line with a secret is kept only until the connection sends its next section.

    Args:
        parse: Reads lines that are not known yet.
    """

    __slots__ = ("_parse", "_secrets")

    def __init__(self, parse: ParseLines) -> None:
        self._parse = parse
        self._secrets: dict[bytes, Line] = {}

    def read(self, section: bytes) -> list[Line]:
        """Return the lines of a field section; ``section`` has no line end behind its last line.

        Raises:
            RequestError: 400, a line is malformed.
        """
        if not section:
            return []
        lines = section.split(b"\r\n")
        read = list(map(_LINES.get, lines))
        if not all(read):
            self._read_fresh(lines, read)
        return read  # type: ignore[return-value]  # no None is left

    def _read_fresh(self, lines: list[bytes], read: list[Line | None]) -> None:
        secrets, self._secrets = self._secrets, {}
        fresh: list[int] = []
        for at, known in enumerate(read):
            if known is None:
                raw = lines[at]
                if raw in secrets:
                    read[at] = self._secrets[raw] = secrets[raw]
                elif _FIELD.fullmatch(raw) is None:
                    raise RequestError(400, "a header field is malformed")
                else:
                    fresh.append(at)
        if not fresh:
            return
        try:
            for at, (name, value) in zip(fresh, self._parse([lines[at] for at in fresh]), strict=True):
                read[at] = line = Line(name, value)
                if name in _SECRET:
                    self._secrets[lines[at]] = line
                elif len(lines[at]) <= _LONGEST_KEPT:
                    if len(_LINES) >= _LINES_KEPT:
                        _LINES.clear()
                    _LINES[lines[at]] = line
        except (ValueError, RuntimeError) as error:  # RuntimeError: the parser made fewer lines of them
            raise RequestError(400, "a header field is malformed") from error


class Fields:
    """The field section of a request and its meaning. Shared by requests that repeat it; never changed.

    Names that contain an underscore are dropped: a CGI-style environ cannot tell ``x_user`` from ``x-user``, and a proxy that
    removes one does not remove the other.

    Args:
        version: The HTTP version, ``1.0`` or ``1.1``.
        lines: The header lines.

    Raises:
        RequestError: 400, the section is ambiguous: two servers could read it in two ways.

    Attributes:
        refusal: Why a valid request cannot be served: 417 or 501. It is raised last, so that 400 has precedence.
    """

    __slots__ = (
        "chunked", "connection", "content_length", "expect_continue", "forwarded", "has_body", "headers", "host", "keep_alive",
        "lines", "refusal", "upgrade", "version",
    )  # fmt: skip

    def __init__(self, version: str, lines: list[Line]) -> None:
        self.version = version
        self.lines = lines
        self.host: bytes | None = None
        self.content_length: int | None = None
        self.chunked = False
        self.expect_continue = False
        self.forwarded = False
        self.upgrade = b""
        self.refusal: RequestError | None = None
        self.connection: frozenset[bytes] = frozenset()
        seen: set[bytes] = set()
        for line in lines:
            interpret = line.interpret
            if interpret is not None:
                name, value = line.pair
                if name in _ONLY_ONCE:
                    if name in seen:
                        raise RequestError(400, f"more than one {name.decode()} field")
                    seen.add(name)
                interpret(self, value)
        self.headers: Headers = [line.pair for line in self.lines]
        # An Upgrade that is not taken changes nothing (RFC 9110 7.8): its client sends the other protocol only after a 101.
        self.keep_alive = b"close" not in self.connection and (version == "1.1" or b"keep-alive" in self.connection)
        if self.host is None and version == "1.1":
            raise RequestError(400, "an HTTP/1.1 request needs a Host field")
        if self.chunked and self.content_length is not None:
            raise RequestError(400, "both Content-Length and Transfer-Encoding")
        self.has_body = self.chunked or bool(self.content_length)  # bytes of it follow the head

    def with_authority(self, authority: bytes) -> "Fields":
        """Return the fields with the authority of an absolute target in place of the Host field (RFC 9112 3.2.2).

        Raises:
            RequestError: 400, the authority is malformed, or it names another host than the Host field: a proxy in front of this
                server would believe one of the two, and it is unknown which.
        """
        if not valid_host(authority) or not authority.partition(b":")[0]:
            raise RequestError(400, "the request target is malformed")
        if self.host is not None and _without_port(self.host) != _without_port(authority):
            raise RequestError(400, "the request target and the Host field name different hosts")
        return Fields(self.version, [Line(b"host", authority), *(line for line in self.lines if line.pair[0] != b"host")])


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
def _options(value: bytes) -> frozenset[bytes]:
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
    fields.connection |= (_options if len(value) <= _LONGEST_KEPT else _options.__wrapped__)(value)


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


def _drop(fields: Fields, value: bytes) -> None:
    fields.lines = [line for line in fields.lines if b"_" not in line.pair[0]]


_MEANINGS = {
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
