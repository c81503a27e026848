"""HTTP/1 request heads: where one ends and what it means (RFC 9112, RFC 9110).

Pure: bytes in, values out. Policy is judged here, on the raw bytes, before a parser sees them, because parsers differ
(llhttp lets through what h11 refuses and the other way round) and because both must get the same answer. A parser
then only takes apart what has already been found sound; should it refuse after all, the answer is 400.

Two things repeat so often that they are kept: a connection keeps its last head, for clients mostly send the same fields again
(`HeadReader`), and the process keeps the request lines seen last (`TARGETS`).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from forkserve.http.errors import RequestError

Headers = list[tuple[bytes, bytes]]

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_TOKEN = re.compile(TOKEN + rb"++")
# Possessive quantifiers: nothing to go back to, so the time is linear whatever is sent.
_FIELDS = re.compile(rb"(?:" + TOKEN + rb"++:[\t\x20-\x7e\x80-\xff]*+\r\n)*+\r\n")
_TARGET = re.compile(rb"[\x21\x22\x24-\x7e]++")  # visible ASCII without "#"
_ABSOLUTE = re.compile(rb"(https?|wss?)://([^/?]*)(/[^?]*)?(\?.*)?", re.IGNORECASE)
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|(?:[A-Za-z0-9\-._~]|%[0-9A-Fa-f]{2})*+)(?::([0-9]{0,5}))?")
_BARE = re.compile(rb"(?<!\r)\n|\r(?!\n)")
_DIGITS = re.compile(rb"[0-9]{1,19}")

VERSIONS = {b"HTTP/1.1": "1.1", b"HTTP/1.0": "1.0"}
LONGEST_METHOD = 32
# What llhttp knows. Both parsers answer 501 to anything else, so that an application never depends on which one is installed.
METHODS = frozenset(
    b"GET HEAD POST PUT DELETE OPTIONS TRACE PATCH COPY LOCK MKCOL MOVE PROPFIND PROPPATCH SEARCH UNLOCK BIND REBIND "
    b"UNBIND ACL REPORT MKACTIVITY CHECKOUT "
    b"MERGE M-SEARCH NOTIFY SUBSCRIBE UNSUBSCRIBE PURGE MKCALENDAR LINK UNLINK QUERY".split()
)
# A second one of these changes the meaning of the message, or of the application's reading of it.
_ONLY_ONCE = frozenset((b"host", b"content-length", b"transfer-encoding", b"content-type"))


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of a request is accepted; sizes in bytes. ``field`` 0 means that only ``head`` bounds a field."""

    line: int
    fields: int
    head: int
    body: int
    field: int = 0


class Target:
    """A request line taken apart: method and where to. Shared by all requests with the same line; never changed.

    ``path`` is percent-decoded bytes; ``query`` excludes the question mark; ``authority`` is set for the absolute form only.
    ``environ`` and ``scope`` are what the request line contributes to a WSGI environ and to an ASGI scope.
    """

    __slots__ = ("authority", "environ", "line", "method", "path", "query", "raw_path", "scope")

    def __init__(self, method: bytes, raw: bytes, path_and_query: bytes, authority: bytes | None) -> None:
        self.method = method.decode("ascii")
        self.line = method + b" " + raw
        self.authority = authority
        self.raw_path, _, self.query = path_and_query.partition(b"?")
        self.path = unquote_to_bytes(self.raw_path) if b"%" in self.raw_path else self.raw_path
        uri = raw.decode("ascii")
        # PEP 3333: environ strings are bytes decoded as latin-1.
        self.environ = {
            "REQUEST_METHOD": self.method,
            "PATH_INFO": self.path.decode("latin-1"),
            "QUERY_STRING": self.query.decode("ascii"),
            "REQUEST_URI": uri,
            "RAW_URI": uri,
        }
        # ASGI: the path is text, decoded as UTF-8.
        self.scope = {
            "method": self.method,
            "path": self.path.decode("utf-8", "replace"),
            "raw_path": self.raw_path,
            "query_string": self.query,
        }


class Fields:
    """The field section of a request and what follows from it. Shared by requests that repeat it; never changed.

    ``headers`` has lower-case names in the order received, without names that hold an underscore: a CGI-style environ cannot tell
    ``x_user`` from ``x-user``, and a proxy that guards one does not guard the other.
    """

    __slots__ = (
        "chunked", "connection", "content_length", "expect_continue", "forwarded", "headers", "host", "keep_alive", "upgrade",
        "version",
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
        self.connection: frozenset[bytes] = frozenset()
        self.keep_alive = False

    @property
    def has_body(self) -> bool:
        """Whether bytes of a body follow the head."""
        return self.chunked or bool(self.content_length)


ParseHeaders = Callable[[bytes], Headers]
"""A parser: takes a whole, sound head apart into fields, names in lower case; raises ``ValueError`` if it disagrees."""

TARGETS: dict[bytes, Target] = {}
_TARGETS_KEPT = 1024
_LONGEST_KEPT = 256
_NAMES_KEPT = 1024


class HeadReader:
    """Reads the heads of one connection: finds the end of each, judges it, and remembers the last one.

    Args:
        limits: What is accepted.
        parse: Takes the field section apart.
    """

    __slots__ = ("_fields", "_limits", "_lines", "_parse", "_scanned", "_tail", "buffer")

    def __init__(self, limits: Limits, parse: ParseHeaders) -> None:
        self._limits = limits
        self._parse = parse
        self._tail = b""
        self._fields: Fields | None = None
        self.buffer = bytearray()  # part of a head that waits for its end
        self._scanned = 0
        self._lines = 0

    def feed(self, data: bytes) -> tuple[bytes | None, bytes]:
        """Take bytes of a head that comes in pieces; gives the whole head, or None, and what came behind it.

        Every byte is looked at once, however small the pieces are, and a head is refused as soon as it is too large
        or holds a bare CR or LF, not when (or if) its end comes.

        Raises:
            RequestError: 400, 414 or 431.
        """
        buffer = self.buffer
        buffer += data
        end = buffer.find(b"\r\n\r\n", max(0, self._scanned - 3))
        if end >= 0:
            head, rest = bytes(buffer[: end + 4]), bytes(buffer[end + 4 :])
            buffer.clear()
            self._scanned = self._lines = 0
            return head, rest
        limits, start = self._limits, max(0, self._scanned - 1)
        self._lines += buffer.count(b"\n", self._scanned)
        self._scanned = len(buffer)
        # A CR at the very end may yet get its LF.
        if _BARE.search(buffer, start, len(buffer) - 1 if buffer.endswith(b"\r") else len(buffer)):
            raise RequestError(400, "a line does not end in CR LF")
        leading = buffer.startswith(b"\r\n")
        if self._lines > leading + 1 + limits.fields:
            raise RequestError(431, "too many header fields")
        if self._lines <= leading and len(buffer) > limits.line + 2 * leading:
            raise RequestError(414, "the request line is too long")
        if len(buffer) > limits.head:
            raise RequestError(431, "the request head is too large")
        return None, b""

    def read(self, head: bytes) -> tuple[Target, Fields]:
        """What a whole head, with its empty line, means.

        Raises:
            RequestError: It is not sound, or it is larger than the limits allow, or it asks for what we do not do.
        """
        line_end = head.find(b"\r\n")
        # From the version on: what a client that repeats itself sends again to the letter.
        tail = head[line_end - 8 :]
        if tail == self._tail and (target := TARGETS.get(head[: line_end - 8])) is not None and self._fields is not None:
            return target, self._fields
        if line_end == 0:  # RFC 9112 2.2: one empty line before the request line is skipped
            head = head[2:]
            line_end = head.find(b"\r\n")
            tail = head[line_end - 8 :]
            if line_end <= 0:
                raise RequestError(400, "more than one empty line before the request line")
        if line_end > self._limits.line:
            raise RequestError(414, "the request line is too long")
        version = VERSIONS.get(tail[:8])
        start = head[: line_end - 8]
        target = TARGETS.get(start)
        if version is None or target is None:
            version, target = _read_request_line(head[:line_end])
        if tail == self._tail and self._fields is not None and target.authority is None:
            return target, self._fields
        self._judge_fields(head, line_end)
        try:
            headers = self._parse(head)
        except ValueError as error:
            raise RequestError(400, "the request head is malformed") from error
        fields = understand(version, headers)
        if target.authority is not None:
            _take_authority(target.authority, fields)
            self._fields = None
        else:
            self._tail, self._fields = tail, fields
        return target, fields

    def _judge_fields(self, head: bytes, line_end: int) -> None:
        limits = self._limits
        if len(head) > limits.head:
            raise RequestError(431, "the request head is too large")
        if head.count(b"\n") - 2 > limits.fields:
            raise RequestError(431, "too many header fields")
        if limits.field and max(map(len, head[line_end:].split(b"\r\n"))) > limits.field:
            raise RequestError(431, "a header field is too large")
        if _FIELDS.fullmatch(head, line_end + 2) is None:
            raise RequestError(400, "a header field is malformed")


def _read_request_line(line: bytes) -> tuple[str, Target]:
    if _BARE.search(line):
        raise RequestError(400, "a line does not end in CR LF")
    parts = line.split(b" ")
    version = VERSIONS.get(parts[-1])
    if len(parts) != 3 or version is None:
        if len(parts) == 3 and parts[2].startswith(b"HTTP/"):
            raise RequestError(505, "only HTTP/1.0 and HTTP/1.1 are spoken here")
        raise RequestError(400, "the request line is not METHOD TARGET VERSION")
    return version, read_target(line[:-8])


def read_target(start: bytes) -> Target:
    """Take apart ``METHOD TARGET`` and the blank behind them (RFC 9112 section 3).

    Raises:
        RequestError: 400 if a part is malformed or the form of the target does not fit the method, 501 for methods not spoken.
    """
    method, _, raw = start[:-1].partition(b" ")
    if len(method) > LONGEST_METHOD or _TOKEN.fullmatch(method) is None:
        raise RequestError(400, "the method is malformed")
    if _TARGET.fullmatch(raw) is None:
        raise RequestError(400, "the request target is malformed")
    if method == b"CONNECT":
        raise RequestError(501, "this server is no proxy: CONNECT is not supported")
    authority = None
    path = raw
    if raw == b"*":
        if method != b"OPTIONS":
            raise RequestError(400, "the target * goes with OPTIONS only")
    elif not raw.startswith(b"/"):
        form = _ABSOLUTE.fullmatch(raw)
        if form is None or not form[2]:
            raise RequestError(400, "the request target is malformed")
        authority = form[2]
        path = (form[3] or b"/") + (form[4] or b"")
    if method not in METHODS:
        raise RequestError(501, "this method is not supported")
    target = Target(method, raw, path, authority)
    if len(start) <= _LONGEST_KEPT:
        if len(TARGETS) >= _TARGETS_KEPT:
            TARGETS.clear()
        TARGETS[start] = target
    return target


def understand(version: str, headers: Headers) -> Fields:
    """What a field section means: who is asked, how the body is framed, whether the connection stays (RFC 9110, RFC 9112).

    Raises:
        RequestError: 400, 417 or 501, on anything that two readers could read in two ways.
    """
    fields = Fields(version, headers)
    seen: set[bytes] = set()
    for name, value in headers:
        heed = _MEANING[name]
        if heed is not None:
            if name in _ONLY_ONCE:
                if name in seen:
                    raise RequestError(400, f"more than one {name.decode()} field")
                seen.add(name)
            heed(fields, value)
    # An Upgrade that is not taken: what follows may already be of the other protocol, so it is never read as a request.
    fields.keep_alive = (
        not fields.upgrade and b"close" not in fields.connection and (version == "1.1" or b"keep-alive" in fields.connection)
    )
    if fields.host is None and version == "1.1":
        raise RequestError(400, "an HTTP/1.1 request needs a Host field")
    if fields.chunked and fields.content_length is not None:
        raise RequestError(400, "both Content-Length and Transfer-Encoding")
    return fields


def valid_host(value: bytes) -> bool:
    """Whether a Host value is ``host[:port]`` or empty (RFC 9112 3.2, RFC 3986 3.2.2, without sub-delims, which no name has)."""
    match = _HOST.fullmatch(value)
    return match is not None and (not match[1] or int(match[1]) <= 65535)


def _host(fields: Fields, value: bytes) -> None:
    if not valid_host(value):
        raise RequestError(400, "the Host field is malformed")
    fields.host = value


def _content_length(fields: Fields, value: bytes) -> None:
    if _DIGITS.fullmatch(value) is None:
        raise RequestError(400, "the Content-Length field is malformed")
    fields.content_length = int(value)


def _transfer_encoding(fields: Fields, value: bytes) -> None:
    if fields.version == "1.0":
        raise RequestError(400, "Transfer-Encoding in an HTTP/1.0 request")
    if value.lower() != b"chunked":
        *others, last = (coding.strip(b" \t").lower() for coding in value.split(b","))
        if others and last == b"chunked" and all(_TOKEN.fullmatch(c) and c not in (b"chunked", b"identity") for c in others):
            raise RequestError(501, "this transfer coding is not supported")
        raise RequestError(400, "the Transfer-Encoding field is malformed")
    fields.chunked = True


def _connection(fields: Fields, value: bytes) -> None:
    fields.connection |= {option.strip(b" \t") for option in value.lower().split(b",")}


def _expect(fields: Fields, value: bytes) -> None:
    if value.lower() != b"100-continue":
        raise RequestError(417, "only 100-continue can be expected")
    # RFC 9110 10.1.1: an expectation in an HTTP/1.0 request is ignored.
    fields.expect_continue = fields.version == "1.1"


def _upgrade(fields: Fields, value: bytes) -> None:
    fields.upgrade = value.lower()


def _forwarded(fields: Fields, value: bytes) -> None:
    fields.forwarded = True


def _drop(fields: Fields, value: bytes) -> None:
    fields.headers = [pair for pair in fields.headers if b"_" not in pair[0]]


class _Meanings(dict[bytes, Callable[[Fields, bytes], None] | None]):
    """Field name to what it means to us. Names seen are kept, so that each costs one look-up."""

    def __missing__(self, name: bytes) -> Callable[[Fields, bytes], None] | None:
        heed = _drop if b"_" in name else None
        if len(self) < _NAMES_KEPT:
            self[name] = heed
        return heed


_MEANING = _Meanings(
    {
        b"host": _host,
        b"content-length": _content_length,
        b"content-type": lambda fields, value: None,  # named for being there only once
        b"transfer-encoding": _transfer_encoding,
        b"connection": _connection,
        b"expect": _expect,
        b"upgrade": _upgrade,
        b"x-forwarded-for": _forwarded,
        b"x-forwarded-proto": _forwarded,
    }
)


def _take_authority(authority: bytes, fields: Fields) -> None:
    """RFC 9112 3.2.2: the authority of an absolute target stands for the Host field; two different ones are refused."""
    if not valid_host(authority) or authority.startswith(b":"):
        raise RequestError(400, "the request target is malformed")
    if fields.host is not None and _origin(fields.host) != _origin(authority):
        raise RequestError(400, "the request target and the Host field name different hosts")
    fields.host = authority
    fields.headers = [pair for pair in fields.headers if pair[0] != b"host"] + [(b"host", authority)]


def _origin(host: bytes) -> bytes:
    return host.lower().removesuffix(b":80").removesuffix(b":443").removesuffix(b":")
